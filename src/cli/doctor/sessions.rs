//! Checks of the connections: whether there are enough of them, and whether each is a session of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::check::{Finding, Needs};
use super::patient::{Patient, unanswered};
use crate::config;
use crate::store::pooler::{Sessions, sessions};
use crate::store::probe::Probe;

/// What a daemon needs beside its pool and its streams: the watch, a job.
const BESIDE: i64 = 2;

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
    let living = match patient.lacks(Needs::Schema) {
        Some(_) => 0,
        None => patient.one::<Living>(LIVING).await.map_or(0, |found| found.living),
    };
    let config = patient.config();
    let each = i64::try_from(config.database.pool.saturating_add(config.audit.streams)).unwrap_or(i64::MAX);
    let each = each.saturating_add(BESIDE);
    let all = each.saturating_mul(living.max(1));
    let Room { room, used } = room;
    let why = format!(
        "{living} living daemons; each may open {each} connections (database.pool, audit.streams). The server gives {room}, and \
         {used} are open"
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
