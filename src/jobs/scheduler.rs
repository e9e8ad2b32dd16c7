//! What is due, once across daemons: looks at `job_runs`, claims, and hands over to the run.
//!
//! PostgreSQL's clock decides what is due, this daemon's monotonic clock when to look. Never holds a lock: a claim is a row.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::asked::{ASKED, in_the_way};
use super::claim::{self, Claim, JobRun, Look, Run, RunState};
use super::retention::policies;
use super::run::Task;
use super::schedule::Schedule;
use super::suspects::Suspects;
use super::wakes::{Moment, Wakes};
use super::{JOBS, Job};
use crate::app::App;
use crate::clock;
use crate::error::{Error, Result, chain};
use crate::store::{Deadline, Store};
use crate::values::RecordId;

/// How often is looked when nothing is due: for runs whose holder died.
const LOOK: Duration = Duration::from_secs(5);
/// Between looks at the least.
const LEAST: Duration = Duration::from_millis(5);
/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a statement may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long runs that were cut may take to be let go.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// How often a run that was asked for tries to begin, while another one of the job is going on.
const RETRY: Duration = Duration::from_millis(100);

/// The jobs of one daemon.
#[derive(Debug)]
pub struct Jobs {
    pub(super) app: Arc<App>,
    /// This daemon, in the rows that it holds.
    holder: String,
    /// Where runs are spawned: the end of the daemon waits for them.
    pub(super) running: TaskTracker,
    /// Ends the runs.
    pub(super) cut: CancellationToken,
    ended: Mutex<BTreeMap<&'static str, LastRun>>,
    succeeded: Mutex<BTreeMap<&'static str, LastRun>>,
    going_on: Mutex<BTreeMap<&'static str, JobRun>>,
    /// How often something was noted of a run of this daemon: a look that began before knows less.
    noted: AtomicU64,
}

/// The last run of a job that ended, as this daemon has seen it.
#[derive(Clone, Debug)]
pub struct LastRun {
    /// The run.
    pub run: JobRun,
    /// When it was seen, and how long ago it had ended then.
    seen: (Instant, Duration),
}

impl LastRun {
    /// How long ago it ended.
    pub fn age(&self) -> Duration {
        let (at, age) = self.seen;
        at.elapsed().saturating_add(age)
    }
}

impl Jobs {
    /// Begins nothing yet.
    pub fn new(app: Arc<App>) -> Arc<Self> {
        let holder = app.records.keyring().daemon().to_owned();
        Arc::new(Self {
            app,
            holder,
            running: TaskTracker::new(),
            cut: CancellationToken::new(),
            ended: Mutex::default(),
            succeeded: Mutex::default(),
            going_on: Mutex::default(),
            noted: AtomicU64::new(0),
        })
    }

