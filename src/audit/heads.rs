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
use super::growth::{Growth, Tile};
use super::head_mac::{HEAD, head_parts};
use super::log::Log;
use super::merkle::{Frontier, Hash, cover};
use super::note::{self, Checkpoint, VerifierKey};
use super::stream::Sealed;
use super::succession::Old;
use super::tree::{HEADS, Tree};
use super::{staged, succession};
use crate::error::{Error, Result};
use crate::keyring::{Deployment, SigningKey};
use crate::store::schema::{audit_checkpoints, audit_heads, audit_nodes, audit_streams};
use crate::store::{AnyTime, AnyTimeOrNone, Connection, Deadline};

/// How often a checkpoint is begun anew because another daemon made one at the same time.
const TRIES: usize = 5;
/// No tree has so many leaves: their places are below 2^53, as numbers of JSON are. A size beyond is nobody's but the tables'.
pub(super) const MOST: i64 = 1 << 53;
/// How often the heads log is looked at while others extend it.
const LOOKS: usize = 3;

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
    pub(super) edge: Vec<u8>,
    #[diesel(deserialize_as = AnyTimeOrNone)]
    pub(super) last_recorded_at: Option<DateTime<Utc>>,
    #[diesel(deserialize_as = AnyTimeOrNone)]
    pub(super) closed_at: Option<DateTime<Utc>>,
}

/// A row of `audit_heads`.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_heads, check_for_backend(diesel::pg::Pg))]
pub(super) struct HeadRow {
    pub(super) index: i64,
    pub(super) stream: i32,
    pub(super) size: i64,
    pub(super) root: Vec<u8>,
    #[diesel(deserialize_as = AnyTime)]
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
    #[diesel(deserialize_as = AnyTime)]
    pub(super) at: DateTime<Utc>,
    pub(super) edge: Option<Vec<u8>>,
}

/// A row of `audit_nodes`.
#[derive(Clone, Debug, Insertable)]
#[diesel(table_name = audit_nodes)]
pub(super) struct NewNode {
    stream: i32,
    level: i32,
    index: i64,
    hash: Vec<u8>,
    children: Vec<u8>,
}

impl StreamRow {
    /// How many entries it has, as it says: at most [`MOST`].
    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.size.min(MOST)).unwrap_or(0)
    }

    /// The root, where a daemon has sealed this head.
    pub(super) fn sealed_root(&self, log: &Log) -> Result<Option<Hash>> {
        Ok(self.sealed(log.keyring.own()?).map(|(_, root)| root))
    }

    /// Size and root, where a daemon has sealed this head.
    pub(super) fn sealed(&self, own: &Deployment) -> Option<(u64, Hash)> {
        let (root, size) = (Hash::read(&self.root)?, u64::try_from(self.size).ok()?);
        let parts = head_parts(own.name(), self.stream, self.epoch, size, root);
        own.verifies(HEAD, &parts.parts(), &self.head_mac).then_some((size, root))
    }
}

impl HeadRow {
    /// The head as its leaf is made of it.
    pub(super) fn head(&self) -> Option<Head> {
        Some(Head::new(self.at, Hash::read(&self.root)?, self.size, self.stream))
    }
}

