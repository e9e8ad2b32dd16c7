//! Months of the log that retention has dropped: what stays of them, and the transaction in which they go. The only writer of
//! `audit_dropped`.
//!
//! Months go in order, so what a stream has lost is its beginning. Of it stay the tiles, with the hashes of the entries, and a
//! row that a daemon has sealed: how many entries went, and the hashes that are in no tile at that size. So roots, proofs and
//! consistency go on, and nobody can take a month away and call it retention: the row's seal is made with a key that the
//! owner of the tables has not, after the tree was found to lead to the sealed head of its stream.
//!
//! Entries that what is left depends on are entered again in the same transaction, as they were: declared gaps, changes of the
//! signing key, and erasures of persons whom later entries still name.

use std::time::Duration;

use chrono::{DateTime, Datelike as _, Months, NaiveDate, Utc};
use diesel::QueryableByName;
use diesel::dsl::{max, sql};
use diesel::prelude::{
    BoolExpressionMethods, ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, Selectable,
    SelectableHelper,
};
use diesel::sql_types::{Bool, Date, Int4, Int8, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::by::By;
use super::entry::Labels;
use super::growth::{self, Growth};
use super::heads::StreamRow;
use super::log::{Log, Staged};
use super::merkle::{self, Hash};
use super::row::Stored;
use super::stream::Sealed;
use super::tree::Tree;
use super::{gap, staged, succession};
use crate::error::{Error, Result};
use crate::keyring::Deployment;
use crate::store::schema::{audit_dropped, audit_logs, audit_streams};
use crate::store::{AnyDate, AnyTime, Connection, Deadline, Tally};

/// What the MAC of a row is for.
const PURPOSE: &str = "sidekeep dropped";
/// The label of an entry that was entered again: the month of the first time.
const CARRIED: &str = "sidekeep.carried";
/// So often a month is tried whose lock others hold, and with such pauses.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(200);

/// What was dropped of a stream, up to the end of a month.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    /// The tree over everything that was dropped.
    pub(super) tree: Growth,
}

impl Dropped {
    /// The hash of an entry that is in no complete tile.
    pub(super) fn leaf(&self, position: u64) -> Option<Hash> {
        let first = self.tree.size() >> growth::HEIGHT << growth::HEIGHT;
        self.tree.open(0).get(usize::try_from(position.checked_sub(first)?).ok()?).copied()
    }
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_dropped, check_for_backend(diesel::pg::Pg))]
pub(super) struct Row {
    pub(super) stream: i32,
    #[diesel(deserialize_as = AnyDate)]
    pub(super) month: NaiveDate,
    pub(super) size: i64,
    edge: Vec<u8>,
    #[diesel(deserialize_as = AnyTime)]
    at: DateTime<Utc>,
    mac: Vec<u8>,
}

impl Row {
    fn numbers(&self) -> [[u8; 8]; 4] {
        let day = i64::from(self.month.num_days_from_ce());
        [i64::from(self.stream), day, self.size, self.at.timestamp_micros()].map(i64::to_be_bytes)
    }

    fn seal(&mut self, own: &Deployment) {
        let [stream, day, size, at] = self.numbers();
        self.mac = own.mac(PURPOSE, &[own.name().as_bytes(), &stream, &day, &size, &at, &self.edge]);
    }

    /// What it says, where a daemon has sealed it.
    pub(super) fn open(self, own: &Deployment) -> Option<Dropped> {
        let [stream, day, size, at] = self.numbers();
        let parts: [&[u8]; 6] = [own.name().as_bytes(), &stream, &day, &size, &at, &self.edge];
        let sealed = own.verifies(PURPOSE, &parts, &self.mac);
        let tree = Growth::read(u64::try_from(self.size).ok()?, &self.edge)?;
        sealed.then_some(Dropped { tree })
    }
}

