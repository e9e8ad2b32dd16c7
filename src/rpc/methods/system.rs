//! `system.*`: how the daemon is. Answered from what is known, without asking PostgreSQL.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use super::{About, Methods, gauges};
use crate::app::State;
use crate::audit::Leased;
use crate::audit::publication;
use crate::backup::keyring::Standing;
use crate::config::LogLevel;
use crate::jobs::{JOBS, Job, JobRun, RunState};
use crate::keyring::Daemon;
use crate::rpc::call::Call;
use crate::rpc::params::None;
use crate::subjects::request::OpenRequests;

/// A look at the server that is older than this says nothing of it.
const STALE: Duration = Duration::from_secs(20);

/// Whether calls can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// All is well.
    Ok,
    /// Calls are answered, and somebody should look.
    Degraded,
    /// Calls that need PostgreSQL are refused.
    Unavailable,
}

/// What `system.health` answers, as it was found a moment ago at the most: looking costs more than answering, and whoever asks a
/// hundred thousand times a second is not to pay for each.
#[derive(Debug)]
pub(in crate::rpc) struct Found {
    at: Instant,
    draining: bool,
    health: Health,
}

/// The same, shared by those who ask in that moment.
struct Recent(Arc<Found>);

impl Serialize for Recent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.health.serialize(serializer)
    }
}

impl JsonSchema for Recent {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Health::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Health::json_schema(generator)
    }
}

/// How long what was found is true enough.
const MOMENT: Duration = Duration::from_millis(5);

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Check {
    /// How it is.
    status: Status,
    /// Why, where it is not well.
    message: Option<String>,
}

/// What `system.health` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Health {
    /// The worst of the checks.
    status: Status,
    /// By name.
    checks: BTreeMap<&'static str, Check>,
}

/// What `system.status` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Report {
    /// This daemon's version.
    version: &'static str,
    /// The deployment's name.
    deployment: String,
    /// How long it has run.
    uptime_seconds: u64,
    /// As `system.health`.
    health: Health,
    /// Clients.
    connections: ConnectionsReport,
    /// Calls.
    calls: CallsReport,
    /// The daemons that lived when that was last looked at, this one among them.
    daemons: Vec<Daemon>,
    /// The streams of the audit log that this daemon writes at present; it leases one when it first has an entry.
    streams: Vec<Leased>,
    /// Requests that wait for the writers of the audit log.
    queue: QueueReport,
    /// What was written with changes, and is not in the audit log yet.
    lag: LagReport,
    /// Connections to PostgreSQL.
    pool: PoolReport,
    /// What PostgreSQL last said of itself.
    database: DatabaseReport,
    /// How the audit log stands to what was published of it.
    publication: publication::Report,
    /// How far the audit log is verified.
    verification: VerificationReport,
    /// What each job ran last, by its name.
    jobs: BTreeMap<&'static str, JobReport>,
    /// The requests of people that are open; null until they were counted.
    requests: Option<OpenRequests>,
    /// The ids of the key-encryption keys, the active one first.
    kek_ids: Vec<String>,
    /// The least that is logged.
    log_level: LogLevel,
    /// Why the configuration was not taken when it was last read again.
    reload_error: Option<String>,
}

/// Connections of clients.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct ConnectionsReport {
    /// How many are open.
    open: usize,
    /// How many there may be.
    max: usize,
}

/// Calls in flight.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct CallsReport {
    /// How many there are.
    in_flight: usize,
    /// How many there may be.
    max: usize,
    /// Whether this daemon is ending.
    draining: bool,
}

/// Requests that wait for the writers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct QueueReport {
    /// How many wait.
    waiting: usize,
    /// How many may.
    max: usize,
}

/// How far the log is behind the records, in the whole database.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct LagReport {
    /// How many entries wait.
    staged: Option<i64>,
    /// How long the oldest has waited.
    oldest_seconds: Option<f64>,
    /// How long ago it was looked.
    age_seconds: Option<u64>,
}

