//! Calls that were not allowed: one entry for each peer, method and minute, with a count, so that whoever knocks on every
//! door cannot fill the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::store::Deadline;

/// How long refusals of one peer and method are one.
const MINUTE: Duration = Duration::from_secs(60);
/// How many different ones are counted in a minute; those after them are in the figures alone.
const DIFFERENT: usize = 1000;
/// How long entering one may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The refusals of this minute.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<(u32, &'static str), u64>>);

impl Refusals {
    /// Counts one.
    pub(super) fn count(&self, uid: u32, method: &'static str) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = counted.len() < DIFFERENT;
        match counted.get_mut(&(uid, method)) {
            Some(count) => *count = count.saturating_add(1),
            None if room => drop(counted.insert((uid, method), 1)),
            None => {}
        }
    }

    /// Enters what was counted, every minute until the end.
    pub(super) async fn enter(self: Arc<Self>, app: Arc<App>) {
        while app.end.run_until_cancelled(tokio::time::sleep(MINUTE)).await.is_some() {
            self.enter_now(&app).await;
        }
    }

    /// Enters what was counted since the last time.
    pub(super) async fn enter_now(&self, app: &App) {
        let counted = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for ((uid, method), count) in counted {
            let deadline = Deadline::after(PATIENCE, CancellationToken::new());
            if let Err(error) = app.records.log().enter_refusals(uid, method, count, &deadline).await {
                tracing::error!(uid, method, count, "refused calls could not be entered in the log: {error}");
            }
        }
    }
}
