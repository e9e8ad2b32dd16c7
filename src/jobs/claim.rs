//! The rows of `job_runs`: claimed, kept, taken over, finished. The only writer of the table; its times are PostgreSQL's.
//!
//! Each statement may be sent again after a lost connection: it finds what its first sending did, by run, epoch and holder.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::prelude::{
    ExpressionMethods, OptionalExtension, QueryDsl, Queryable, QueryableByName, Selectable, SelectableHelper,
};
use diesel::sql_types::{Array, Bool, Int8, Jsonb, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::store::schema::job_runs;
use crate::store::{Connection, Deadline, Store};

/// A holder whose heartbeat is older than this may be dead.
pub(super) const STALE: TimeDelta = TimeDelta::seconds(30);

/// So many successes of a job that runs often are kept.
const KEPT: i64 = 100;

/// The longest error that a row keeps.
const ERROR_CHARS: usize = 1000;

/// A run of a job.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct JobRun {
    /// Its id.
    pub run: String,
    /// The job.
    pub name: String,
    /// Whether it changes nothing, and only counts.
    pub dry_run: bool,
    /// How it is.
    pub state: RunState,
    /// When it was due by its schedule; of a run that was asked for, when it was.
    pub due_at: Timestamp,
    /// When it was claimed.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What it did, in numbers.
    pub counts: Option<Value>,
    /// Why it failed.
    pub error: Option<String>,
}

/// How a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Claimed, and not ended.
    Running,
    /// It did what it is for.
    Ok,
    /// It did not.
    Failed,
}

/// A row.
#[derive(Clone, Debug, Queryable, Selectable, QueryableByName)]
#[diesel(table_name = job_runs, check_for_backend(diesel::pg::Pg))]
pub(super) struct Run {
    pub(super) run: String,
    pub(super) name: String,
    pub(super) due_at: DateTime<Utc>,
    started_at: DateTime<Utc>,
    finished_at: Option<DateTime<Utc>>,
    pub(super) state: String,
    pub(super) dry_run: bool,
    pub(super) epoch: i64,
    pub(super) heartbeat_at: DateTime<Utc>,
    pub(super) holder: Option<String>,
    pub(super) counts: Option<Value>,
    pub(super) error: Option<String>,
    /// What was asked for.
    pub(super) asked: Option<Value>,
}

impl Run {
    /// As callers see it.
    pub(super) fn shown(self) -> JobRun {
        JobRun {
            state: match self.state.as_str() {
                "ok" => RunState::Ok,
                "failed" => RunState::Failed,
                _ => RunState::Running,
            },
            run: self.run,
            name: self.name,
            dry_run: self.dry_run,
            due_at: self.due_at.into(),
            started_at: self.started_at.into(),
            finished_at: self.finished_at.map(Timestamp::from),
            counts: self.counts,
            error: self.error,
        }
    }
}

/// What there is of one job.
#[derive(Debug, QueryableByName)]
pub(super) struct Status {
    #[diesel(sql_type = Text)]
    name: String,
    /// What time it is.
    #[diesel(sql_type = Timestamptz)]
    pub(super) now: DateTime<Utc>,
    /// What ran last was due then; before the first run, when the database was first used.
    #[diesel(sql_type = Timestamptz)]
    pub(super) last_due: DateTime<Utc>,
}

/// What there is of some jobs.
#[derive(Debug)]
pub(super) struct Look {
    statuses: Vec<Status>,
    /// Of each job the run that is going on, and of those that were no dry runs the latest that ended and the latest success.
    pub(super) runs: Vec<Run>,
}

impl Look {
    /// What time it is, and what a job ran last.
    pub(super) fn status(&self, name: &str) -> Option<&Status> {
        self.statuses.iter().find(|status| status.name == name)
    }

    /// The run of a job that is going on.
    pub(super) fn running(&self, name: &str) -> Option<&Run> {
        self.runs.iter().find(|run| run.name == name && run.state == "running")
    }

    /// The run of a job that ended last.
    pub(super) fn ended(&self, name: &str) -> Option<&Run> {
        let ended = self.runs.iter().filter(|run| run.name == name && run.state != "running");
        ended.max_by_key(|run| run.due_at)
    }

