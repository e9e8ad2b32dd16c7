//! One claimed run: carried out with a heartbeat and a deadline, and recorded. The place where failures of jobs are logged.
//!
//! A crash at any point leaves a row whose heartbeat ages; another daemon goes on with it under the next epoch. A holder that
//! cannot say that it lives gives up before anybody may take its run over.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::asked::{ASKED, Asked};
use super::claim::{self, JobRun, Run};
use super::scheduler::Jobs;
use super::{JOBS, Job, backup};
use crate::app::App;
use crate::audit::entry::Outcome;
use crate::audit::{By, Pinned};
use crate::error::{Error, Result, chain};
use crate::store::Deadline;
use crate::telemetry;
use crate::values::RecordId;

/// How often a holder says that it lives.
const BEAT: Duration = Duration::from_secs(3);
/// After so long without having said so, it gives up: sooner than `STALE`.
const GIVE_UP: Duration = Duration::from_secs(25);
/// A job may notice its deadline by itself.
const GRACE: Duration = Duration::from_secs(1);
/// How long a run that is cut may take to be let go.
const LET_GO: Duration = Duration::from_secs(1);
/// Between attempts to record how a run ended.
const AGAIN: Duration = Duration::from_millis(500);

/// How the error of a run begins that nobody but an operator can act on; behind it, the run's name in the log of the daemon.
pub(super) const INTERNAL: &str = "internal error; the log of the daemon has its cause at ";

/// What a run carries out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// A job of the table.
    Job(&'static Job),
    /// Work that was asked for.
    Asked(&'static Asked),
}

impl From<&'static Job> for Task {
    fn from(job: &'static Job) -> Self {
        Self::Job(job)
    }
}

impl From<&'static Asked> for Task {
    fn from(asked: &'static Asked) -> Self {
        Self::Asked(asked)
    }
}

impl Task {
    /// What a run of this name carries out.
    pub(super) fn find(name: &str) -> Option<Self> {
        let job = JOBS.iter().find(|job| job.name == name).map(Self::Job);
        job.or_else(|| ASKED.iter().find(|asked| asked.name == name).map(Self::Asked))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Job(job) => job.name,
            Self::Asked(asked) => asked.name,
        }
    }

    fn limit(self) -> Duration {
        match self {
            Self::Job(job) => job.limit,
            Self::Asked(asked) => asked.limit,
        }
    }

    /// Whether this daemon may go on with a run that another one began.
    pub(super) fn may_go_on(self, app: &App, run: &Run) -> bool {
        match self {
            Self::Job(_) => true,
            Self::Asked(asked) => (asked.may_go_on)(app, run.asked.as_ref().unwrap_or(&Value::Null)),
        }
    }

    /// How far the run in this daemon is, where that can be told.
    pub(super) fn progress(self, app: &App) -> Option<Value> {
        match self {
            Self::Job(job) => (job.name == backup::NAME).then(|| backup::progress(app)),
            Self::Asked(asked) => (asked.progress)(app),
        }
    }

    fn is_pruned(self) -> bool {
        match self {
            Self::Job(job) => job.pruned,
            Self::Asked(_) => true,
        }
    }

    async fn work(self, app: &App, deadline: &Deadline, run: &Run) -> Result<Value> {
        match self {
            Self::Job(job) => {
                let counts = (job.work)(app, deadline, run.dry_run).await?;
                serde_json::to_value(counts).map_err(Error::internal)
            }
            Self::Asked(asked) => {
                (asked.work)(app, deadline, run.asked.as_ref().unwrap_or(&Value::Null)).await
            }
        }
    }
}

/// How the work ended.
enum Ended {
    /// By itself, or by its deadline.
    Done(Result<Value>),
    /// By the end of this daemon.
    Cut,
    /// The run is another daemon's, or may be.
    Lost,
}

impl Jobs {
    /// Carries a claimed run out, in a task that nobody has to wait for.
    pub(super) fn start(self: &Arc<Self>, task: Task, run: Run) -> JoinHandle<JobRun> {
        let jobs = self.clone();
        self.running.spawn(async move { jobs.carry_out(task, run).await })
    }

    async fn carry_out(&self, task: Task, run: Run) -> JobRun {
        let began = Instant::now();
        tracing::debug!(job = task.name(), run = run.run, epoch = run.epoch, "running");
        if let Task::Job(job) = task {
            self.note_running(job.name, run.clone().shown());
        }
        let ended = tokio::select! {
            biased;
            ended = self.work(task, &run) => ended,
            () = self.keep_beating(task, &run) => Ended::Lost,
        };
        metrics::histogram!(telemetry::JOB_DURATION, "job" => task.name()).record(began.elapsed());
        let (outcome, shown) = match ended {
            Ended::Done(result) => self.record(task, &run, result).await,
            Ended::Cut => {
                self.let_go(task, &run).await;
                ("cut", None)
            }
            Ended::Lost => {
                tracing::warn!(
                    job = task.name(),
                    run = run.run,
                    "given up: another daemon may have taken it over"
                );
                ("lost", None)
            }
        };
        metrics::counter!(telemetry::JOB_RUNS, "job" => task.name(), "outcome" => outcome).increment(1);
        shown.unwrap_or(run).shown()
    }

