//! The baseline of the transport: a bare echo on tokio, in a process of its own as the daemon is.
//!
//! It gives back what it is sent, line by line, with one write for each read: what a server does that has nothing to do. It runs on
//! tokio's default runtime, as the daemon does. Its answers are as long as the requests, and so shorter than the daemon's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;

const ARGUMENT: &str = "--echo";

/// A running echo. It ends with this value.
#[derive(Debug)]
pub(crate) struct Echo {
    process: Child,
    path: PathBuf,
}

/// The path to echo on, when this process was started to do that.
pub(crate) fn asked_for(arguments: &[String]) -> Option<&Path> {
    let at = arguments.iter().position(|argument| argument == ARGUMENT)?;
    arguments.get(at + 1).map(Path::new)
}

/// Echoes until the process is ended.
pub(crate) fn serve(path: &Path) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let (listener, tracker) = (UnixListener::bind(path)?, TaskTracker::new());
        loop {
            let (stream, _) = listener.accept().await?;
            tracker.spawn(echo(stream));
        }
    })
}

async fn echo(mut stream: UnixStream) -> std::io::Result<()> {
    let (mut input, mut filled, mut output) = (vec![0; 64 * 1024], 0, Vec::new());
    loop {
        let count = stream.read(input.get_mut(filled..).unwrap_or_default()).await?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let received = input.get(..filled).unwrap_or_default();
        for line in received.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            output.extend_from_slice(line);
        }
        stream.write_all(&output).await?;
        input.copy_within(output.len()..filled, 0);
        filled -= output.len();
        output.clear();
    }
}

impl Echo {
    /// Starts this program again, as an echo.
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join("echo.sock");
        let process = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .arg(&path)
            .stdin(Stdio::null())
            .spawn()
            .context("the echo")?;
        let echo = Self { process, path };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&echo.path).is_err() {
            if begun.elapsed() > Duration::from_secs(10) {
                bail!("the echo does not listen");
            }
            std::thread::yield_now();
        }
        Ok(echo)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It is gone already when this fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