/// What was dropped of a stream that concerns its entries from one position to another: the ends of months between them, and
/// the last one.
///
/// # Errors
/// The database's.
pub(super) async fn within(
    connection: &mut Connection,
    stream: i32,
    (from, to): (i64, i64),
) -> Result<Vec<Row>> {
    let last: Option<i64> = audit_dropped::table
        .filter(audit_dropped::stream.eq(stream))
        .select(max(audit_dropped::size))
        .get_result(connection)
        .await?;
    let Some(last) = last.filter(|last| *last > from) else { return Ok(Vec::new()) };
    let rows = audit_dropped::table
        .filter(audit_dropped::stream.eq(stream))
        .filter(audit_dropped::size.gt(from))
        .filter(audit_dropped::size.le(to).or(audit_dropped::size.eq(last)))
        .order(audit_dropped::size)
        .select(Row::as_select());
    Ok(rows.load(connection).await?)
}

#[derive(QueryableByName)]
struct Due {
    #[diesel(sql_type = Date)]
    month: NaiveDate,
}

#[derive(QueryableByName)]
struct Kept {
    #[diesel(sql_type = Int8)]
    months: i64,
}

/// A stream in a month.
#[derive(QueryableByName)]
struct InMonth {
    #[diesel(sql_type = Int4)]
    stream: i32,
    #[diesel(sql_type = Int8)]
    first_position: i64,
    #[diesel(sql_type = Int8)]
    last_position: i64,
}

#[derive(QueryableByName)]
struct Gone {
    #[diesel(sql_type = Bool)]
    gone: bool,
}

#[derive(QueryableByName)]
struct Archive {
    #[diesel(sql_type = Text)]
    object: String,
}

/// What a transaction that drops a month leaves.
struct Left {
    entries: i64,
    entry: Staged,
    carried: Vec<Sealed>,
}

