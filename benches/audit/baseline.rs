//! The baselines on the same PostgreSQL: tables with the columns, indexes and partitions of `audit_logs`, filled by `COPY` and by
//! INSERTs. They hash nothing, seal nothing and ask nobody who called.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{SinkExt as _, TryStreamExt as _};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls, Statement};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::support::load::Answers;
use crate::support::place::Place;

/// Filled by `COPY`.
const COPIED: &str = "bench.copied";
/// Filled by INSERTs.
const INSERTED: &str = "bench.inserted";

/// The tables, and connections to them.
#[derive(Debug)]
pub(crate) struct Baseline {
    runtime: Runtime,
    client: Client,
    url: String,
    /// How many entries of each stream were copied.
    seen: BTreeMap<i32, i64>,
}

/// Rows as `COPY` gives and takes them.
#[derive(Debug)]
pub(crate) struct Rows {
    bytes: Vec<Bytes>,
    /// How many.
    pub(crate) count: u32,
}

impl Baseline {
    /// Makes the tables.
    pub(crate) fn new(place: &Place) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let url = place.owner_url();
        let client = runtime.block_on(connect(&url))?;
        let baseline = Self { runtime, client, url, seen: BTreeMap::new() };
        baseline.runtime.block_on(baseline.create())?;
        Ok(baseline)
    }

    async fn create(&self) -> anyhow::Result<()> {
        const MONTHS: &str = "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i \
            JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'sidekeep.audit_logs'::regclass";
        self.client.batch_execute("CREATE SCHEMA IF NOT EXISTS bench").await?;
        let months = self.client.query(MONTHS, &[]).await?;
        for table in [COPIED, INSERTED] {
            let mut make = format!(
                "CREATE TABLE {table} (LIKE sidekeep.audit_logs INCLUDING ALL) PARTITION BY RANGE (recorded_at);"
            );
            for month in &months {
                let name = format!("{table}_{}", month.try_get::<_, String>(0)?);
                let bounds: String = month.try_get(1)?;
                make += &format!(
                    "CREATE TABLE {name} PARTITION OF {table} {bounds}; CREATE UNIQUE INDEX ON {name} (id);"
                );
            }
            self.client.batch_execute(&make).await?;
        }
        Ok(())
    }

    /// What was appended since this was last asked. By positions, as the clocks of two daemons differ a little.
    pub(crate) fn take(&mut self) -> anyhow::Result<Rows> {
        const SIZES: &str = "SELECT stream, size FROM sidekeep.audit_streams";
        let (rows, seen) = self.runtime.block_on(async {
            let (mut seen, mut new, mut count) = (BTreeMap::new(), Vec::new(), 0);
            for row in self.client.query(SIZES, &[]).await? {
                let (stream, size): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
                let from = self.seen.get(&stream).copied().unwrap_or(0);
                new.push(format!(
                    "SELECT * FROM sidekeep.audit_logs WHERE stream = {stream} AND position >= {from} AND position < {size}"
                ));
                count += size - from;
                seen.insert(stream, size);
            }
            let out = format!("COPY ({}) TO STDOUT (FORMAT binary)", new.join(" UNION ALL "));
            let bytes: Vec<Bytes> = self.client.copy_out(&out).await?.try_collect().await?;
            anyhow::Ok((Rows { bytes, count: u32::try_from(count)? }, seen))
        })?;
        self.seen = seen;
        Ok(rows)
    }

    /// One `COPY` of these rows on one connection, until it is committed.
    pub(crate) fn copy(&self, rows: Rows) -> anyhow::Result<Answers> {
        let count = rows.count;
        // Sent in pieces of some size, as a client does that reads a file.
        let mut pieces = Vec::new();
        for few in rows.bytes.chunks(128) {
            pieces.push(Bytes::from(few.concat()));
        }
        let seconds = self.runtime.block_on(async {
            let begun = Instant::now();
            let sink =
                self.client.copy_in::<_, Bytes>(&format!("COPY {COPIED} FROM STDIN (FORMAT binary)")).await?;
            let mut sink = std::pin::pin!(sink);
            for piece in pieces {
                sink.send(piece).await?;
            }
            sink.finish().await?;
            anyhow::Ok(begun.elapsed().as_secs_f64())
        })?;
        Ok(Answers { count, seconds })
    }

    /// So many connections, each with one INSERT of one row at a time, each a transaction of its own.
    pub(crate) fn insert(
        &self,
        connections: i32,
        commit: Commit,
        length: Duration,
    ) -> anyhow::Result<Answers> {
        self.runtime.block_on(async {
            let mut inserters = Vec::new();
            for number in 0..connections {
                inserters.push(Inserter::new(&self.url, number).await?);
            }
            let tracker = TaskTracker::new();
            let begun = Instant::now();
            let going: Vec<_> =
                inserters.into_iter().map(|one| tracker.spawn(one.keep_up(commit, begun, length))).collect();
            let mut count = 0;
            for one in going {
                count += one.await??;
            }
            Ok(Answers { count, seconds: begun.elapsed().as_secs_f64() })
        })
    }

    /// One that inserts alone.
    pub(crate) fn inserter(&self) -> anyhow::Result<Inserter> {
        self.runtime.block_on(Inserter::new(&self.url, i32::MAX))
    }

    /// How long so many INSERTs take, one after another, each with its COMMIT, in microseconds.
    pub(crate) fn times(
        &self,
        inserter: &mut Inserter,
        commit: Commit,
        count: u32,
    ) -> anyhow::Result<Vec<f64>> {
        self.runtime.block_on(async {
            let mut times = Vec::new();
            for _ in 0..count {
                let begun = Instant::now();
                inserter.transact(commit).await?;
                times.push(crate::support::report::microseconds(begun.elapsed()));
            }
            Ok(times)
        })
    }
}

