//! What a verification has found: breaks, told one by one as far as an answer can hold, and counted beyond.

use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::Serialize;

use crate::audit::merkle::{Hash, hex};

/// So many breaks of one kind are told: one kind never crowds out another.
const OF_A_KIND: usize = 100;
/// The longest text of a break.
const CHARS: usize = 300;

/// A place that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Break {
    /// In which stream; -1 in the heads log.
    pub stream: i32,
    /// At which position, or of which size.
    pub position: i64,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub found: String,
    /// What it is about.
    pub what: &'static str,
}

/// What was found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// How many entries were looked at.
    pub(super) entries: u64,
    /// Persons who are not in the keyring any more: eight bytes for each.
    pub(super) gone: HashSet<i64>,
    breaks: Vec<Break>,
    told: HashMap<&'static str, usize>,
    left_out: u64,
}

impl Findings {
    /// Adds a break.
    pub(super) fn add(
        &mut self,
        (stream, position): (i32, i64),
        what: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        let told = self.told.entry(what).or_default();
        *told = told.saturating_add(1);
        if *told > OF_A_KIND {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        let short = |text: String| text.chars().take(CHARS).collect();
        let (expected, found) = (short(expected.into()), short(found.into()));
        self.breaks.push(Break { stream, position, expected, found, what });
    }

    /// Adds a break where two hashes differ.
    pub(super) fn compare(&mut self, at: (i32, i64), what: &'static str, expected: &Hash, found: &[u8]) {
        if expected.bytes().as_slice() != found {
            self.add(at, what, expected.hex(), hex(found));
        }
    }

    /// Takes over what another part has found.
    pub(super) fn merge(&mut self, other: Self) {
        self.entries = self.entries.saturating_add(other.entries);
        self.gone.extend(other.gone);
        self.left_out = self.left_out.saturating_add(other.left_out);
        for found in other.breaks {
            self.add((found.stream, found.position), found.what, found.expected, found.found);
        }
    }

    /// How many breaks there are, those that are not told included.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.breaks.len()).unwrap_or(u64::MAX).saturating_add(self.left_out)
    }

    /// The breaks by place, and how many more there are.
    pub(super) fn breaks(mut self) -> (Vec<Break>, u64) {
        self.breaks.sort_by_key(|found| (found.stream, found.position));
        (self.breaks, self.left_out)
    }
}

/// A place as an answer has it.
pub(super) fn at(tree: i32, position: u64) -> (i32, i64) {
    (tree, i64::try_from(position).unwrap_or(i64::MAX))
}