    async fn work(&self, task: Task, run: &Run) -> Ended {
        let deadline = Deadline::after(task.limit(), self.cut.clone());
        let work = AssertUnwindSafe(task.work(&self.app, &deadline, run)).catch_unwind();
        match deadline.run_with_grace(GRACE, work).await {
            Ok(Ok(Ok(done))) => Ended::Done(Ok(done)),
            _ if self.cut.is_cancelled() => Ended::Cut,
            Ok(Ok(Err(error))) => Ended::Done(Err(error)),
            Ok(Err(_)) => Ended::Done(Err(Error::internal("the job panicked"))),
            Err(_) => {
                let limit = task.limit().as_secs();
                Ended::Done(Err(Error::unavailable(format!("it was not done within {limit} seconds"))))
            }
        }
    }

    /// Says that this holder lives; ends when it no longer holds the run, or can no longer say so.
    async fn keep_beating(&self, task: Task, run: &Run) {
        let mut heard = Instant::now();
        loop {
            tokio::time::sleep(BEAT).await;
            let said = Instant::now();
            // Also while this daemon ends: the run is held until it is let go.
            let deadline = Deadline::after(GIVE_UP.saturating_sub(heard.elapsed()), CancellationToken::new());
            let progress = task.progress(&self.app);
            if let Task::Job(job) = task {
                self.note_running(job.name, JobRun { counts: progress.clone(), ..run.clone().shown() });
            }
            match run.beat(self.store(), progress.as_ref(), &deadline).await {
                Ok(true) => heard = said,
                Ok(false) => return,
                Err(_) if heard.elapsed() < GIVE_UP => {}
                Err(_) => return,
            }
        }
    }

    async fn record(&self, task: Task, run: &Run, result: Result<Value>) -> (&'static str, Option<Run>) {
        let result = match result {
            Ok(done) => Ok(done),
            Err(error) => {
                tracing::error!(job = task.name(), run = run.run, error = %chain(&error), "a job failed");
                Err(match error {
                    Error::Internal(_) => {
                        format!("{INTERNAL}{}", run.run)
                    }
                    other => other.to_string(),
                })
            }
        };
        let deadline = Deadline::after(GIVE_UP, self.cut.clone());
        let finished = loop {
            let finished = match self.enter(task, run, &result, &deadline).await {
                Ok(()) => run.finish(self.store(), &result, &deadline).await,
                Err(error) => Err(error),
            };
            match finished {
                Ok(finished) => break finished,
                Err(_) if !deadline.has_passed() => tokio::time::sleep(AGAIN).await,
                Err(error) => {
                    tracing::error!(job = task.name(), run = run.run, error = %chain(&error), "the end of a run could not be recorded; it will be done again");
                    return ("lost", None);
                }
            }
        };
        let Some(finished) = finished else {
            tracing::warn!(
                job = task.name(),
                run = run.run,
                "another daemon had taken it over before it ended"
            );
            return ("lost", None);
        };
        if let Task::Job(job) = task {
            self.note_ended(job.name, &finished);
        }
        if result.is_ok() && task.is_pruned() {
            let pruned = claim::prune(self.store(), task.name(), &self.patience()).await;
            if let Err(error) = pruned {
                tracing::warn!(job = task.name(), error = %chain(&error), "old runs were not pruned");
            }
        }
        (if result.is_ok() { "ok" } else { "failed" }, Some(finished))
    }

    /// Enters in the log how a run ended, once for each holder that it had. A success of what runs all the time is none: it
    /// would have the log feed itself.
    async fn enter(
        &self,
        task: Task,
        run: &Run,
        result: &Result<Value, String>,
        deadline: &Deadline,
    ) -> Result<()> {
        if run.dry_run || (task.is_pruned() && result.is_ok()) {
            return Ok(());
        }
        if !self.app.records.log().takes_entries() {
            // Its end is seen in `job_runs` all the same: most of all, why the log is shut.
            tracing::warn!(
                job = task.name(),
                run = run.run,
                "not entered in the log, which takes no entries now"
            );
            return Ok(());
        }
        let mut by = By::new(deadline.clone(), Pinned::default(), "job.run", nix::unistd::geteuid().as_raw());
        by.id = RecordId::parse(format!("{}.{}", run.run, run.epoch)).ok();
        by.about("job", task.name());
        by.tells("run", &run.run);
        let counts = result.as_ref().ok().and_then(Value::as_object);
        counts.into_iter().flatten().for_each(|(name, count)| by.tells(name, count));
        let outcome = if result.is_ok() { Outcome::Success } else { Outcome::Failure };
        self.app.records.log().note(&by, outcome, deadline).await
    }

    async fn let_go(&self, task: Task, run: &Run) {
        let deadline = Deadline::after(LET_GO, CancellationToken::new());
        match run.let_go(self.store(), &deadline).await {
            Ok(()) => tracing::info!(job = task.name(), run = run.run, "let go: this daemon ends"),
            Err(error) => {
                tracing::warn!(job = task.name(), run = run.run, error = %chain(&error), "could not be let go; it is taken over later");
            }
        }
    }
}