    /// The run of a job that succeeded last.
    pub(super) fn succeeded(&self, name: &str) -> Option<&Run> {
        let good = self.runs.iter().filter(|run| run.name == name && run.state == "ok");
        good.max_by_key(|run| run.due_at)
    }
}

/// Looks at the runs of these jobs. Rows of a clock that was ahead, and was set right, do not count.
pub(super) async fn look(store: &Store, names: &[&str], deadline: &Deadline) -> Result<Look> {
    const STATUSES: &str = "SELECT n.name, now() AS now, coalesce( \
        (SELECT max(r.due_at) FROM sidekeep.job_runs r WHERE r.name = n.name AND NOT r.dry_run AND r.due_at <= now()), \
        (SELECT d.created_at FROM sidekeep.deployment d), now()) AS last_due FROM unnest($1) AS n(name)";
    const RUNS: &str = "SELECT r.* FROM unnest($1) AS n(name), LATERAL ( \
        (SELECT * FROM sidekeep.job_runs j WHERE j.name = n.name AND j.state = 'running') UNION \
        (SELECT * FROM sidekeep.job_runs j WHERE j.name = n.name AND j.state <> 'running' AND NOT j.dry_run \
         AND j.due_at <= now() ORDER BY j.due_at DESC LIMIT 1) UNION \
        (SELECT * FROM sidekeep.job_runs j WHERE j.name = n.name AND j.state = 'ok' AND NOT j.dry_run \
         AND j.due_at <= now() ORDER BY j.due_at DESC LIMIT 1)) AS r";
    store
        .snapshot(deadline, "jobs.look", async |connection| {
            let statuses = diesel::sql_query(STATUSES).bind::<Array<Text>, _>(names).load(connection).await?;
            let runs = diesel::sql_query(RUNS).bind::<Array<Text>, _>(names).load(connection).await?;
            Ok(Look { statuses, runs })
        })
        .await
}

/// Who claims what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim<'a> {
    /// A fresh id.
    pub(super) run: &'a str,
    /// The job.
    pub(super) name: &'a str,
    /// This daemon.
    pub(super) holder: &'a str,
}

impl Claim<'_> {
    /// Claims a due time, unless it has been claimed, a later one has been, or the job is running.
    pub(super) async fn due(
        self,
        store: &Store,
        due: DateTime<Utc>,
        deadline: &Deadline,
    ) -> Result<Option<Run>> {
        const CLAIM: &str = "WITH claimed AS ( \
            INSERT INTO sidekeep.job_runs (run, name, due_at, started_at, state, dry_run, epoch, heartbeat_at, holder) \
            SELECT $1, $2, $3, now(), 'running', false, 1, now(), $4 WHERE $3 <= now() AND NOT EXISTS ( \
                SELECT FROM sidekeep.job_runs WHERE name = $2 AND NOT dry_run AND due_at > $3 AND due_at <= now()) \
            ON CONFLICT DO NOTHING RETURNING *) \
            SELECT * FROM claimed UNION ALL SELECT * FROM sidekeep.job_runs WHERE run = $1";
        let claimed = store.single(deadline, "jobs.claim", async |connection| {
            let query = diesel::sql_query(CLAIM)
                .bind::<Text, _>(self.run)
                .bind::<Text, _>(self.name)
                .bind::<Timestamptz, _>(due)
                .bind::<Text, _>(self.holder);
            Ok(query.load::<Run>(connection).await?)
        });
        Ok(claimed.await?.pop())
    }

    /// Claims a run that somebody asked for, unless the job is running.
    pub(super) async fn asked(
        self,
        store: &Store,
        asked: Option<&Value>,
        dry_run: bool,
        deadline: &Deadline,
    ) -> Result<Option<Run>> {
        const CLAIM: &str = "WITH claimed AS ( \
            INSERT INTO sidekeep.job_runs (run, name, due_at, started_at, state, dry_run, epoch, heartbeat_at, holder, asked) \
            VALUES ($1, $2, now(), now(), 'running', $3, 1, now(), $4, $5) ON CONFLICT DO NOTHING RETURNING *) \
            SELECT * FROM claimed UNION ALL SELECT * FROM sidekeep.job_runs WHERE run = $1";
        let claimed = store.single(deadline, "jobs.claim", async |connection| {
            let query = diesel::sql_query(CLAIM)
                .bind::<Text, _>(self.run)
                .bind::<Text, _>(self.name)
                .bind::<Bool, _>(dry_run)
                .bind::<Text, _>(self.holder)
                .bind::<Nullable<Jsonb>, _>(asked);
            Ok(query.load::<Run>(connection).await?)
        });
        Ok(claimed.await?.pop())
    }
}

