//! The hashes of complete subtrees as the tables hold them: tiles at every fourth level, and the edge that is in no tile yet.
//!
//! A proof in a tree of a million leaves reads at most ten tiles (five on the way up from the leaf, five at the right edge of
//! the size in question) and one edge, whatever the sizes.

use std::collections::{BTreeSet, HashMap};

use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, QueryableByName};
use diesel::sql_types::{Array, Bytea, Int4, Int8, Nullable};
use diesel_async::RunQueryDsl;

use super::dropped::Dropped;
use super::growth::{self, Growth, HEIGHT, root_over};
use super::merkle::{Hash, Node, Step, resolve};
use crate::error::{Error, Result};
use crate::store::Connection;
use crate::store::schema::{audit_checkpoints, audit_heads, audit_logs, audit_nodes, audit_streams};

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

/// A row of `audit_nodes` as a proof reads it.
#[derive(QueryableByName)]
struct TileRow {
    #[diesel(sql_type = Int4)]
    level: i32,
    #[diesel(sql_type = Int8)]
    index: i64,
    #[diesel(sql_type = Nullable<Bytea>)]
    children: Option<Vec<u8>>,
}

impl Tree {
    pub(super) fn number(self) -> i32 {
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
        let mut known = self.in_tiles(connection, nodes).await?;
        let is_missing = |known: &HashMap<Node, Hash>, node: &&Node| !known.contains_key(node);
        if nodes.iter().any(|node| is_missing(&known, &node)) {
            let growth = self.growth(connection).await?;
            let left: Vec<Node> = nodes.iter().filter(|node| is_missing(&known, node)).copied().collect();
            known.extend(left.iter().filter_map(|node| Some((*node, at_the_edge(&growth, *node)?))));
            // Where this is no snapshot, and others have appended since the tiles were read: it is in one now.
            let passed: Vec<Node> = left.iter().filter(|node| is_missing(&known, node)).copied().collect();
            if !passed.is_empty() {
                known.extend(self.in_tiles(connection, &passed).await?);
            }
            if left.iter().any(|node| is_missing(&known, &node)) {
                return Err(self.broken());
            }
        }
        Ok(known)
    }

    /// The hashes of those subtrees that are in complete tiles.
    async fn in_tiles(self, connection: &mut Connection, nodes: &[Node]) -> Result<HashMap<Node, Hash>> {
        let tiles = self.tiles(connection, nodes).await?;
        let hash = |node: &Node| {
            let (tile, from, count) = place(*node);
            root_over(tiles.get(&tile)?.get(from..from.checked_add(count)?)?.to_vec())
        };
        Ok(nodes.iter().filter_map(|node| Some((*node, hash(node)?))).collect())
    }

    /// The tiles that these subtrees are in, of those that are complete.
    async fn tiles(self, connection: &mut Connection, nodes: &[Node]) -> Result<HashMap<Node, Vec<Hash>>> {
        const TILES: &str = "SELECT t.* FROM unnest($2::int[], $3::bigint[]) AS k (level, index), LATERAL ( \
            SELECT level, index, children FROM sidekeep.audit_nodes n \
            WHERE n.stream = $1 AND n.level = k.level AND n.index = k.index LIMIT 1) AS t";
        let wanted: BTreeSet<Node> = nodes.iter().map(|node| place(*node).0).collect();
        let levels: Vec<i32> = wanted.iter().filter_map(|tile| i32::try_from(tile.level).ok()).collect();
        let indexes: Vec<i64> = wanted.iter().filter_map(|tile| i64::try_from(tile.index).ok()).collect();
        let rows: Vec<TileRow> = diesel::sql_query(TILES)
            .bind::<Int4, _>(self.number())
            .bind::<Array<Int4>, _>(levels)
            .bind::<Array<Int8>, _>(indexes)
            .load(connection)
            .await?;
        let tile = |row: TileRow| {
            let node = Node { level: u32::try_from(row.level).ok()?, index: u64::try_from(row.index).ok()? };
            Some((node, growth::children(&row.children?)?))
        };
        Ok(rows.into_iter().filter_map(tile).collect())
    }

