//! The check of `database.replica_url`: whether verification can read the log's entries there. It is never needed: while it cannot be
//! read from, the primary is.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::check::Finding;
use super::patient::{Patient, Way};
use crate::store::connect::ConnectError;
use crate::store::probe::{Obstacle, Probe, Tried};

/// How long it may take to have what the primary has: verification waits no longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looks at how far it has come.
const AGAIN: Duration = Duration::from_millis(100);

/// What every other advice ends with.
const MEANWHILE: &str = "; until then verification reads from the primary";

#[derive(Deserialize)]
struct Primary {
    system: String,
    lsn: String,
}

#[derive(Deserialize)]
struct Replica {
    system: String,
    in_recovery: bool,
    user: String,
    schema: bool,
    reads: bool,
}

#[derive(Deserialize)]
struct Behind {
    bytes: Option<i64>,
    seconds: Option<i64>,
    paused: bool,
}

/// Whether the replica is reached, is one of this primary, lets its role read the log, and keeps up.
pub(super) async fn replica(patient: Arc<Patient>) -> Finding {
    let probe = match &patient.replica {
        None => return Finding::ok("none is named: verification reads from the primary"),
        Some(Way::None(why)) => {
            return Finding::fail(why, "mend that key; run doctor as root or as the daemon's user");
        }
        Some(Way::Wrong(error)) => return Finding::fail(named(error), "mend that key"),
        Some(Way::Tried { probe: Some(probe), .. }) => probe,
        Some(Way::Tried { probe: None, hosts }) => return unreached(hosts),
    };
    let found = match probe.one::<Replica>(ASKED).await {
        Ok(found) => found,
        Err(error) => return super::patient::unanswered(&error),
    };
    if !found.in_recovery {
        return Finding::fail(
            format!("{} is no replica, or was promoted: it is not in recovery", probe.host),
            format!(
                "name a streaming replica of the primary in database.replica_url, or leave it out{MEANWHILE}"
            ),
        );
    }
    if let Some(finding) = unreadable(&found, probe) {
        return finding;
    }
    match patient.daemon.probe() {
        None => Finding::skipped("it is reached, and no primary is there to compare it with"),
        Some(primary) => compared(primary, probe, &found).await,
    }
}

/// Where it stands, and what it may do there. By the catalogue: a name in a schema that may not be used is an error.
const ASKED: &str = "SELECT system_identifier::text AS system, pg_is_in_recovery() AS in_recovery, current_user AS user, \
    l.oid IS NOT NULL AS schema, \
    coalesce(has_schema_privilege(l.relnamespace, 'USAGE') AND has_table_privilege(l.oid, 'SELECT'), false) AS reads \
    FROM pg_control_system() LEFT JOIN (SELECT c.oid, c.relnamespace FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = 'sidekeep' AND c.relname = 'audit_logs') AS l ON true";

/// An error of this URL, which the store takes for the primary's.
fn named(error: &ConnectError) -> String {
    match error {
        ConnectError::Url(why) => format!("database.replica_url: {why}"),
        other => other.to_string(),
    }
}

fn unreached(hosts: &[Tried]) -> Finding {
    let line = |tried: &Tried| {
        tried.refused.as_ref().map(|why| format!("{}: {}", tried.host, named(why))).unwrap_or_default()
    };
    let why =
        format!("the replica is not reached\n{}", hosts.iter().map(line).collect::<Vec<_>>().join("\n"));
    let obstacles: Vec<_> =
        hosts.iter().filter_map(|tried| tried.refused.as_ref()).map(ConnectError::obstacle).collect();
    let any = |obstacle| obstacles.contains(&obstacle);
    let advice = if any(Obstacle::Tls) {
        "on the replica: ssl = on with a certificate for the host name that the URL names, TLS 1.3; here: database.ca_file names the \
         authority that it descends from"
    } else if any(Obstacle::Role) {
        "a replica has the primary's roles and a pg_hba.conf of its own: does that let this role in, is its password right?"
    } else if any(Obstacle::Database) {
        "a replica has the primary's databases: name that one in the URL"
    } else {
        // It comes back by itself, or has to be started; nothing is wrong with what is configured.
        let advice = "start it, or take database.replica_url out of the configuration";
        return Finding::warn(why, format!("{advice}{MEANWHILE}"));
    };
    Finding::fail(why, format!("{advice}{MEANWHILE}"))
}

fn unreadable(found: &Replica, probe: &Probe) -> Option<Finding> {
    if !found.schema {
        return Some(Finding::fail(
            format!("{} has no log in this database: there is no table sidekeep.audit_logs", probe.host),
            format!("name the primary's own database in database.replica_url{MEANWHILE}"),
        ));
    }
    (!found.reads).then(|| {
        let why = format!("{}: the role {} may not read sidekeep.audit_logs", probe.host, found.user);
        let grant = format!(
            "GRANT USAGE ON SCHEMA sidekeep TO {0}; GRANT SELECT ON sidekeep.audit_logs TO {0}",
            found.user
        );
        Finding::fail(
            why,
            format!("name the role of database.url in it, or, on the primary: {grant}{MEANWHILE}"),
        )
    })
}

async fn compared(primary: &Probe, replica: &Probe, found: &Replica) -> Finding {
    const NOW: &str = "SELECT system_identifier::text AS system, pg_current_wal_lsn()::text AS lsn FROM pg_control_system()";
    let Primary { system, lsn } = match primary.one(NOW).await {
        Ok(now) => now,
        Err(error) => return super::patient::unanswered(&error),
    };
    if found.system != system {
        return Finding::fail(
            format!("{} is a replica of another cluster than the one that is served", replica.host),
            format!("name a replica of the primary of database.url{MEANWHILE}"),
        );
    }
    let asked = format!(
        "SELECT pg_wal_lsn_diff('{lsn}', pg_last_wal_replay_lsn())::bigint AS bytes, pg_is_wal_replay_paused() AS paused, \
         extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::bigint AS seconds"
    );
    let until = Instant::now() + PATIENCE;
    loop {
        let behind: Behind = match replica.one(&asked).await {
            Ok(behind) => behind,
            Err(error) => return super::patient::unanswered(&error),
        };
        if behind.bytes.is_some_and(|bytes| bytes <= 0) {
            let way = if replica.tls { "by TLS 1.3" } else { "without TLS, on this host" };
            return Finding::ok(format!("{} has what the primary has; reached {way}", replica.host));
        }
        if behind.paused || Instant::now() >= until {
            return late(&behind, replica);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn late(behind: &Behind, replica: &Probe) -> Finding {
    let bytes = behind.bytes.map_or_else(
        || "it has replayed nothing".to_owned(),
        |bytes| {
            format!(
                "it lacks {} of write-ahead log",
                bytesize::ByteSize::b(bytes.unsigned_abs()).display().iec()
            )
        },
    );
    let age =
        behind.seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or_else(String::new, |seconds| {
            let age = humantime::format_duration(Duration::from_secs(seconds));
            format!("; the newest commit it has is {age} old")
        });
    let host = &replica.host;
    if behind.paused {
        return Finding::warn(
            format!("{host} is behind, and its replay is paused: {bytes}{age}"),
            format!("SELECT pg_wal_replay_resume() there{MEANWHILE}"),
        );
    }
    let patience = humantime::format_duration(PATIENCE);
    Finding::warn(
        format!("{host} is behind by more than {patience}: {bytes}{age}"),
        format!(
            "look at its log and at pg_stat_wal_receiver there: is it still streaming, does a long query of somebody else hold its \
             replay up?{MEANWHILE}"
        ),
    )
}
