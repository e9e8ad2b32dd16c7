//! What of the log belongs into its archive, month by month and stream by stream, with the proof of it; and the record of what
//! was archived. Reaches no archive.
//!
//! Entries of a month in a stream are a range of positions, because times never decrease there; once the month is over they do
//! not change, so they are read piece by piece, each in a snapshot of its own.

use chrono::{DateTime, NaiveDate, Utc};
use diesel::QueryableByName;
use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel::sql_types::{Bool, Bytea, Date, Float8, Int4, Int8, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::by::By;
use super::entry::Entry;
use super::heads::{HeadRow, frontier, newest};
use super::log::Log;
use super::merkle::{Frontier, Hash, consistency, inclusion};
use super::note::VerifierKey;
use super::tree::Tree;
use super::verify;
use crate::error::{Error, Result};
use crate::store::schema::{audit_archives, audit_heads, audit_streams};
use crate::store::{Columns, Connection, CopiedRows, Deadline, Dedicated, Tally};

/// So many entries are read with one statement: a snapshot that is held for long keeps PostgreSQL from cleaning up.
const PIECE: u64 = 1 << 18;
/// Rows come in such portions: so many, or so many bytes.
const ROWS: usize = 1024;
const BYTES: usize = 1 << 20;
/// So often in a row it may stay unknown whether something was recorded.
const UNKNOWN: u32 = 5;

/// A month of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The stream.
    pub stream: i32,
    /// The first day of the month, in UTC.
    pub month: NaiveDate,
    /// The position of its first entry.
    pub first: u64,
    /// The position of its last entry.
    pub last: u64,
}

impl Part {
    /// How many entries it has.
    pub fn entries(&self) -> u64 {
        self.end().saturating_sub(self.first)
    }

    /// How large the stream was with its last entry.
    pub fn end(&self) -> u64 {
        self.last.saturating_add(1)
    }

    /// For messages.
    pub fn name(&self) -> String {
        format!("stream {} of {}", self.stream, self.month.format("%Y-%m"))
    }
}

/// What proves a part without the database: it is under a signed checkpoint.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The tree before the first entry.
    pub before: Frontier,
    /// The root after the last one.
    pub root: Hash,
    /// From there to the head (RFC 6962 §2.1.2).
    pub consistency: Vec<Hash>,
    /// The canonical bytes of the first head that covers it.
    pub head: String,
    /// The head's index in the heads log.
    pub head_index: u64,
    /// From the head to the checkpoint (RFC 6962 §2.1.1).
    pub heads_path: Vec<Hash>,
    /// The signed note.
    pub checkpoint: String,
    /// The keys that may have signed it.
    pub keys: Vec<VerifierKey>,
}

/// An object that was read back and verified.
#[derive(Clone, Debug)]
pub struct Archived {
    /// The part that is in it.
    pub part: Part,
    /// The object's URL.
    pub object: String,
    /// Its manifest's URL.
    pub manifest: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: Hash,
}

#[derive(QueryableByName)]
struct MonthRow {
    #[diesel(sql_type = Date)]
    month: NaiveDate,
}

/// A row of `audit_archives`.
#[derive(QueryableByName)]
struct ExpiredRow {
    #[diesel(sql_type = Int4)]
    stream: i32,
    #[diesel(sql_type = Date)]
    month: NaiveDate,
    #[diesel(sql_type = Int8)]
    first_position: i64,
    #[diesel(sql_type = Int8)]
    last_position: i64,
    #[diesel(sql_type = Text)]
    object: String,
    #[diesel(sql_type = Text)]
    manifest: String,
    #[diesel(sql_type = Int8)]
    size: i64,
    #[diesel(sql_type = Bytea)]
    sha256: Vec<u8>,
}

impl ExpiredRow {
    fn archived(self) -> Result<Archived> {
        let (first, last) = (number(self.first_position)?, number(self.last_position)?);
        Ok(Archived {
            part: Part { stream: self.stream, month: self.month, first, last },
            object: self.object,
            manifest: self.manifest,
            size: number(self.size)?,
            sha256: Hash::read(&self.sha256).ok_or_else(|| tampered("audit_archives"))?,
        })
    }
}

#[derive(QueryableByName)]
struct PartRow {
    #[diesel(sql_type = Int4)]
    stream: i32,
    #[diesel(sql_type = Int8)]
    first: i64,
    #[diesel(sql_type = Int8)]
    last: i64,
}

