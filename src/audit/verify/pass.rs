//! One pass over the log: sections are read side by side, each on a connection of its own, and hashed off the task that
//! reads. Reads; judges nothing that is not in one section.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use diesel::prelude::{ExpressionMethods, QueryDsl, QueryableByName, SelectableHelper};
use diesel::sql_types::{Array, Bytea, Int4, Int8, Nullable};
use diesel_async::RunQueryDsl;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::Semaphore;

use super::findings::{Findings, at};
use super::rows::{self, Entries};
use super::section::{LEVEL, Mark, Outcome, Section, Steps, TileRow, Told};
use super::trust::Trust;
use super::{Digests, Range, witness};
use crate::audit::dropped::{self, Dropped};
use crate::audit::growth::HEIGHT;
use crate::audit::heads::{CheckpointRow, HeadRow};
use crate::audit::log::Log;
use crate::audit::merkle::{Hash, Node};
use crate::audit::refused::{away, late};
use crate::audit::tree::Tree;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::store::schema::{audit_checkpoints, audit_heads};
use crate::store::{Deadline, Dedicated};

/// So many leaves are looked at together: four blocks.
const LENGTH: u64 = 4 << LEVEL;
/// So many rows, or so many bytes of them, are hashed in one go.
const ROWS: usize = 1024;
const BYTES: usize = 1 << 20;
/// So many sections are read side by side at the most, each on a connection of its own.
const WIDE: usize = 4;

/// What is looked at, and with what.
pub(super) struct Pass<'a> {
    pub(super) log: &'a Log,
    pub(super) deadline: &'a Deadline,
    pub(super) digests: Digests,
    pub(super) range: Range,
    pub(super) now: DateTime<Utc>,
    /// Who was in the keyring when last looked; bounded.
    pub(super) living: Mutex<HashSet<i64>>,
    trust: Trust,
    places: Semaphore,
    idle: Mutex<Vec<Dedicated>>,
    primary_alone: AtomicBool,
}

/// A section as it was found.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) section: Section,
    pub(super) outcome: Outcome,
    /// The times of its first and its last row.
    pub(super) times: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

#[derive(QueryableByName)]
struct NodeRow {
    #[diesel(sql_type = Int4)]
    level: i32,
    #[diesel(sql_type = Int8)]
    index: i64,
    #[diesel(sql_type = Bytea)]
    hash: Vec<u8>,
    #[diesel(sql_type = Nullable<Bytea>)]
    children: Option<Vec<u8>>,
}

impl NodeRow {
    fn known(self) -> Option<(Node, TileRow)> {
        let node = Node { level: u32::try_from(self.level).ok()?, index: u64::try_from(self.index).ok()? };
        Some((node, TileRow { hash: self.hash, children: self.children }))
    }
}

impl<'a> Pass<'a> {
    pub(super) async fn new(
        log: &'a Log,
        digests: Digests,
        range: Range,
        now: DateTime<Utc>,
        deadline: &'a Deadline,
    ) -> Result<Self> {
        Ok(Self {
            trust: Trust::of(log, deadline).await?,
            places: Semaphore::new(width()),
            idle: Mutex::default(),
            primary_alone: AtomicBool::new(false),
            living: Mutex::default(),
            log,
            deadline,
            digests,
            range,
            now,
        })
    }

