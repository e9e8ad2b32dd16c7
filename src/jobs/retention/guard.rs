//! Whether the clocks can be believed: nothing is removed by a clock that jumped. Removes nothing itself.
//!
//! PostgreSQL's clock says what is due. It is compared with this host's, with how long this host is up, with the latest time
//! that daemons have written, and with the longest time in which they have written nothing: a database that was at rest for
//! so long is rarer than a clock that is wrong, and the owner of the tables can say which it is.

use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Int8, Nullable, Timestamptz};
use diesel_async::RunQueryDsl;

use crate::app::App;
use crate::clock::{self, Timestamp};
use crate::error::{Error, Result};
use crate::store::{Connection, Deadline};

/// How far apart clocks may be.
const APART: TimeDelta = TimeDelta::minutes(5);
/// So long nothing may have happened at all.
const SILENCE: TimeDelta = TimeDelta::days(32);
/// What to do where the clock is right.
const CONFIRM: &str =
    "set the clock right; where it is right, say so by `sidekeep migrate --confirm-retention`";

const SIGNS: &str = "SELECT now() AS now, \
    (SELECT f.confirmed_at FROM sidekeep.retention_floor f) AS confirmed_at, \
    (SELECT f.clock_seen FROM sidekeep.retention_floor f) AS clock_seen, \
    greatest((SELECT max(s.last_recorded_at) FROM sidekeep.audit_streams s), \
        (SELECT max(r.heartbeat_at) FROM sidekeep.job_runs r)) AS latest";
/// Where no job was started for so long: from when to when, the last time first.
const SILENCES: &str = "SELECT s.since, s.until FROM ( \
    SELECT t.at AS since, lead(t.at, 1, now()) OVER (ORDER BY t.at) AS until FROM ( \
        SELECT created_at AS at FROM sidekeep.deployment UNION ALL SELECT started_at FROM sidekeep.job_runs) t \
    WHERE t.at <= now()) s WHERE s.until - s.since > make_interval(secs => $1::bigint) ORDER BY s.since DESC LIMIT 100";
/// The last entry of the log in a time.
const ENTRY: &str = "SELECT max(l.recorded_at) AS at FROM sidekeep.audit_logs l WHERE l.recorded_at > $1 AND l.recorded_at <= $2";

#[derive(QueryableByName)]
struct Signs {
    #[diesel(sql_type = Timestamptz)]
    now: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    confirmed_at: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    clock_seen: Option<DateTime<Utc>>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    latest: Option<DateTime<Utc>>,
}

#[derive(QueryableByName)]
struct Silence {
    #[diesel(sql_type = Timestamptz)]
    since: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    until: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct Entry {
    #[diesel(sql_type = Nullable<Timestamptz>)]
    at: Option<DateTime<Utc>>,
}

/// What time it is, by PostgreSQL's clock, where that can be believed.
///
/// # Errors
/// [`Error::Conflict`], saying which clock is how far off, and what to do.
pub(super) async fn now(app: &App, deadline: &Deadline) -> Result<DateTime<Utc>> {
    let moved = app.clock.moved();
    if moved.abs() > APART {
        return Err(halted(format!(
            "the clock of the daemon's host was moved by {} while the daemon ran; set it right, or restart sidekeep where it is right now",
            length(moved)
        )));
    }
    let store = app.records.store();
    let signs: Signs = store
        .single(deadline, "retention.clock", async |connection| {
            Ok(diesel::sql_query(SIGNS).get_result(connection).await?)
        })
        .await?;
    let apart = signs.now - clock::now().utc();
    if apart.abs() > APART {
        return Err(halted(format!(
            "PostgreSQL's clock and the clock of the daemon's host are {} apart; set the one right that is wrong",
            length(apart)
        )));
    }
    let ahead = signs.latest.filter(|latest| signs.clock_seen.is_none_or(|seen| *latest > seen));
    if let Some(latest) = ahead.filter(|latest| *latest - signs.now > APART) {
        return Err(halted(format!(
            "PostgreSQL's clock says {}, and daemons have written at {} already; {CONFIRM}",
            Timestamp::from(signs.now),
            Timestamp::from(latest)
        )));
    }
    let silence = store.snapshot(deadline, "retention.silence", async |connection| {
        silence(connection, signs.confirmed_at).await
    });
    match silence.await? {
        Some((since, until)) => Err(halted(format!(
            "nothing was written from {} to {}, as if the clock had jumped; {CONFIRM}",
            Timestamp::from(since),
            Timestamp::from(until)
        ))),
        None => Ok(signs.now),
    }
}

/// A time in which nothing happened, longer than may be, that the owner has not seen.
async fn silence(
    connection: &mut Connection,
    confirmed_at: Option<DateTime<Utc>>,
) -> Result<Option<(DateTime<Utc>, DateTime<Utc>)>> {
    let silences: Vec<Silence> =
        diesel::sql_query(SILENCES).bind::<Int8, _>(SILENCE.num_seconds()).load(connection).await?;
    for Silence { since, until } in silences {
        let mut heard = confirmed_at.map_or(since, |confirmed| since.max(confirmed));
        // From entry to entry, as far apart as they may be.
        while until - heard > SILENCE {
            let entry: Entry = diesel::sql_query(ENTRY)
                .bind::<Timestamptz, _>(heard)
                .bind::<Timestamptz, _>(heard + SILENCE)
                .get_result(connection)
                .await?;
            match entry.at {
                Some(at) => heard = at,
                None => return Ok(Some((heard, until))),
            }
        }
    }
    Ok(None)
}

fn halted(why: String) -> Error {
    Error::conflict(format!("nothing was removed: {why}"))
}

fn length(time: TimeDelta) -> String {
    let seconds = time.num_seconds().unsigned_abs();
    crate::config::Period::seconds(seconds).to_string()
}
