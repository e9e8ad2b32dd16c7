//! The rotation as a run: asked for by `keyring.rotate` and never due by itself, but gone on with after a crash as jobs are.

use std::sync::Arc;
use std::time::Duration;

use super::claim::{self, Claim, JobRun, Run};
use super::scheduler::{Jobs, RETRY};
use super::suspects::Suspects;
use super::{Counts, Job};
use crate::error::{Error, Result};
use crate::store::Deadline;
use crate::values::RecordId;

/// Re-wraps every data key under the first key-encryption key: `keyring.rotate`, and whoever goes on with it after a crash.
pub(super) static ROTATION: Job = Job {
    name: "keyring_rotation",
    settings: None,
    progress: Some(|app| {
        let (rewrapped, left) = app.records.keyring().rotated();
        Counts::from([("rewrapped", rewrapped), ("left", left)])
    }),
    limit: Duration::from_secs(24 * 3600),
    has_dry_run: false,
    pruned: false,
    work: |app, deadline, _| {
        Box::pin(async move {
            let rewrapped = app.records.keyring().rotate(app.records.store(), deadline).await?;
            Ok(Counts::from([("rewrapped", rewrapped), ("left", 0)]))
        })
    },
};

impl Jobs {
    /// Re-wraps all data keys under the first key-encryption key, and waits for the end as long as `wait` says: what is
    /// answered may still be running. Where a rotation to that key is running already, on whatever daemon, it is that one.
    ///
    /// # Errors
    /// [`Error::Conflict`] while a rotation to another key is running.
    pub async fn rotate(self: &Arc<Self>, wait: Duration, deadline: &Deadline) -> Result<JobRun> {
        let wait = deadline.within(wait);
        let target = self.app.records.keyring().keks().ids().into_iter().next();
        let id = RecordId::generate();
        let claim = Claim { run: id.as_str(), name: ROTATION.name, holder: &self.holder };
        loop {
            if self.running.is_closed() {
                return Err(Error::unavailable("this daemon is ending; connect again"));
            }
            if let Some(run) = claim.asked(self.store(), false, target.as_deref(), deadline).await? {
                let shown = run.clone().shown();
                return match wait.run(self.start(&ROTATION, run)).await {
                    Ok(Ok(run)) => Ok(run),
                    _ => Ok(shown),
                };
            }
            let look = claim::look(self.store(), &[ROTATION.name], deadline).await?;
            match look.running(ROTATION.name) {
                Some(run) if run.target == target => return self.follow(run.clone(), &wait, deadline).await,
                Some(run) => {
                    return Err(Error::conflict(format!(
                        "a rotation to another key-encryption key is running: {}; keyring.status has it",
                        run.run
                    )));
                }
                // It has just ended; the end of the call's deadline ends the claim above.
                None => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// The rotation that is going on, else the one that ended last.
    ///
    /// # Errors
    /// The store's.
    pub async fn rotation(&self, deadline: &Deadline) -> Result<Option<JobRun>> {
        let look = claim::look(self.store(), &[ROTATION.name], deadline).await?;
        let last = look.running(ROTATION.name).or_else(|| look.ended(ROTATION.name));
        Ok(last.cloned().map(Run::shown))
    }

    /// Waits for the end of a run, wherever it is carried out; goes on with it where its holder has died.
    async fn follow(self: &Arc<Self>, mut run: Run, wait: &Deadline, deadline: &Deadline) -> Result<JobRun> {
        let mut suspects = Suspects::default();
        while run.state == "running" && !wait.has_passed() {
            // The end of the wait is noticed above.
            let _ = wait.run(tokio::time::sleep(RETRY)).await;
            let look = claim::look(self.store(), &[ROTATION.name], deadline).await?;
            self.take_over(&ROTATION, &look, &mut suspects).await?;
            let same = look.runs.into_iter().find(|found| found.run == run.run);
            let Some(same) = same else { break };
            run = same;
        }
        Ok(run.shown())
    }
}
