//! Checks of replication: whether an answered write is on a standby, and how long one that fell behind keeps commits waiting.

use std::sync::Arc;

use serde::Deserialize;

use super::check::Finding;
use super::patient::{Patient, Way};
use crate::config::OnGap;

/// The longest that a standby may wait before it asks again for what it lacks, in milliseconds.
const LONGEST_RETRY: i64 = 1000;

/// So much write-ahead log may be kept for a standby that is not there, in bytes.
const KEPT: i64 = 1 << 30;

/// What the server says. A role that is not told about standbys sees that there are some.
const ASKED: &str = "SELECT current_setting('synchronous_standby_names') AS names, \
    coalesce(substring(current_setting('synchronous_standby_names') from '^\\s*(?:(?:any|first|ANY|FIRST)\\s+)?(\\d+)\\s*\\(')::int, 1) \
        AS needed, \
    (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming') AS synchronous, \
    (SELECT count(*) FROM pg_stat_replication WHERE state IS NULL) AS hidden, \
    (SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state IN ('async', 'potential') \
        AND application_name NOT IN ('pg_basebackup', 'pg_receivewal') AND pid NOT IN ( \
            SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL)) AS asynchronous, \
    ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int AS timeline, \
    (SELECT setting::int FROM pg_settings WHERE name = 'wal_retrieve_retry_interval') AS retry_interval";

#[derive(Deserialize)]
struct Replication {
    names: String,
    needed: i64,
    synchronous: i64,
    hidden: i64,
    asynchronous: i64,
    timeline: i32,
    retry_interval: i64,
}

/// Whether commits wait for a standby, where there is one, and whether it is there, where they wait.
pub(super) async fn standby(patient: Arc<Patient>) -> Finding {
    let found: Replication = match patient.one_owner(ASKED).await {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    if !found.names.is_empty() {
        return awaited(&found);
    }
    const ADVICE: &str = "set synchronous_standby_names (ALTER SYSTEM, then SELECT pg_reload_conf()); after a promotion it has to be \
        set anew. Or say with audit.on_gap = \"record\" that a fail-over may lose entries";
    let several = matches!(&patient.daemon, Way::Tried { hosts, .. } if hosts.len() > 1);
    let standbys = found.asynchronous + found.hidden;
    let lost = "synchronous_standby_names is empty: what was answered may be lost by a fail-over";
    if patient.config().audit.on_gap == OnGap::Record {
        return Finding::ok(
            "commits wait for no standby, and audit.on_gap says that a fail-over may lose entries",
        );
    }
    match (several, standbys, found.timeline) {
        (true, ..) => Finding::fail(format!("the URL names several hosts, and {lost}"), ADVICE),
        (_, 1.., _) => Finding::warn(format!("{standbys} standbys are connected, and {lost}"), ADVICE),
        (_, _, 2..) => Finding::warn(
            format!("this server was promoted or restored (timeline {}), and {lost}", found.timeline),
            ADVICE,
        ),
        _ => Finding::ok("commits wait for no standby, and none is connected: one server alone"),
    }
}

fn awaited(found: &Replication) -> Finding {
    let connected = found.synchronous + found.hidden;
    let Replication { names, needed, .. } = found;
    if connected < *needed {
        return Finding::fail(
            format!(
                "commits wait for {needed} synchronous standbys ({names}), and {connected} are connected: every write hangs"
            ),
            "start the standby (its log says why it does not stream), or shorten synchronous_standby_names and reload; a cancelled \
             commit is not replicated, whatever PostgreSQL answers",
        );
    }
    Finding::ok(format!("commits wait for {needed} of {connected} synchronous standbys ({names})"))
}

/// Whether a standby that lost its stream comes back soon: commits wait for it until then.
pub(super) async fn retry_interval(patient: Arc<Patient>) -> Finding {
    let found: Replication = match patient.one_owner(ASKED).await {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    if found.names.is_empty() && found.synchronous == 0 {
        return Finding::ok("no commit waits for a standby");
    }
    let length =
        humantime::format_duration(std::time::Duration::from_millis(found.retry_interval.unsigned_abs()));
    if found.retry_interval > LONGEST_RETRY {
        return Finding::fail(
            format!(
                "wal_retrieve_retry_interval is {length} with a synchronous standby: after a crash of one process, commits wait as long"
            ),
            "set wal_retrieve_retry_interval = '500ms' on every server of the cluster, the standbys above all, and reload",
        );
    }
    Finding::ok(format!(
        "wal_retrieve_retry_interval is {length} here; a standby's own cannot be seen from here"
    ))
}

#[derive(Deserialize)]
struct Slot {
    slot: String,
    kept: Option<i64>,
}

/// Whether write-ahead log is kept for somebody who does not come for it, until the disk is full.
pub(super) async fn slots(patient: Arc<Patient>) -> Finding {
    const IDLE: &str = "SELECT slot_name AS slot, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS kept \
        FROM pg_replication_slots WHERE NOT active ORDER BY 2 DESC NULLS LAST";
    let idle: Vec<Slot> = match patient.ask(IDLE).await {
        Ok(idle) => idle,
        Err(finding) => return finding,
    };
    let Some(most) = idle.first() else { return Finding::ok("none that nobody reads") };
    let kept = most.kept.unwrap_or_default();
    let shown = bytesize::ByteSize::b(kept.unsigned_abs()).display().iec();
    let why = format!(
        "nobody reads the replication slot {}, and {shown} of write-ahead log are kept for it",
        most.slot
    );
    if kept > KEPT {
        return Finding::warn(
            why,
            format!(
                "start the standby that it is for, or drop it before the disk is full: SELECT pg_drop_replication_slot('{}'); \
                 max_slot_wal_keep_size bounds it",
                most.slot
            ),
        );
    }
    Finding::ok(why)
}
