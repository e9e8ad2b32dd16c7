//! Verification: every leaf from its columns, every root at every head, every seal and signature, and what entries say of rows
//! beside the log; all breaks, not the first. In constant memory, beside eight bytes for each erased person.
//!
//! The entries up to the sizes that one snapshot tells never change, so that they are read after it, side by side.

mod findings;
mod growing;
mod holes;
mod pass;
mod plan;
mod rows;
mod section;
mod state;
mod strays;
mod tombstones;
mod trust;
mod witness;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl};
use diesel_async::RunQueryDsl;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::growth::Growth;
use super::heads::StreamRow;
use super::log::Log;
use super::merkle::hex;
use super::tree::Tree;
use crate::clock::{self, Timestamp};
use crate::error::{Error, Result};
use crate::store::schema::audit_logs;
use crate::store::{Connection, Deadline};
use findings::Findings;
use growing::Grown;
use pass::Pass;
use plan::Plan;
use section::{BLOCK, LEVEL};
use state::State;

pub use findings::Break;
pub(in crate::audit) use rows::{entry as read_entry, query as entries_query};

/// How long what was staged before is waited for.
const SETTLE: Duration = Duration::from_secs(5);
/// So many streams are gone through side by side.
const STREAMS: usize = 4;

/// The SHA-256 of the rows of these consents, of those that are there: what the log has of them, records alone can read.
pub type Digests =
    for<'a> fn(&'a mut Connection, &'a [String]) -> BoxFuture<'a, Result<HashMap<String, String>>>;

/// When entries were appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Only what was appended at this time or later.
    pub from: Option<Timestamp>,
    /// Only what was appended before this time.
    pub to: Option<Timestamp>,
}

impl Range {
    /// The whole log.
    pub const EVERYTHING: Self = Self { from: None, to: None };

    /// Whether a time is in it.
    fn has(&self, at: DateTime<Utc>) -> bool {
        self.from.is_none_or(|from| from.utc() <= at) && self.to.is_none_or(|to| at < to.utc())
    }
}

/// How much is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What was appended within a range; without ends, everything from the beginning.
    Within(Range),
    /// What is new since the last time, and a part of what is not.
    New,
}

/// What a verification found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// `intact` or `broken`.
    pub verdict: &'static str,
    /// How many entries were looked at.
    pub entries: u64,
    /// How many persons named in them are no longer in the keyring.
    pub erased_subjects: u64,
    /// How many losses are declared.
    pub gaps: u64,
    /// How many entries retention has dropped, of which the hashes are left: their archive has them.
    pub dropped: u64,
    /// The places that are not as they must be: of each kind a hundred.
    pub breaks: Vec<Break>,
    /// How many more there are.
    pub more_breaks: u64,
    /// Why the log could not be compared with its publication, where that is so: a log that was rewritten from end to end is found
    /// by that alone. Null where it was compared, where nothing is published, and for a range.
    pub not_compared: Option<String>,
}

/// How far a verification has come that found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many entries were looked at.
    pub entries: u64,
    /// Up to how many entries the log is verified.
    pub reached: u64,
}

impl Log {
    /// Verifies the log, after what was staged before is in it.
    ///
    /// # Errors
    /// The store's: what is broken is told in the report.
    pub async fn verify(&self, scope: Scope, digests: Digests, deadline: &Deadline) -> Result<Report> {
        self.settled(deadline).await;
        self.verify_at_rest(scope, digests, deadline).await
    }

    /// Verifies what is in the log now; what is staged is still on its way, and only its seals are looked at.
    ///
    /// # Errors
    /// As [`Log::verify`].
    pub async fn verify_at_rest(
        &self,
        scope: Scope,
        digests: Digests,
        deadline: &Deadline,
    ) -> Result<Report> {
        Ok(self.pass(scope, digests, deadline).await?.0)
    }

    /// Verifies what is new and a part of what is not, and keeps how far it came. Streams that are broken stay where they
    /// were, so that the next time finds them again.
    ///
    /// # Errors
    /// [`Error::Tampered`], naming the first place; the store's.
    pub async fn verify_on(&self, digests: Digests, deadline: &Deadline) -> Result<Verified> {
        self.settled(deadline).await;
        let (report, states) = self.pass(Scope::New, digests, deadline).await?;
        state::write(&self.store, self.keyring.own()?, &states, deadline).await?;
        for place in &report.breaks {
            let Break { stream, position, expected, found, what } = place;
            tracing::error!(stream, position, expected, found, "the audit log is broken: {what}");
        }
        match (<[Break]>::first(&report.breaks), report.not_compared) {
            (None, None) => Ok(Verified { entries: report.entries, reached: self.verified().1 }),
            (None, Some(why)) => Err(Error::unavailable(format!(
                "nothing is broken in the log itself, but it could not be compared with its publication: {why}"
            ))),
            (Some(first), _) => Err(Error::Tampered {
                at: format!(
                    "{} places, the first: stream {} position {}: {}",
                    u64::try_from(report.breaks.len()).unwrap_or(u64::MAX).saturating_add(report.more_breaks),
                    first.stream,
                    first.position,
                    first.what
                ),
            }),
        }
    }

