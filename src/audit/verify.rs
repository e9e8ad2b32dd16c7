//! Verification: every leaf from its columns, every root at every head, every seal and signature; all breaks, not the first.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use diesel::prelude::{ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gap::{self, Gap};
use super::heads::{CheckpointRow, HeadRow, StreamRow};
use super::log::Log;
use super::merkle::{Frontier, Hash, Node, hex};
use super::note::{self, VerifierKey};
use super::row::Stored;
use super::staged;
use super::tree::HEADS;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::store::schema::{
    audit_checkpoints, audit_heads, audit_logs, audit_nodes, audit_streams, subjects,
};
use crate::store::{Connection, Deadline};

/// How many rows are in memory at once.
const CHUNK: i64 = 2000;
/// How many breaks are told; a log with more is as broken.
const BREAKS: usize = 1000;

/// Parameters of `audit.verify`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Only what was appended at this time or later: leaves and positions, without roots.
    pub from: Option<Timestamp>,
    /// Only what was appended before this time.
    pub to: Option<Timestamp>,
}

impl Range {
    /// The whole log.
    pub const EVERYTHING: Self = Self { from: None, to: None };
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
    /// Every place that is not as it must be.
    pub breaks: Vec<Break>,
}

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

#[derive(Default)]
struct Findings {
    entries: u64,
    persons: HashSet<i64>,
    breaks: Vec<Break>,
    gaps: HashMap<i32, Gap>,
}

impl Findings {
    fn add(
        &mut self,
        (stream, position): (i32, i64),
        what: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        if self.breaks.len() < BREAKS {
            self.breaks.push(Break {
                stream,
                position,
                expected: expected.into(),
                found: found.into(),
                what,
            });
        }
    }

    fn compare(&mut self, at: (i32, i64), what: &'static str, expected: &Hash, found: &[u8]) {
        if expected.bytes().as_slice() != found {
            self.add(at, what, expected.hex(), hex(found));
        }
    }
}

impl Log {
    /// Verifies the log from one snapshot, in constant memory.
    ///
    /// # Errors
    /// The store's: what is broken is told in the report.
    pub async fn verify(&self, range: Range, deadline: &Deadline) -> Result<Report> {
        self.drained(deadline).await?;
        self.verify_at_rest(range, deadline).await
    }

    /// Verifies what is in the log now; what is staged is still on its way, and only its seals are looked at.
    ///
    /// # Errors
    /// As [`Log::verify`].
    pub async fn verify_at_rest(&self, range: Range, deadline: &Deadline) -> Result<Report> {
        self.verified.store(0, Ordering::Relaxed);
        let whole = range.from.is_none() && range.to.is_none();
        let findings = self
            .store
            .snapshot(deadline, "audit.verify", async |connection| {
                let gaps = gap::declared(connection, self.keyring.own()?).await?;
                let mut findings = Findings { gaps, ..Findings::default() };
                let streams: Vec<StreamRow> = audit_streams::table
                    .order(audit_streams::stream)
                    .select(StreamRow::as_select())
                    .load(connection)
                    .await?;
                let heads: Vec<HeadRow> = audit_heads::table
                    .order(audit_heads::index)
                    .select(HeadRow::as_select())
                    .load(connection)
                    .await?;
                for stream in &streams {
                    let at: HashMap<i64, &HeadRow> = heads
                        .iter()
                        .filter(|head| head.stream == stream.stream)
                        .map(|head| (head.size, head))
                        .collect();
                    self.verify_stream(connection, (stream, &at), range, &mut findings).await?;
                }
                if whole {
                    verify_strangers(connection, &streams, &mut findings).await?;
                    self.verify_heads(connection, &heads, &mut findings).await?;
                    for number in staged::strangers(connection, self.keyring.own()?).await? {
                        findings.add(
                            (HEADS, number),
                            "audit_staged",
                            "an entry that a daemon has staged",
                            "another one",
                        );
                    }
                }
                let erased = erased(connection, &findings.persons).await?;
                Ok((findings, erased))
            })
            .await?;
        let (Findings { entries, mut breaks, gaps, .. }, erased_subjects) = findings;
        if whole {
            breaks.extend(self.publication.contradictions(deadline).await?);
        }
        let gaps = u64::try_from(gaps.len()).unwrap_or(u64::MAX);
        let verdict = if breaks.is_empty() { "intact" } else { "broken" };
        Ok(Report { verdict, entries, erased_subjects, gaps, breaks })
    }

    /// Verifies everything, and fails where something is broken. Answers how many entries there are.
    ///
    /// # Errors
    /// [`Error::Tampered`], naming the first place.
    pub async fn verify_all(&self, deadline: &Deadline) -> Result<u64> {
        let report = self.verify(Range::EVERYTHING, deadline).await?;
        match <[Break]>::first(&report.breaks) {
            None => Ok(report.entries),
            Some(first) => Err(Error::Tampered {
                at: format!(
                    "{} places, the first: stream {} position {}: {}",
                    report.breaks.len(),
                    first.stream,
                    first.position,
                    first.what
                ),
            }),
        }
    }