/// The months that are there and have been over for so long.
const MONTHS: &str = "SELECT to_date(right(c.relname, 7), 'YYYY_MM') AS month FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
    WHERE i.inhparent = 'sidekeep.audit_logs'::regclass AND c.relname ~ '^audit_logs_[0-9]{4}_[0-9]{2}$' \
    AND (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC' <= now() - make_interval(secs => $1) \
    ORDER BY 1";

/// What the streams have in a month that is not archived: two looks at an index for each.
const PARTS: &str = "SELECT s.stream, a.position AS first, z.position AS last FROM sidekeep.audit_streams s, \
    LATERAL (SELECT position FROM sidekeep.audit_logs WHERE stream = s.stream AND recorded_at >= $2 AND recorded_at < $3 \
        ORDER BY position LIMIT 1) a, \
    LATERAL (SELECT position FROM sidekeep.audit_logs WHERE stream = s.stream AND recorded_at >= $2 AND recorded_at < $3 \
        ORDER BY position DESC LIMIT 1) z \
    WHERE NOT EXISTS (SELECT FROM sidekeep.audit_archives d WHERE d.stream = s.stream AND d.month = $1) ORDER BY 1";

/// What is past its period in the archive, and no longer in the database; or, foreseen, is about to be so.
const EXPIRED: &str = "SELECT a.stream, a.month, a.first_position, a.last_position, a.object, a.manifest, a.size, a.sha256 \
    FROM sidekeep.audit_archives a JOIN sidekeep.retention_policies p ON p.name = 'audit_logs' WHERE a.removed_at IS NULL \
    AND (a.month + interval '1 month')::timestamp AT TIME ZONE 'UTC' \
        + make_interval(secs => greatest(p.keep_seconds, sidekeep.retention_floor_seconds())) <= $1 \
    AND (NOT EXISTS (SELECT FROM sidekeep.audit_months() m WHERE m.month = a.month) \
        OR $2 AND EXISTS (SELECT FROM sidekeep.expired_audit_months d WHERE d.month = a.month AND d.expired_at <= $1)) \
    ORDER BY a.month, a.stream";

/// What was archived; nothing where it is recorded.
const RECORD: &str = "INSERT INTO sidekeep.audit_archives \
    (stream, month, first_position, last_position, entries, object, manifest, size, sha256, verified_at) \
    VALUES ($1, $2, $3, $4, $4 - $3 + 1, $5, $6, $7, $8, clock_timestamp()) ON CONFLICT DO NOTHING";

impl Log {
    /// What is not archived of the months that have been over for so long, by PostgreSQL's clock; the oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn unarchived(&self, after: std::time::Duration, deadline: &Deadline) -> Result<Vec<Part>> {
        let months: Vec<MonthRow> = self
            .store
            .single(deadline, "audit.archive.months", async |connection| {
                let months = diesel::sql_query(MONTHS).bind::<Float8, _>(after.as_secs_f64());
                Ok(months.load(connection).await?)
            })
            .await?;
        let mut parts = Vec::new();
        for MonthRow { month } in months {
            let (from, to) = bounds(month)?;
            let rows: Vec<PartRow> = self
                .store
                .single(deadline, "audit.archive.parts", async |connection| {
                    let rows = diesel::sql_query(PARTS).bind::<Date, _>(month);
                    Ok(rows.bind::<Timestamptz, _>(from).bind::<Timestamptz, _>(to).load(connection).await?)
                })
                .await?;
            for row in rows {
                let (first, last) = (number(row.first)?, number(row.last)?);
                parts.push(Part { stream: row.stream, month, first, last });
            }
        }
        Ok(parts)
    }

    /// The proof of a part; makes a checkpoint first where none covers it.
    ///
    /// # Errors
    /// [`Error::Tampered`] where the tree lacks a hash; as [`Log::make_checkpoint`].
    pub async fn evidence(&self, part: &Part, deadline: &Deadline) -> Result<Evidence> {
        for _ in 0..2 {
            let found = self
                .store
                .snapshot(deadline, "audit.archive.evidence", async |tx| evidence(tx, part).await)
                .await?;
            if let Some(mut found) = found {
                let keys = self.signers.public();
                found.keys = keys.map(|key| VerifierKey::new(self.keyring.deployment(), key)).collect();
                return Ok(found);
            }
            self.make_checkpoint(deadline).await?;
        }
        Err(Error::conflict(format!("{}: no checkpoint covers it", part.name())))
    }

    /// Begins to read the entries of a part.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn part_rows(&self, part: &Part, deadline: &Deadline) -> Result<PartRows> {
        let connection = self.store.dedicated(deadline).await?;
        let bounds = bounds(part.month)?;
        let range = (part.first, part.end());
        Ok(PartRows { connection, rows: None, stream: part.stream, range, bounds })
    }

    /// Records that a part is archived, was read back, and verified; counts it, once.
    ///
    /// # Errors
    /// The store's.
    pub async fn record_archived(
        &self,
        archived: &Archived,
        tally: &Tally<'_>,
        deadline: &Deadline,
    ) -> Result<()> {
        let part = archived.part;
        let (first, last, size) = (stored(part.first)?, stored(part.last)?, stored(archived.size)?);
        let counted = [("months", 1), ("entries", stored(part.entries())?), ("bytes", size)];
        let mut unknown = 0_u32;
        loop {
            let recorded = self
                .store
                .transact(deadline, "audit.archived", async |tx| {
                    let query = diesel::sql_query(RECORD)
                        .bind::<Int4, _>(part.stream)
                        .bind::<Date, _>(part.month)
                        .bind::<Int8, _>(first)
                        .bind::<Int8, _>(last)
                        .bind::<Text, _>(&archived.object)
                        .bind::<Text, _>(&archived.manifest)
                        .bind::<Int8, _>(size)
                        .bind::<Bytea, _>(archived.sha256.bytes().as_slice());
                    if query.execute(tx).await? > 0 {
                        for counted in counted {
                            tally(tx, counted).await?;
                        }
                    }
                    Ok(())
                })
                .await;
            match recorded {
                // What was committed is found again.
                Err(Error::UnknownOutcome) if unknown < UNKNOWN => unknown = unknown.saturating_add(1),
                recorded => return recorded,
            }
        }
    }

    /// The archived parts that are past `retention.audit_logs` and the confirmed floor and whose months are no longer in the
    /// database, the oldest first. Foreseen: also those whose months are due themselves, and go first.
    ///
    /// # Errors
    /// The store's.
    pub async fn expired_archives(
        &self,
        at: DateTime<Utc>,
        foreseen: bool,
        deadline: &Deadline,
    ) -> Result<Vec<Archived>> {
        let rows: Vec<ExpiredRow> = self
            .store
            .single(deadline, "audit.archive.expired", async |connection| {
                let rows = diesel::sql_query(EXPIRED).bind::<Timestamptz, _>(at).bind::<Bool, _>(foreseen);
                Ok(rows.load(connection).await?)
            })
            .await?;
        rows.into_iter().map(ExpiredRow::archived).collect()
    }

    /// Records that the object of a part is gone, and enters that, once. Answers whether this call did.
    ///
    /// # Errors
    /// The store's.
    pub async fn record_removed(&self, part: &Part, by: &By, tally: &Tally<'_>) -> Result<bool> {
        let mut unknown = 0_u32;
        loop {
            let entered = self
                .store
                .transact(&by.deadline, "audit.archive.removed", async |tx| {
                    let row = audit_archives::table.find((part.stream, part.month));
                    let row = row.filter(audit_archives::removed_at.is_null());
                    let removed = diesel::update(row).set(audit_archives::removed_at.eq(diesel::dsl::now));
                    if removed.execute(tx).await? == 0 {
                        return Ok(None);
                    }
                    tally(tx, ("archives", 1)).await?;
                    Ok(Some(self.stage_about(tx, by, None).await?))
                })
                .await;
            match entered {
                // What was committed is found again.
                Err(Error::UnknownOutcome) if unknown < UNKNOWN => unknown = unknown.saturating_add(1),
                Ok(Some(entry)) => {
                    self.hand_over(by, entry);
                    return Ok(true);
                }
                Ok(None) => return Ok(unknown > 0),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The entries of a part on their way, in order.
#[derive(Debug)]
pub struct PartRows {
    connection: Dedicated,
    rows: Option<CopiedRows>,
    stream: i32,
    /// What is left to be asked for.
    range: (u64, u64),
    bounds: (DateTime<Utc>, DateTime<Utc>),
}

/// Entries as they came from PostgreSQL, not yet read.
#[derive(Debug)]
pub struct Portion(i32, Vec<Columns>);

impl PartRows {
    /// The next entries; nothing at the end.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn next(&mut self, deadline: &Deadline) -> Result<Option<Portion>> {
        let late = |_| Error::unavailable("the entries were not read in time");
        loop {
            if let Some(rows) = &mut self.rows {
                let portion = deadline.run(rows.next(ROWS, BYTES)).await.map_err(late)?.map_err(away)?;
                if !portion.is_empty() {
                    return Ok(Some(Portion(self.stream, portion)));
                }
                self.rows = None;
            }
            let (from, end) = self.range;
            if from >= end {
                return Ok(None);
            }
            let to = from.saturating_add(PIECE).min(end);
            // The time tells PostgreSQL which month to look into, and must not leave anything out.
            let (since, until) = (self.bounds.0.to_rfc3339(), self.bounds.1.to_rfc3339());
            let within = format!("recorded_at >= '{since}' AND recorded_at < '{until}'");
            let query = verify::entries_query(self.stream, (from, to), &within);
            self.rows = Some(deadline.run(self.connection.copy(&query)).await.map_err(late)?.map_err(away)?);
            self.range.0 = to;
        }
    }
}

impl Portion {
    /// The entries with the leaf hashes that stand beside them.
    ///
    /// # Errors
    /// [`Error::Tampered`] where one is not of its form.
    pub fn read(self) -> Result<Vec<(Entry, Hash)>> {
        let stream = self.0;
        let read = |mut row: Columns| {
            let (entry, stored) = verify::read_entry(&mut row, stream)?;
            Some((entry, Hash::read(&stored)?))
        };
        let at = || tampered(&format!("audit_logs, stream {stream}"));
        self.1.into_iter().map(|row| read(row).ok_or_else(at)).collect()
    }
}

async fn evidence(tx: &mut Connection, part: &Part) -> Result<Option<Evidence>> {
    let Some(checkpoint) = newest(tx).await? else { return Ok(None) };
    let (stream, end) = (part.stream, stored(part.end())?);
    let present: Option<i64> =
        audit_streams::table.find(stream).select(audit_streams::size).first(tx).await.optional()?;
    let head: Option<HeadRow> = audit_heads::table
        .filter(audit_heads::stream.eq(stream))
        .filter(audit_heads::size.ge(end))
        .filter(audit_heads::size.le(present.unwrap_or(0)))
        .order(audit_heads::size)
        .select(HeadRow::as_select())
        .first(tx)
        .await
        .optional()?;
    let Some(head) = head.filter(|head| head.index < checkpoint.size) else { return Ok(None) };
    let missing = || tampered("audit_heads");
    let tree = Tree::Stream(stream);
    let before = frontier(tx, tree, part.first).await?;
    let root = frontier(tx, tree, part.end()).await?.root();
    let steps = consistency(part.end(), number(head.size)?).ok_or_else(missing)?;
    let consistency = tree.proof(tx, &steps).await?;
    let (index, size) = (number(head.index)?, number(checkpoint.size)?);
    let steps = inclusion(index, size).ok_or_else(missing)?;
    let heads_path = Tree::Heads.proof(tx, &steps).await?;
    let canonical = head.head().ok_or_else(missing)?.canonical();
    Ok(Some(Evidence {
        before,
        root,
        consistency,
        head: String::from_utf8(canonical).map_err(|_| missing())?,
        head_index: index,
        heads_path,
        checkpoint: checkpoint.note,
        keys: Vec::new(),
    }))
}

/// When a month begins and ends.
fn bounds(month: NaiveDate) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
    let midnight = |day: NaiveDate| day.and_hms_opt(0, 0, 0).map(|at| at.and_utc());
    let next = month.checked_add_months(chrono::Months::new(1));
    let bounds = midnight(month).zip(next.and_then(midnight));
    bounds.ok_or_else(|| Error::internal("a month without an end"))
}

fn number(stored: i64) -> Result<u64> {
    u64::try_from(stored).map_err(Error::internal)
}

fn stored(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(Error::internal)
}

fn tampered(at: &str) -> Error {
    Error::Tampered { at: at.into() }
}

fn away(error: tokio_postgres::Error) -> Error {
    let why = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    Error::unavailable(format!("PostgreSQL: {why}"))
}
