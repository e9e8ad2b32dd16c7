//! The job that backs the keyring up: by its schedule, and sooner when somebody was erased, held or restricted, on whatever daemon.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::claim::RunState;
use super::scheduler::Jobs;
use super::{Counts, Job};
use crate::app::App;
use crate::backup::keyring;
use crate::error::Result;
use crate::store::Deadline;

/// Its name.
pub(super) const NAME: &str = "keyring_backup";

/// Between two runs that an erasure asks for: those that come meanwhile go with the next. Longer than it takes to look again.
const PAUSE: Duration = Duration::from_millis(2500);
/// After one that failed, the schedule tries as well.
const AGAIN: Duration = Duration::from_secs(20);
/// How long such a run may take to begin and end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes what the backup lacks.
///
/// # Errors
/// As [`keyring::bring_up_to_date`].
pub(super) async fn run(app: &App, deadline: &Deadline) -> Result<Counts> {
    let brought = keyring::bring_up_to_date(&app.records, &app.config, deadline).await?;
    Ok(Counts::from([("shards", brought.shards), ("generation", brought.generation)]))
}

impl Jobs {
    /// Runs the job whenever an erasure waits for it, where this daemon runs it at all.
    pub(super) async fn keep_forgetting(self: &Arc<Self>, drain: &CancellationToken) {
        if !Job::find(NAME).is_ok_and(|job| job.is_enabled(&self.app.config)) {
            return;
        }
        while drain.run_until_cancelled(self.app.keyring_lateness.waits()).await.is_some() {
            let deadline = Deadline::after(PATIENCE, drain.clone());
            let ended = self.run_now(NAME, false, PATIENCE, &deadline).await;
            let failed = !ended.is_ok_and(|run| run.state == RunState::Ok);
            if failed {
                tracing::debug!("the keyring's backup was not brought up to date at once");
            }
            drain.run_until_cancelled(tokio::time::sleep(if failed { AGAIN } else { PAUSE })).await;
        }
    }
}