impl Run {
    /// Takes the run over from a holder that let it go, or seems dead, as it was seen in this row. The old holder's epoch is
    /// then over.
    pub(super) async fn take_over(
        &self,
        store: &Store,
        holder: &str,
        deadline: &Deadline,
    ) -> Result<Option<Self>> {
        const TAKE: &str = "WITH taken AS ( \
            UPDATE sidekeep.job_runs SET epoch = epoch + 1, heartbeat_at = now(), holder = $4 \
            WHERE run = $1 AND epoch = $2 AND heartbeat_at = $3 AND state = 'running' RETURNING *) \
            SELECT * FROM taken UNION ALL \
            SELECT * FROM sidekeep.job_runs WHERE run = $1 AND epoch = $2 + 1 AND holder = $4 AND state = 'running'";
        let taken = store.single(deadline, "jobs.take_over", async |connection| {
            let query = diesel::sql_query(TAKE)
                .bind::<Text, _>(&self.run)
                .bind::<Int8, _>(self.epoch)
                .bind::<Timestamptz, _>(self.heartbeat_at)
                .bind::<Text, _>(holder);
            Ok(query.load::<Self>(connection).await?)
        });
        Ok(taken.await?.pop())
    }

    /// Says that its holder lives, and how far it is. Answers whether it still is the holder.
    pub(super) async fn beat(
        &self,
        store: &Store,
        counts: Option<&Value>,
        deadline: &Deadline,
    ) -> Result<bool> {
        let rows = store.single(deadline, "jobs.beat", async |connection| {
            let mine = job_runs::table
                .find(&self.run)
                .filter(job_runs::epoch.eq(self.epoch))
                .filter(job_runs::state.eq("running"));
            let beat = diesel::update(mine).set((
                job_runs::heartbeat_at.eq(diesel::dsl::now),
                counts.map(|counts| job_runs::counts.eq(counts)),
            ));
            Ok(beat.execute(connection).await?)
        });
        Ok(rows.await? > 0)
    }

    /// Lets the run go, so that another daemon goes on with it at once.
    pub(super) async fn let_go(&self, store: &Store, deadline: &Deadline) -> Result<()> {
        let rows = store.single(deadline, "jobs.let_go", async |connection| {
            let mine = job_runs::table
                .find(&self.run)
                .filter(job_runs::epoch.eq(self.epoch))
                .filter(job_runs::state.eq("running"));
            let gone = diesel::update(mine).set(job_runs::holder.eq(None::<String>));
            Ok(gone.execute(connection).await?)
        });
        rows.await.map(drop)
    }

    /// Records how it ended. Answers nothing where this holder's epoch is over.
    pub(super) async fn finish(
        &self,
        store: &Store,
        result: &Result<Value, String>,
        deadline: &Deadline,
    ) -> Result<Option<Self>> {
        const FINISH: &str = "WITH finished AS ( \
            UPDATE sidekeep.job_runs SET state = $3, finished_at = now(), counts = coalesce($4, counts), error = $5 \
            WHERE run = $1 AND epoch = $2 AND state = 'running' RETURNING *) \
            SELECT * FROM finished UNION ALL \
            SELECT * FROM sidekeep.job_runs WHERE run = $1 AND epoch = $2 AND state <> 'running'";
        let (state, counts, error) = match result {
            Ok(counts) => ("ok", Some(counts), None),
            Err(error) => ("failed", None, Some(error.chars().take(ERROR_CHARS).collect::<String>())),
        };
        let finished = store.single(deadline, "jobs.finish", async |connection| {
            let query = diesel::sql_query(FINISH)
                .bind::<Text, _>(&self.run)
                .bind::<Int8, _>(self.epoch)
                .bind::<Text, _>(state)
                .bind::<Nullable<Jsonb>, _>(counts)
                .bind::<Nullable<Text>, _>(&error);
            Ok(query.load::<Self>(connection).await?)
        });
        Ok(finished.await?.pop())
    }
}

