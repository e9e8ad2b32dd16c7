//! Work that runs when somebody asks for it and by no schedule, as a run of its own: answered when it is done, or after a
//! while with the run to follow, whose `counts` are the answer then. Another daemon goes on with it where its own has died.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;

use super::claim::{Claim, JobRun, Run, RunState};
use super::run::INTERNAL;
use super::scheduler::Jobs;
use super::{keyring_backup, rotation};
use crate::app::App;
use crate::audit::verify::{Range, Scope};
use crate::error::{Error, Result};
use crate::records::consent;
use crate::store::Deadline;

/// What it does with what was asked for, which is kept with the run.
type Work = for<'a> fn(&'a App, &'a Deadline, &'a Value) -> BoxFuture<'a, Result<Value>>;

/// Work that is asked for.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its name: that of the method.
    pub(super) name: &'static str,
    /// How long it may take.
    pub(super) limit: Duration,
    pub(super) work: Work,
    /// How far the run in this daemon is, where that can be told.
    pub(super) progress: fn(&App) -> Option<Value>,
    /// Whether this daemon may go on with what was asked of another one.
    pub(super) may_go_on: fn(&App, &Value) -> bool,
}

/// All of it. One of a name runs at a time, across all daemons.
pub(super) static ASKED: [Asked; 2] = [
    Asked {
        name: "audit.verify",
        limit: Duration::from_secs(7 * 24 * 3600),
        work: |app, deadline, asked| {
            Box::pin(async move {
                let range: Range = serde_json::from_value(asked.clone()).map_err(Error::internal)?;
                let scope = Scope::Within(range);
                let report = app.records.log().verify(scope, consent::digests, deadline).await?;
                serde_json::to_value(report).map_err(Error::internal)
            })
        },
        progress: |_| None,
        may_go_on: |_, _| true,
    },
    Asked {
        name: rotation::NAME,
        limit: Duration::from_secs(24 * 3600),
        work: |app, deadline, _| {
            Box::pin(async move {
                let rewrapped = app.records.keyring().rotate(app.records.store(), deadline).await?;
                // Else the old key would still be needed, by what nobody looks at.
                if app.config.keyring.backup.is_some() {
                    keyring_backup::run(app, deadline).await?;
                }
                Ok(rotation::counts((rewrapped, 0)))
            })
        },
        progress: |app| Some(rotation::counts(app.records.keyring().rotated())),
        may_go_on: |app, asked| rotation::asked(app) == *asked,
    },
];

/// How far it is when the caller is answered.
#[derive(Debug)]
pub enum Answered {
    /// Done, with this.
    Done(Value),
    /// It goes on.
    Running(JobRun),
}

impl Asked {
    pub(super) fn find(name: &str) -> Result<&'static Self> {
        let found = ASKED.iter().find(|asked| asked.name == name);
        found.ok_or_else(|| Error::internal(format!("nobody knows how to do {name}")))
    }
}

impl Jobs {
    /// Does what is asked for, and waits for its end as long as `wait` says. While the same is going on already, that is
    /// what is waited for.
    ///
    /// # Errors
    /// [`Error::Conflict`] while something else of this name is going on; [`Error::Unavailable`] where it failed,
    /// [`Error::Internal`] where that was of an internal error.
    pub async fn ask(
        self: &Arc<Self>,
        name: &str,
        asked: &Value,
        wait: Duration,
        deadline: &Deadline,
    ) -> Result<Answered> {
        let known = Asked::find(name)?;
        let wait = deadline.waiting(wait);
        let id = crate::values::RecordId::generate();
        let claim = Claim { run: id.as_str(), name: known.name, holder: self.holder() };
        match self.claimed(claim, Some(asked), false, (&wait, deadline)).await? {
            Ok(run) => {
                let shown = run.clone().shown();
                match wait.run(self.start(known.into(), run)).await {
                    Ok(Ok(run)) => answer(run),
                    _ => Ok(Answered::Running(shown)),
                }
            }
            Err(other) if other.asked.as_ref() == Some(asked) => Ok(Answered::Running(other.shown())),
            Err(other) => Err(in_the_way(name, &other)),
        }
    }
}

/// Another run of the name is going on.
pub(super) fn in_the_way(name: &str, other: &Run) -> Error {
    Error::conflict(format!("{name} is running already: {}", other.run))
}

fn answer(run: JobRun) -> Result<Answered> {
    match run.state {
        RunState::Ok => Ok(Answered::Done(run.counts.unwrap_or_default())),
        RunState::Running => Ok(Answered::Running(run)),
        RunState::Failed => {
            let why = run.error.unwrap_or_default();
            Err(if why.starts_with(INTERNAL) { Error::internal(why) } else { Error::unavailable(why) })
        }
    }
}