/// What an INSERT gives but position and id: those of an entry of the log.
#[derive(Debug)]
struct Row {
    format: i16,
    actor_id: Option<i64>,
    subject_id: Option<i64>,
    texts: [Option<String>; 4],
    labels: Option<serde_json::Value>,
    sealed: [Option<Vec<u8>>; 2],
    leaf_hash: Vec<u8>,
}

/// How an INSERT is committed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Commit {
    /// By a COMMIT, as an application's transaction is.
    Explicit,
    /// By itself: two round trips less.
    Implicit,
}

/// A connection with a prepared INSERT.
#[derive(Debug)]
pub(crate) struct Inserter {
    client: Client,
    statement: Statement,
    rows: Vec<Row>,
    stream: i32,
    position: i64,
}

impl Inserter {
    async fn new(url: &str, stream: i32) -> anyhow::Result<Self> {
        const ROWS: &str = "SELECT format, actor_id, subject_id, action, resource_type, resource_id, outcome, labels, \
            client_sealed, metadata_sealed, leaf_hash FROM sidekeep.audit_logs LIMIT 512";
        let client = connect(url).await?;
        let insert = format!(
            "INSERT INTO {INSERTED} (stream, position, recorded_at, format, id, actor_id, subject_id, action, resource_type, \
             resource_id, outcome, labels, client_sealed, metadata_sealed, leaf_hash) \
             VALUES ($1, $2, now(), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
        );
        let statement = client.prepare(&insert).await?;
        let last = format!("SELECT coalesce(max(position), -1) FROM {INSERTED} WHERE stream = $1");
        let last: i64 = client.query_one(&last, &[&stream]).await?.try_get(0)?;
        let row = |row: tokio_postgres::Row| {
            Ok(Row {
                format: row.try_get(0)?,
                actor_id: row.try_get(1)?,
                subject_id: row.try_get(2)?,
                texts: [row.try_get(3)?, row.try_get(4)?, row.try_get(5)?, row.try_get(6)?],
                labels: row.try_get(7)?,
                sealed: [row.try_get(8)?, row.try_get(9)?],
                leaf_hash: row.try_get(10)?,
            })
        };
        let rows = client.query(ROWS, &[]).await?.into_iter().map(row).collect::<anyhow::Result<_>>()?;
        Ok(Self { client, statement, rows, stream, position: last + 1 })
    }

    async fn insert(&mut self) -> anyhow::Result<()> {
        let at = usize::try_from(self.position)? % self.rows.len().max(1);
        let row = self.rows.get(at).context("the log is empty")?;
        let id = Uuid::now_v7().to_string();
        let [action, resource_type, resource_id, outcome] = &row.texts;
        let [client_sealed, metadata_sealed] = &row.sealed;
        self.client
            .execute(
                &self.statement,
                &[
                    &self.stream,
                    &self.position,
                    &row.format,
                    &id,
                    &row.actor_id,
                    &row.subject_id,
                    action,
                    resource_type,
                    resource_id,
                    outcome,
                    &row.labels,
                    client_sealed,
                    metadata_sealed,
                    &row.leaf_hash,
                ],
            )
            .await?;
        self.position += 1;
        Ok(())
    }

    async fn transact(&mut self, commit: Commit) -> anyhow::Result<()> {
        match commit {
            Commit::Implicit => self.insert().await,
            Commit::Explicit => {
                self.client.batch_execute("BEGIN").await?;
                self.insert().await?;
                Ok(self.client.batch_execute("COMMIT").await?)
            }
        }
    }

    async fn keep_up(mut self, commit: Commit, begun: Instant, length: Duration) -> anyhow::Result<u32> {
        let mut count = 0;
        while begun.elapsed() < length {
            self.transact(commit).await?;
            count += 1;
        }
        Ok(count)
    }
}

/// A connection of its own.
pub(crate) async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    TaskTracker::new().spawn(connection);
    Ok(client)
}
