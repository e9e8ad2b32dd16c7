//! Accepts connections and serves them; drains when told to, and aborts when told again.
//!
//! Owns the number of connections and the order of shutting down.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::connection;
use super::context::Context;
use super::listener::Listener;
use super::refusal::{self, NO_ID};

pub use super::context::Dispatch;

/// How long to wait when a connection cannot be accepted, as when there are no descriptors left.
pub(super) const BACK_OFF: Duration = Duration::from_millis(50);
/// How long the answers of calls that were cut may take to be written.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// When to end.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Nothing new is accepted or read; what is in flight may end.
    pub drain: CancellationToken,
    /// At once.
    pub abort: CancellationToken,
}

/// Serves until it is told to end. Returns when what was in flight has been answered, or `socket.drain` and what follows is over.
pub async fn run<D: Dispatch>(listener: Listener, calls: Arc<D>, shutdown: Shutdown) {
    let stop = shutdown.drain.child_token();
    let context = Arc::new(Context::new(calls, stop.clone(), shutdown.abort.child_token()));
    accept(listener, &context).await;
    stop.cancel();
    context.tracker.close();
    tokio::select! {
        () = drain(&context) => {}
        () = shutdown.abort.cancelled() => {}
    }
    // Whoever has not taken its answers by now is left behind.
    context.abort.cancel();
}

/// Lets calls end, then ends them.
async fn drain<D: Dispatch>(context: &Context<D>) {
    let limit = context.calls.config().socket.drain.duration();
    if tokio::time::timeout(limit, context.tracker.wait()).await.is_err() {
        context.calls.cut();
        let _ = tokio::time::timeout(LAST_ANSWERS, context.tracker.wait()).await;
    }
}

/// Accepts until it is told to end. The listener goes then, and its file with it, so that clients find out at once.
async fn accept<D: Dispatch>(listener: Listener, context: &Arc<Context<D>>) {
    let places = Arc::new(Semaphore::new(context.calls.config().limits.connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = context.drain.cancelled() => return,
            () = context.abort.cancelled() => return,
        };
        let Ok(stream) = accepted else {
            tokio::time::sleep(BACK_OFF).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            turn_away(&stream);
            continue;
        };
        let connected = Connected::new(context.calls.clone(), place);
        let serving = connection::serve(stream, context.clone());
        context.tracker.spawn(async move {
            let _connected = connected;
            serving.await;
        });
    }
}

/// A client that is connected, for as long as this value is there.
struct Connected<D: Dispatch> {
    calls: Arc<D>,
    _place: OwnedSemaphorePermit,
}

impl<D: Dispatch> Connected<D> {
    fn new(calls: Arc<D>, place: OwnedSemaphorePermit) -> Self {
        calls.connected();
        Self { calls, _place: place }
    }
}

impl<D: Dispatch> Drop for Connected<D> {
    fn drop(&mut self) {
        self.calls.disconnected();
    }
}

/// Says why before it closes. One attempt: a socket that nothing was written to has room for a line.
fn turn_away(stream: &UnixStream) {
    let error = refusal::overloaded("all connections are taken (limits.connections)", Duration::from_secs(1));
    let line = refusal::line(NO_ID, &error) + "\n";
    let sent: Result<usize, io::Error> =
        send(stream.as_raw_fd(), line.as_bytes(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
            .map_err(io::Error::from);
    // A client that is gone already misses nothing.
    let _ = sent;
}
