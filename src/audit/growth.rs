//! A tree as it grows: its frontier, the tiles that each leaf completes, and what of the tiles is not complete yet. Pure.
//!
//! A tile is sixteen hashes of one level next to one another. A proof takes one tile at every fourth level instead of the
//! hashes themselves, and what no tile has yet is in the edge: at most fifteen hashes at every fourth level.

use super::merkle::{Frontier, Hash, Node};

/// So many levels are between the hashes of a tile and its root.
pub(super) const HEIGHT: u32 = 4;
/// So many hashes are in a tile.
pub(super) const WIDTH: usize = 1 << HEIGHT;

/// A complete subtree with the sixteen hashes that are four levels below its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Where it is: its level is a multiple of four.
    pub(super) node: Node,
    /// Its root.
    pub(super) hash: Hash,
    /// What it is made of.
    pub(super) children: Vec<Hash>,
}

/// What of a tree is needed to append to it, tiles included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    frontier: Frontier,
    /// At level `4 * n` the hashes of the tile that is not complete.
    open: Vec<Vec<Hash>>,
}

impl Growth {
    /// How many leaves there are.
    pub(super) fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The root of the tree.
    pub(super) fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// The complete subtrees that the leaves fall into.
    pub(super) fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// The hashes of the incomplete tile at level `4 * tier`.
    pub(super) fn open(&self, tier: usize) -> &[Hash] {
        self.open.get(tier).map_or(&[], Vec::as_slice)
    }

    /// Appends a leaf; `complete` hears of each tile that it completes, from below.
    pub(super) fn push(&mut self, leaf: Hash, mut complete: impl FnMut(Tile)) {
        let open = &mut self.open;
        slot(open, 0).push(leaf);
        let mut tier = 0_usize;
        self.frontier.push(leaf, |node, hash| {
            if node.level.is_multiple_of(HEIGHT) {
                let children = std::mem::take(slot(open, tier));
                tier = tier.saturating_add(1);
                slot(open, tier).push(hash);
                complete(Tile { node, hash, children });
            }
        });
    }

    /// The edge as it is stored: the incomplete tiles, the lowest first.
    pub(super) fn edge(&self) -> Vec<u8> {
        self.open.iter().flatten().flat_map(|hash| *hash.bytes()).collect()
    }

    /// A tree from what [`Growth::edge`] gave, or nothing where that is not of a tree of this size.
    pub(super) fn read(size: u64, edge: &[u8]) -> Option<Self> {
        let (hashes, []) = edge.as_chunks::<32>() else { return None };
        let mut hashes = hashes.iter().filter_map(|hash| Hash::read(hash));
        let (mut open, mut rest) = (Vec::new(), size);
        while rest > 0 {
            let count = usize::try_from(rest & 15).ok()?;
            let tier: Vec<Hash> = hashes.by_ref().take(count).collect();
            open.push((tier.len() == count).then_some(tier)?);
            rest >>= HEIGHT;
        }
        hashes.next().is_none().then_some(())?;
        // What is below the edge of a tier is in the tiers below.
        let peaks = open.iter().rev().flat_map(|tier| {
            let mut peaks = Frontier::default();
            tier.iter().for_each(|hash| peaks.push(*hash, |_, _| {}));
            peaks.peaks().to_vec()
        });
        let frontier = Frontier::new(size, peaks.collect())?;
        Some(Self { frontier, open })
    }
}

fn slot(open: &mut Vec<Vec<Hash>>, tier: usize) -> &mut Vec<Hash> {
    if open.len() <= tier {
        open.resize_with(tier.saturating_add(1), Vec::new);
    }
    #[expect(clippy::indexing_slicing, reason = "it was made long enough just above")]
    &mut open[tier]
}

/// The root over hashes of one level, as many as a power of two; nothing of none.
pub(super) fn root_over(mut hashes: Vec<Hash>) -> Option<Hash> {
    while hashes.len() > 1 {
        let (pairs, []) = hashes.as_chunks::<2>() else { return None };
        hashes = pairs.iter().map(|[left, right]| Hash::node(*left, *right)).collect();
    }
    hashes.pop()
}

/// The hashes of a tile as they are stored; nothing where they are not sixteen.
pub(super) fn children(bytes: &[u8]) -> Option<Vec<Hash>> {
    let (hashes, []) = bytes.as_chunks::<32>() else { return None };
    (hashes.len() == WIDTH).then(|| hashes.iter().filter_map(|hash| Hash::read(hash)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Growth, Tile, root_over};
    use crate::audit::merkle::{Frontier, Hash};

    proptest! {
        #[test]
        fn a_tree_that_was_stored_goes_on_as_if_it_had_not_been(size in 0_u64..5000, more in 0_u64..600) {
            let leaf = |n: u64| Hash::leaf(&n.to_be_bytes());
            let (mut plain, mut grown, mut tiles) = (Frontier::default(), Growth::default(), Vec::new());
            for n in 0..size {
                plain.push(leaf(n), |_, _| {});
                grown.push(leaf(n), |tile| tiles.push(tile));
            }
            prop_assert_eq!(grown.root(), plain.root());
            let mut read = Growth::read(size, &grown.edge()).unwrap();
            prop_assert_eq!(&read, &grown);
            prop_assert_eq!(Growth::read(size + 1, &grown.edge()), None);
            prop_assert_eq!(u64::try_from(tiles.len()).unwrap(), (1..6).map(|tier| size >> (4 * tier)).sum::<u64>());
            for n in size..size + more {
                let (mut one, mut other): (Vec<Tile>, Vec<Tile>) = (Vec::new(), Vec::new());
                grown.push(leaf(n), |tile| one.push(tile));
                read.push(leaf(n), |tile| other.push(tile));
                for tile in &one {
                    prop_assert_eq!(root_over(tile.children.clone()), Some(tile.hash));
                }
                prop_assert_eq!(one, other);
            }
            prop_assert_eq!(read, grown);
        }
    }
}