/// The pool.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct PoolReport {
    /// How many connections there may be.
    max: usize,
    /// How many are open.
    open: usize,
    /// How many of them are free.
    free: usize,
    /// How many calls wait for one.
    waiting: usize,
}

/// The server.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct DatabaseReport {
    /// Its `server_version_num`.
    version: Option<String>,
    /// Whether it is a standby.
    in_recovery: Option<bool>,
    /// `synchronous_standby_names`; empty when a commit waits for no standby.
    synchronous_standby_names: Option<String>,
    /// How many synchronous standbys are connected, as far as this role is told.
    synchronous_standbys: Option<i64>,
    /// How long ago it was asked.
    age_seconds: Option<u64>,
}

/// The verification of the audit log.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct VerificationReport {
    /// How long ago the last one ended that found the log intact.
    pub(super) age_seconds: Option<u64>,
    /// Up to how many entries.
    pub(super) entries: Option<u64>,
}

/// A job.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct JobReport {
    /// Whether this daemon runs it when it is due.
    enabled: bool,
    /// The key of the configuration that has to be set before it can run here; null where none is missing.
    missing_key: Option<&'static str>,
    /// The run that is going on, and how far it is.
    running: Option<JobRun>,
    /// The last run that ended and was no dry run.
    last_run: Option<JobRun>,
    /// How long ago that was.
    age_seconds: Option<u64>,
}

