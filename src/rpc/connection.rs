//! One connection, from its first byte, which says how it is framed, to its end.
//!
//! Owns the choice of the framing and the way of closing; never what a call does. One task serves one connection; an idle one holds no buffer.

use std::io;
use std::os::fd::AsRawFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::context::{Context, Dispatch};
use super::http;
use super::peer::Peer;
use plain::{Connection, Ended};
use scratch::Scratch;

mod plain;
mod running;
mod scratch;
mod stall;

/// How much a connection may hold before it counts against `limits.buffered_bytes`.
pub(super) const UNCOUNTED: usize = 64 * 1024;
/// How long a client may take to see the last answer and end its side, before the connection is closed under what it still sends.
const LINGER: Duration = Duration::from_secs(1);

/// How long whoever has connected may take to send something, when the daemon drains meanwhile: who was accepted just before is not to hear
/// that nobody is there, where the next daemon would have answered.
const FIRST_BYTE: Duration = Duration::from_millis(250);

/// Serves a connection to its end, in whichever framing it begins.
pub(super) async fn serve<D: Dispatch>(stream: UnixStream, context: Arc<Context<D>>) {
    // A peer that the kernel does not name is nobody: it gets no answer.
    let Ok(peer) = Peer::of(&stream) else { return };
    let peer = Arc::new(peer);
    match first_byte(&stream, &context).await {
        Ok(Some(b'A'..=b'Z')) => Box::pin(http::serve(stream, context, peer, http::Scope::Everything)).await,
        Ok(Some(_)) => {
            let mut connection = Connection::new(stream, context.clone(), peer);
            let ended = std::future::poll_fn(|cx| connection.poll(cx)).await;
            let stream = connection.into_stream();
            if ended == Ended::OverUnread {
                linger(stream, &context).await;
            }
        }
        Ok(None) | Err(_) => {}
    }
}

/// Looks at the first byte and leaves it where it is; none if none comes.
async fn first_byte<D>(stream: &UnixStream, context: &Context<D>) -> io::Result<Option<u8>> {
    use nix::sys::socket::{MsgFlags, recv};
    let patience = Instant::now() + FIRST_BYTE;
    let over = async {
        context.drain.cancelled().await;
        tokio::time::sleep_until(patience).await;
    };
    let mut over = pin!(over);
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            ready = stream.readable() => ready?,
            () = over.as_mut(), if open => {
                open = false;
                end_input(stream)?;
                continue;
            }
        }
        let mut byte = [0];
        let peeked = stream.try_io(Interest::READABLE, || {
            recv(stream.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK).map_err(io::Error::from)
        });
        match peeked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
            Ok(count) => return Ok(byte.first().copied().filter(|_| count > 0)),
        }
    }
}

/// Draws the line when the daemon drains: what the client has sent is read, then the input ends; what it sends from now on fails there, with
/// `EPIPE`, so that it knows that nobody has seen it.
fn end_input(stream: &UnixStream) -> io::Result<()> {
    Ok(nix::sys::socket::shutdown(stream.as_raw_fd(), nix::sys::socket::Shutdown::Read)?)
}

/// A client that is still sending gets time to see what was answered: closing over unread bytes would break its pipe before.
async fn linger<D>(mut stream: UnixStream, context: &Context<D>) {
    if stream.shutdown().await.is_err() {
        return;
    }
    tokio::select! {
        () = std::future::poll_fn(|cx| discard(&mut stream, cx)) => {}
        () = context.abort.cancelled() => {}
        () = tokio::time::sleep(LINGER) => {}
    }
}

fn discard(stream: &mut UnixStream, cx: &mut TaskContext<'_>) -> Poll<()> {
    let mut scratch = Scratch::take();
    loop {
        let mut buffer = ReadBuf::new(scratch.bytes());
        if ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)).is_err() || buffer.filled().is_empty() {
            return Poll::Ready(());
        }
    }
}