    /// Waits for what was staged before. What is not taken in by then is slow, or was not staged by a daemon, and that is
    /// told: nothing that is verified depends on it.
    async fn settled(&self, deadline: &Deadline) {
        if let Err(error) = self.drained(&deadline.within(SETTLE)).await {
            tracing::warn!(%error, "verified without waiting for what is staged");
        }
    }

    async fn pass(
        &self,
        scope: Scope,
        digests: Digests,
        deadline: &Deadline,
    ) -> Result<(Report, HashMap<i32, State>)> {
        self.verified.store(0, Ordering::Relaxed);
        let plan = Plan::read(self, deadline).await?;
        self.to_verify.store(plan.entries(), Ordering::Relaxed);
        let range = match scope {
            Scope::Within(range) => range,
            Scope::New => Range::EVERYTHING,
        };
        let pass = Pass::new(self, digests, range, clock::now().utc(), deadline).await?;
        let mut trees = Vec::with_capacity(plan.streams.len());
        for row in &plan.streams {
            trees.push(pass.tree(Some(row), &plan, scope).boxed());
        }
        trees.push(pass.tree(None, &plan, scope).boxed());
        let results: Vec<_> = stream::iter(trees).buffered(STREAMS).try_collect().await?;
        let (mut findings, mut states) = (plan.findings, HashMap::new());
        for (number, found, state) in results {
            // A stream that is broken is looked at from the same place the next time.
            states.extend(state.filter(|_| found.count() == 0).map(|state| (number, state)));
            findings.merge(found);
        }
        let mut not_compared = None;
        if range == Range::EVERYTHING {
            pass.tombstones(scope != Scope::New, &mut findings).await?;
            let (contradictions, why) = self.publication.contradictions(deadline).await?;
            not_compared = why;
            for told in contradictions {
                findings.add((told.stream, told.position), told.what, told.expected, told.found);
            }
        }
        let gaps = u64::try_from(plan.gaps.len()).unwrap_or(u64::MAX);
        let dropped = plan.dropped.values().filter_map(|size| u64::try_from(*size).ok()).sum();
        let entries = findings.entries;
        let erased_subjects = u64::try_from(findings.gone.len()).unwrap_or(u64::MAX);
        let (breaks, more_breaks) = findings.breaks();
        let verdict = if breaks.is_empty() { "intact" } else { "broken" };
        let report =
            Report { verdict, entries, erased_subjects, gaps, dropped, breaks, more_breaks, not_compared };
        Ok((report, states))
    }
}

