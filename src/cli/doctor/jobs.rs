//! Checks of the jobs: which are off and why, how they ended last, and whether what a backup needs is there.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use serde::Deserialize;

use super::check::{Finding, Needs};
use super::patient::{Patient, unanswered};
use crate::backup::{run, snapshot};
use crate::config::{self, DatabaseUrlError, SecretError};
use crate::error::Error;
use crate::jobs::{Job, RunState, Standing, standing};
use crate::store::programs::Program;
use crate::store::{Deadline, Pinned};

/// A job may be as late as this: daemons are started again, and hosts moved.
const LATE: TimeDelta = TimeDelta::minutes(15);
/// How long connecting as the role that dumps, and its first questions, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How one job stands.
pub(super) async fn job(patient: Arc<Patient>, name: &'static str) -> Finding {
    let config = patient.config();
    let job = match Job::find(name) {
        Ok(job) => job,
        Err(error) => return Finding::skipped(error.to_string()),
    };
    if !config.jobs.enabled {
        return Finding::skipped("jobs.enabled is false: other daemons run it");
    }
    if !(job.settings)(&config.jobs).enabled {
        return Finding::skipped(format!("switched off: jobs.{name}.enabled is false"));
    }
    if let Some(key) = job.missing_key(config) {
        return Finding::warn(format!("off: {key} is not set"), format!("set {key} (file://, s3://, gs://)"));
    }
    if name == "backup"
        && let Err(error) = run::destined(config)
    {
        return Finding::fail(
            error.to_string(),
            "set keyring.backup to a destination of its own, where the dumps are not",
        );
    }
    if let Some(lack) = patient.lacks(Needs::Schema) {
        return Finding::skipped(lack);
    }
    let found = match patient.store() {
        Ok((store, deadline)) => standing(store, config, job, &deadline).await,
        Err(finding) => return finding,
    };
    match found {
        Err(error) => unanswered(&error),
        Ok(None) => Finding::skipped("nothing is known of it"),
        Ok(Some(standing)) => judge(name, &standing),
    }
}

fn judge(name: &str, standing: &Standing) -> Finding {
    let since = standing
        .succeeded
        .map_or("it never succeeded".to_owned(), |at| format!("the last success was that of {at}"));
    if let Some(last) = standing.last_run.as_ref().filter(|last| last.state == RunState::Failed) {
        let why = last.error.as_deref().unwrap_or("no reason was given");
        return Finding::fail(
            format!("the run of {} failed: {why}\n{since}", last.due_at),
            format!(
                "mend that, then: sidekeep call job.run '{{\"name\": \"{name}\"}}'; sidekeep call job.history '{{\"name\": \"{name}\"}}' has all runs"
            ),
        );
    }
    if let Some(missed) = standing.missed
        && standing.now.utc() - missed.utc() > LATE
    {
        let why = format!("it was due at {missed}, and no daemon ran it; {since}");
        let advice = "is a daemon running that runs jobs (jobs.enabled)? See the check daemon";
        let twice = standing.missed_again.is_some();
        return if twice { Finding::fail(why, advice) } else { Finding::warn(why, advice) };
    }
    match (&standing.last_run, standing.succeeded) {
        (Some(last), _) => Finding::ok(format!("the run of {} ended well", last.due_at)),
        (None, _) => Finding::ok("it has not been due yet"),
    }
}

#[derive(Deserialize)]
struct Major {
    major: u32,
}

/// Whether the programs of PostgreSQL that dump, restore and try a dump are there, and not older than the server.
pub(super) async fn programs(patient: Arc<Patient>) -> Finding {
    const ASKED: &str = "SELECT current_setting('server_version_num')::int / 10000 AS major";
    let Major { major } = match patient.one(ASKED).await {
        Ok(major) => major,
        Err(finding) => return finding,
    };
    let backup = &patient.config().backup;
    let mut needed = vec!["pg_dump", "pg_restore"];
    if backup.drill_url.is_none() {
        needed.push("postgres");
    }
    let found = patient.tracker.spawn_blocking(move || {
        let found: Result<Vec<_>, _> =
            needed.into_iter().map(|name| Program::find(name, major).map(|found| (name, found))).collect();
        found.map_err(|error| error.to_string())
    });
    match found.await {
        Err(error) => Finding::skipped(error.to_string()),
        Ok(Ok(found)) => {
            let told = found.iter().map(|(name, program)| format!("{name} {}", program.version));
            Finding::ok(format!("{}, for a server {major}", told.collect::<Vec<_>>().join(", ")))
        }
        Ok(Err(why)) if backup.destination.is_none() => Finding::warn(
            format!("{why}; no dump is made while backup.destination is not set"),
            "install it before you set that",
        ),
        Ok(Err(why)) => Finding::fail(
            why,
            "install the client programs of the server's version; for a drill without its own server, backup.drill_url names another one",
        ),
    }
}

/// Whether the role that dumps may read everything that goes into a dump.
pub(super) async fn dumping_role(patient: Arc<Patient>) -> Finding {
    let config = patient.config();
    if config.backup.destination.is_none() {
        return Finding::skipped("backup.destination is not set");
    }
    let url = match config::direct_url(config) {
        Ok(url) => url,
        Err(DatabaseUrlError::Secret { key, source: SecretError::Unreadable(path, error) }) => {
            return Finding::skipped(format!(
                "{key}: {}: {error}; run doctor as root or as the daemon's user",
                path.display()
            ));
        }
        Err(error) => return Finding::fail(error.to_string(), "mend that key"),
    };
    let deadline = Deadline::after(PATIENCE, patient.end.clone());
    let looked = async {
        let pinned = Pinned::begin(&config.database, &url, &patient.tracker, &deadline).await?;
        snapshot::about(&pinned, &deadline).await
    };
    match looked.await {
        Ok(_) => Finding::ok("the role that dumps may read every table"),
        Err(Error::Conflict { message, .. }) => Finding::fail(message, "then run: sidekeep backup"),
        Err(error) => Finding::fail(
            error.to_string(),
            "can the server be reached by the URL for dumps (database.direct_url_file, else database.migrate_url_file)?",
        ),
    }
}
