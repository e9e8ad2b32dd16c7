//! `sidekeep doctor`: everything that can be looked at without changing anything, as one table of checks.

mod audit;
mod check;
mod daemon;
mod disk;
mod files;
mod jobs;
mod keyring;
mod patient;
mod replica;
mod replication;
mod role;
mod schema;
mod server;
mod sessions;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio_util::task::TaskTracker;

use self::check::{Check, Finding, Look, Needs, Status};
use self::patient::Patient;
use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output};
use crate::config::{self, ConfigError};
use crate::store::probe::Obstacle;

/// How long one check may take: those that go on are left behind.
const PATIENCE: Duration = Duration::from_secs(15);

/// Look at everything that sidekeep needs, and say what is wrong and what to do about it
///
/// Configuration, keys, PostgreSQL, roles, schema, replication, jobs, destinations, disks and clocks. Needs no daemon, and changes
/// nothing. What cannot be looked at is said to be skipped, with the reason. Run it as root, or as the daemon's own user: others may
/// not read its keys.
///
/// Exits with 0 when nothing has failed (warnings may be there), with 1 when something has, and with 2 when PostgreSQL was not
/// reached, so that most could not be looked at.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// Every check, in the order in which one causes the next.
const CHECKS: &[Check] = &[
    Check::here("config", files::config),
    Check::here("keyring.files", files::keys),
    Check::here("signing.files", files::signing_keys),
    Check::here("secrets", files::secrets),
    Check::here("socket", daemon::socket),
    Check::here("daemon", daemon::health),
    Check::here("database.reach", server::reach),
    Check::here("database.tls", server::tls),
    Check::asking("database.role", Needs::Nothing, |patient| Box::pin(server::role(patient))),
    Check::asking("database.version", Needs::Server, |patient| Box::pin(server::version(patient))),
    Check::asking("database.durability", Needs::Server, |patient| Box::pin(server::durability(patient))),
    Check::asking("database.connections", Needs::Server, |patient| Box::pin(sessions::connections(patient))),
    Check::asking("database.pooler", Needs::Server, |patient| Box::pin(sessions::pooler(patient))),
    Check::asking("database.replica", Needs::Nothing, |patient| Box::pin(replica::replica(patient))),
    Check::asking("clock", Needs::Server, |patient| Box::pin(server::clock(patient))),
    Check::asking("replication.standby", Needs::Server, |patient| Box::pin(replication::standby(patient))),
    Check::asking("replication.retry_interval", Needs::Server, |patient| {
        Box::pin(replication::retry_interval(patient))
    }),
    Check::asking("replication.slots", Needs::Server, |patient| Box::pin(replication::slots(patient))),
    Check::here("schema.migrations", schema::migrations),
    Check::asking("role.attributes", Needs::Server, |patient| Box::pin(role::attributes(patient))),
    Check::asking("role.ownership", Needs::Server, |patient| Box::pin(role::ownership(patient))),
    Check::asking("role.grants", Needs::Schema, |patient| Box::pin(role::grants(patient))),
    Check::asking("schema.triggers", Needs::Schema, |patient| Box::pin(schema::triggers(patient))),
    Check::asking("schema.months", Needs::Schema, |patient| Box::pin(schema::months(patient))),
    Check::asking("keyring.database", Needs::Schema, |patient| Box::pin(keyring::database(patient))),
    Check::asking("keyring.backup", Needs::Schema, |patient| Box::pin(keyring::backup(patient))),
    Check::asking("audit.checkpoint", Needs::Schema, |patient| Box::pin(audit::checkpoint(patient))),
    Check::asking("audit.publication", Needs::Schema, |patient| Box::pin(audit::publication(patient))),
    Check::asking("retention.floor", Needs::Schema, |patient| Box::pin(audit::floor(patient))),
    Check::asking("job.archive", Needs::Nothing, |patient| Box::pin(jobs::job(patient, "archive"))),
    Check::asking("job.backup", Needs::Nothing, |patient| Box::pin(jobs::job(patient, "backup"))),
    Check::asking("job.checkpoint", Needs::Nothing, |patient| Box::pin(jobs::job(patient, "checkpoint"))),
    Check::asking("job.drill", Needs::Nothing, |patient| Box::pin(jobs::job(patient, "drill"))),
    Check::asking("job.keyring_backup", Needs::Nothing, |patient| {
        Box::pin(jobs::job(patient, "keyring_backup"))
    }),
    Check::asking("job.partitions", Needs::Nothing, |patient| Box::pin(jobs::job(patient, "partitions"))),
    Check::asking("job.retention", Needs::Nothing, |patient| Box::pin(jobs::job(patient, "retention"))),
    Check::asking("job.verify", Needs::Nothing, |patient| Box::pin(jobs::job(patient, "verify"))),
    Check::asking("backup.programs", Needs::Server, |patient| Box::pin(jobs::programs(patient))),
    Check::asking("backup.role", Needs::Schema, |patient| Box::pin(jobs::dumping_role(patient))),
    Check::asking("destination.archive", Needs::Nothing, |patient| {
        Box::pin(disk::destination(patient, "archive.destination"))
    }),
    Check::asking("destination.backup", Needs::Nothing, |patient| {
        Box::pin(disk::destination(patient, "backup.destination"))
    }),
    Check::asking("destination.keyring", Needs::Nothing, |patient| {
        Box::pin(disk::destination(patient, "keyring.backup"))
    }),
    Check::asking("destination.publish", Needs::Nothing, |patient| {
        Box::pin(disk::destination(patient, "audit.publish"))
    }),
    Check::asking("disk.database", Needs::Server, |patient| Box::pin(disk::database(patient))),
];

