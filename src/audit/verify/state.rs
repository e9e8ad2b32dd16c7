//! How far the log was verified, and what of it is due again. The only writer of `audit_verified`.
//!
//! Why it can be trusted: each row has a MAC that the owner of the tables cannot make, so it says what a daemon has seen. The
//! owner can put back an older row, or delete it; then the next run only has more to do, because it goes on from where the
//! row says, to the end of the log and to where today's time says that the second look has come. So whoever changes an entry
//! behind the verified part gains at most the time until the second look comes by, and that comes by each entry within
//! [`PERIOD`]; and it compares with hashes that are in the row or lead there, not with what the tables say meanwhile.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::{ExpressionMethods, Insertable, Queryable, Selectable, SelectableHelper};
use diesel::upsert::excluded;
use diesel_async::RunQueryDsl;

use super::findings::Findings;
use crate::audit::growth::Growth;
use crate::error::Result;
use crate::keyring::Deployment;
use crate::store::schema::audit_verified;
use crate::store::{AnyTime, Connection, Deadline, Store};

/// What the MAC of a row is for.
const PURPOSE: &str = "sidekeep verified";
/// Within this time every entry is verified again, as long as the job runs.
pub(super) const PERIOD: Duration = Duration::from_secs(7 * 24 * 3600);
/// So many blocks are verified again by each run at the least: a log of a quarter of a million entries as a whole.
const LEAST: u64 = 64;

/// How far one tree was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The tree over its blocks.
    pub(super) blocks: Growth,
    /// Where the second look stands, in blocks.
    pub(super) again: u64,
    /// When that was.
    pub(super) at: DateTime<Utc>,
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_verified, check_for_backend(diesel::pg::Pg))]
struct Row {
    stream: i32,
    blocks: i64,
    edge: Vec<u8>,
    again: i64,
    #[diesel(deserialize_as = AnyTime)]
    at: DateTime<Utc>,
    mac: Vec<u8>,
}

impl Row {
    fn numbers(&self) -> [[u8; 8]; 4] {
        [i64::from(self.stream), self.blocks, self.again, self.at.timestamp_micros()].map(i64::to_be_bytes)
    }

    fn seal(&mut self, own: &Deployment) {
        let [stream, blocks, again, at] = self.numbers();
        self.mac = own.mac(PURPOSE, &[own.name().as_bytes(), &stream, &blocks, &again, &at, &self.edge]);
    }

    fn is_sealed(&self, own: &Deployment) -> bool {
        let [stream, blocks, again, at] = self.numbers();
        own.verifies(PURPOSE, &[own.name().as_bytes(), &stream, &blocks, &again, &at, &self.edge], &self.mac)
    }

    fn state(self) -> Option<State> {
        let blocks = Growth::read(u64::try_from(self.blocks).ok()?, &self.edge)?;
        Some(State { blocks, again: u64::try_from(self.again).ok()?, at: self.at })
    }
}

/// How far each tree was verified. A row that no daemon has sealed is a break, and counts for nothing.
///
/// # Errors
/// The database's.
pub(super) async fn read(
    connection: &mut Connection,
    own: &Deployment,
    findings: &mut Findings,
) -> Result<HashMap<i32, State>> {
    let rows: Vec<Row> =
        diesel::QueryDsl::select(audit_verified::table, Row::as_select()).load(connection).await?;
    let mut states = HashMap::with_capacity(rows.len());
    for row in rows {
        let (stream, blocks, sealed) = (row.stream, row.blocks, row.is_sealed(own));
        match row.state().filter(|_| sealed) {
            Some(state) => {
                states.insert(stream, state);
            }
            None => {
                findings.add((stream, blocks), "audit_verified", "a row that a daemon has sealed", "another")
            }
        }
    }
    Ok(states)
}

/// Keeps how far it has come.
///
/// # Errors
/// The store's.
pub(super) async fn write(
    store: &Store,
    own: &Deployment,
    states: &HashMap<i32, State>,
    deadline: &Deadline,
) -> Result<()> {
    store
        .transact(deadline, "audit.verified", async |tx| {
            for (stream, state) in states {
                let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
                let mut row = Row {
                    stream: *stream,
                    blocks: number(state.blocks.size()),
                    edge: state.blocks.edge(),
                    again: number(state.again),
                    at: state.at,
                    mac: Vec::new(),
                };
                row.seal(own);
                diesel::insert_into(audit_verified::table)
                    .values(row)
                    .on_conflict(audit_verified::stream)
                    .do_update()
                    .set((
                        audit_verified::blocks.eq(excluded(audit_verified::blocks)),
                        audit_verified::edge.eq(excluded(audit_verified::edge)),
                        audit_verified::again.eq(excluded(audit_verified::again)),
                        audit_verified::at.eq(excluded(audit_verified::at)),
                        audit_verified::mac.eq(excluded(audit_verified::mac)),
                    ))
                    .execute(tx)
                    .await?;
            }
            Ok(())
        })
        .await
}

