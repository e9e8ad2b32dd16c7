//! Proofs: that an entry is in the log under a signed checkpoint, and that the log was only ever appended to.

use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::by::By;
use super::heads::{CheckpointRow, HeadRow, newest};
use super::log::Log;
use super::merkle::{Hash, consistency, inclusion, root_by_inclusion};
use super::read::Which;
use super::tree::Tree;
use crate::error::{Error, Result};
use crate::store::schema::{audit_heads, audit_streams};
use crate::store::{Connection, Deadline};

/// That an entry is in the log.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Proof {
    /// The entry's canonical bytes (RFC 8785).
    pub canonical: String,
    /// Its stream.
    pub stream: i32,
    /// Its position: the leaf's index in the stream's tree.
    pub position: i64,
    /// The size of the stream at its head.
    pub size: i64,
    /// From the leaf to the head's root (RFC 6962 §2.1.1), in hexadecimal.
    pub path: Vec<String>,
    /// The head's canonical bytes.
    pub head: String,
    /// The head's index in the heads log.
    pub head_index: i64,
    /// The size of the heads log at the checkpoint.
    pub heads_size: i64,
    /// From the head to the checkpoint's root, in hexadecimal.
    pub heads_path: Vec<String>,
    /// The signed note.
    pub checkpoint: String,
}

/// Parameters of `audit.consistency`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Between {
    /// Of this stream; without it, of the heads log.
    pub stream: Option<i32>,
    /// The earlier size.
    pub from_size: i64,
    /// The later size; without it, the present one.
    pub to_size: Option<i64>,
}

/// That a later tree has an earlier one as its beginning.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Consistency {
    /// RFC 6962 §2.1.2, in hexadecimal.
    pub path: Vec<String>,
}

fn hex(path: &[Hash]) -> Vec<String> {
    path.iter().map(Hash::hex).collect()
}

fn size(field: &'static str, number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| Error::invalid(field, "must not be negative"))
}

impl Log {
    /// Proves that an entry is in the log; makes a checkpoint first for one that is younger than the last.
    ///
    /// # Errors
    /// [`Error::NotFound`], and as [`Log::make_checkpoint`].
    pub async fn prove(&self, by: &By, which: &Which) -> Result<Proof> {
        self.drained(&by.deadline).await?;
        let stored = self.find(by, which).await?;
        let (stream, position) = (stored.stream, stored.position);
        let (entry, leaf) = stored.verified()?;
        let at = || Error::Tampered { at: format!("audit_logs, stream {stream} position {position}") };
        let canonical = String::from_utf8(entry.canonical()).map_err(|_| at())?;
        for _ in 0..2 {
            let proof = self
                .store
                .snapshot(&by.deadline, "audit.prove", async |connection| {
                    path(connection, stream, position).await
                })
                .await?;
            if let Some((head, checkpoint, path, heads_path)) = proof {
                // Nobody is given a proof that does not hold.
                let leads_to = |leaf, index: i64, size: i64, path: &[Hash]| {
                    root_by_inclusion(leaf, u64::try_from(index).ok()?, u64::try_from(size).ok()?, path)
                };
                if leads_to(leaf, position, head.size, &path) != Hash::read(&head.root) {
                    return Err(at());
                }
                let told = head.head().ok_or_else(|| Error::Tampered { at: "audit_heads".into() })?;
                if leads_to(told.leaf(), head.index, checkpoint.size, &heads_path)
                    != Hash::read(&checkpoint.root)
                {
                    return Err(Error::Tampered { at: format!("audit_heads, index {}", head.index) });
                }
                let canonical_head = told.canonical();
                return Ok(Proof {
                    canonical,
                    stream,
                    position,
                    size: head.size,
                    path: hex(&path),
                    head: String::from_utf8(canonical_head).unwrap_or_default(),
                    head_index: head.index,
                    heads_size: checkpoint.size,
                    heads_path: hex(&heads_path),
                    checkpoint: checkpoint.note,
                });
            }
            self.make_checkpoint(&by.deadline).await?;
        }
        Err(Error::NotFound { what: "checkpoint that has this entry" })
    }

    /// Proves that a tree was only ever appended to.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes that the tree does not have.
    pub async fn consistency(&self, between: &Between, deadline: &Deadline) -> Result<Consistency> {
        let tree = between.stream.map_or(Tree::Heads, Tree::Stream);
        let path = self
            .store
            .snapshot(deadline, "audit.consistency", async |connection| {
                let present: Option<i64> = match between.stream {
                    None => {
                        let last: Option<i64> = audit_heads::table
                            .select(diesel::dsl::max(audit_heads::index))
                            .get_result(connection)
                            .await?;
                        Some(last.map_or(0, |last| last.saturating_add(1)))
                    }
                    Some(stream) => audit_streams::table
                        .find(stream)
                        .select(audit_streams::size)
                        .first(connection)
                        .await
                        .optional()?,
                };
                let present = size("stream", present.ok_or(Error::NotFound { what: "stream" })?)?;
                let to = between.to_size.map_or(Ok(present), |to| size("to_size", to))?;
                let from = size("from_size", between.from_size)?;
                if to > present {
                    return Err(Error::invalid("to_size", format!("is over the present size, {present}")));
                }
                let steps = consistency(from, to)
                    .ok_or_else(|| Error::invalid("from_size", format!("is over {to}")))?;
                tree.proof(connection, &steps).await
            })
            .await?;
        Ok(Consistency { path: hex(&path) })
    }
}

type Path = (HeadRow, CheckpointRow, Vec<Hash>, Vec<Hash>);

/// From the entry to the first head that has it, and from there to the newest checkpoint; nothing where it is too young. Of a
/// stream that has lost entries, heads that covered these prove nothing any more.
async fn path(connection: &mut Connection, stream: i32, position: i64) -> Result<Option<Path>> {
    let Some(checkpoint) = newest(connection).await? else { return Ok(None) };
    let present: i64 =
        audit_streams::table.find(stream).select(audit_streams::size).first(connection).await?;
    let head: Option<HeadRow> = audit_heads::table
        .filter(audit_heads::stream.eq(stream))
        .filter(audit_heads::size.gt(position))
        .filter(audit_heads::size.le(present))
        .order(audit_heads::size)
        .select(HeadRow::as_select())
        .first(connection)
        .await
        .optional()?;
    let Some(head) = head.filter(|head| head.index < checkpoint.size) else { return Ok(None) };
    let missing = || Error::Tampered { at: "audit_heads".into() };
    let number = |number: i64| u64::try_from(number).map_err(|_| missing());
    let steps = inclusion(number(position)?, number(head.size)?).ok_or_else(missing)?;
    let path = Tree::Stream(stream).proof(connection, &steps).await?;
    let steps = inclusion(number(head.index)?, number(checkpoint.size)?).ok_or_else(missing)?;
    let heads_path = Tree::Heads.proof(connection, &steps).await?;
    Ok(Some((head, checkpoint, path, heads_path)))
}
