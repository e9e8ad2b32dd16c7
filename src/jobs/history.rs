//! What `job.list` and `job.history` answer: the table of jobs with what ran last, and the runs, the newest first.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use diesel::prelude::{BoolExpressionMethods, ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::asked::ASKED;
use super::claim::{self, JobRun, Run};
use super::schedule::Schedule;
use super::scheduler::Jobs;
use super::{JOBS, Job};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::error::Result;
use crate::store::schema::job_runs;
use crate::store::{Deadline, Store};
use crate::values::{Limit, Page, decode, encode, fit};

/// A job as it is configured, and what ran last.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Listed {
    /// Its name.
    pub name: &'static str,
    /// When it is due, as cron writes it.
    pub schedule: String,
    /// Whose clock that is.
    pub time_zone: String,
    /// Whether this daemon runs it when it is due.
    pub enabled: bool,
    /// The key of the configuration that has to be set before it can run here; null where none is missing.
    pub missing_key: Option<&'static str>,
    /// When it is due next; null where this daemon does not run it.
    pub next_due: Option<Timestamp>,
    /// The run that is going on, else the last that ended and was no dry run.
    pub last_run: Option<JobRun>,
}

/// What there are runs of, as a schema tells it: jobs, and what runs only when somebody asks for it.
#[derive(Debug)]
enum RunName {}

impl JsonSchema for RunName {
    fn schema_name() -> Cow<'static, str> {
        "RunName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = JOBS.iter().map(|job| job.name).chain(ASKED.iter().map(|asked| asked.name));
        json_schema!({ "type": "string", "enum": names.collect::<Vec<_>>() })
    }
}

/// Parameters of `job.history`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// The runs of this job alone, or of a method whose work is followed here.
    #[schemars(with = "Option<RunName>")]
    pub name: Option<String>,
    /// How many items at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// How a job stands, as anybody can see it who reads the database.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The last run that ended and was no dry run.
    pub last_run: Option<JobRun>,
    /// When the last one that succeeded was due.
    pub succeeded: Option<Timestamp>,
    /// The first due time that nobody ran, if one has passed.
    pub missed: Option<Timestamp>,
    /// And the second one.
    pub missed_again: Option<Timestamp>,
    /// What time it is, by PostgreSQL.
    pub now: Timestamp,
}

/// How a job stands, without a daemon.
///
/// # Errors
/// The store's.
pub async fn standing(
    store: &Store,
    config: &Config,
    job: &Job,
    deadline: &Deadline,
) -> Result<Option<Standing>> {
    let look = claim::look(store, &[job.name], deadline).await?;
    let Some(status) = look.status(job.name) else { return Ok(None) };
    let schedule = Schedule::of((job.settings)(&config.jobs));
    let passed = |after| schedule.next(after).filter(|next| *next <= status.now);
    // One that is running takes the due times that pass meanwhile with it.
    let missed = look.running(job.name).is_none().then(|| passed(status.last_due)).flatten();
    Ok(Some(Standing {
        last_run: look.ended(job.name).cloned().map(Run::shown),
        succeeded: look.succeeded(job.name).map(|run| run.due_at.into()),
        missed: missed.map(Timestamp::from),
        missed_again: missed.and_then(passed).map(Timestamp::from),
        now: status.now.into(),
    }))
}

impl Jobs {
    /// Every job.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, deadline: &Deadline) -> Result<Vec<Listed>> {
        let names: Vec<_> = JOBS.iter().map(|job| job.name).collect();
        let look = claim::look(self.store(), &names, deadline).await?;
        let config = &self.app.config;
        let listed = JOBS.iter().map(|job| {
            let settings = (job.settings)(&config.jobs);
            let enabled = job.is_enabled(config);
            let now = look.status(job.name).map(|status| status.now);
            let next = now.filter(|_| enabled).and_then(|now| Schedule::of(settings).next(now));
            let last = look.running(job.name).or_else(|| look.ended(job.name));
            Listed {
                name: job.name,
                schedule: settings.schedule.to_string(),
                time_zone: settings.time_zone.to_string(),
                enabled,
                missing_key: job.missing_key(config),
                next_due: next.map(Timestamp::from),
                last_run: last.cloned().map(Run::shown),
            }
        });
        Ok(listed.collect())
    }

    /// A page of runs, the newest first.
    ///
    /// # Errors
    /// [`crate::error::Error::Invalid`] for a job that there is not, or a cursor that is none.
    pub async fn history(
        &self,
        asked: &History,
        max_bytes: u64,
        deadline: &Deadline,
    ) -> Result<Page<JobRun>> {
        let name = match asked.name.as_deref() {
            // What was asked for is followed here too.
            Some(name) if ASKED.iter().any(|asked| asked.name == name) => Some(name),
            Some(name) => Some(Job::find(name)?.name),
            None => None,
        };
        let of = ("job.history", name);
        let before: Option<(DateTime<Utc>, String)> = decode(&of, asked.cursor.as_deref())?;
        let found = self.store().single(deadline, "jobs.history", async |connection| {
            let mut rows = job_runs::table
                .select(Run::as_select())
                .order((job_runs::due_at.desc(), job_runs::run.desc()))
                .limit(asked.limit.and_one())
                .into_boxed();
            if let Some(name) = name {
                rows = rows.filter(job_runs::name.eq(name));
            }
            if let Some((due, run)) = &before {
                rows = rows
                    .filter(job_runs::due_at.le(due))
                    .filter(job_runs::due_at.lt(due).or(job_runs::run.lt(run)));
            }
            Ok(rows.load::<Run>(connection).await?)
        });
        let mut found = found.await?;
        let sizes: Vec<i64> = found.iter().map(size).collect();
        let taken = fit(&sizes, asked.limit, max_bytes);
        let more = found.len() > taken;
        found.truncate(taken);
        let last = found.last().filter(|_| more).map(|last| (last.due_at, last.run.clone()));
        Ok(Page {
            items: found.into_iter().map(Run::shown).collect(),
            next_cursor: last.map(|key| encode(&of, &key)).transpose()?,
        })
    }
}

/// The bytes of a row that are not bounded otherwise.
fn size(run: &Run) -> i64 {
    let counts = run.counts.as_ref().map_or(0, |counts| counts.to_string().len());
    let error = run.error.as_ref().map_or(0, String::len);
    i64::try_from(counts.saturating_add(error)).unwrap_or(i64::MAX)
}
