//! Work that is done by the clock: the table of jobs, and what claims, runs and records them.
//!
//! Across all daemons on a database a due time runs once, because the claim is the run: a row in `job_runs`. PostgreSQL's
//! clock says what is due. What a job does is in the modules below; nothing here begins a transaction of their tables.

mod archive;
mod asked;
mod backup;
mod claim;
mod counting;
mod drill;
mod history;
mod keyring_backup;
mod retention;
mod rotation;
mod run;
mod schedule;
mod scheduler;
mod suspects;
mod wakes;

pub use asked::Answered;
pub use claim::{JobRun, RunState};
pub use history::{History, Listed, Standing, standing};
pub use schedule::Schedule;
pub use scheduler::{Jobs, LastRun};

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::app::App;
use crate::config;
use crate::error::{Error, Result};
use crate::records::consent;
use crate::store::Deadline;

/// What a run did, in numbers.
pub type Counts = BTreeMap<&'static str, i64>;

/// What a job does: once more does no harm, because a run whose holder died is done again. The flag says that nothing is to be
/// changed, and only counted.
type Work = for<'a> fn(&'a App, &'a Deadline, bool) -> BoxFuture<'a, Result<Counts>>;

/// One job.
#[derive(Debug)]
pub struct Job {
    /// Its name, in `[jobs.<name>]` and in `job_runs`.
    pub name: &'static str,
    /// When it is due.
    pub settings: fn(&config::Jobs) -> &config::Job,
    /// The key of the configuration that has to be set before it can do anything; until then it is off.
    lacks: fn(&config::Config) -> Option<&'static str>,
    /// How long a run may take.
    limit: Duration,
    /// Whether it can count without changing anything.
    has_dry_run: bool,
    /// Whether it runs so often that only the latest successes are kept, and none is entered in the log.
    pruned: bool,
    work: Work,
}

/// Every job of this daemon.
pub static JOBS: [Job; 8] = [
    Job {
        name: archive::NAME,
        settings: |jobs| &jobs.archive,
        lacks: archive::lacks,
        limit: Duration::from_secs(24 * 3600),
        has_dry_run: true,
        pruned: false,
        work: |app, deadline, dry_run| Box::pin(archive::run(app, deadline, dry_run)),
    },
    Job {
        name: backup::NAME,
        settings: |jobs| &jobs.backup,
        lacks: |config| config.backup.destination.is_none().then_some("backup.destination"),
        limit: Duration::from_secs(12 * 3600),
        has_dry_run: false,
        pruned: false,
        work: |app, deadline, _| Box::pin(backup::run(app, deadline)),
    },
    Job {
        name: "checkpoint",
        settings: |jobs| &jobs.checkpoint,
        lacks: |_| None,
        limit: Duration::from_secs(60),
        has_dry_run: false,
        pruned: true,
        work: |app, deadline, _| {
            Box::pin(async move {
                let log = app.records.log();
                // A daemon without a signing key leaves checkpoints to those that have one.
                let made = log.signs() && log.make_checkpoint(deadline).await?;
                Ok(Counts::from([("checkpoints", i64::from(made))]))
            })
        },
    },
    Job {
        name: "drill",
        settings: |jobs| &jobs.drill,
        lacks: |config| config.backup.destination.is_none().then_some("backup.destination"),
        limit: Duration::from_secs(24 * 3600),
        has_dry_run: false,
        pruned: false,
        work: |app, deadline, _| Box::pin(drill::run(app, deadline)),
    },
    Job {
        name: keyring_backup::NAME,
        settings: |jobs| &jobs.keyring_backup,
        lacks: |config| config.keyring.backup.is_none().then_some("keyring.backup"),
        limit: Duration::from_secs(3600),
        has_dry_run: false,
        pruned: true,
        work: |app, deadline, _| Box::pin(keyring_backup::run(app, deadline)),
    },
    Job {
        name: "partitions",
        settings: |jobs| &jobs.partitions,
        lacks: |_| None,
        limit: Duration::from_secs(60),
        has_dry_run: true,
        pruned: false,
        work: |app, deadline, dry_run| {
            Box::pin(async move {
                let log = app.records.log();
                let months = match dry_run {
                    true => log.missing_months(deadline).await?,
                    false => log.make_months(deadline).await?,
                };
                Ok(Counts::from([("months", months)]))
            })
        },
    },
    Job {
        name: retention::NAME,
        settings: |jobs| &jobs.retention,
        lacks: |_| None,
        limit: Duration::from_secs(6 * 3600),
        has_dry_run: true,
        pruned: false,
        work: |app, deadline, dry_run| Box::pin(retention::run(app, deadline, dry_run)),
    },
    Job {
        name: "verify",
        settings: |jobs| &jobs.verify,
        lacks: |_| None,
        limit: Duration::from_secs(6 * 3600),
        has_dry_run: false,
        pruned: true,
        work: |app, deadline, _| {
            Box::pin(async move {
                let verified = app.records.log().verify_on(consent::digests, deadline).await?;
                let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
                Ok(Counts::from([
                    ("entries", number(verified.entries)),
                    ("reached", number(verified.reached)),
                ]))
            })
        },
    },
];

/// The name of a job, as a schema tells it; [`Job::find`] is what reads one.
#[derive(Debug)]
pub enum JobName {}

impl JsonSchema for JobName {
    fn schema_name() -> Cow<'static, str> {
        "JobName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": JOBS.each_ref().map(|job| job.name) })
    }
}

impl Job {
    /// A job by its name.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the names that there are.
    pub fn find(name: &str) -> Result<&'static Self> {
        JOBS.iter().find(|job| job.name == name).ok_or_else(|| {
            let names: Vec<_> = JOBS.iter().map(|job| job.name).collect();
            Error::invalid("name", format!("must be the name of a job: {}", names.join(", ")))
        })
    }

    /// Whether this daemon runs it when it is due.
    pub fn is_enabled(&self, config: &config::Config) -> bool {
        config.jobs.enabled && (self.settings)(&config.jobs).enabled && (self.lacks)(config).is_none()
    }

    /// The key of the configuration that has to be set before it can run here; nothing where none is missing.
    pub fn missing_key(&self, config: &config::Config) -> Option<&'static str> {
        (self.lacks)(config)
    }

    /// Refuses a job that is off for want of a key of the configuration.
    ///
    /// # Errors
    /// [`Error::Conflict`], naming the key.
    fn can_run(&self, config: &config::Config) -> Result<()> {
        (self.lacks)(config).map_or(Ok(()), |key| {
            Err(Error::conflict(format!(
                "the job {} is off: {key} is not set in the configuration",
                self.name
            )))
        })
    }
}
