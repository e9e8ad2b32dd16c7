//! Checks of the PostgreSQL server: whether it is reached, by what, how it keeps what it was given, and what time it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::check::Finding;
use super::patient::{Patient, Way, unanswered};
use crate::clock::{self, Timestamp};
use crate::config;
use crate::store::migrations::APP_ROLE;
use crate::store::pooler::{Sessions, sessions};
use crate::store::probe::{Obstacle, Probe, Tried};

/// The oldest PostgreSQL that sidekeep runs on, as its `server_version_num`.
const OLDEST: i32 = 140_000;
/// What a daemon needs beside its pool and its streams: the watch, a job.
const BESIDE: i64 = 2;
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
        return Finding::fail(
            format!("PostgreSQL is not reached\n{}", tell(&silent)),
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

#[derive(Deserialize)]
struct Room {
    room: i64,
    used: i64,
}

#[derive(Deserialize)]
struct Living {
    living: i64,
}

/// Whether the server takes as many connections as the daemons may open.
pub(super) async fn connections(patient: Arc<Patient>) -> Finding {
    const ASKED: &str = "SELECT least(current_setting('max_connections')::int \
            - coalesce(current_setting('superuser_reserved_connections', true)::int, 0) \
            - coalesce(current_setting('reserved_connections', true)::int, 0), \
            (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user), \
            (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database())) AS room, \
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used";
    const LIVING: &str =
        "SELECT count(*) AS living FROM sidekeep.daemons WHERE seen_at > now() - interval '1 minute'";
    let room: Room = match patient.one(ASKED).await {
        Ok(room) => room,
        Err(finding) => return finding,
    };
    let living = match patient.lacks(super::check::Needs::Schema) {
        Some(_) => 0,
        None => patient.one::<Living>(LIVING).await.map_or(0, |found| found.living),
    };
    let config = patient.config();
    let each = i64::try_from(config.database.pool.saturating_add(config.audit.streams)).unwrap_or(i64::MAX);
    let each = each.saturating_add(BESIDE);
    let all = each.saturating_mul(living.max(1));
    let Room { room, used } = room;
    let why = format!(
        "{} daemons may open {all} connections (database.pool, audit.streams), and the server gives {room}; {used} are open",
        living.max(1)
    );
    if all > room {
        return Finding::fail(
            why,
            "raise max_connections, or the limit of role or database; or lower database.pool",
        );
    }
    Finding::ok(why)
}

/// Whether sessions are shared by a pooler, and what does not live with that goes past it.
pub(super) async fn pooler(patient: Arc<Patient>) -> Finding {
    const FORGETFUL: &str = "use PgBouncer 1.21 or later with max_prepared_statements over 0, or pool_mode = session; or name \
        PostgreSQL itself in the URL";
    const PAST: &str = "name PostgreSQL itself, past the pooler, in database.direct_url_file (dumps) and \
        database.migrate_url_file (migrations)";
    let config = patient.config();
    let ways = [
        ("the daemon", config::database_url(config)),
        ("sidekeep migrate", config::migrate_url(config)),
        ("dumps", config::direct_url(config)),
    ];
    let mut known: BTreeMap<String, Sessions> = BTreeMap::new();
    let mut shared = Vec::new();
    for (who, url) in ways {
        // One that cannot be had, or not be reached, has its own check.
        let Ok(url) = url else { continue };
        let found = match known.get(url.as_str()) {
            Some(found) => *found,
            None => match two(&patient, &url).await {
                Ok(Some((one, other))) => match sessions(&one, &other).await {
                    Ok(found) => found,
                    Err(error) => return unanswered(&error),
                },
                Ok(None) => continue,
                Err(finding) => return finding,
            },
        };
        known.insert(url.to_string(), found);
        match found {
            Sessions::Own => {}
            Sessions::SharedAndForgetful if who == "the daemon" => {
                return Finding::fail(
                    "there is a pooler in transaction mode before PostgreSQL, and it loses prepared statements: calls fail",
                    FORGETFUL,
                );
            }
            Sessions::Shared | Sessions::SharedAndForgetful => shared.push(who),
        }
    }
    match shared.as_slice() {
        [] => Finding::ok("none: each session has a server process of its own"),
        ["the daemon"] => Finding::ok(
            "a pooler in transaction mode, which the daemon lives with; dumps and migrations go past it",
        ),
        others => {
            let others: Vec<_> = others.iter().copied().filter(|who| *who != "the daemon").collect();
            let why = format!(
                "{} would go through a pooler in transaction mode, and need a session",
                others.join(" and ")
            );
            Finding::fail(why, PAST)
        }
    }
}

/// Two sessions by one URL; nothing where there is no primary to be had.
async fn two(patient: &Patient, url: &str) -> Result<Option<(Probe, Probe)>, Finding> {
    let (database, tracker) = (&patient.config().database, &patient.tracker);
    let connect = || Probe::connect(database, url, tracker);
    let (one, other) = tokio::join!(connect(), connect());
    let (Ok((one, _)), Ok((other, tried))) = (one, other) else { return Ok(None) };
    match (one, other) {
        (Some(one), Some(other)) => Ok(Some((one, other))),
        // A second session is refused, or kept waiting, where the first was let in.
        (Some(_), None) => {
            let why = tried.iter().filter_map(|tried| tried.refused.as_ref()).map(ToString::to_string);
            Err(Finding::fail(
                format!("a second session is refused: {}", why.collect::<Vec<_>>().join("; ")),
                "raise the limit of connections of the server, or the pool's size of the pooler",
            ))
        }
        _ => Ok(None),
    }
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
    match surely {
        ..=SKEWED => Finding::ok("this host and PostgreSQL have the same time, to a second"),
        ..=REFUSED => Finding::warn(format!("PostgreSQL's clock is {length} {side} this host's"), advice),
        _ => Finding::fail(
            format!(
                "PostgreSQL's clock is {length} {side} this host's: entries of the log are refused over a minute"
            ),
            advice,
        ),
    }
}