    /// Runs what is due until `drain`; then waits for what is running as long as `socket.drain` says, or until `abort`, and
    /// lets go of the rest.
    pub async fn run(self: &Arc<Self>, drain: &CancellationToken, abort: &CancellationToken) {
        let ended = async {
            tokio::join!(self.keep_looking(drain), self.keep_forgetting(drain));
            self.running.close();
            self.running.wait().await;
        };
        tokio::pin!(ended);
        let limit = self.app.config.socket.drain.duration();
        let over = async {
            drain.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(limit) => {}
                () = abort.cancelled() => {}
            }
        };
        tokio::select! {
            () = &mut ended => return,
            () = over => {}
        }
        self.cut.cancel();
        let _ = tokio::time::timeout(LAST_WORDS, ended).await;
    }

    /// Runs a job now, and waits for its end as long as `wait` says: what is answered may still be running. While the job is
    /// running already, waits for that to end first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a job that there is not, or that has no dry run; [`Error::Conflict`] when it is running all the
    /// while, or is off for want of a key of the configuration.
    pub async fn run_now(
        self: &Arc<Self>,
        name: &str,
        dry_run: bool,
        wait: Duration,
        deadline: &Deadline,
    ) -> Result<JobRun> {
        let job = Job::find(name)?;
        job.can_run(&self.app.config)?;
        if dry_run && !job.has_dry_run {
            return Err(Error::invalid("dry_run", format!("must be false: the job {name} has no dry run")));
        }
        let wait = deadline.waiting(wait);
        let id = RecordId::generate();
        let claim = Claim { run: id.as_str(), name: job.name, holder: &self.holder };
        let claimed = self.claimed(claim, None, dry_run, (&wait, deadline)).await?;
        let run = claimed.map_err(|other| in_the_way(&format!("the job {name}"), &other))?;
        let shown = run.clone().shown();
        let task = Task::from(job);
        match wait.run(self.start(task, run)).await {
            Ok(Ok(run)) => Ok(run),
            _ => Ok(JobRun { counts: task.progress(&self.app), ..shown }),
        }
    }

    /// Claims a run that somebody asked for; where another one of the name goes on all the while, answers that. Goes on with
    /// one whose holder is dead.
    pub(super) async fn claimed(
        self: &Arc<Self>,
        claim: Claim<'_>,
        asked: Option<&Value>,
        dry_run: bool,
        (wait, deadline): (&Deadline, &Deadline),
    ) -> Result<Result<Run, Run>> {
        let mut suspects = Suspects::default();
        loop {
            if self.running.is_closed() {
                return Err(Error::unavailable("this daemon is ending; connect again"));
            }
            if let Some(run) = claim.asked(self.store(), asked, dry_run, deadline).await? {
                return Ok(Ok(run));
            }
            let look = claim::look(self.store(), &[claim.name], deadline).await?;
            if let Some(other) = look.running(claim.name) {
                self.take_over(claim.name, &look, &mut suspects).await?;
                if wait.has_passed() {
                    return Ok(Err(other.clone()));
                }
            }
            // The end of the wait is noticed above.
            let _ = wait.run(tokio::time::sleep(RETRY)).await;
        }
    }

    /// The last run of each job that ended, as far as this daemon has seen.
    pub fn ended(&self) -> BTreeMap<&'static str, LastRun> {
        self.ended_lock().clone()
    }

    /// The last run of a job that succeeded, as far as this daemon has seen.
    pub fn succeeded(&self, name: &str) -> Option<LastRun> {
        self.succeeded.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The runs that are going on, with how far they are: those of other daemons as this one has last seen them.
    pub fn running(&self) -> BTreeMap<&'static str, JobRun> {
        self.going_on.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how far a run of this daemon is.
    pub(super) fn note_running(&self, name: &'static str, run: JobRun) {
        self.noted.fetch_add(1, Ordering::AcqRel);
        self.going_on.lock().unwrap_or_else(PoisonError::into_inner).insert(name, run);
    }

    /// Whether a job that this daemon runs should have succeeded again by now: another time was due since, and passed too.
    pub fn is_overdue(&self, job: &Job) -> bool {
        let config = &self.app.config;
        let now = clock::now().utc();
        let since = self.succeeded(job.name).map_or_else(|| self.app.started.elapsed(), |last| last.age());
        let since = TimeDelta::from_std(since).ok().and_then(|age| now.checked_sub_signed(age));
        let schedule = Schedule::of((job.settings)(&config.jobs));
        let second = since.and_then(|since| schedule.next(since)).and_then(|first| schedule.next(first));
        job.is_enabled(config) && second.is_some_and(|second| second < now)
    }

    /// Notes a run that has just ended.
    pub(super) fn note_ended(&self, name: &'static str, run: &Run) {
        self.noted.fetch_add(1, Ordering::AcqRel);
        self.going_on.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        if !run.dry_run {
            let seen = (Instant::now(), Duration::ZERO);
            let last = LastRun { run: run.clone().shown(), seen };
            if last.run.state == RunState::Ok {
                self.succeeded.lock().unwrap_or_else(PoisonError::into_inner).insert(name, last.clone());
            }
            self.ended_lock().insert(name, last);
        }
    }

    /// This daemon, in the rows that it holds.
    pub(super) fn holder(&self) -> &str {
        &self.holder
    }

    pub(super) fn store(&self) -> &Store {
        self.app.records.store()
    }

    /// For statements that nobody waits for.
    pub(super) fn patience(&self) -> Deadline {
        Deadline::after(PATIENCE, self.cut.clone())
    }

    fn ended_lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, LastRun>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_looking(self: &Arc<Self>, drain: &CancellationToken) {
        if drain.run_until_cancelled(self.app.opened()).await.is_none() {
            return;
        }
        self.mirror_policies().await;
        let wakes = Wakes::start().await;
        let mut suspects = Suspects::default();
        let mut failing = false;
        while !drain.is_cancelled() {
            let moment = Moment::now();
            let next = match self.look(&mut suspects).await {
                Ok(next) => {
                    failing = false;
                    next
                }
                Err(error) => {
                    if !failing {
                        tracing::error!(error = %chain(&error), "what is due cannot be found out");
                    }
                    failing = true;
                    after(Instant::now(), AGAIN)
                }
            };
            tokio::select! {
                () = drain.cancelled() => {}
                () = tokio::time::sleep_until(next.max(after(Instant::now(), LEAST))) => {}
                () = jump(&wakes, moment) => tracing::info!("the clock jumped, or this host slept"),
            }
        }
        wakes.stop().await;
    }

    /// The views say what retention will remove as soon as a daemon that runs it has started.
    async fn mirror_policies(&self) {
        let config = &self.app.config;
        if config.jobs.enabled && config.jobs.retention.enabled {
            let mirrored = policies::mirror(self.store(), &config.retention, &self.patience()).await;
            if let Err(error) = mirrored {
                tracing::warn!(error = %chain(&error), "what [retention] says is written with its next run");
            }
        }
    }

    /// Begins what is due, and goes on with what a dead holder left. Answers when to look again.
    async fn look(self: &Arc<Self>, suspects: &mut Suspects) -> Result<Instant> {
        let names: Vec<_> =
            JOBS.iter().map(|job| job.name).chain(ASKED.iter().map(|asked| asked.name)).collect();
        let noted = self.noted.load(Ordering::Acquire);
        let look = claim::look(self.store(), &names, &self.patience()).await?;
        let looked = Instant::now();
        self.note(&look, noted);
        let config = &self.app.config;
        let mut wait = LOOK;
        for job in JOBS.iter().filter(|job| job.is_enabled(config)) {
            let Some(status) = look.status(job.name) else { continue };
            let schedule = Schedule::of((job.settings)(&config.jobs));
            let next = schedule.next(status.now).and_then(|next| (next - status.now).to_std().ok());
            wait = next.map_or(wait, |next| next.min(wait));
            if look.running(job.name).is_some() {
                self.take_over(job.name, &look, suspects).await?;
            } else if let Some(due) = schedule.due(status.last_due, status.now) {
                let id = RecordId::generate();
                let claim = Claim { run: id.as_str(), name: job.name, holder: &self.holder };
                if let Some(run) = claim.due(self.store(), due, &self.patience()).await? {
                    drop(self.start(job.into(), run));
                }
            }
        }
        for asked in &ASKED {
            self.take_over(asked.name, &look, suspects).await?;
        }
        Ok(after(looked, wait))
    }

    /// Goes on with a run whose holder is dead or has let it go.
    async fn take_over(self: &Arc<Self>, name: &str, look: &Look, suspects: &mut Suspects) -> Result<()> {
        let (Some(run), Some(status), Some(task)) = (look.running(name), look.status(name), Task::find(name))
        else {
            return Ok(());
        };
        if task.may_go_on(&self.app, run)
            && suspects.is_dead(run, status.now)
            && let Some(taken) = run.take_over(self.store(), &self.holder, &self.patience()).await?
        {
            tracing::warn!(job = name, run = taken.run, epoch = taken.epoch, "taken over");
            drop(self.start(task, taken));
        }
        Ok(())
    }

    /// Notes what was found, unless a run of this daemon began or ended meanwhile: then the next look does.
    fn note(&self, look: &Look, noted: u64) {
        let mut ended = self.ended_lock();
        let mut succeeded = self.succeeded.lock().unwrap_or_else(PoisonError::into_inner);
        let mut going_on = self.going_on.lock().unwrap_or_else(PoisonError::into_inner);
        if self.noted.load(Ordering::Acquire) != noted {
            return;
        }
        for job in &JOBS {
            match look.running(job.name) {
                Some(run) => drop(going_on.insert(job.name, run.clone().shown())),
                None => drop(going_on.remove(job.name)),
            }
            let Some(status) = look.status(job.name) else { continue };
            let last = |run: &Run| {
                let run = run.clone().shown();
                let at = run.finished_at.map_or(status.now, |at| at.utc());
                let age = (status.now - at).to_std().unwrap_or_default();
                LastRun { run, seen: (Instant::now(), age) }
            };
            ended.extend(look.ended(job.name).map(|run| (job.name, last(run))));
            succeeded.extend(look.succeeded(job.name).map(|run| (job.name, last(run))));
        }
    }
}

/// So long after a moment.
fn after(moment: Instant, length: Duration) -> Instant {
    moment.checked_add(length).unwrap_or(moment)
}

/// Ends when one of the clocks has jumped since a moment.
async fn jump(wakes: &Wakes, moment: Moment) {
    loop {
        wakes.next().await;
        if moment.jumped(Moment::now()) {
            return;
        }
    }
}
