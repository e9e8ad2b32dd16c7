//! The heads log and its checkpoints: what the streams have come to, signed as one.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{
    ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel::sql_types::Timestamptz;
use diesel_async::RunQueryDsl;

use super::entry::Head;
use super::head_mac::{HEAD, head_parts};
use super::log::Log;
use super::merkle::{Frontier, Hash, Node, cover};
use super::note::{self, Checkpoint};
use super::tree::{HEADS, Tree};
use crate::error::{Error, Result};
use crate::keyring::SigningKey;
use crate::store::schema::{audit_checkpoints, audit_heads, audit_nodes, audit_streams};
use crate::store::{Connection, Deadline};

/// How often a checkpoint is begun anew because another daemon made one at the same time.
const TRIES: usize = 5;

/// A row of `audit_streams`.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = audit_streams, check_for_backend(diesel::pg::Pg))]
pub(super) struct StreamRow {
    pub(super) stream: i32,
    pub(super) epoch: i64,
    pub(super) size: i64,
    pub(super) root: Vec<u8>,
    pub(super) head_mac: Vec<u8>,
    pub(super) frontier: Vec<u8>,
}

/// A row of `audit_heads`.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_heads, check_for_backend(diesel::pg::Pg))]
pub(super) struct HeadRow {
    pub(super) index: i64,
    pub(super) stream: i32,
    pub(super) size: i64,
    pub(super) root: Vec<u8>,
    pub(super) at: DateTime<Utc>,
    pub(super) leaf_hash: Vec<u8>,
}

/// A row of `audit_checkpoints`.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_checkpoints, check_for_backend(diesel::pg::Pg))]
pub(super) struct CheckpointRow {
    pub(super) size: i64,
    pub(super) root: Vec<u8>,
    pub(super) note: String,
    pub(super) at: DateTime<Utc>,
}

#[derive(Insertable)]
#[diesel(table_name = audit_nodes)]
struct NewNode {
    stream: i32,
    level: i32,
    index: i64,
    hash: Vec<u8>,
}

impl StreamRow {
    /// The root, where a daemon has sealed this head.
    pub(super) fn sealed_root(&self, log: &Log) -> Result<Option<Hash>> {
        let (Some(root), Ok(size)) = (Hash::read(&self.root), u64::try_from(self.size)) else {
            return Ok(None);
        };
        let parts = head_parts(log.keyring.deployment(), self.stream, self.epoch, size, root);
        Ok(log.keyring.own()?.verifies(HEAD, &parts.parts(), &self.head_mac).then_some(root))
    }
}

impl HeadRow {
    /// The head as its leaf is made of it.
    pub(super) fn head(&self) -> Option<Head> {
        Some(Head::new(self.at, Hash::read(&self.root)?, self.size, self.stream))
    }
}

impl Log {
    /// Makes a checkpoint where a stream has grown since the last one. Answers whether it did.
    ///
    /// # Errors
    /// [`Error::Tampered`] for a head that no daemon has sealed: nothing is signed then. [`Error::Conflict`] without a key.
    pub async fn make_checkpoint(&self, deadline: &Deadline) -> Result<bool> {
        self.drained(deadline).await?;
        for _ in 0..TRIES {
            let made =
                self.store.transact(deadline, "audit.checkpoint", async |tx| self.extend(tx).await).await;
            match made {
                Err(Error::Internal(cause)) if is_taken(&*cause) => {}
                made => return made,
            }
        }
        Err(Error::unavailable("another daemon makes checkpoints at the same time; try again"))
    }

    /// The newest checkpoint's note; makes the first.
    ///
    /// # Errors
    /// As [`Log::make_checkpoint`].
    pub async fn checkpoint(&self, deadline: &Deadline) -> Result<String> {
        if let Some(newest) = self.newest_checkpoint(deadline).await? {
            return Ok(newest.note);
        }
        self.make_checkpoint(deadline).await?;
        let newest = self.newest_checkpoint(deadline).await?;
        newest.map(|newest| newest.note).ok_or(Error::NotFound { what: "checkpoint: the log is empty" })
    }

    async fn newest_checkpoint(&self, deadline: &Deadline) -> Result<Option<CheckpointRow>> {
        self.store
            .single(deadline, "audit.checkpoint.newest", async |connection| newest(connection).await)
            .await
    }