    /// The tree as its last writer left it.
    ///
    /// # Errors
    /// [`Error::Tampered`] where the edge does not lead to the root beside it.
    pub(super) async fn growth(self, connection: &mut Connection) -> Result<Growth> {
        let stored: Option<(i64, Vec<u8>, Option<Vec<u8>>)> = match self {
            Self::Stream(stream) => audit_streams::table
                .find(stream)
                .select((audit_streams::size, audit_streams::root, audit_streams::edge))
                .first::<(i64, Vec<u8>, Vec<u8>)>(connection)
                .await
                .optional()?
                .map(|(size, root, edge)| (size, root, Some(edge))),
            Self::Heads => audit_checkpoints::table
                .order(audit_checkpoints::size.desc())
                .select((audit_checkpoints::size, audit_checkpoints::root, audit_checkpoints::edge))
                .first(connection)
                .await
                .optional()?,
        };
        let Some((size, root, edge)) = stored else { return Ok(Growth::default()) };
        let size = u64::try_from(size).map_err(|_| self.broken())?;
        let edge = match edge {
            Some(edge) => edge,
            None => self.edge_from_rows(connection, size).await?,
        };
        let growth = Growth::read(size, &edge).filter(|growth| growth.root().bytes().as_slice() == root);
        growth.ok_or_else(|| self.broken())
    }

    /// The edge of a tree whose checkpoint came without one: at most fifteen rows at every fourth level.
    async fn edge_from_rows(self, connection: &mut Connection, size: u64) -> Result<Vec<u8>> {
        let mut edge = Vec::new();
        let mut level = 0_u32;
        while size >> level > 0 {
            let to = i64::try_from(size >> level).map_err(Error::internal)?;
            let from = to >> HEIGHT << HEIGHT;
            let rows = if level == 0 {
                self.leaves(connection, from, to).await?
            } else {
                let level = i32::try_from(level).map_err(Error::internal)?;
                self.nodes(connection, level, from, to).await?
            };
            edge.extend(rows.into_iter().flatten());
            level = level.saturating_add(HEIGHT);
        }
        Ok(edge)
    }

    /// The tree over its first leaves, of which those in `gone` are not in the log any more.
    ///
    /// # Errors
    /// [`Error::Tampered`] where a hash is missing.
    pub(super) async fn growth_at(
        self,
        connection: &mut Connection,
        size: u64,
        gone: Option<&Dropped>,
    ) -> Result<Growth> {
        let number = |number: u64| i64::try_from(number).map_err(Error::internal);
        let first = size >> HEIGHT << HEIGHT;
        let known = gone.map_or(0, |gone| gone.tree.size()).clamp(first, size);
        let mut edge: Vec<u8> = Vec::new();
        for position in first..known {
            let leaf = gone.and_then(|gone| gone.leaf(position)).ok_or_else(|| self.broken())?;
            edge.extend(leaf.bytes());
        }
        let leaves = self.leaves(connection, number(known)?, number(size)?).await?;
        edge.extend(leaves.into_iter().flatten());
        let mut level = HEIGHT;
        while size >> level > 0 {
            let to = size >> level;
            let (from, to) = (number(to >> HEIGHT << HEIGHT)?, number(to)?);
            let height = i32::try_from(level).map_err(Error::internal)?;
            edge.extend(self.nodes(connection, height, from, to).await?.into_iter().flatten());
            level = level.saturating_add(HEIGHT);
        }
        Growth::read(size, &edge).ok_or_else(|| self.broken())
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

/// The tile that a subtree is in, and which of its sixteen hashes the subtree covers: from where, and how many.
fn place(node: Node) -> (Node, usize, usize) {
    let within = node.level.checked_rem(HEIGHT).unwrap_or(0);
    let up = HEIGHT.saturating_sub(within);
    let tile = Node { level: node.level.saturating_add(up), index: node.index >> up };
    let first = (node.index << within) & 15;
    (tile, usize::try_from(first).unwrap_or(usize::MAX), 1 << within)
}

/// The hash of a subtree that is in no complete tile.
fn at_the_edge(growth: &Growth, node: Node) -> Option<Hash> {
    let (tile, from, count) = place(node);
    let tier = usize::try_from(tile.level.checked_div(HEIGHT)?.checked_sub(1)?).ok()?;
    // The incomplete tile of its level is the last one.
    (growth.size() >> tile.level == tile.index).then_some(())?;
    root_over(growth.open(tier).get(from..from.checked_add(count)?)?.to_vec())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::place;
    use crate::audit::merkle::{Step, consistency, inclusion};

    /// How many tiles these steps read in a tree of this size; the rest is in the edge.
    fn tiles(steps: &[Step], present: u64) -> usize {
        let tiles: BTreeSet<_> = steps.iter().flatten().map(|node| place(*node).0).collect();
        tiles.iter().filter(|tile| tile.index < present >> tile.level).count()
    }

    proptest! {
        #[test]
        fn a_proof_in_a_million_reads_at_most_ten_tiles(
            sizes in prop::array::uniform3(1_u64..=1 << 20),
        ) {
            let mut sizes = sizes;
            sizes.sort_unstable();
            let [first, second, present] = sizes;
            prop_assert!(tiles(&inclusion(first - 1, second).unwrap(), present) <= 10);
            prop_assert!(tiles(&consistency(first, second).unwrap(), present) <= 10);
        }
    }
}
