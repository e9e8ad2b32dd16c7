//! A whole tree from its sections: from its beginning, or from what was verified before, to its end with the root at every
//! mark; or some of its blocks, by what leads from them to a tree that is known.

use std::ops::Range;

use chrono::{DateTime, Utc};
use futures_util::StreamExt;

use super::findings::{Findings, at};
use super::holes::Holes;
use super::pass::{Pass, Piece, root_at};
use super::section::{BLOCK, LEVEL, compare};
use super::state::State;
use crate::audit::growth::{self, Growth, HEIGHT, Tile};
use crate::audit::merkle::{Hash, Node};
use crate::audit::tree::Tree;
use crate::clock::Timestamp;
use crate::error::Result;

/// A tree to its end.
#[derive(Debug)]
pub(super) struct Grown {
    /// The tree over its blocks.
    pub(super) blocks: Growth,
    /// What is behind them.
    pub(super) rest: Growth,
    /// Whether the hash of each leaf is known: else there is no root to compare.
    pub(super) is_whole: bool,
    /// When its last entry was appended, of those that were looked at.
    pub(super) last: Option<DateTime<Utc>>,
    /// What was found.
    pub(super) findings: Findings,
}

impl Grown {
    fn on(blocks: Growth) -> Self {
        let (rest, findings) = (Growth::default(), Findings::default());
        Self { blocks, rest, is_whole: true, last: None, findings }
    }

    /// The peaks, the largest first.
    pub(super) fn root(&self, size: u64) -> Option<Hash> {
        root_at(size, self.blocks.frontier().peaks(), self.rest.frontier().peaks())
    }

    /// The edge as it is stored.
    pub(super) fn edge(&self) -> Vec<u8> {
        let mut edge = self.rest.edge();
        // Tiers that have nothing take no room, so that the blocks' follow.
        edge.extend(self.blocks.edge());
        edge
    }
}