/// A check and what it found.
#[derive(Debug, Serialize)]
struct Told {
    name: &'static str,
    #[serde(flatten)]
    finding: Finding,
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst of the checks.
    status: Status,
    version: &'static str,
    ok: usize,
    warnings: usize,
    failed: usize,
    skipped: usize,
    checks: Vec<Told>,
}

pub(super) fn run(_: Args, global: &Global) -> anyhow::Result<()> {
    let (report, reached) = match config::load(global.config.as_deref()) {
        Err(problem) => (without_configuration(&problem), true),
        Ok(loaded) => {
            let runtime = runtime()?;
            let found = runtime.block_on(examine(loaded));
            // What a check has left behind may stand still for ever.
            runtime.shutdown_background();
            found
        }
    };
    if global.json {
        output::line(&serde_json::to_string(&report)?)?;
    } else {
        lines(&report).iter().try_for_each(|line| output::line(line))?;
    }
    if !reached {
        return Err(coded(Code::Usage, "PostgreSQL was not reached; most could not be looked at"));
    }
    anyhow::ensure!(report.failed == 0, "{} of {} checks failed", report.failed, report.checks.len());
    Ok(())
}

/// All that there is to say while nothing is known: it is one fault, and not forty.
fn without_configuration(problem: &ConfigError) -> Report {
    let advice = "mend it and run `sidekeep config check`; --config FILE names another one";
    let checks = CHECKS.iter().map(|check| match check.name {
        "config" => (check.name, Finding::fail(problem.to_string(), advice)),
        name => (name, Finding::skipped("the configuration is wrong")),
    });
    summed(checks.map(|(name, finding)| Told { name, finding }).collect())
}

/// Runs all checks at once, each for as long as one may take. Answers, too, whether PostgreSQL was reached.
async fn examine(loaded: config::Loaded) -> (Report, bool) {
    let tracker = TaskTracker::new();
    let patient = Arc::new(Patient::meet(loaded, tracker.clone()).await);
    let looking: Vec<_> = CHECKS
        .iter()
        .map(|check| (check.name, tracker.spawn(look(*check, patient.clone(), tracker.clone()))))
        .collect();
    let mut told = Vec::with_capacity(CHECKS.len());
    for (name, looking) in looking {
        let finding = looking.await.unwrap_or_else(|error| {
            Finding::fail(format!("the check itself failed: {error}"), "report it as a fault of sidekeep")
        });
        told.push(Told { name, finding });
    }
    patient.end.cancel();
    let unreached = matches!(patient.daemon.refusal(), Some((Obstacle::Unreached, _)));
    (summed(told), !unreached)
}

