//! The baseline of the transport: a bare echo on tokio, in a process of its own as the daemon is.
//!
//! It gives back each line that it is sent, and runs on tokio's default runtime, as the daemon does. Its answers are as long as the
//! requests, and so shorter than the daemon's. It answers in two manners, which differ only where several requests are in flight:
//!
//! - *by message*: it reads a line and writes it, each with a write of its own, as a server does that treats messages one by one;
//! - *by read*: it answers all the lines of one read with one write. Then a message costs it little more than a search for the
//!   newline: no server that looks at what it is asked comes near, so this says where the ceiling is.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::TaskTracker;

const ARGUMENT: &str = "--echo";
const BY_MESSAGE: &str = "echo-by-message.sock";
const BY_READ: &str = "echo-by-read.sock";

/// A running echo. It ends with this value.
#[derive(Debug)]
pub(crate) struct Echo {
    process: Child,
    /// Where it answers by message.
    pub(crate) by_message: PathBuf,
    /// Where it answers by read.
    pub(crate) by_read: PathBuf,
}

/// The directory to echo in, when this process was started to do that.
pub(crate) fn asked_for(arguments: &[String]) -> Option<&Path> {
    let at = arguments.iter().position(|argument| argument == ARGUMENT)?;
    arguments.get(at + 1).map(Path::new)
}

/// Echoes until the process is ended.
pub(crate) fn serve(directory: &Path) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let tracker = TaskTracker::new();
        let by_message = UnixListener::bind(directory.join(BY_MESSAGE))?;
        let by_read = UnixListener::bind(directory.join(BY_READ))?;
        loop {
            tokio::select! {
                accepted = by_message.accept() => drop(tracker.spawn(echo_messages(accepted?.0))),
                accepted = by_read.accept() => drop(tracker.spawn(echo_reads(accepted?.0))),
            }
        }
    })
}

async fn echo_messages(stream: UnixStream) -> std::io::Result<()> {
    let (mut stream, mut line) = (BufReader::with_capacity(64 * 1024, stream), Vec::new());
    while stream.read_until(b'\n', &mut line).await? > 0 {
        stream.write_all(&line).await?;
        line.clear();
    }
    Ok(())
}

async fn echo_reads(mut stream: UnixStream) -> std::io::Result<()> {
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
        let process = Command::new(std::env::current_exe()?)
            .arg(ARGUMENT)
            .arg(directory)
            .stdin(Stdio::null())
            .spawn()
            .context("the echo")?;
        let echo = Self { process, by_message: directory.join(BY_MESSAGE), by_read: directory.join(BY_READ) };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&echo.by_read).is_err() {
            if begun.elapsed() > Duration::from_secs(10) {
                bail!("the echo does not listen");
            }
            std::thread::yield_now();
        }
        Ok(echo)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It is gone already when this fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