    /// Looks at these leaves of a tree; the pieces come in order, and so many at once are under way.
    pub(super) fn pieces(
        &'a self,
        tree: Tree,
        leaves: std::ops::Range<u64>,
        size: u64,
    ) -> impl Stream<Item = Result<Piece>> + Send + 'a {
        // Where there was nothing, the next section is that of the next row: no table makes it walk over what it only claims.
        let was_empty = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&was_empty);
        let sections = stream::try_unfold(leaves.start, move |from| {
            let (leaves, was_empty) = (leaves.clone(), Arc::clone(&was_empty));
            async move {
                let from = if was_empty.swap(false, Ordering::Relaxed) {
                    self.next_there(tree, from.max(leaves.start)..leaves.end).await?
                } else {
                    Some(from)
                };
                let Some(from) = from.filter(|from| *from < leaves.end) else { return Ok(None) };
                let from = from.saturating_sub(from.saturating_sub(leaves.start) % LENGTH);
                let to = from.saturating_add(LENGTH).min(leaves.end);
                Ok(Some((Section { tree, from, to, size }, to)))
            }
        });
        let look = move |section: Result<Section>| {
            let told = Arc::clone(&told);
            async move {
                let piece = self.look(section?).await?;
                told.fetch_or(piece.outcome.is_empty, Ordering::Relaxed);
                Ok(piece)
            }
        };
        sections.map(look).buffered(width())
    }

    /// The first of these leaves that has a row, or a tile.
    async fn next_there(&self, tree: Tree, leaves: std::ops::Range<u64>) -> Result<Option<u64>> {
        #[derive(QueryableByName)]
        struct Next {
            #[diesel(sql_type = Nullable<Int8>)]
            next: Option<i64>,
        }
        let row = match tree {
            Tree::Stream(_) => "position) FROM sidekeep.audit_logs WHERE stream = $1 AND position",
            Tree::Heads => "index) FROM sidekeep.audit_heads WHERE index",
        };
        let there = format!(
            "SELECT least((SELECT min({row} BETWEEN $2 AND $3), \
             (SELECT min(n.index << k.level) FROM generate_series(4, {LEVEL}, 4) AS k (level), LATERAL ( \
             SELECT min(index) AS index FROM sidekeep.audit_nodes WHERE stream = $1 AND level = k.level \
             AND index BETWEEN $2 >> k.level AND $3 >> k.level) AS n)) AS next"
        );
        let ((number, from), to) = (at(tree.number(), leaves.start), at(0, leaves.end.saturating_sub(1)).1);
        let next: Next = self
            .log
            .store
            .single(self.deadline, "audit.verify.next", async |connection| {
                let there = diesel::sql_query(&there).bind::<Int4, _>(number);
                Ok(there.bind::<Int8, _>(from).bind::<Int8, _>(to).get_result(connection).await?)
            })
            .await?;
        Ok(next.next.and_then(|next| u64::try_from(next).ok()).map(|next| next.max(leaves.start)))
    }

    async fn look(&self, section: Section) -> Result<Piece> {
        let place = self.deadline.run(self.places.acquire()).await.map_err(|_| late())?;
        let _place = place.map_err(Error::internal)?;
        let piece = match section.tree {
            Tree::Stream(stream) => self.entries(stream, section).await?,
            Tree::Heads => self.heads(section).await?,
        };
        let leaves = section.to.saturating_sub(section.from);
        self.log.verified.fetch_add(leaves, Ordering::Relaxed);
        Ok(piece)
    }

    /// A section of a stream. A month may be dropped while it is read: then it is looked at again.
    async fn entries(&self, stream: i32, section: Section) -> Result<Piece> {
        let mut dropped = self.dropped(stream, &section).await?;
        loop {
            let before = dropped.clone();
            let piece = self.rows(stream, section, dropped).await?;
            dropped = self.dropped(stream, &section).await?;
            if dropped == before {
                return Ok(piece);
            }
        }
    }

    /// What was dropped of a stream, where that concerns a section. What no daemon has sealed counts for nothing.
    async fn dropped(&self, stream: i32, section: &Section) -> Result<Vec<Dropped>> {
        let number = |number: u64| i64::try_from(number).map_err(Error::internal);
        let ends = (number(section.from)?, number(section.to)?);
        let rows = self.log.store.snapshot(self.deadline, "audit.verify.dropped", async |connection| {
            dropped::within(connection, stream, ends).await
        });
        let own = self.log.keyring.own()?;
        Ok(rows.await?.into_iter().filter_map(|row| row.open(own)).collect())
    }

    /// From a replica where that can be; one that breaks off, as where it may not keep rows for its readers any longer, is not
    /// asked again.
    async fn rows(&self, stream: i32, section: Section, dropped: Vec<Dropped>) -> Result<Piece> {
        let connection = self.connection().await?;
        if !connection.is_replica {
            return self.rows_of(connection, stream, section, dropped).await;
        }
        match self.rows_of(connection, stream, section, dropped.clone()).await {
            Err(error @ Error::Unavailable { .. }) => {
                tracing::warn!(%error, "the replica broke off; the primary is read from");
                self.primary_alone.store(true, Ordering::Relaxed);
                let connection = self.connection().await?;
                self.rows_of(connection, stream, section, dropped).await
            }
            other => other,
        }
    }

    async fn rows_of(
        &self,
        connection: Dedicated,
        stream: i32,
        section: Section,
        mut dropped: Vec<Dropped>,
    ) -> Result<Piece> {
        let mut marks = self.marks(stream, &section).await?;
        let cut = |dropped: &Dropped| Mark {
            size: dropped.tree.size(),
            root: dropped.tree.root().bytes().to_vec(),
        };
        marks.extend(dropped.iter().map(cut).filter(|cut| cut.size <= section.to));
        marks.sort_by_key(|mark| mark.size);
        let told = Told { tiles: self.tiles_below(&section).await?, marks, dropped: dropped.pop() };
        let query = rows::query(stream, (section.from, section.to), "true");
        let mut copied =
            self.deadline.run(connection.copy(&query)).await.map_err(|_| late())?.map_err(away)?;
        let mut entries = Entries::new(stream, self.range, Steps::new(section, told));
        let mut hashing: Option<tokio::task::JoinHandle<Entries>> = None;
        loop {
            let rows =
                self.deadline.run(copied.next(ROWS, BYTES)).await.map_err(|_| late())?.map_err(away)?;
            if let Some(hashed) = hashing.take() {
                entries = hashed.await.map_err(Error::internal)?;
            }
            if rows.is_empty() {
                break;
            }
            let mut taking = std::mem::replace(
                &mut entries,
                Entries::new(stream, self.range, Steps::new(section, Told::default())),
            );
            // The next rows are read meanwhile.
            hashing = Some(self.log.store.tracker().spawn_blocking(move || {
                taking.take(rows);
                taking
            }));
        }
        drop(copied);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        let Entries { steps, times, persons, claims, .. } = entries;
        let mut outcome = steps.end();
        witness::look(self, stream, (persons, claims), &mut outcome.findings).await?;
        Ok(Piece { section, outcome, times })
    }

    async fn heads(&self, section: Section) -> Result<Piece> {
        let number = |number: u64| i64::try_from(number).map_err(Error::internal);
        let (from, to) = (number(section.from)?, number(section.to)?);
        let (heads, checkpoints) = self
            .log
            .store
            .snapshot(self.deadline, "audit.verify.heads", async |connection| {
                let heads: Vec<HeadRow> = audit_heads::table
                    .filter(audit_heads::index.ge(from))
                    .filter(audit_heads::index.lt(to))
                    .order(audit_heads::index)
                    .select(HeadRow::as_select())
                    .load(connection)
                    .await?;
                let checkpoints: Vec<CheckpointRow> = audit_checkpoints::table
                    .filter(audit_checkpoints::size.gt(from))
                    .filter(audit_checkpoints::size.le(to))
                    .order(audit_checkpoints::size)
                    .select(CheckpointRow::as_select())
                    .load(connection)
                    .await?;
                Ok((heads, checkpoints))
            })
            .await?;
        let mut findings = Findings::default();
        let mut marks = Vec::with_capacity(checkpoints.len());
        for checkpoint in checkpoints {
            self.signature(section.tree, &checkpoint, &mut findings);
            // It is made with its last head, at one time.
            let last = heads.binary_search_by_key(&checkpoint.size.saturating_sub(1), |head| head.index);
            let last = last.ok().and_then(|last| heads.get(last));
            if let Some(last) = last.filter(|last| last.at != checkpoint.at) {
                let (expected, found) = (Timestamp::from(last.at), Timestamp::from(checkpoint.at));
                let place = (section.tree.number(), checkpoint.size);
                findings.add(place, "audit_checkpoints", expected.to_string(), found.to_string());
            }
            let size = u64::try_from(checkpoint.size).map_err(Error::internal)?;
            marks.push(Mark { size, root: checkpoint.root });
        }
        let mut steps =
            Steps::new(section, Told { tiles: self.tiles_below(&section).await?, marks, dropped: None });
        for head in heads {
            if u64::try_from(head.index).is_ok_and(|index| steps.comes(index)) {
                steps.leaf(head.head().map(|head| head.leaf()), &head.leaf_hash);
            }
        }
        let mut outcome = steps.end();
        outcome.findings.merge(findings);
        Ok(Piece { section, outcome, times: None })
    }

    /// A daemon without a signing key leaves the signatures to those who have the public half.
    fn signature(&self, tree: Tree, checkpoint: &CheckpointRow, findings: &mut Findings) {
        let signed = self.trust.covers(&checkpoint.note, checkpoint.size, &checkpoint.root);
        if !self.trust.is_empty() && !signed {
            let expected =
                "a note over this root, signed by one of signing.key_files, or by a key that it followed";
            findings.add((tree.number(), checkpoint.size), "note", expected, checkpoint.note.clone());
        }
    }

    /// The heads of a stream in a section.
    async fn marks(&self, stream: i32, section: &Section) -> Result<Vec<Mark>> {
        let number = |number: u64| i64::try_from(number).map_err(Error::internal);
        let (from, to) = (number(section.from)?, number(section.to)?);
        let heads: Vec<(i64, Vec<u8>)> = self
            .log
            .store
            .single(self.deadline, "audit.verify.marks", async |connection| {
                let heads = audit_heads::table
                    .filter(audit_heads::stream.eq(stream))
                    .filter(audit_heads::size.gt(from))
                    .filter(audit_heads::size.le(to))
                    .order(audit_heads::size)
                    .select((audit_heads::size, audit_heads::root));
                Ok(heads.load(connection).await?)
            })
            .await?;
        let mark = |(size, root)| Some(Mark { size: u64::try_from(size).ok()?, root });
        Ok(heads.into_iter().filter_map(mark).collect())
    }

    /// The tiles of a section up to the roots of its blocks.
    async fn tiles_below(&self, section: &Section) -> Result<HashMap<Node, TileRow>> {
        const TILES: &str = "SELECT n.level, n.index, n.hash, n.children \
            FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS k (level, low, high), LATERAL ( \
            SELECT * FROM sidekeep.audit_nodes n WHERE n.stream = $1 AND n.level = k.level \
            AND n.index >= k.low AND n.index < k.high) AS n";
        let levels: Vec<u32> = (1..=LEVEL / HEIGHT).map(|tier| tier.saturating_mul(HEIGHT)).collect();
        let bounds = |leaf: u64| -> Vec<i64> { levels.iter().map(|level| at(0, leaf >> level).1).collect() };
        let (low, high) = (bounds(section.from), bounds(section.to));
        let number = section.tree.number();
        let levels: Vec<i32> = levels.iter().filter_map(|level| i32::try_from(*level).ok()).collect();
        let rows: Vec<NodeRow> = self
            .log
            .store
            .single(self.deadline, "audit.verify.tiles", async |connection| {
                let query = diesel::sql_query(TILES)
                    .bind::<Int4, _>(number)
                    .bind::<Array<Int4>, _>(&levels)
                    .bind::<Array<Int8>, _>(&low)
                    .bind::<Array<Int8>, _>(&high);
                Ok(query.load(connection).await?)
            })
            .await?;
        Ok(rows.into_iter().filter_map(NodeRow::known).collect())
    }

    /// These tiles.
    pub(super) async fn tiles(&self, tree: Tree, nodes: &[Node]) -> Result<HashMap<Node, TileRow>> {
        const TILES: &str = "SELECT n.level, n.index, n.hash, n.children \
            FROM unnest($2::int[], $3::bigint[]) AS k (level, index), LATERAL ( \
            SELECT * FROM sidekeep.audit_nodes n WHERE n.stream = $1 AND n.level = k.level AND n.index = k.index) AS n";
        if nodes.is_empty() {
            return Ok(HashMap::new());
        }
        let levels: Vec<i32> = nodes.iter().filter_map(|node| i32::try_from(node.level).ok()).collect();
        let indexes: Vec<i64> = nodes.iter().filter_map(|node| i64::try_from(node.index).ok()).collect();
        let rows: Vec<NodeRow> = self
            .log
            .store
            .single(self.deadline, "audit.verify.tiles", async |connection| {
                let query = diesel::sql_query(TILES)
                    .bind::<Int4, _>(tree.number())
                    .bind::<Array<Int4>, _>(&levels)
                    .bind::<Array<Int8>, _>(&indexes);
                Ok(query.load(connection).await?)
            })
            .await?;
        Ok(rows.into_iter().filter_map(NodeRow::known).collect())
    }

    async fn connection(&self) -> Result<Dedicated> {
        // By its path: diesel has a `load` for every type.
        let primary_alone = AtomicBool::load(&self.primary_alone, Ordering::Relaxed);
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            return match idle {
                Some(connection) if connection.is_replica && primary_alone => continue,
                Some(connection) if !self.log.store.is_current(&connection, self.deadline).await => continue,
                Some(connection) => Ok(connection),
                None if primary_alone => self.log.store.dedicated(self.deadline).await,
                None => self.log.store.reading(self.deadline).await,
            };
        }
    }
}

/// One section for each processor, within bounds.
fn width() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(WIDE)
}

/// The root over blocks and what is behind them, at a size; nothing where they are not of it.
pub(super) fn root_at(size: u64, blocks: &[Hash], rest: &[Hash]) -> Option<Hash> {
    let peaks = blocks.iter().chain(rest).copied().collect();
    Some(crate::audit::merkle::Frontier::new(size, peaks)?.root())
}
