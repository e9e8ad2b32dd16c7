//! One section of a tree, leaf by leaf: pure. Each leaf is compared with what stands beside it and with its tile, each tile
//! with its row. What is above the blocks of a section, whoever has all of them compares.
//!
//! After a break the hash that was stored is carried on: one changed entry is one break, at its place, unless the hashes
//! above were changed as well; then no root agrees any more.

use std::collections::{BTreeSet, HashMap};

use super::findings::{Findings, at};
use crate::audit::dropped::Dropped;
use crate::audit::growth::{self, Growth, Tile, root_over};
use crate::audit::merkle::{Hash, Node, hex};
use crate::audit::tree::Tree;

/// The level of the root of a block. Sections begin where a block does.
pub(super) const LEVEL: u32 = 12;
/// So many leaves are in a block.
pub(super) const BLOCK: u64 = 1 << LEVEL;

/// Leaves of a tree that are looked at together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// Of which tree.
    pub(super) tree: Tree,
    /// The first leaf: that of a block.
    pub(super) from: u64,
    /// The end.
    pub(super) to: u64,
    /// How many leaves the tree has.
    pub(super) size: u64,
}

/// What a row says the root was at a size.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// The size.
    pub(super) size: u64,
    /// The root.
    pub(super) root: Vec<u8>,
}

/// A row of `audit_nodes`.
#[derive(Clone, Debug)]
pub(super) struct TileRow {
    pub(super) hash: Vec<u8>,
    pub(super) children: Option<Vec<u8>>,
}

/// What the tables say of a section beside its leaves.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The tiles up to the roots of its blocks.
    pub(super) tiles: HashMap<Node, TileRow>,
    /// The sizes whose roots are known, in order.
    pub(super) marks: Vec<Mark>,
    /// What retention has dropped: the beginning of the stream, of which the hashes are left.
    pub(super) dropped: Option<Dropped>,
}

/// A mark within a section: the root is that of the blocks before it and these peaks.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) mark: Mark,
    /// How many blocks of the section are before it.
    pub(super) blocks: usize,
    /// The peaks of what is behind them.
    pub(super) peaks: Vec<Hash>,
}

/// What has come out.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The roots of the complete blocks.
    pub(super) blocks: Vec<Hash>,
    /// The block that is not complete, at the end of the tree.
    pub(super) rest: Growth,
    /// The marks.
    pub(super) reached: Vec<Reached>,
    /// From where on leaves are missing up to the end of the section.
    pub(super) missing: Option<u64>,
    /// Whether there is nothing of it, no row, no tile: its leaves were not gone through then.
    pub(super) is_empty: bool,
    /// Blocks with leaves of which not even the hash is known: nothing above them can be compared.
    pub(super) unknown: BTreeSet<u64>,
    /// What was found.
    pub(super) findings: Findings,
}

/// A section under way.
#[derive(Debug)]
pub(super) struct Steps {
    section: Section,
    told: Told,
    marks: std::iter::Peekable<std::vec::IntoIter<Mark>>,
    next: u64,
    /// The last leaf of which not even the hash is known.
    unknown: Option<u64>,
    pub(super) outcome: Outcome,
}

impl Steps {
    pub(super) fn new(section: Section, mut told: Told) -> Self {
        let marks = std::mem::take(&mut told.marks).into_iter().peekable();
        Self { section, told, marks, next: section.from, unknown: None, outcome: Outcome::default() }
    }

    fn number(&self) -> i32 {
        self.section.tree.number()
    }

    /// Whether a row is of the place that comes next; what is missing before it is told, and its place taken.
    pub(super) fn comes(&mut self, position: u64) -> bool {
        self.pass_dropped();
        let place = at(self.number(), self.next);
        if position == self.next {
            return true;
        }
        self.outcome.findings.add(place, "position", self.next.to_string(), position.to_string());
        if position < self.next {
            return false;
        }
        self.stand_in(position);
        true
    }

    /// Takes the leaf that comes next: as it was computed from the columns, where they have a form, and as it is stored.
    pub(super) fn leaf(&mut self, computed: Option<Hash>, stored: &[u8]) {
        let place = at(self.number(), self.next);
        match (&computed, Hash::read(stored)) {
            (Some(computed), _) => self.outcome.findings.compare(place, "leaf_hash", computed, stored),
            (None, _) => {
                self.outcome.findings.add(place, "entry", "an entry of format 1", "columns of another form");
            }
        }
        let carried = Hash::read(stored).or(computed).unwrap_or_else(|| Hash::of(&[]));
        let carried = match self.in_tile(self.next) {
            Some(child) if child != carried => {
                self.outcome.findings.add(place, "leaf_hash", child.hex(), carried.hex());
                child
            }
            _ => carried,
        };
        self.push(carried);
    }