/// Where in so many blocks the second look is at a time: it passes over all of them in each period.
fn reached(at: DateTime<Utc>, blocks: u64) -> u64 {
    let period = i64::try_from(PERIOD.as_secs()).unwrap_or(i64::MAX).max(1);
    let phase = u128::try_from(at.timestamp().rem_euclid(period)).unwrap_or(0);
    let there = phase.saturating_mul(u128::from(blocks)).checked_div(u128::from(PERIOD.as_secs()));
    u64::try_from(there.unwrap_or(0)).unwrap_or(0)
}

/// The verified blocks that are due again now, in two parts where the second look begins anew, and where the second look stands then.
pub(super) fn due(state: &State, now: DateTime<Utc>) -> ([Range<u64>; 2], u64) {
    let blocks = state.blocks.size();
    let end = reached(now, blocks);
    let elapsed = now.signed_duration_since(state.at).to_std();
    // A clock that went back, and a whole period: everything.
    let all = elapsed.map_or(true, |elapsed| elapsed >= PERIOD) || blocks <= LEAST;
    let start = state.again.min(blocks);
    let wraps = reached(now, u64::from(u32::MAX)) < reached(state.at, u64::from(u32::MAX));
    if all || (wraps && end >= start) {
        return ([0..blocks, 0..0], end);
    }
    let length =
        if wraps { blocks.saturating_sub(start).saturating_add(end) } else { end.saturating_sub(start) };
    let length = length.max(LEAST);
    let ranges = if end >= length {
        [end.saturating_sub(length)..end, 0..0]
    } else {
        [0..end, blocks.saturating_sub(length.saturating_sub(end))..blocks]
    };
    (ranges, end)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};

    use super::{PERIOD, State, due};
    use crate::audit::growth::Growth;
    use crate::audit::merkle::Hash;

    fn state(blocks: u64, again: u64, at: DateTime<Utc>) -> State {
        let mut growth = Growth::default();
        (0..blocks).for_each(|n| growth.push(Hash::leaf(&n.to_be_bytes()), |_| {}));
        State { blocks: growth, again, at }
    }

    #[test]
    fn the_second_look_comes_by_every_block_within_the_period_while_the_log_grows() {
        let begin = DateTime::from_timestamp(1_800_000_123, 0).unwrap();
        let (mut last, mut blocks) = (state(1000, 0, begin), 1000);
        last.again = due(&last, begin).1;
        let mut seen = vec![false; 1000];
        let mut work = 0;
        for hour in 1..=(PERIOD.as_secs() / 3600 + 1) {
            let now = begin + TimeDelta::hours(i64::try_from(hour).unwrap());
            let (ranges, again) = due(&last, now);
            for range in ranges {
                work += range.end - range.start;
                range
                    .filter(|block| *block < 1000)
                    .for_each(|block| seen[usize::try_from(block).unwrap()] = true);
            }
            blocks += 2;
            last = state(blocks, again, now);
        }
        assert!(seen.iter().all(|seen| *seen));
        // Of a log so short each run does the least.
        assert!(work <= 64 * 170, "{work}");
    }

    #[test]
    fn an_older_row_put_back_makes_more_work_and_never_less() {
        let begin = DateTime::from_timestamp(1_800_000_123, 0).unwrap();
        let hours = |n| begin + TimeDelta::hours(n);
        let older = state(10_000, due(&state(10_000, 0, begin), begin).1, begin);
        let newer = state(10_000, due(&older, hours(20)).1, hours(20));
        let covered = |state: &State| due(state, hours(21)).0;
        for range in covered(&newer) {
            assert!(covered(&older).iter().any(|wider| wider.start <= range.start && range.end <= wider.end));
        }
        assert_eq!(due(&older, hours(24 * 8)).0, [0..10_000, 0..0]);
        assert_eq!(due(&newer, begin).0, [0..10_000, 0..0]);
        assert_eq!(due(&state(64, 3, begin), hours(1)).0, [0..64, 0..0]);
    }
}