    /// The key that signs.
    ///
    /// # Errors
    /// [`Error::Conflict`] in a daemon without one.
    pub fn signer(&self) -> Result<&SigningKey> {
        <[SigningKey]>::first(&self.signers).ok_or_else(|| {
            Error::conflict("this daemon has no signing key; ask one that has, or make one with `sidekeep signing generate` and name it in signing.key_files")
        })
    }

    async fn extend(&self, tx: &mut Connection) -> Result<bool> {
        let signer = self.signer()?;
        let streams: Vec<StreamRow> =
            audit_streams::table.order(audit_streams::stream).select(StreamRow::as_select()).load(tx).await?;
        let last: Vec<(i32, i64)> = audit_heads::table
            .distinct_on(audit_heads::stream)
            .order((audit_heads::stream, audit_heads::size.desc()))
            .select((audit_heads::stream, audit_heads::size))
            .load(tx)
            .await?;
        let last: HashMap<i32, i64> = last.into_iter().collect();
        let grown: Vec<&StreamRow> = streams
            .iter()
            .filter(|stream| stream.size > last.get(&stream.stream).copied().unwrap_or(0))
            .collect();
        let size: i64 = audit_heads::table.count().get_result(tx).await?;
        if grown.is_empty() {
            return Ok(false);
        }
        let at: DateTime<Utc> =
            diesel::select(sql::<Timestamptz>("clock_timestamp()")).get_result(tx).await?;
        let mut frontier = heads_frontier(tx, u64::try_from(size).map_err(Error::internal)?).await?;
        let (mut heads, mut nodes) = (Vec::new(), Vec::new());
        for stream in grown {
            let root = stream.sealed_root(self)?.ok_or_else(|| Error::Tampered {
                at: format!("audit_streams, stream {}: its head was not sealed by a daemon", stream.stream),
            })?;
            let index = i64::try_from(frontier.size()).map_err(Error::internal)?;
            let leaf = Head::new(at, root, stream.size, stream.stream).leaf();
            frontier.push(leaf, |node, hash| nodes.extend(stored(node, hash)));
            heads.push(HeadRow {
                index,
                stream: stream.stream,
                size: stream.size,
                root: root.bytes().to_vec(),
                at,
                leaf_hash: leaf.bytes().to_vec(),
            });
        }
        let checkpoint = Checkpoint { size: frontier.size(), root: frontier.root() };
        let row = CheckpointRow {
            size: i64::try_from(checkpoint.size).map_err(Error::internal)?,
            root: checkpoint.root.bytes().to_vec(),
            note: note::sign(self.keyring.deployment(), &checkpoint, signer),
            at,
        };
        diesel::insert_into(audit_heads::table).values(heads).execute(tx).await?;
        diesel::insert_into(audit_nodes::table).values(nodes).execute(tx).await?;
        diesel::insert_into(audit_checkpoints::table).values(row).execute(tx).await?;
        Ok(true)
    }
}

/// The frontier of the heads log at this size.
async fn heads_frontier(tx: &mut Connection, size: u64) -> Result<Frontier> {
    let nodes = cover(0, size);
    let known = Tree::Heads.hashes(tx, &nodes).await?;
    let peaks: Option<Vec<Hash>> = nodes.iter().map(|node| known.get(node).copied()).collect();
    peaks
        .and_then(|peaks| Frontier::new(size, peaks))
        .ok_or_else(|| Error::Tampered { at: "audit_heads: a head is missing".into() })
}

pub(super) async fn newest(connection: &mut Connection) -> Result<Option<CheckpointRow>> {
    let row =
        audit_checkpoints::table.order(audit_checkpoints::size.desc()).select(CheckpointRow::as_select());
    Ok(row.first(connection).await.optional()?)
}

fn stored(node: Node, hash: Hash) -> Option<NewNode> {
    node.level.is_multiple_of(8).then_some(())?;
    Some(NewNode {
        stream: HEADS,
        level: i32::try_from(node.level).ok()?,
        index: i64::try_from(node.index).ok()?,
        hash: hash.bytes().to_vec(),
    })
}

/// Whether another daemon has taken this place in the heads log.
fn is_taken(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    matches!(
        cause.downcast_ref::<diesel::result::Error>(),
        Some(diesel::result::Error::DatabaseError(diesel::result::DatabaseErrorKind::UniqueViolation, _))
    )
}