    /// Ends the section. What is missing at its end is for whoever has the next one to tell.
    pub(super) fn end(mut self) -> Outcome {
        self.pass_dropped();
        if self.next == self.section.from && self.told.tiles.is_empty() {
            self.outcome.is_empty = true;
            self.outcome.missing = Some(self.next);
            return self.outcome;
        }
        if self.next < self.section.to {
            self.outcome.missing = Some(self.next);
            self.stand_in(self.section.to);
        }
        self.outcome
    }

    /// Goes on over what was dropped, by the hashes that are left.
    fn pass_dropped(&mut self) {
        let Some(end) = self.told.dropped.as_ref().map(|dropped| dropped.tree.size()) else { return };
        while self.next < end.min(self.section.to) {
            let kept = || self.told.dropped.as_ref().and_then(|dropped| dropped.leaf(self.next));
            let leaf = self.in_tile(self.next).or_else(kept).unwrap_or_else(|| {
                let place = at(self.section.tree.number(), self.next);
                let findings = &mut self.outcome.findings;
                findings.add(place, "audit_nodes", "the hash of an entry that was dropped", "nothing");
                Hash::of(&[])
            });
            self.push(leaf);
        }
    }

    /// Goes on without rows, with what their tiles have.
    fn stand_in(&mut self, to: u64) {
        while self.next < to.min(self.section.to) {
            let leaf = self.in_tile(self.next).unwrap_or_else(|| {
                self.unknown = Some(self.next);
                self.outcome.unknown.insert(self.next / BLOCK);
                Hash::of(&[])
            });
            self.push(leaf);
        }
    }

    /// The hash of a leaf as its tile has it.
    fn in_tile(&self, leaf: u64) -> Option<Hash> {
        let tile = self.told.tiles.get(&Node { level: growth::HEIGHT, index: leaf >> growth::HEIGHT })?;
        let place = usize::try_from(leaf & 15).ok()?;
        Hash::read(tile.children.as_ref()?.as_chunks::<32>().0.get(place)?)
    }

    fn push(&mut self, leaf: Hash) {
        let block = self.next / BLOCK;
        let Self { told, outcome, section, unknown, .. } = self;
        let findings = &mut outcome.findings;
        outcome.rest.push(leaf, |tile| {
            // The tree of a block begins at 0; its tiles are where the block is.
            let up = LEVEL.saturating_sub(tile.node.level);
            let index = (block << up).saturating_add(tile.node.index);
            let tile = Tile { node: Node { level: tile.node.level, index }, ..tile };
            if unknown.is_none_or(|leaf| leaf < tile.node.first()) {
                compare(section.tree, &tile, told.tiles.get(&tile.node), findings);
            }
        });
        self.next = self.next.saturating_add(1);
        if outcome.rest.size() == BLOCK {
            outcome.blocks.push(std::mem::take(&mut outcome.rest).root());
        }
        while let Some(mark) = self.marks.next_if(|mark| mark.size <= self.next) {
            let (blocks, peaks) = (outcome.blocks.len(), outcome.rest.frontier().peaks().to_vec());
            if outcome.unknown.is_empty() {
                outcome.reached.push(Reached { mark, blocks, peaks });
            }
        }
    }
}

/// Compares a tile with its row.
pub(super) fn compare(tree: Tree, tile: &Tile, row: Option<&TileRow>, findings: &mut Findings) {
    const WHAT: &str = "audit_nodes";
    let place = at(tree.number(), tile.node.first());
    let named = |text: String| format!("level {} index {}: {text}", tile.node.level, tile.node.index);
    let Some(row) = row else {
        findings.add(place, WHAT, named(tile.hash.hex()), "nothing");
        return;
    };
    if row.hash != tile.hash.bytes() {
        findings.add(place, WHAT, named(tile.hash.hex()), hex(&row.hash));
    }
    match row.children.as_deref().map(growth::children) {
        Some(Some(children)) => {
            let other = children.iter().zip(&tile.children).enumerate().find(|(_, (row, tile))| row != tile);
            if let Some((child, (row, tile))) = other {
                findings.add(place, WHAT, named(format!("child {child} {}", tile.hex())), row.hex());
            } else if root_over(children) != Some(tile.hash) {
                findings.add(place, WHAT, named("children of this hash".into()), "others");
            }
        }
        _ => findings.add(place, WHAT, named("sixteen hashes".into()), "others"),
    }
}
