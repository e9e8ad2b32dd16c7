//! The hashes of complete subtrees as the tables hold them: leaves, and every eighth level above them.

use std::collections::HashMap;

use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel_async::RunQueryDsl;

use super::merkle::{Hash, Node, Step, resolve};
use crate::error::{Error, Result};
use crate::store::Connection;
use crate::store::schema::{audit_heads, audit_logs, audit_nodes};

/// The number under which `audit_nodes` has the heads log.
pub(super) const HEADS: i32 = -1;

/// Which tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    /// That of a stream.
    Stream(i32),
    /// That over the heads of all streams.
    Heads,
}

impl Tree {
    fn number(self) -> i32 {
        match self {
            Self::Stream(stream) => stream,
            Self::Heads => HEADS,
        }
    }

    fn broken(self) -> Error {
        Error::Tampered { at: format!("the Merkle tree of {self:?}: a leaf or subtree is missing") }
    }

    /// The hashes of a proof with these steps.
    ///
    /// # Errors
    /// [`Error::Tampered`] where a leaf or a subtree is missing.
    pub(super) async fn proof(self, connection: &mut Connection, steps: &[Step]) -> Result<Vec<Hash>> {
        let nodes: Vec<Node> = steps.iter().flatten().copied().collect();
        let known = self.hashes(connection, &nodes).await?;
        resolve(steps, &known).ok_or_else(|| self.broken())
    }

    /// The hashes of these subtrees.
    ///
    /// # Errors
    /// [`Error::Tampered`] where a leaf or a subtree is missing.
    pub(super) async fn hashes(
        self,
        connection: &mut Connection,
        nodes: &[Node],
    ) -> Result<HashMap<Node, Hash>> {
        let mut known = HashMap::with_capacity(nodes.len());
        for node in nodes {
            known.insert(*node, self.subtree(connection, *node).await?);
        }
        Ok(known)
    }

    /// From the hashes of the nearest level below that is stored: at most 128 rows, next to one another.
    async fn subtree(self, connection: &mut Connection, node: Node) -> Result<Hash> {
        let base = node.level.saturating_sub(node.level.checked_rem(8).unwrap_or(0));
        let width = 1_u64 << node.level.saturating_sub(base);
        let first = node.index.saturating_mul(width);
        let as_i64 = |number: u64| i64::try_from(number).map_err(Error::internal);
        let (from, to) = (as_i64(first)?, as_i64(first.saturating_add(width))?);
        let rows = if base > 0 {
            let level = i32::try_from(base).map_err(Error::internal)?;
            self.nodes(connection, level, from, to).await?
        } else {
            self.leaves(connection, from, to).await?
        };
        let mut hashes: Vec<Hash> =
            rows.iter().map(|row| Hash::read(row)).collect::<Option<_>>().ok_or_else(|| self.broken())?;
        if u64::try_from(hashes.len()).ok() != Some(width) {
            return Err(self.broken());
        }
        while hashes.len() > 1 {
            let (pairs, _) = hashes.as_chunks::<2>();
            hashes = pairs.iter().map(|[left, right]| Hash::node(*left, *right)).collect();
        }
        hashes.pop().ok_or_else(|| self.broken())
    }

    async fn nodes(
        self,
        connection: &mut Connection,
        level: i32,
        from: i64,
        to: i64,
    ) -> Result<Vec<Vec<u8>>> {
        let rows = audit_nodes::table
            .filter(audit_nodes::stream.eq(self.number()))
            .filter(audit_nodes::level.eq(level))
            .filter(audit_nodes::index.ge(from))
            .filter(audit_nodes::index.lt(to))
            .order(audit_nodes::index)
            .select(audit_nodes::hash);
        Ok(rows.load(connection).await?)
    }

    async fn leaves(self, connection: &mut Connection, from: i64, to: i64) -> Result<Vec<Vec<u8>>> {
        match self {
            Self::Stream(stream) => {
                let rows = audit_logs::table
                    .filter(audit_logs::stream.eq(stream))
                    .filter(audit_logs::position.ge(from))
                    .filter(audit_logs::position.lt(to))
                    .order(audit_logs::position)
                    .select(audit_logs::leaf_hash);
                Ok(rows.load(connection).await?)
            }
            Self::Heads => {
                let rows = audit_heads::table
                    .filter(audit_heads::index.ge(from))
                    .filter(audit_heads::index.lt(to))
                    .order(audit_heads::index)
                    .select(audit_heads::leaf_hash);
                Ok(rows.load(connection).await?)
            }
        }
    }
}