impl Log {
    /// The months that are due at a time, the oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn months_due(&self, at: DateTime<Utc>, deadline: &Deadline) -> Result<Vec<NaiveDate>> {
        const DUE: &str =
            "SELECT month FROM sidekeep.expired_audit_months WHERE expired_at <= $1 ORDER BY month";
        let due = self.store.single(deadline, "audit.months_due", async |connection| {
            Ok(diesel::sql_query(DUE).bind::<Timestamptz, _>(at).load::<Due>(connection).await?)
        });
        Ok(due.await?.into_iter().map(|due| due.month).collect())
    }

    /// How many months are past `retention.audit_logs`, whatever keeps them.
    ///
    /// # Errors
    /// The store's.
    pub async fn months_kept(&self, at: DateTime<Utc>, deadline: &Deadline) -> Result<i64> {
        const KEPT: &str = "SELECT count(*) AS months FROM sidekeep.audit_months() m JOIN sidekeep.retention_policies p \
            ON p.name = 'audit_logs' WHERE (m.month + interval '1 month')::timestamp AT TIME ZONE 'UTC' \
            <= $1 - make_interval(secs => p.keep_seconds)";
        let kept: Kept = self
            .store
            .single(deadline, "audit.months_kept", async |connection| {
                Ok(diesel::sql_query(KEPT).bind::<Timestamptz, _>(at).get_result(connection).await?)
            })
            .await?;
        Ok(kept.months)
    }

    /// Drops a month, and enters that. Answers how many entries went.
    ///
    /// # Errors
    /// [`Error::Tampered`] where what is left would not lead to the stream's head; [`Error::Unavailable`] while somebody reads
    /// the log for too long; the store's.
    pub async fn drop_month(&self, month: NaiveDate, by: &By, tally: &Tally<'_>) -> Result<i64> {
        let (mut tries, mut unknown) = (0_u32, false);
        loop {
            let left = self
                .store
                .transact(&by.deadline, "audit.drop_month", async |tx| {
                    self.drop_in(tx, month, by, tally).await
                })
                .await;
            tries = tries.saturating_add(1);
            match left {
                Ok(Left { entries, entry, carried }) => {
                    self.hand_over(by, entry);
                    carried.into_iter().for_each(|entry| self.enter_staged(entry));
                    return Ok(entries);
                }
                // It went with the commit whose answer did not arrive.
                Err(Error::NotFound { .. }) if unknown => return Ok(0),
                Err(Error::UnknownOutcome) if tries < TRIES => unknown = true,
                Err(Error::Unavailable { .. }) if tries < TRIES && by.deadline.left() > PAUSE => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Error::Unavailable { .. }) => {
                    return Err(Error::unavailable(format!(
                        "the month {} could not be dropped, as others have the log locked for long, like a backup; \
                         the next run tries again",
                        month.format("%Y-%m")
                    )));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn drop_in(
        &self,
        tx: &mut Connection,
        month: NaiveDate,
        by: &By,
        tally: &Tally<'_>,
    ) -> Result<Left> {
        const STREAMS: &str = "SELECT * FROM sidekeep.audit_month_streams($1)";
        const DROP: &str = "SELECT sidekeep.drop_audit_month($1) AS gone";
        let streams: Vec<InMonth> = diesel::sql_query(STREAMS).bind::<Date, _>(month).load(tx).await?;
        let mut entries = 0_i64;
        for part in &streams {
            self.cut(tx, month, part).await?;
            let length = part.last_position.saturating_sub(part.first_position).saturating_add(1);
            entries = entries.saturating_add(length);
        }
        let mut carried = Vec::new();
        for entry in self.needed(tx, month).await? {
            carried.push(staged::stage(tx, self.keyring.own()?, entry).await?);
        }
        by.tells("entries", entries);
        let entry = self.stage_about(tx, by, None).await?;
        tally(tx, ("audit_months", 1)).await?;
        // Last: everybody who appends waits behind the lock until the commit.
        let Gone { gone } = diesel::sql_query(DROP).bind::<Date, _>(month).get_result(tx).await?;
        if gone { Ok(Left { entries, entry, carried }) } else { Err(Error::NotFound { what: "month" }) }
    }

    /// Records what stays of a stream's beginning, once that is found to lead to the stream's sealed head.
    async fn cut(&self, tx: &mut Connection, month: NaiveDate, part: &InMonth) -> Result<()> {
        let own = self.keyring.own()?;
        let broken = || Error::Tampered {
            at: format!("the Merkle tree of stream {} up to position {}", part.stream, part.last_position),
        };
        let before: Option<Row> = audit_dropped::table
            .filter(audit_dropped::stream.eq(part.stream))
            .order(audit_dropped::size.desc())
            .select(Row::as_select())
            .first(tx)
            .await
            .optional()?;
        let before = before.map(|row| row.open(own).ok_or_else(broken)).transpose()?;
        let gone = before.as_ref().map_or(0, |before| before.tree.size());
        let size = u64::try_from(part.last_position.saturating_add(1)).map_err(Error::internal)?;
        if u64::try_from(part.first_position) != Ok(gone) {
            return Err(broken());
        }
        let stream = Tree::Stream(part.stream);
        let tree = stream.growth_at(tx, size, before.as_ref()).await?;
        let row: StreamRow =
            audit_streams::table.find(part.stream).select(StreamRow::as_select()).first(tx).await?;
        let (present, root) = row.sealed(own).ok_or_else(broken)?;
        let steps = merkle::consistency(size, present).ok_or_else(broken)?;
        let path = stream.proof(tx, &steps).await?;
        if !merkle::is_consistent((size, tree.root()), (present, root), &path) {
            return Err(broken());
        }
        let at = diesel::select(sql::<Timestamptz>("now()")).get_result(tx).await?;
        let size = part.last_position.saturating_add(1);
        let mut row = Row { stream: part.stream, month, size, edge: tree.edge(), at, mac: Vec::new() };
        row.seal(own);
        diesel::insert_into(audit_dropped::table).values(row).execute(tx).await?;
        Ok(())
    }

    /// The entries of a month that what is left depends on, as they are entered again.
    async fn needed(&self, tx: &mut Connection, month: NaiveDate) -> Result<Vec<super::entry::Entry>> {
        // An erasure covers a person's number as long as it stands anywhere.
        const ERASURES: &str = "audit_logs.action = 'subject.erase' AND audit_logs.outcome = 'success' \
            AND audit_logs.labels ?& array['sidekeep.method', 'sidekeep.row_sha256'] AND ( \
            EXISTS (SELECT FROM sidekeep.audit_logs l WHERE l.subject_id = audit_logs.subject_id AND l.recorded_at >= ";
        let (from, to) = bounds(month).ok_or_else(|| Error::internal("no such month"))?;
        let erasures = sql::<Bool>(ERASURES)
            .bind::<Timestamptz, _>(to)
            .sql(") OR EXISTS (SELECT FROM sidekeep.audit_logs l WHERE l.actor_id = audit_logs.subject_id AND l.recorded_at >= ")
            .bind::<Timestamptz, _>(to)
            .sql(
                ") OR EXISTS (SELECT FROM sidekeep.audit_staged l WHERE l.subject_id = audit_logs.subject_id \
                 OR l.actor_id = audit_logs.subject_id))",
            );
        let own = audit_logs::action
            .eq_any([gap::ACTION, succession::ACTION])
            .and(sql::<Bool>("audit_logs.labels::text LIKE '%\"sidekeep.%'"));
        let rows: Vec<Stored> = audit_logs::table
            .filter(audit_logs::recorded_at.ge(from))
            .filter(audit_logs::recorded_at.lt(to))
            .filter(own.or(erasures))
            .order((audit_logs::recorded_at, audit_logs::stream, audit_logs::position))
            .select(Stored::as_select())
            .load(tx)
            .await?;
        let again = |stored: Stored| {
            let at = format!("audit_logs, stream {} position {}", stored.stream, stored.position);
            let (mut entry, leaf) = stored.entry().ok_or_else(|| Error::Tampered { at: at.clone() })?;
            if entry.leaf() != leaf {
                return Err(Error::Tampered { at });
            }
            (entry.stream, entry.position, entry.recorded_at) = (0, 0, DateTime::UNIX_EPOCH);
            entry.occurred_at = None;
            let carried = Labels::own([(CARRIED, month.format("%Y-%m").to_string())]);
            entry.labels = Some(entry.labels.map_or(carried.clone(), |labels| labels.with(carried)));
            Ok(entry)
        };
        rows.into_iter().map(again).collect()
    }

    /// Why an entry is not there: its month was dropped.
    pub(super) async fn archived(&self, stream: i32, position: i64, deadline: &Deadline) -> Result<Error> {
        const ARCHIVE: &str = "SELECT object FROM sidekeep.audit_archives WHERE stream = $1 AND month = $2 AND removed_at IS NULL";
        self.store
            .snapshot(deadline, "audit.archived", async |connection| {
                let month: Option<NaiveDate> = audit_dropped::table
                    .filter(audit_dropped::stream.eq(stream))
                    .filter(audit_dropped::size.gt(position))
                    .order(audit_dropped::size)
                    .select(audit_dropped::month)
                    .first(connection)
                    .await
                    .optional()?;
                let Some(month) = month.filter(|_| position >= 0) else {
                    return Ok(Error::NotFound { what: "entry" });
                };
                let query = diesel::sql_query(ARCHIVE).bind::<Int4, _>(stream).bind::<Date, _>(month);
                let archive: Option<Archive> = query.get_result(connection).await.optional()?;
                let month = month.format("%Y-%m").to_string();
                Ok(Error::Archived { month, object: archive.map(|archive| archive.object) })
            })
            .await
    }
}

/// When a month begins and ends.
fn bounds(month: NaiveDate) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let begin = |day: NaiveDate| Some(day.and_hms_opt(0, 0, 0)?.and_utc());
    Some((begin(month)?, begin(month.checked_add_months(Months::new(1))?)?))
}
