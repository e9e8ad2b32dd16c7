//! Load from many connections, each with several requests in flight.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

/// How much at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) connections: u32,
    /// Requests in flight on each connection.
    pub(crate) depth: usize,
    /// How long it is kept up.
    pub(crate) length: Duration,
}

/// Runs the connections.
#[derive(Debug)]
pub(crate) struct Load(Runtime);

impl Load {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(tokio::runtime::Builder::new_multi_thread().enable_all().build()?))
    }

    /// Answers in a second. For each answer that has come another request goes out, all that came together in one write.
    pub(crate) fn rate(&self, path: &Path, line: &[u8], shape: Shape) -> anyhow::Result<f64> {
        self.0.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..shape.connections {
                streams.push(UnixStream::connect(path).await?);
            }
            let window = line.repeat(shape.depth);
            let begun = Instant::now();
            let tracker = TaskTracker::new();
            let keeping: Vec<_> = streams
                .into_iter()
                .map(|stream| tracker.spawn(keep_up(stream, window.clone(), shape, begun)))
                .collect();
            let mut answers = 0.0;
            for kept in keeping {
                answers += f64::from(kept.await??);
            }
            Ok(answers / begun.elapsed().as_secs_f64())
        })
    }
}

/// Says how many answers came; all were waited for.
async fn keep_up(
    mut stream: UnixStream,
    window: Vec<u8>,
    shape: Shape,
    begun: Instant,
) -> std::io::Result<u32> {
    let (line, mut buffer) = (window.len() / shape.depth.max(1), vec![0; 64 * 1024]);
    let (mut in_flight, mut answers) = (shape.depth, 0);
    stream.write_all(&window).await?;
    while in_flight > 0 {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let received = buffer.get(..count).unwrap_or_default();
        let lines = received.iter().filter(|byte| **byte == b'\n').count();
        answers += u32::try_from(lines).unwrap_or(u32::MAX);
        if begun.elapsed() < shape.length {
            stream.write_all(window.get(..lines * line).unwrap_or_default()).await?;
        } else {
            in_flight -= lines;
        }
    }
    Ok(answers)
}
