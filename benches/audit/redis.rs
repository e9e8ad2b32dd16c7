//! Redis as a log that is as durable: a stream in an append-only file that reaches the disk before each answer.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::entries::entry;
use crate::support::load::Lines;

/// A private server on a Unix socket. It ends with this value.
#[derive(Debug)]
pub(crate) struct Redis {
    process: Child,
    /// Where it listens.
    pub(crate) socket: PathBuf,
}

impl Redis {
    /// Starts one, where it is installed.
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Option<Self>> {
        let socket = directory.join("redis.sock");
        let process = Command::new("redis-server")
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--unixsocket",
            ])
            .arg(&socket)
            .arg("--dir")
            .arg(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = match process {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            process => process?,
        };
        let redis = Self { process, socket };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&redis.socket).is_err() {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(10), "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(redis))
    }

    /// One `XADD` of the same bytes for each entry; its answer is the new id, behind its length.
    pub(crate) fn additions() -> Lines {
        let addition = |number: u32| {
            let entry = entry(number).to_string();
            format!("*5\r\n$4\r\nXADD\r\n$3\r\nlog\r\n$1\r\n*\r\n$1\r\ne\r\n${}\r\n{entry}\r\n", entry.len())
                .into_bytes()
        };
        Lines::new((0..4096).map(addition), 2)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It is gone already when this fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