impl Pass<'_> {
    /// Looks at a tree from these blocks on to its end.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn grow(
        &self,
        tree: Tree,
        base: Growth,
        size: u64,
        known: Option<&State>,
    ) -> Result<Grown> {
        let from = base.size().saturating_mul(BLOCK);
        let mut grown = Grown::on(base);
        let mut holes = Holes::new(tree, size, from);
        let mut pieces = std::pin::pin!(self.pieces(tree, from..size, size));
        agrees(tree, &mut grown, known);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            holes.pass(&piece.section, &piece.outcome, &mut grown.findings);
            if let (Some(before), Some((first, _))) = (grown.last, piece.times)
                && first < before
            {
                let (expected, found) = (Timestamp::from(before), Timestamp::from(first));
                let place = at(tree.number(), piece.section.from);
                grown.findings.add(place, "recorded_at", expected.to_string(), found.to_string());
            }
            grown.last = piece.times.map(|(_, end)| end).or(grown.last);
            self.join(tree, &mut grown, piece, known).await?;
        }
        holes.end(size, &mut grown.findings);
        Ok(grown)
    }

    /// Puts a section behind those before it.
    async fn join(&self, tree: Tree, grown: &mut Grown, piece: Piece, known: Option<&State>) -> Result<()> {
        let what = match tree {
            Tree::Stream(_) => "root at a head",
            Tree::Heads => "root of a checkpoint",
        };
        let outcome = piece.outcome;
        grown.findings.merge(outcome.findings);
        let was_whole = grown.is_whole;
        grown.is_whole = was_whole && outcome.unknown.is_empty() && !outcome.is_empty;
        if !was_whole || outcome.is_empty {
            return Ok(());
        }
        let mut tiles = Vec::new();
        let mut reached = outcome.reached.into_iter().peekable();
        for (index, block) in outcome.blocks.iter().map(Some).chain([None]).enumerate() {
            while let Some(reached) = reached.next_if(|reached| reached.blocks == index) {
                let size = reached.mark.size;
                if let Some(root) = root_at(size, grown.blocks.frontier().peaks(), &reached.peaks) {
                    grown.findings.compare(at(tree.number(), size), what, &root, &reached.mark.root);
                }
            }
            let Some(block) = block else { break };
            grown.blocks.push(*block, |tile| {
                let node = Node { level: tile.node.level.saturating_add(LEVEL), ..tile.node };
                tiles.push(Tile { node, ..tile });
            });
            agrees(tree, grown, known);
        }
        grown.rest = outcome.rest;
        if !grown.is_whole {
            return Ok(());
        }
        let nodes: Vec<Node> = tiles.iter().map(|tile| tile.node).collect();
        let rows = self.tiles(tree, &nodes).await?;
        tiles.iter().for_each(|tile| compare(tree, tile, rows.get(&tile.node), &mut grown.findings));
        Ok(())
    }

    /// Looks at some blocks of a tree again, and at what leads from them to the tree over all, where that is known.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn again(
        &self,
        tree: Tree,
        blocks: Range<u64>,
        known: Option<&Growth>,
        size: u64,
    ) -> Result<Grown> {
        let leaves = blocks.start.saturating_mul(BLOCK)..blocks.end.saturating_mul(BLOCK).min(size);
        let mut grown = Grown::on(Growth::default());
        let mut holes = Holes::new(tree, size, leaves.start);
        let end = leaves.end.max(leaves.start);
        let mut pieces = std::pin::pin!(self.pieces(tree, leaves, size));
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            holes.pass(&piece.section, &piece.outcome, &mut grown.findings);
            grown.findings.merge(piece.outcome.findings);
            let first = piece.section.from / BLOCK;
            let unknown = &piece.outcome.unknown;
            let blocks = (first..).zip(&piece.outcome.blocks).filter(|(block, _)| !unknown.contains(block));
            if let Some(known) = known {
                for (block, hash) in blocks {
                    self.leads(tree, (block, *hash), known, &mut grown.findings).await?;
                }
            }
            grown.is_whole = unknown.is_empty() && !piece.outcome.is_empty;
            grown.rest = piece.outcome.rest;
        }
        holes.end(end, &mut grown.findings);
        Ok(grown)
    }

    /// Compares a block with the tile that it is in, that with the one above, and so on, up to the known edge.
    async fn leads(
        &self,
        tree: Tree,
        (block, hash): (u64, Hash),
        known: &Growth,
        findings: &mut Findings,
    ) -> Result<()> {
        let (mut index, mut hash, mut tier) = (block, hash, 0_usize);
        let place = at(tree.number(), block.saturating_mul(BLOCK));
        loop {
            let child = usize::try_from(index & 15).unwrap_or(0);
            let level = u32::try_from(tier).unwrap_or(u32::MAX).saturating_mul(HEIGHT);
            if index >> HEIGHT == known.size() >> level.saturating_add(HEIGHT) {
                let expected = known.open(tier).get(child).copied();
                if expected != Some(hash) {
                    let expected = expected.map_or_else(String::new, |hash| hash.hex());
                    findings.add(place, "what was verified before", expected, hash.hex());
                }
                return Ok(());
            }
            let node =
                Node { level: level.saturating_add(LEVEL).saturating_add(HEIGHT), index: index >> HEIGHT };
            let rows = self.tiles(tree, &[node]).await?;
            let children = rows
                .get(&node)
                .and_then(|row| growth::children(row.children.as_deref()?))
                .filter(|children| children.get(child) == Some(&hash));
            let Some(above) = children.and_then(growth::root_over) else {
                let named = format!("level {} index {}, with {}", node.level, node.index, hash.hex());
                findings.add(place, "audit_nodes", named, "another");
                return Ok(());
            };
            (index, hash, tier) = (index >> HEIGHT, above, tier.saturating_add(1));
        }
    }
}

/// Where the tree is as large as what was verified before, it is the same.
fn agrees(tree: Tree, grown: &mut Grown, known: Option<&State>) {
    let known = known.filter(|known| grown.is_whole && known.blocks.size() == grown.blocks.size());
    let Some(known) = known else { return };
    let place = at(tree.number(), grown.blocks.size().saturating_mul(BLOCK));
    let (expected, found) = (known.blocks.root(), grown.blocks.root());
    grown.findings.compare(place, "what was verified before", &expected, found.bytes());
}
