//! The operating system's signals, as what they ask for.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: the first drains, the second aborts.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// Takes over SIGTERM, SIGINT and SIGHUP from here on, within a runtime. The task on the tracker ends with the receiver.
///
/// # Errors
/// The operating system's.
pub fn signals(tracker: &TaskTracker) -> std::io::Result<mpsc::Receiver<Signal>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (send, receive) = mpsc::channel(8);
    tracker.spawn(async move {
        loop {
            let asked = tokio::select! {
                _ = terminate.recv() => Signal::Stop,
                _ = interrupt.recv() => Signal::Stop,
                _ = hang_up.recv() => Signal::Reload,
                () = send.closed() => return,
            };
            if send.send(asked).await.is_err() {
                return;
            }
        }
    });
    Ok(receive)
}