    async fn verify_stream(
        &self,
        connection: &mut Connection,
        (stream, heads): (&StreamRow, &HashMap<i64, &HeadRow>),
        range: Range,
        findings: &mut Findings,
    ) -> Result<()> {
        let number = stream.stream;
        let whole = range.from.is_none() && range.to.is_none();
        let (mut frontier, mut next, mut last) = (Frontier::default(), 0_i64, None::<DateTime<Utc>>);
        let mut nodes = if whole { stored_nodes(connection, number).await? } else { HashMap::new() };
        let mut after = -1_i64;
        loop {
            let rows = chunk(connection, number, after, range).await?;
            let Some(end) = rows.last().map(|row| row.position) else { break };
            for row in rows {
                let (position, recorded_at) = (row.position, row.recorded_at);
                findings.entries = findings.entries.saturating_add(1);
                findings.persons.extend([row.actor_id, row.subject_id].into_iter().flatten());
                if (whole || after >= 0) && position != next {
                    findings.add((number, next), "position", next.to_string(), position.to_string());
                }
                next = position.saturating_add(1);
                after = after.max(0);
                if last.is_some_and(|last| recorded_at < last) {
                    let last = last.map(|last| Timestamp::from(last).to_string());
                    findings.add(
                        (number, position),
                        "recorded_at",
                        last.unwrap_or_default(),
                        Timestamp::from(recorded_at).to_string(),
                    );
                }
                last = Some(recorded_at);
                let Some((entry, found)) = row.entry() else {
                    findings.add(
                        (number, position),
                        "entry",
                        "an entry of format 1",
                        "labels or leaf hash of another form",
                    );
                    continue;
                };
                let leaf = entry.leaf();
                findings.compare((number, position), "leaf_hash", &leaf, found.bytes());
                if whole {
                    frontier.push(leaf, |node, hash| check_node(&mut nodes, number, node, hash, findings));
                    let size = i64::try_from(frontier.size()).unwrap_or(i64::MAX);
                    if let Some(head) = heads.get(&size) {
                        findings.compare((number, size), "root at a head", &frontier.root(), &head.root);
                    }
                }
            }
            after = end;
            self.verified.fetch_add(u64::try_from(CHUNK).unwrap_or(0), Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
        if whole {
            self.verify_end(stream, heads, &frontier, findings)?;
            for (level, index) in nodes.into_keys() {
                findings.add(
                    (number, index),
                    "audit_nodes",
                    "no such subtree",
                    format!("level {level} index {index}"),
                );
            }
        }
        Ok(())
    }

    fn verify_end(
        &self,
        stream: &StreamRow,
        heads: &HashMap<i64, &HeadRow>,
        frontier: &Frontier,
        findings: &mut Findings,
    ) -> Result<()> {
        let number = stream.stream;
        let size = i64::try_from(frontier.size()).unwrap_or(i64::MAX);
        if stream.size != size {
            findings.add((number, size), "size of the stream", stream.size.to_string(), size.to_string());
        }
        findings.compare((number, size), "root of the stream", &frontier.root(), &stream.root);
        if frontier.to_bytes() != stream.frontier {
            findings.add((number, size), "frontier", hex(&frontier.to_bytes()), hex(&stream.frontier));
        }
        if stream.sealed_root(self)?.is_none() {
            findings.add(
                (number, stream.size),
                "head_mac",
                "a head that a daemon has sealed",
                hex(&stream.head_mac),
            );
        }
        // A declared gap is no break.
        let explained = |head: &HeadRow| {
            findings.gaps.get(&number).is_some_and(|gap| gap.explains(size, head.size, &head.root))
        };
        let lost: Vec<i64> =
            heads.values().filter(|h| h.size > size && !explained(h)).map(|h| h.size).collect();
        for lost in lost {
            findings.add((number, size), "entries up to a head", lost.to_string(), size.to_string());
        }
        Ok(())
    }

    async fn verify_heads(
        &self,
        connection: &mut Connection,
        heads: &[HeadRow],
        findings: &mut Findings,
    ) -> Result<()> {
        let checkpoints: Vec<CheckpointRow> = audit_checkpoints::table
            .order(audit_checkpoints::size)
            .select(CheckpointRow::as_select())
            .load(connection)
            .await?;
        let keys: Vec<VerifierKey> = self
            .signers
            .iter()
            .map(|key| VerifierKey::new(self.keyring.deployment(), key.public()))
            .collect();
        let mut checkpoints = checkpoints.into_iter().peekable();
        let mut nodes = stored_nodes(connection, HEADS).await?;
        let mut frontier = Frontier::default();
        for (expected, head) in heads.iter().enumerate() {
            let expected = i64::try_from(expected).unwrap_or(i64::MAX);
            if head.index != expected {
                findings.add(
                    (HEADS, expected),
                    "index of a head",
                    expected.to_string(),
                    head.index.to_string(),
                );
            }
            let Some(leaf) = head.head().map(|head| head.leaf()) else {
                findings.add((HEADS, head.index), "root of a head", "32 bytes", hex(&head.root));
                continue;
            };
            findings.compare((HEADS, head.index), "leaf_hash of a head", &leaf, &head.leaf_hash);
            frontier.push(leaf, |node, hash| check_node(&mut nodes, HEADS, node, hash, findings));
            let size = i64::try_from(frontier.size()).unwrap_or(i64::MAX);
            while let Some(checkpoint) = checkpoints.next_if(|checkpoint| checkpoint.size <= size) {
                findings.compare(
                    (HEADS, checkpoint.size),
                    "root of a checkpoint",
                    &frontier.root(),
                    &checkpoint.root,
                );
                let opened = note::open(&checkpoint.note, &keys);
                // A daemon without a signing key leaves the signatures to those who have the public half.
                let signed = keys.is_empty()
                    || opened.is_some_and(|opened| {
                        opened.size == frontier.size() && opened.root == frontier.root()
                    });
                if !signed {
                    findings.add(
                        (HEADS, checkpoint.size),
                        "note",
                        "a note over this root, signed by one of signing.key_files",
                        checkpoint.note,
                    );
                }
            }
        }
        for checkpoint in checkpoints {
            findings.add(
                (HEADS, checkpoint.size),
                "heads up to a checkpoint",
                checkpoint.size.to_string(),
                heads.len().to_string(),
            );
        }
        Ok(())
    }
}

async fn chunk(connection: &mut Connection, stream: i32, after: i64, range: Range) -> Result<Vec<Stored>> {
    let mut rows = audit_logs::table
        .filter(audit_logs::stream.eq(stream))
        .filter(audit_logs::position.gt(after))
        .order(audit_logs::position)
        .limit(CHUNK)
        .select(Stored::as_select())
        .into_boxed();
    if let Some(from) = range.from {
        rows = rows.filter(audit_logs::recorded_at.ge(from.utc()));
    }
    if let Some(to) = range.to {
        rows = rows.filter(audit_logs::recorded_at.lt(to.utc()));
    }
    Ok(rows.load(connection).await?)
}

type Nodes = HashMap<(i32, i64), Vec<u8>>;

/// One row for 256 entries: of ten million, some 40,000.
async fn stored_nodes(connection: &mut Connection, stream: i32) -> Result<Nodes> {
    let rows: Vec<(i32, i64, Vec<u8>)> = audit_nodes::table
        .filter(audit_nodes::stream.eq(stream))
        .select((audit_nodes::level, audit_nodes::index, audit_nodes::hash))
        .load(connection)
        .await?;
    Ok(rows.into_iter().map(|(level, index, hash)| ((level, index), hash)).collect())
}

fn check_node(nodes: &mut Nodes, stream: i32, node: Node, hash: Hash, findings: &mut Findings) {
    if !node.level.is_multiple_of(8) {
        return;
    }
    let key = (i32::try_from(node.level).unwrap_or(i32::MAX), i64::try_from(node.index).unwrap_or(i64::MAX));
    match nodes.remove(&key) {
        Some(found) => findings.compare((stream, key.1), "audit_nodes", &hash, &found),
        None => findings.add((stream, key.1), "audit_nodes", hash.hex(), "nothing"),
    }
}

/// Entries of streams that no daemon has ever leased.
async fn verify_strangers(
    connection: &mut Connection,
    streams: &[StreamRow],
    findings: &mut Findings,
) -> Result<()> {
    let known: Vec<i32> = streams.iter().map(|stream| stream.stream).collect();
    let strangers: Vec<(i32, i64)> = audit_logs::table
        .filter(audit_logs::stream.ne_all(known))
        .select((audit_logs::stream, audit_logs::position))
        .limit(CHUNK)
        .load(connection)
        .await?;
    for (stream, position) in strangers {
        findings.add((stream, position), "stream", "a stream of audit_streams", stream.to_string());
    }
    Ok(())
}

async fn erased(connection: &mut Connection, persons: &HashSet<i64>) -> Result<u64> {
    let mut gone = 0_u64;
    let persons: BTreeSet<i64> = persons.iter().copied().collect();
    let persons: Vec<i64> = persons.into_iter().collect();
    for some in persons.chunks(10_000) {
        let there: i64 =
            subjects::table.filter(subjects::subject_id.eq_any(some)).count().get_result(connection).await?;
        let there = u64::try_from(there).map_err(Error::internal)?;
        gone = gone.saturating_add(u64::try_from(some.len()).unwrap_or(u64::MAX).saturating_sub(there));
    }
    Ok(gone)
}
