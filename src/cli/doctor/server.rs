//! Checks of the PostgreSQL server: whether it is reached, by what, how it keeps what it was given, and what time it has.

use std::sync::Arc;

use serde::Deserialize;

use super::check::Finding;
use super::patient::{Patient, Way};
use crate::clock::{self, Timestamp};
use crate::store::migrations::APP_ROLE;
use crate::store::probe::{Obstacle, Probe, Tried};

/// The oldest PostgreSQL that sidekeep runs on, as its `server_version_num`.
const OLDEST: i32 = 140_000;
/// How far the clocks may be apart, in milliseconds: from there on somebody should look, and entries are refused.
const SKEWED: i64 = 1000;
const REFUSED: i64 = 60_000;

fn with(hosts: &[Tried], obstacle: Obstacle) -> Vec<&Tried> {
    let is = |tried: &&Tried| tried.refused.as_ref().is_some_and(|refused| refused.obstacle() == obstacle);
    hosts.iter().filter(is).collect()
}

/// Whether somebody answers.
pub(super) fn reach(patient: &Patient) -> Finding {
    let hosts = match &patient.daemon {
        Way::None(why) => {
            return Finding::fail(
                why,
                "mend that key; run doctor as root or as the daemon's user, who may read its files",
            );
        }
        Way::Wrong(error) => return Finding::fail(error.to_string(), "mend that key"),
        Way::Tried { hosts, .. } => hosts,
    };
    let silent = with(hosts, Obstacle::Unreached);
    let tell = |tried: &[&Tried]| {
        let line = |tried: &&Tried| {
            let why = tried.refused.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{}: {why}", tried.host)
        };
        tried.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    if silent.len() == hosts.len() {
        let why = format!("PostgreSQL is not reached\n{}", tell(&silent));
        if why.contains("Permission denied") {
            return Finding::fail(
                why,
                "this user may not reach its socket: run doctor as root or as the daemon's user",
            );
        }
        return Finding::fail(
            why,
            "is it running (systemctl status postgresql), are host and port of the URL right, does a firewall stand between?",
        );
    }
    for (obstacle, advice) in [
        (
            Obstacle::Database,
            "make it, or name the right one in the URL; `sidekeep setup` makes it on a fresh host",
        ),
        (
            Obstacle::Full,
            "raise max_connections, or lower database.pool; who holds them: SELECT * FROM pg_stat_activity",
        ),
        (Obstacle::Other, "look at the log of PostgreSQL"),
    ] {
        let tried = with(hosts, obstacle);
        if !tried.is_empty() && patient.daemon.probe().is_none() {
            return Finding::fail(tell(&tried), advice);
        }
    }
    match patient.daemon.probe() {
        Some(_) if !silent.is_empty() => Finding::warn(
            format!("not every host of the URL answers\n{}", tell(&silent)),
            "without it there may be nobody to fail over to: start it, or take it out of the URL",
        ),
        Some(probe) => Finding::ok(probe.host.clone()),
        None if !with(hosts, Obstacle::Standby).is_empty() => Finding::fail(
            tell(&with(hosts, Obstacle::Standby)),
            "name the primary in the URL, or all hosts of which one is the primary; promote one where there is none",
        ),
        None => Finding::ok("the server answers, and takes no session; see the checks below"),
    }
}

/// Whether what is sent can be read on its way.
pub(super) fn tls(patient: &Patient) -> Finding {
    const ADVICE: &str = "on the server: ssl = on with a certificate for the host name that the URL names, TLS 1.3; here: \
        database.ca_file names the authority that it descends from. Without TLS only a Unix socket or a loopback address is used";
    let hosts = match &patient.daemon {
        Way::Tried { hosts, .. } => hosts,
        Way::Wrong(error) if error.to_string().starts_with("database.ca_file") => {
            return Finding::fail(error.to_string(), ADVICE);
        }
        _ => return Finding::skipped("there is no URL to connect to"),
    };
    if let Some(tried) = with(hosts, Obstacle::Tls).first() {
        let why = tried.refused.as_ref().map(ToString::to_string).unwrap_or_default();
        return Finding::fail(format!("{}: there is no TLS that can be trusted: {why}", tried.host), ADVICE);
    }
    match patient.daemon.probe() {
        Some(Probe { tls: true, .. }) => Finding::ok("TLS 1.3, chain and name checked"),
        Some(_) => Finding::ok("none, and none is needed: nothing leaves this host"),
        None => Finding::skipped("no server answered"),
    }
}

#[derive(Deserialize)]
struct Roles {
    user: String,
    app: bool,
}

/// Whether the role that the daemon serves as is there and may log in.
pub(super) async fn role(patient: Arc<Patient>) -> Finding {
    let make = format!(
        "make it: CREATE ROLE {APP_ROLE} LOGIN, then `sidekeep migrate`; `sidekeep setup` does so on a fresh host"
    );
    if let Way::Tried { hosts, .. } = &patient.daemon
        && let Some(tried) = with(hosts, Obstacle::Role).first()
    {
        let why = tried.refused.as_ref().map(ToString::to_string).unwrap_or_default();
        let advice = if why.contains("does not exist") {
            make
        } else {
            "does the role exist, may it log in, is its password the one of database.url_file, does pg_hba.conf let it in?".to_owned()
        };
        return Finding::fail(format!("{}: {why}", tried.host), advice);
    }
    if patient.daemon.probe().is_none() {
        return Finding::skipped("no server answered");
    }
    let asked = format!(
        "SELECT current_user AS user, EXISTS (SELECT FROM pg_roles WHERE rolname = '{APP_ROLE}') AS app"
    );
    match patient.one::<Roles>(&asked).await {
        Err(finding) => finding,
        Ok(Roles { app: false, user }) => Finding::fail(
            format!(
                "the role {APP_ROLE}, which the schema grants everything to, does not exist; the URL names {user}"
            ),
            make,
        ),
        Ok(Roles { user, .. }) => Finding::ok(format!("it serves as {user}")),
    }
}

#[derive(Deserialize)]
struct Version {
    number: i32,
    text: String,
    read_only: bool,
}

/// Whether the server is one that sidekeep runs on, and takes writes.
pub(super) async fn version(patient: Arc<Patient>) -> Finding {
    let asked = "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS text, \
        current_setting('default_transaction_read_only')::bool AS read_only";
    match patient.one::<Version>(asked).await {
        Err(finding) => finding,
        Ok(Version { number, text, .. }) if number < OLDEST => {
            Finding::fail(format!("PostgreSQL {text} is too old"), "upgrade it to PostgreSQL 14 or later")
        }
        Ok(Version { read_only: true, text, .. }) => Finding::fail(
            format!("PostgreSQL {text} takes no writes (default_transaction_read_only)"),
            "take the setting back once the reason for it is gone",
        ),
        Ok(Version { text, .. }) => Finding::ok(format!("PostgreSQL {text}, a primary")),
    }
}

/// Whether an answered write outlives a crash.
pub(super) async fn durability(patient: Arc<Patient>) -> Finding {
    const ASKED: &str = "SELECT name, current_setting(name) AS value FROM unnest(ARRAY['fsync', 'full_page_writes', \
        'synchronous_commit']) AS name";
    #[derive(Deserialize)]
    struct Setting {
        name: String,
        value: String,
    }
    let settings: Vec<Setting> = match patient.ask(ASKED).await {
        Ok(settings) => settings,
        Err(finding) => return finding,
    };
    let off: Vec<_> =
        settings.iter().filter(|setting| setting.value == "off").map(|s| s.name.as_str()).collect();
    if off.is_empty() {
        return Finding::ok("fsync, full_page_writes and synchronous_commit are on");
    }
    Finding::fail(
        format!("off: {}; what was answered may be lost, or the database broken, by a crash", off.join(", ")),
        "set them on for the server, the database and the role (ALTER SYSTEM, ALTER DATABASE, ALTER ROLE ... RESET)",
    )
}

/// Whether this host and PostgreSQL have the same time.
pub(super) async fn clock(patient: Arc<Patient>) -> Finding {
    #[derive(Deserialize)]
    struct Now {
        now: Timestamp,
    }
    let before = clock::now().utc();
    let theirs = match patient.one::<Now>("SELECT clock_timestamp() AS now").await {
        Ok(Now { now }) => now.utc(),
        Err(finding) => return finding,
    };
    let took = clock::now().utc() - before;
    // Half-way, and it is not known more exactly than that.
    let apart = theirs - (before + took / 2);
    let surely = apart.num_milliseconds().abs().saturating_sub((took / 2).num_milliseconds());
    let side = if apart.num_milliseconds() >= 0 { "ahead of" } else { "behind" };
    let length =
        humantime::format_duration(std::time::Duration::from_millis(apart.num_milliseconds().unsigned_abs()));
    let advice = "set both clocks by NTP (timedatectl; chronyc tracking)";
    if surely <= SKEWED {
        return Finding::ok("this host and PostgreSQL have the same time, to a second");
    }
    let why = format!("PostgreSQL's clock is {length} {side} this host's");
    if surely <= REFUSED {
        return Finding::warn(why, advice);
    }
    Finding::fail(format!("{why}: entries of the log are refused over a minute"), advice)
}
