//! Leaves that are not there: one break for those that follow one another, however many the tables claim. Pure.

use super::findings::{Findings, at};
use super::section::{Outcome, Section};
use crate::audit::tree::Tree;

/// How far a tree was gone through, and where what is missing begins.
#[derive(Debug)]
pub(super) struct Holes {
    tree: Tree,
    /// How many leaves the tree has, as it says.
    size: u64,
    reached: u64,
    open: Option<u64>,
}

impl Holes {
    /// Begins at a leaf.
    pub(super) fn new(tree: Tree, size: u64, from: u64) -> Self {
        Self { tree, size, reached: from, open: None }
    }

    /// Takes the section that comes next; what lies before it was left out, because there is nothing.
    pub(super) fn pass(&mut self, section: &Section, outcome: &Outcome, findings: &mut Findings) {
        self.skip(section.from);
        if !outcome.is_empty {
            self.close(section.from, findings);
        }
        self.open = self.open.or(outcome.missing);
        self.reached = section.to;
    }

    /// Ends at a leaf.
    pub(super) fn end(mut self, to: u64, findings: &mut Findings) {
        self.skip(to);
        self.close(to, findings);
    }

    fn skip(&mut self, to: u64) {
        if self.reached < to {
            self.open.get_or_insert(self.reached);
        }
    }

    fn close(&mut self, to: u64, findings: &mut Findings) {
        let Some(from) = self.open.take() else { return };
        let place = at(self.tree.number(), from);
        if to == self.size {
            findings.add(place, "size of the stream", self.size.to_string(), from.to_string());
        } else {
            findings.add(place, "position", from.to_string(), format!("nothing before {to}"));
        }
    }
}