impl Log {
    /// Makes a checkpoint where a stream has grown since the last one, and publishes it. Answers whether it did.
    ///
    /// A crash before the commit leaves nothing; one after it, a checkpoint that is published before the next is made.
    ///
    /// # Errors
    /// [`Error::Tampered`] for a head that no daemon has sealed: nothing is signed then. [`Error::Conflict`] without a key, or
    /// where the log is not what was published. [`Error::Unavailable`] where the publication is away.
    pub async fn make_checkpoint(&self, deadline: &Deadline) -> Result<bool> {
        // Before the turn: a writer whose server is another one waits for a comparison, which needs it.
        self.drained(deadline).await?;
        let _turn = self.publication.turn(deadline).await?;
        self.publication.prepare(deadline).await?;
        for _ in 0..TRIES {
            let made =
                self.store.transact(deadline, "audit.checkpoint", async |tx| self.extend(tx).await).await;
            match made {
                Err(Error::Internal(cause)) if is_taken(&*cause) => {}
                Ok(Made { checkpoint, succession }) => {
                    if let Some(entry) = succession {
                        self.enter_staged(entry);
                    }
                    self.publication.publish(deadline).await?;
                    return Ok(checkpoint);
                }
                Err(error) => return Err(error),
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
        self.signers.keys().first().ok_or_else(|| {
            Error::conflict("this daemon has no signing key; ask one that has, or make one with `sidekeep signing generate` and name it in signing.key_files")
        })
    }

    async fn extend(&self, tx: &mut Connection) -> Result<Made> {
        let signer = self.signer()?;
        let mut tree = heads_tree(tx).await?;
        // After the tree: what another daemon has added since is no growth, or has the next index already.
        let grown = grown(tx).await?;
        if grown.is_empty() {
            return Ok(Made { checkpoint: false, succession: None });
        }
        let at: DateTime<Utc> =
            diesel::select(sql::<Timestamptz>("clock_timestamp()")).get_result(tx).await?;
        let (mut heads, mut nodes) = (Vec::new(), Vec::new());
        for stream in grown {
            let root = stream.sealed_root(self)?.ok_or_else(|| Error::Tampered {
                at: format!("audit_streams, stream {}: its head was not sealed by a daemon", stream.stream),
            })?;
            let index = i64::try_from(tree.size()).map_err(Error::internal)?;
            let leaf = Head::new(at, root, stream.size, stream.stream).leaf();
            tree.push(leaf, |tile| nodes.extend(NewNode::of_heads(&tile)));
            heads.push(HeadRow {
                index,
                stream: stream.stream,
                size: stream.size,
                root: root.bytes().to_vec(),
                at,
                leaf_hash: leaf.bytes().to_vec(),
            });
        }
        let checkpoint = Checkpoint { size: tree.size(), root: tree.root() };
        let succession = self.succession(tx, &checkpoint, signer).await?;
        let row = CheckpointRow {
            size: i64::try_from(checkpoint.size).map_err(Error::internal)?,
            root: checkpoint.root.bytes().to_vec(),
            note: note::sign(self.keyring.deployment(), &checkpoint, signer),
            at,
            edge: Some(tree.edge()),
        };
        diesel::insert_into(audit_heads::table).values(heads).execute(tx).await?;
        diesel::insert_into(audit_nodes::table).values(nodes).execute(tx).await?;
        diesel::insert_into(audit_checkpoints::table).values(row).execute(tx).await?;
        Ok(Made { checkpoint: true, succession })
    }

    /// Stages the entry of another signing key, in the transaction of its first checkpoint.
    async fn succession(
        &self,
        tx: &mut Connection,
        checkpoint: &Checkpoint,
        signer: &SigningKey,
    ) -> Result<Option<Sealed>> {
        let deployment = self.keyring.deployment();
        let signed = |note: &str, key: &[u8]| note::names(note, &VerifierKey::new(deployment, key));
        let Some(last) = newest(tx).await?.filter(|last| !signed(&last.note, signer.public())) else {
            return Ok(None);
        };
        let old = self.signers.keys().iter().find(|key| signed(&last.note, key.public())).map(Old::Signs);
        let lost =
            || self.signers.lost().iter().find(|key| signed(&last.note, key)).map(|key| Old::Lost(key));
        let old = old.or_else(lost).ok_or_else(|| {
            Error::conflict(
                "signing.key_files lacks the key that signed the last checkpoint: name it behind the new one, since both \
                 sign the change; if it is lost for good, name its public half in signing.lost_keys",
            )
        })?;
        let entry = succession::entry(deployment, checkpoint.size, (old, signer));
        staged::stage(tx, self.keyring.own()?, entry).await.map(Some)
    }
}

/// The tree of the heads log, which has every head. Another daemon may add some between two looks, but not each time.
///
/// # Errors
/// [`Error::Tampered`] where a head is missing, or in no checkpoint.
async fn heads_tree(tx: &mut Connection) -> Result<Growth> {
    for _ in 0..LOOKS {
        let tree = Tree::Heads.growth(tx).await?;
        let last: Option<i64> =
            audit_heads::table.select(diesel::dsl::max(audit_heads::index)).get_result(tx).await?;
        let size = last.map_or(0, |last| last.saturating_add(1));
        if i64::try_from(tree.size()).ok() == Some(size) {
            return Ok(tree);
        }
    }
    Err(Error::Tampered { at: "audit_heads: a head is missing, or in no checkpoint".into() })
}

/// What came of an attempt at a checkpoint.
struct Made {
    checkpoint: bool,
    succession: Option<Sealed>,
}

/// The streams with heads that the heads log has not. Of one that was closed short of a head that was published, what is left
/// is signed too.
///
/// # Errors
/// [`Error::Tampered`] for an open stream that is shorter than one of its heads: nothing is signed then.
async fn grown(tx: &mut Connection) -> Result<Vec<StreamRow>> {
    let streams: Vec<StreamRow> =
        audit_streams::table.order(audit_streams::stream).select(StreamRow::as_select()).load(tx).await?;
    let last: Vec<(i32, i64)> = audit_heads::table
        .distinct_on(audit_heads::stream)
        .order((audit_heads::stream, audit_heads::size.desc()))
        .select((audit_heads::stream, audit_heads::size))
        .load(tx)
        .await?;
    let last: HashMap<i32, i64> = last.into_iter().collect();
    let mut grown = Vec::new();
    for stream in streams {
        let last = last.get(&stream.stream).copied().unwrap_or(0);
        if stream.size >= last {
            grown.extend((stream.size > last).then_some(stream));
            continue;
        }
        if stream.closed_at.is_none() {
            let at = format!("audit_streams, stream {}: it is shorter than its last head", stream.stream);
            return Err(Error::Tampered { at });
        }
        let kept = audit_heads::table
            .filter(audit_heads::stream.eq(stream.stream))
            .filter(audit_heads::size.eq(stream.size))
            .count();
        let known: i64 = kept.get_result(tx).await?;
        grown.extend((stream.size > 0 && known == 0).then_some(stream));
    }
    Ok(grown)
}

/// The frontier of a tree at this size.
///
/// # Errors
/// [`Error::Tampered`] where a leaf or a subtree is missing.
pub(super) async fn frontier(tx: &mut Connection, tree: Tree, size: u64) -> Result<Frontier> {
    let nodes = cover(0, size);
    let known = tree.hashes(tx, &nodes).await?;
    let peaks: Option<Vec<Hash>> = nodes.iter().map(|node| known.get(node).copied()).collect();
    peaks
        .and_then(|peaks| Frontier::new(size, peaks))
        .ok_or_else(|| Error::Tampered { at: format!("{tree:?}: a leaf is missing") })
}

pub(super) async fn newest(connection: &mut Connection) -> Result<Option<CheckpointRow>> {
    let row =
        audit_checkpoints::table.order(audit_checkpoints::size.desc()).select(CheckpointRow::as_select());
    Ok(row.first(connection).await.optional()?)
}

impl NewNode {
    /// The row of a tile of the heads log.
    pub(super) fn of_heads(tile: &Tile) -> Option<Self> {
        Some(Self {
            stream: HEADS,
            level: i32::try_from(tile.node.level).ok()?,
            index: i64::try_from(tile.node.index).ok()?,
            hash: tile.hash.bytes().to_vec(),
            children: tile.children.iter().flat_map(|hash| *hash.bytes()).collect(),
        })
    }
}

/// Whether another daemon has taken this place in the heads log.
fn is_taken(cause: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    matches!(
        cause.downcast_ref::<diesel::result::Error>(),
        Some(diesel::result::Error::DatabaseError(diesel::result::DatabaseErrorKind::UniqueViolation, _))
    )
}