async fn look(check: Check, patient: Arc<Patient>, tracker: TaskTracker) -> Finding {
    if let Some(lack) = patient.lacks(check.needs) {
        return Finding::skipped(lack);
    }
    let looking = async {
        match check.look {
            Look::There(look) => Some(look(patient).await),
            Look::Here(look) => tracker.spawn_blocking(move || look(&patient)).await.ok(),
        }
    };
    let late = || {
        let why = format!("it took over {}", humantime::format_duration(PATIENCE));
        Finding::fail(why, "whatever this looks at stands still: a file server or a network that is gone?")
    };
    tokio::time::timeout(PATIENCE, looking).await.ok().flatten().unwrap_or_else(late)
}

fn summed(checks: Vec<Told>) -> Report {
    let count = |status| checks.iter().filter(|told| told.finding.status == status).count();
    let (failed, warnings) = (count(Status::Fail), count(Status::Warn));
    let status = match (failed, warnings) {
        (0, 0) => Status::Ok,
        (0, _) => Status::Warn,
        _ => Status::Fail,
    };
    let (ok, skipped) = (count(Status::Ok), count(Status::Skipped));
    Report { status, version: env!("CARGO_PKG_VERSION"), ok, warnings, failed, skipped, checks }
}

/// For people: a line for each check, those below it say more.
fn lines(report: &Report) -> Vec<String> {
    let width = report.checks.iter().map(|told| told.name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for Told { name, finding } in &report.checks {
        let mut begin = format!("{:4}  {name:width$}", finding.status.word());
        let indent = " ".repeat(begin.len());
        let advice = finding.advice.iter().flat_map(|advice| advice.lines()).enumerate();
        let advice = advice.map(|(at, line)| format!("{}{line}", if at == 0 { "-> " } else { "   " }));
        for line in finding.why.lines().map(str::to_owned).chain(advice) {
            // What others wrote must not move a terminal's cursor.
            let line: String = line.chars().filter(|c| !c.is_control()).collect();
            lines.push(format!("{begin}  {line}"));
            begin.clone_from(&indent);
        }
    }
    let Report { ok, warnings, failed, skipped, checks, .. } = report;
    lines.push(String::new());
    lines.push(format!(
        "{} checks: {ok} ok, {warnings} warnings, {failed} failed, {skipped} skipped",
        checks.len()
    ));
    for (status, what) in [(Status::Warn, "warnings"), (Status::Fail, "failed")] {
        let names: Vec<_> =
            checks.iter().filter(|told| told.finding.status == status).map(|told| told.name).collect();
        if !names.is_empty() {
            lines.push(format!("{what}: {}", names.join(", ")));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::JOBS;

    #[test]
    fn every_job_has_its_check_and_no_name_is_there_twice() {
        let mut names: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
        for job in &JOBS {
            assert!(names.contains(&format!("job.{}", job.name).as_str()), "{}", job.name);
        }
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_finding_is_told_in_columns() {
        let told = |name, finding| Told { name, finding };
        let report = summed(vec![
            told("a", Finding::ok("well")),
            told("long.name", Finding::fail("one\u{1b}[2J\ntwo", "do this\nand that")),
        ]);
        assert_eq!(
            lines(&report),
            [
                "ok    a          well",
                "FAIL  long.name  one[2J",
                "                 two",
                "                 -> do this",
                "                    and that",
                "",
                "2 checks: 1 ok, 0 warnings, 1 failed, 0 skipped",
                "failed: long.name",
            ]
        );
    }
}