/// What `system.metrics` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Figures {
    /// Prometheus' text format.
    text: String,
}

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About::own(
            "system.health",
            "Whether calls can be answered, and why not. Answers at once, however busy the daemon is.",
            ("{}", r#"{"status":"ok","checks":{"database":{"status":"ok","message":null},"drain":{"status":"ok","message":null},"jobs":{"status":"ok","message":null},"keyring_backup":{"status":"ok","message":null},"publication":{"status":"ok","message":null}}}"#),
        ),
        |call, _: None| std::future::ready(Ok(recent_health(&call))),
    );
    methods.add(
        About::own(
            "system.status",
            "Version, uptime, calls, pool and what PostgreSQL last said of itself.",
            ("{}", r#"{"version":"0.1.0","deployment":"sidekeep","uptime_seconds":12,"health":{"status":"ok","checks":{"database":{"status":"ok","message":null},"drain":{"status":"ok","message":null},"jobs":{"status":"ok","message":null},"keyring_backup":{"status":"ok","message":null},"publication":{"status":"ok","message":null}}},"connections":{"open":1,"max":10000},"calls":{"in_flight":0,"max":4096,"draining":false},"daemons":[{"daemon":"web-1 4711 0193f0c2-8e1b-7a34-9c55-1d2e3f405162","host":"web-1","version":"0.1.0","kek_ids":["6c1b9f0d2a7e4835"],"wraps_under":"6c1b9f0d2a7e4835","started_at":"2026-11-20T19:54:48.000000Z","seen_at":"2026-11-20T19:55:00.000000Z"}],"streams":[{"stream":0,"size":42,"epoch":1,"leased_until":"2026-11-20T19:55:15.000000Z"}],"queue":{"waiting":0,"max":16384},"lag":{"staged":0,"oldest_seconds":0.0,"age_seconds":1},"pool":{"max":8,"open":1,"free":1,"waiting":0},"database":{"version":"150018","in_recovery":false,"synchronous_standby_names":"","synchronous_standbys":0,"age_seconds":1},"publication":{"state":"off","size":null,"at":null,"age_seconds":null,"message":null,"gaps":[]},"verification":{"age_seconds":null,"entries":null},"jobs":{},"requests":{"open":3,"due_soon":1,"overdue":0},"kek_ids":["6c1b9f0d2a7e4835"],"log_level":"info","reload_error":null}"#),
        ),
        |call, _: None| async move { Ok(report(&call)) },
    );
    methods.add(
        About::own(
            "system.metrics",
            "The figures, in Prometheus' text format.",
            ("{}", r##"{"text":"# TYPE sidekeep_calls_total counter\nsidekeep_calls_total{method=\"system.health\",outcome=\"ok\"} 1\n"}"##),
        ),
        |call, _: None| async move {
            gauges::read(&call);
            Ok(Figures { text: call.app.telemetry.render() })
        },
    );
}

fn database(call: &Call) -> Check {
    let well = Check { status: Status::Ok, message: Option::None };
    let ill = |status, message: String| Check { status, message: Some(message) };
    match call.app.state() {
        State::Waiting(why) => {
            return ill(
                Status::Unavailable,
                format!("PostgreSQL has not been reached since the start: {why}"),
            );
        }
        State::Failed(error) => return ill(Status::Unavailable, error.to_string()),
        State::Ready => {}
    }
    match call.app.records.store().watch().seen() {
        Option::None => ill(Status::Degraded, "PostgreSQL has not been looked at yet".into()),
        Some(seen) => match seen.server {
            Err(why) => ill(Status::Unavailable, format!("PostgreSQL cannot be reached: {why}")),
            Ok(_) if seen.at.elapsed() > STALE => {
                ill(Status::Degraded, "PostgreSQL has not answered for a while".into())
            }
            Ok(server) if server.in_recovery => ill(
                Status::Unavailable,
                "this PostgreSQL is a standby; name the primary in database.url".into(),
            ),
            Ok(server) if server.read_only => ill(
                Status::Degraded,
                "this PostgreSQL is read-only (default_transaction_read_only); writes are refused".into(),
            ),
            Ok(server) if !server.synchronous_standby_names.is_empty() && server.synchronous_standbys == 0 => ill(
                Status::Degraded,
                "commits wait for a synchronous standby (synchronous_standby_names), and none is connected".into(),
            ),
            Ok(_) => well,
        },
    }
}

/// A job that is not yet due is well.
fn jobs(call: &Call) -> Check {
    let ended = call.calls.jobs().ended();
    let failed: Vec<_> = JOBS
        .iter()
        .filter(|job| job.is_enabled(&call.app.config))
        .filter(|job| ended.get(job.name).is_some_and(|last| last.run.state == RunState::Failed))
        .map(|job| job.name)
        .collect();
    if failed.is_empty() {
        let late = Job::find(VERIFY).is_ok_and(|job| call.calls.jobs().is_overdue(job));
        let message = late.then(|| "the audit log was not verified in time; see job.history".into());
        return Check { status: if late { Status::Degraded } else { Status::Ok }, message };
    }
    let message = format!("the last run failed of {}; see job.history", failed.join(", "));
    Check { status: Status::Degraded, message: Some(message) }
}

/// One that is off, or was not looked at yet, is well.
fn keyring_backup(call: &Call) -> Check {
    let standing = call.app.keyring_guard.standing();
    if let Some(message) = standing.message() {
        let behind = matches!(standing, Standing::Behind(_));
        let status = if behind { Status::Unavailable } else { Status::Degraded };
        return Check { status, message: Some(message) };
    }
    let late = call.app.keyring_lateness.seen().filter(|late| late.is_broken());
    let message = late.map(|late| late.alarm());
    Check { status: if message.is_some() { Status::Degraded } else { Status::Ok }, message }
}

/// One that was not compared yet is well.
fn publication(call: &Call) -> Check {
    let message = call.app.records.log().publication().standing().message();
    Check { status: if message.is_some() { Status::Degraded } else { Status::Ok }, message }
}

/// The job that verifies the log, and what it says of how far it came.
const VERIFY: &str = "verify";

pub(super) fn verification(call: &Call) -> VerificationReport {
    let last = call.calls.jobs().succeeded(VERIFY);
    let counts = last.as_ref().and_then(|last| last.run.counts.as_ref());
    VerificationReport {
        age_seconds: last.as_ref().map(|last| last.age().as_secs()),
        entries: counts.and_then(|counts| counts.get("reached")?.as_u64()),
    }
}

fn job_reports(call: &Call) -> BTreeMap<&'static str, JobReport> {
    let (mut ended, mut running) = (call.calls.jobs().ended(), call.calls.jobs().running());
    let report = |job: &Job| {
        let last = ended.remove(job.name);
        let report = JobReport {
            enabled: job.is_enabled(&call.app.config),
            missing_key: job.missing_key(&call.app.config),
            running: running.remove(job.name),
            age_seconds: last.as_ref().map(|last| last.age().as_secs()),
            last_run: last.map(|last| last.run),
        };
        (job.name, report)
    };
    JOBS.iter().map(report).collect()
}

