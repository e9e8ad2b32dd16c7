//! The answers of a connection that are not written yet.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// What is kept allocated for the next answer.
const KEPT: usize = 1024;
/// An answer of this size is taken as it is instead of copied.
const LARGE: usize = 64 * 1024;

/// Lines, of which some bytes may have been written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    /// Adds one line; the newline is added here.
    pub(super) fn push(&mut self, line: String) {
        if self.bytes.is_empty() && line.len() >= LARGE {
            self.bytes = line.into_bytes();
        } else {
            if self.written >= LARGE {
                self.bytes.drain(..self.written);
                self.written = 0;
            }
            self.bytes.extend_from_slice(line.as_bytes());
        }
        self.bytes.push(b'\n');
    }

    /// How many bytes are unwritten.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Whether all is written.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes once, as much as there is room for; ready with how many bytes that was. Only right when there is something.
    ///
    /// # Errors
    /// The other side is gone.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
    ) -> Poll<io::Result<usize>> {
        let rest = self.bytes.get(self.written..).unwrap_or_default();
        let count = ready!(Pin::new(to).poll_write(cx, rest))?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += count;
        if self.is_empty() {
            self.written = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT {
                self.bytes = Vec::new();
            }
        }
        Poll::Ready(Ok(count))
    }
}