impl Run {
    /// The run of a job that is going on. There is one at the most.
    pub(super) async fn of(store: &Store, name: &str, deadline: &Deadline) -> Result<Option<Self>> {
        let running = store.single(deadline, "jobs.running", async |connection| {
            let rows = job_runs::table.filter(job_runs::name.eq(name)).filter(job_runs::state.eq("running"));
            Ok(rows.select(Self::as_select()).first(connection).await.optional()?)
        });
        running.await
    }

    /// Adds to what it has done, in the transaction that does it: so the counts are true whoever goes on with the run.
    ///
    /// # Errors
    /// [`Error::Conflict`] where this holder's epoch is over: nothing of the transaction may stay.
    pub(super) async fn count(&self, tx: &mut Connection, (kind, number): (&'static str, i64)) -> Result<()> {
        const COUNT: &str = "UPDATE sidekeep.job_runs SET counts = jsonb_set(coalesce(counts, '{}'), ARRAY[$3], \
            to_jsonb(coalesce((counts ->> $3)::bigint, 0) + $4)) WHERE run = $1 AND epoch = $2 AND state = 'running'";
        let query = diesel::sql_query(COUNT).bind::<Text, _>(&self.run).bind::<Int8, _>(self.epoch);
        match query.bind::<Text, _>(kind).bind::<Int8, _>(number).execute(tx).await? {
            0 => Err(Error::conflict("another daemon has taken this run over")),
            _ => Ok(()),
        }
    }
}

/// What of the runs is past `retention.job_runs` at `$1`. The last run of a job stays, and the last that succeeded: they say
/// what is due next.
macro_rules! expired {
    () => {
        "sidekeep.job_runs r JOIN sidekeep.retention_policies p ON p.name = 'job_runs' \
         WHERE r.finished_at <= $1 - make_interval(secs => p.keep_seconds) AND (r.dry_run OR ( \
            EXISTS (SELECT FROM sidekeep.job_runs n WHERE n.name = r.name AND NOT n.dry_run AND n.due_at > r.due_at) \
            AND (r.state <> 'ok' OR EXISTS (SELECT FROM sidekeep.job_runs n \
                WHERE n.name = r.name AND NOT n.dry_run AND n.state = 'ok' AND n.due_at > r.due_at))))"
    };
}

/// Deletes the runs that were kept long enough, so many at a time.
pub(super) async fn expire(store: &Store, at: DateTime<Utc>, deadline: &Deadline) -> Result<i64> {
    const EXPIRE: &str =
        concat!("DELETE FROM sidekeep.job_runs WHERE run IN (SELECT r.run FROM ", expired!(), " LIMIT 1000)");
    let mut expired = 0_i64;
    loop {
        let rows = store.autocommit(deadline, "jobs.expire", async |connection| {
            Ok(diesel::sql_query(EXPIRE).bind::<Timestamptz, _>(at).execute(connection).await?)
        });
        let rows = i64::try_from(rows.await?).unwrap_or(i64::MAX);
        if rows == 0 {
            return Ok(expired);
        }
        expired = expired.saturating_add(rows);
    }
}

/// Deletes all but the latest successes of a job.
pub(super) async fn prune(store: &Store, name: &str, deadline: &Deadline) -> Result<()> {
    const PRUNE: &str = "DELETE FROM sidekeep.job_runs WHERE name = $1 AND state = 'ok' AND due_at < ( \
        SELECT due_at FROM sidekeep.job_runs WHERE name = $1 AND state = 'ok' ORDER BY due_at DESC OFFSET $2 - 1 LIMIT 1)";
    let rows = store.single(deadline, "jobs.prune", async |connection| {
        let query = diesel::sql_query(PRUNE).bind::<Text, _>(name).bind::<Int8, _>(KEPT);
        Ok(query.execute(connection).await?)
    });
    rows.await.map(drop)
}