fn recent_health(call: &Call) -> Recent {
    let (known, draining) = (call.calls.health(), call.calls.is_draining());
    if let Some(found) =
        known.load_full().filter(|found| found.draining == draining && found.at.elapsed() < MOMENT)
    {
        return Recent(found);
    }
    let found = Arc::new(Found { at: Instant::now(), draining, health: health(call) });
    known.store(Some(found.clone()));
    Recent(found)
}

fn health(call: &Call) -> Health {
    let draining = call.calls.is_draining();
    let drain = Check {
        status: if draining { Status::Unavailable } else { Status::Ok },
        message: draining.then(|| "this daemon is ending".into()),
    };
    let checks = BTreeMap::from([
        ("database", database(call)),
        ("drain", drain),
        ("jobs", jobs(call)),
        ("keyring_backup", keyring_backup(call)),
        ("publication", publication(call)),
    ]);
    let has = |status| checks.values().any(|check| check.status == status);
    let status = if has(Status::Unavailable) {
        Status::Unavailable
    } else if has(Status::Degraded) {
        Status::Degraded
    } else {
        Status::Ok
    };
    Health { status, checks }
}

fn queue(call: &Call) -> QueueReport {
    let (waiting, max) = call.app.records.log().waiting();
    QueueReport { waiting, max }
}

fn lag(call: &Call) -> LagReport {
    let lag = call.app.records.log().lag();
    LagReport {
        staged: lag.map(|(lag, _)| lag.entries),
        oldest_seconds: lag.map(|(lag, _)| lag.seconds),
        age_seconds: lag.map(|(_, age)| age.as_secs()),
    }
}

fn report(call: &Call) -> Report {
    let pool = call.app.records.store().pool_status();
    let seen = call.app.records.store().watch().seen();
    let age_seconds = seen.as_ref().map(|seen| seen.at.elapsed().as_secs());
    let server = seen.and_then(|seen| seen.server.ok());
    Report {
        version: env!("CARGO_PKG_VERSION"),
        deployment: call.app.config.deployment.name.to_string(),
        uptime_seconds: call.app.started.elapsed().as_secs(),
        health: health(call),
        connections: ConnectionsReport {
            open: call.calls.connections(),
            max: call.app.config.limits.connections,
        },
        calls: CallsReport {
            in_flight: call.calls.in_flight(),
            max: call.app.config.limits.calls,
            draining: call.calls.is_draining(),
        },
        daemons: call.app.records.keyring().seen_daemons().to_vec(),
        streams: call.app.records.log().leased(),
        queue: queue(call),
        lag: lag(call),
        pool: PoolReport { max: pool.max, open: pool.open, free: pool.free, waiting: pool.waiting },
        database: DatabaseReport {
            version: server.as_ref().map(|server| server.version.clone()),
            in_recovery: server.as_ref().map(|server| server.in_recovery),
            synchronous_standbys: server.as_ref().map(|server| server.synchronous_standbys),
            synchronous_standby_names: server.map(|server| server.synchronous_standby_names),
            age_seconds,
        },
        publication: call.app.records.log().publication().report(),
        verification: verification(call),
        jobs: job_reports(call),
        requests: call.app.pressing.seen(),
        kek_ids: call.app.records.keyring().keks().ids(),
        log_level: call.app.telemetry.level(),
        reload_error: call.app.reload_error(),
    }
}