impl Pass<'_> {
    /// Looks at a stream, or at the heads log, as far as it is asked for.
    async fn tree(
        &self,
        row: Option<&StreamRow>,
        plan: &Plan,
        scope: Scope,
    ) -> Result<(i32, Findings, Option<State>)> {
        let tree = row.map_or(Tree::Heads, |row| Tree::Stream(row.stream));
        let size = row.map_or(plan.heads, StreamRow::size);
        let known = plan.states.get(&tree.number());
        // What a declared gap has cost was verified before, and is no more.
        let fits = known.is_none_or(|known| known.blocks.size().saturating_mul(BLOCK) <= size);
        let lost = plan.gaps.get(&tree.number()).is_some_and(|gap| gap.kept_size == findings::at(0, size).1);
        let shrunk = known.filter(|_| !fits && !lost);
        let known = known.filter(|_| fits);
        let whole = !matches!(scope, Scope::Within(range) if range != Range::EVERYTHING);
        if !whole {
            let mut findings = Findings::default();
            if let Some(row) = row {
                self.within(tree, row, &mut findings).await?;
            }
            return Ok((tree.number(), findings, None));
        }
        let base = match (scope, known) {
            (Scope::New, Some(known)) => known.blocks.clone(),
            _ => Growth::default(),
        };
        let mut grown = self.grow(tree, base, size, known).await?;
        if let Some(known) = shrunk {
            let place = findings::at(tree.number(), size);
            let before = known.blocks.size().saturating_mul(BLOCK).to_string();
            grown.findings.add(place, "what was verified before", before, size.to_string());
        }
        match row {
            Some(row) => self.end(row, &mut grown)?,
            None => self.end_of_heads(plan, &mut grown),
        }
        let mut again =
            state::due(&State { blocks: grown.blocks.clone(), again: 0, at: self.now }, self.now).1;
        if let (Scope::New, Some(known)) = (scope, known) {
            let (ranges, reached) = state::due(known, self.now);
            again = reached;
            for blocks in ranges {
                let looked = self.again(tree, blocks, Some(&known.blocks), size).await?;
                grown.findings.merge(looked.findings);
            }
        }
        if row.is_none() {
            // Heads are no entries.
            grown.findings.entries = 0;
        }
        let state = State { blocks: grown.blocks, again, at: self.now };
        Ok((tree.number(), grown.findings, Some(state)))
    }

    /// The end of a stream is what its row says, and a daemon has sealed that.
    fn end(&self, row: &StreamRow, grown: &mut Grown) -> Result<()> {
        let (place, size) = ((row.stream, row.size), row.size());
        if let Some(last) = grown.last.filter(|last| row.last_recorded_at != Some(*last)) {
            let found = row.last_recorded_at.map_or_else(String::new, |at| Timestamp::from(at).to_string());
            grown.findings.add(place, "last_recorded_at", Timestamp::from(last).to_string(), found);
        }
        if !grown.is_whole {
            return self.sealed(row, &mut grown.findings);
        }
        if let Some(root) = grown.root(size) {
            grown.findings.compare(place, "root of the stream", &root, &row.root);
        }
        let peaks = [grown.blocks.frontier().to_bytes(), grown.rest.frontier().to_bytes()].concat();
        for (what, expected, found) in
            [("frontier", peaks, &row.frontier), ("edge of the stream", grown.edge(), &row.edge)]
        {
            if expected != *found {
                grown.findings.add(place, what, hex(&expected), hex(found));
            }
        }
        self.sealed(row, &mut grown.findings)
    }

    fn sealed(&self, row: &StreamRow, findings: &mut Findings) -> Result<()> {
        if row.sealed_root(self.log)?.is_none() {
            let expected = "a head that a daemon has sealed";
            findings.add((row.stream, row.size), "head_mac", expected, hex(&row.head_mac));
        }
        Ok(())
    }

    fn end_of_heads(&self, plan: &Plan, grown: &mut Grown) {
        let Some(checkpoint) = plan.checkpoint.as_ref().filter(|_| grown.is_whole) else { return };
        let place = (Tree::Heads.number(), checkpoint.size);
        if let Some(edge) = checkpoint.edge.as_ref().filter(|edge| **edge != grown.edge()) {
            grown.findings.add(place, "edge of the heads log", hex(&grown.edge()), hex(edge));
        }
    }

    /// Looks at the blocks that have entries of the range, and at what leads from them to the stream's present head.
    async fn within(&self, tree: Tree, row: &StreamRow, findings: &mut Findings) -> Result<()> {
        self.sealed(row, findings)?;
        let Some((first, last)) = self.positions(row).await? else { return Ok(()) };
        let (size, edge) = (row.size(), &row.edge);
        let blocks = first / BLOCK..(last / BLOCK).saturating_add(1).min(size.div_ceil(BLOCK));
        let Some(present) = Growth::read(size, edge) else {
            findings.add((row.stream, row.size), "edge of the stream", "the edge of its size", hex(edge));
            findings.merge(self.again(tree, blocks, None, size).await?.findings);
            return Ok(());
        };
        findings.compare((row.stream, row.size), "root of the stream", &present.root(), &row.root);
        // The lowest tiers are those of the block that is not complete.
        let below: usize = (0..3).map(|tier| present.open(tier).len()).sum();
        let (rest, above) = edge.split_at_checked(below.saturating_mul(32)).unwrap_or_default();
        let known = Growth::read(size >> LEVEL, above).unwrap_or_default();
        let open = blocks.end.saturating_mul(BLOCK) > size;
        let looked = self.again(tree, blocks, Some(&known), size).await?;
        findings.merge(looked.findings);
        if open && looked.is_whole && looked.rest.edge() != rest {
            let place = (row.stream, row.size);
            findings.add(place, "edge of the stream", hex(&looked.rest.edge()), hex(rest));
        }
        Ok(())
    }

    /// The first and the last position of a stream in the range, of those that there can be.
    async fn positions(&self, row: &StreamRow) -> Result<Option<(u64, u64)>> {
        let (range, (stream, size)) = (self.range, findings::at(row.stream, row.size()));
        let rows = || {
            let mut rows = audit_logs::table
                .filter(audit_logs::stream.eq(stream))
                .filter(audit_logs::position.ge(0))
                .filter(audit_logs::position.lt(size))
                .select(audit_logs::position)
                .into_boxed();
            if let Some(from) = range.from {
                rows = rows.filter(audit_logs::recorded_at.ge(from.utc()));
            }
            if let Some(to) = range.to {
                rows = rows.filter(audit_logs::recorded_at.lt(to.utc()));
            }
            rows
        };
        self.log
            .store
            .snapshot(self.deadline, "audit.verify.range", async |connection| {
                let forward = (audit_logs::recorded_at.asc(), audit_logs::position.asc());
                let first: Option<i64> = rows().order(forward).first(connection).await.optional()?;
                let backward = (audit_logs::recorded_at.desc(), audit_logs::position.desc());
                let last: Option<i64> = rows().order(backward).first(connection).await.optional()?;
                let number = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
                Ok(number(first).zip(number(last)))
            })
            .await
    }
}
