//! How late the keyring's backup is, as this daemon last saw it: what health and figures tell, and what wakes the job up.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::state::{Late, late};
use crate::store::{Deadline, Store};

/// How often is looked: with the writing that follows, an erasure is in the backup within five seconds.
const LOOK: Duration = Duration::from_secs(2);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is promised.
const PROMISE: f64 = 60.0;

/// What was last seen.
#[derive(Debug, Default)]
pub struct Lateness(watch::Sender<Option<Late>>);

impl Late {
    /// Whether an erasure is not in the backup though it should be.
    pub fn is_broken(&self) -> bool {
        self.seconds.is_some_and(|seconds| seconds > PROMISE)
    }

    /// What an operator is told then.
    pub fn alarm(&self) -> String {
        format!(
            "an erasure, a hold or a restriction of {:.0} seconds ago is not in the keyring's backup; see job.history of keyring_backup",
            self.seconds.unwrap_or_default()
        )
    }
}

impl Lateness {
    /// What was last seen; nothing before that.
    pub fn seen(&self) -> Option<Late> {
        *self.0.borrow()
    }

    /// Ends when it was seen that something waits.
    pub async fn waits(&self) {
        let mut seen = self.0.subscribe();
        // The sender is in this value, and so outlives the wait.
        let _ = seen.wait_for(|late| late.is_some_and(|late| late.shards > 0)).await;
    }

    /// Looks again and again, until the end.
    pub async fn observe(&self, store: &Store, end: &CancellationToken) {
        while !end.is_cancelled() {
            let deadline = Deadline::after(PATIENCE, end.clone());
            match late(store, &deadline).await {
                Ok(late) => {
                    self.0.send_replace(Some(late));
                }
                Err(error) => tracing::debug!(%error, "how late the keyring's backup is could not be seen"),
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = end.cancelled() => {}
            }
        }
    }
}
