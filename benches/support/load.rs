//! Load from many connections, each with several requests in flight.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

/// How much at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Connections in all.
    pub(crate) connections: u32,
    /// Requests in flight on each connection.
    pub(crate) depth: usize,
    /// How long it is kept up.
    pub(crate) length: Duration,
}

/// What came of a load.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answers {
    /// How many there were.
    pub(crate) count: u32,
    /// How long it took until the last one was there, in seconds.
    pub(crate) seconds: f64,
}

impl Answers {
    /// In a second.
    pub(crate) fn rate(self) -> f64 {
        f64::from(self.count) / self.seconds
    }
}

/// Requests, a line each, that are sent one after another, and then anew.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    bytes: Vec<u8>,
    /// Where each begins, and where the last one ends.
    bounds: Vec<usize>,
    /// How many newlines an answer has.
    newlines: usize,
}

impl Lines {
    /// At least as many as are sent at once; an answer has so many newlines.
    pub(crate) fn new(lines: impl IntoIterator<Item = Vec<u8>>, newlines: usize) -> Self {
        let (mut bytes, mut bounds) = (Vec::new(), vec![0]);
        for line in lines {
            bytes.extend_from_slice(&line);
            bounds.push(bytes.len());
        }
        Self { bytes, bounds, newlines }
    }

    fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// So many from `next` on, which is moved behind them.
    fn take(&self, next: &mut usize, count: usize) -> &[u8] {
        if *next + count > self.len() {
            *next = 0;
        }
        let bound = |at: usize| self.bounds.get(at).copied().unwrap_or(self.bytes.len());
        let range = bound(*next)..bound(*next + count);
        *next += count;
        self.bytes.get(range).unwrap_or_default()
    }
}

/// Runs the connections.
#[derive(Debug)]
pub(crate) struct Load(Runtime);

impl Load {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(tokio::runtime::Builder::new_multi_thread().enable_all().build()?))
    }

    /// Keeps up the load on these sockets, the connections dealt out to them in turn. For each answer that has come another request
    /// goes out, all that came together in one write.
    pub(crate) fn run(&self, sockets: &[&Path], lines: &Lines, shape: Shape) -> anyhow::Result<Answers> {
        self.0.block_on(async {
            let mut streams = Vec::new();
            for (path, _) in sockets.iter().cycle().zip(0..shape.connections) {
                streams.push(UnixStream::connect(path).await?);
            }
            let lines = Arc::new(lines.clone());
            let begun = Instant::now();
            let tracker = TaskTracker::new();
            let apart = lines.len() / streams.len().max(1);
            let keeping: Vec<_> = streams
                .into_iter()
                .enumerate()
                .map(|(number, stream)| {
                    tracker.spawn(keep_up(stream, lines.clone(), number * apart, shape, begun))
                })
                .collect();
            let mut count = 0;
            for kept in keeping {
                count += kept.await??;
            }
            Ok(Answers { count, seconds: begun.elapsed().as_secs_f64() })
        })
    }
}

/// Says how many answers came; all were waited for.
async fn keep_up(
    mut stream: UnixStream,
    lines: Arc<Lines>,
    mut next: usize,
    shape: Shape,
    begun: Instant,
) -> std::io::Result<u32> {
    let mut buffer = vec![0; 64 * 1024];
    let (mut in_flight, mut answers, mut newlines) = (shape.depth, 0, 0);
    stream.write_all(lines.take(&mut next, shape.depth)).await?;
    while in_flight > 0 {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let received = buffer.get(..count).unwrap_or_default();
        newlines += received.iter().filter(|byte| **byte == b'\n').count();
        let came = newlines / lines.newlines;
        newlines %= lines.newlines;
        answers += u32::try_from(came).unwrap_or(u32::MAX);
        if begun.elapsed() < shape.length {
            stream.write_all(lines.take(&mut next, came)).await?;
        } else {
            in_flight -= came;
        }
    }
    Ok(answers)
}
