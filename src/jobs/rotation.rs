//! The rotation of the key-encryption key as work that is asked for: a run towards one key, whoever carries it out.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::asked::{Asked, in_the_way};
use super::claim::{self, Claim, JobRun, Run};
use super::scheduler::Jobs;
use crate::app::App;
use crate::error::Result;
use crate::store::Deadline;
use crate::values::RecordId;

/// Its name: that of the method.
pub(super) const NAME: &str = "keyring.rotate";

/// What is asked for here: only a daemon that has the same key in the first place goes on with it.
pub(super) fn asked(app: &App) -> Value {
    json!({ "kek_id": app.records.keyring().keks().ids().first() })
}

/// How many keys were re-wrapped, and how many are left.
pub(super) fn counts((rewrapped, left): (i64, i64)) -> Value {
    json!({ "rewrapped": rewrapped, "left": left })
}

impl Jobs {
    /// Re-wraps all data keys under the first key-encryption key, and waits for the end as long as `wait` says: what is
    /// answered may still be running. While such a run is going on, on whatever daemon, that is waited for first.
    ///
    /// # Errors
    /// [`crate::error::Error::Conflict`] while a rotation to another key is running.
    pub async fn rotate(self: &Arc<Self>, wait: Duration, deadline: &Deadline) -> Result<JobRun> {
        let (known, asked) = (Asked::find(NAME)?, asked(&self.app));
        let (wait, id) = (deadline.waiting(wait), RecordId::generate());
        let claim = Claim { run: id.as_str(), name: NAME, holder: self.holder() };
        match self.claimed(claim, Some(&asked), false, (&wait, deadline)).await? {
            Ok(run) => {
                let shown = run.clone().shown();
                match wait.run(self.start(known.into(), run)).await {
                    Ok(Ok(run)) => Ok(run),
                    _ => Ok(shown),
                }
            }
            Err(other) if other.asked.as_ref() == Some(&asked) => Ok(other.shown()),
            Err(other) => Err(in_the_way("a rotation to another key-encryption key", &other)),
        }
    }

    /// The rotation that is going on, else the one that ended last.
    ///
    /// # Errors
    /// The store's.
    pub async fn rotation(&self, deadline: &Deadline) -> Result<Option<JobRun>> {
        let look = claim::look(self.store(), &[NAME], deadline).await?;
        let last = look.running(NAME).or_else(|| look.ended(NAME));
        Ok(last.cloned().map(Run::shown))
    }
}
