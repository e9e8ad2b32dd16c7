//! Rows of the log as COPY gives them, read into entries. Hashing is off the task that reads.

use std::collections::HashMap;

use bytes::{Buf, Bytes};
use chrono::{DateTime, Utc};

use super::findings::at;
use super::section::Steps;
use crate::audit::entry::{DIGEST, Entry, Labels};
use crate::clock::Timestamp;
use crate::store::Columns;

/// Microseconds from the beginning of 1970 to that of 2000, where PostgreSQL begins to count.
const EPOCH: i64 = 946_684_800_000_000;

/// Entries of a stream from one position to another, in order, that this condition holds of.
pub(in crate::audit) fn query(stream: i32, (from, to): (u64, u64), within: &str) -> String {
    format!(
        "SELECT position, recorded_at, format, id, actor_id, subject_id, action, resource_type, resource_id, outcome, \
         occurred_at, labels, client_sealed, metadata_sealed, leaf_hash FROM sidekeep.audit_logs \
         WHERE stream = {stream} AND position >= {from} AND position < {to} AND {within} ORDER BY position, recorded_at"
    )
}

/// What an entry says of a row beside the log.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// Where the entry is.
    pub(super) place: (i32, i64),
    /// When it was appended.
    pub(super) recorded_at: DateTime<Utc>,
    /// The record's id.
    pub(super) id: String,
    /// Whose it is.
    pub(super) subject: i64,
    /// The SHA-256 of its row.
    pub(super) digest: String,
}

/// A section of a stream under way.
#[derive(Debug)]
pub(super) struct Entries {
    stream: i32,
    range: super::Range,
    pub(super) steps: Steps,
    /// The times of the first and the last row.
    pub(super) times: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// Who is named, and at which position first.
    pub(super) persons: HashMap<i64, i64>,
    /// What is claimed.
    pub(super) claims: Vec<Claim>,
}

impl Entries {
    pub(super) fn new(stream: i32, range: super::Range, steps: Steps) -> Self {
        Self { stream, range, steps, times: None, persons: HashMap::new(), claims: Vec::new() }
    }

    /// Takes rows in order.
    pub(super) fn take(&mut self, rows: Vec<Columns>) {
        for mut row in rows {
            let Some((position, recorded_at)) = begin(&mut row) else { continue };
            let Ok(place) = u64::try_from(position) else { continue };
            if !self.steps.comes(place) {
                continue;
            }
            self.time(place, recorded_at);
            let (entry, stored) = read(&mut row, self.stream, position, recorded_at).unwrap_or_default();
            let leaf = entry.as_ref().map(Entry::leaf);
            self.steps.leaf(leaf, &stored);
            if let Some(entry) = entry.filter(|_| self.range.has(recorded_at)) {
                self.note(entry);
            }
        }
    }

    fn time(&mut self, position: u64, recorded_at: DateTime<Utc>) {
        let findings = &mut self.steps.outcome.findings;
        if self.range.has(recorded_at) {
            findings.entries = findings.entries.saturating_add(1);
        }
        match &mut self.times {
            None => self.times = Some((recorded_at, recorded_at)),
            Some((_, last)) => {
                if recorded_at < *last {
                    let (expected, found) = (Timestamp::from(*last), Timestamp::from(recorded_at));
                    let place = at(self.stream, position);
                    findings.add(place, "recorded_at", expected.to_string(), found.to_string());
                }
                *last = recorded_at;
            }
        }
    }

    fn note(&mut self, entry: Entry) {
        for person in [entry.actor_id, entry.subject_id].into_iter().flatten() {
            self.persons.entry(person).or_insert(entry.position);
        }
        let digest = entry.labels.as_ref().and_then(|labels| {
            labels.iter().find(|(key, _)| *key == DIGEST).map(|(_, digest)| digest.to_owned())
        });
        if let (Some(digest), Some(id), Some(subject)) = (digest, entry.resource_id, entry.subject_id) {
            let place = (self.stream, entry.position);
            self.claims.push(Claim { place, recorded_at: entry.recorded_at, id, subject, digest });
        }
    }
}

/// A whole row as an entry, with the leaf hash beside it; nothing where it is not of its form.
pub(in crate::audit) fn entry(row: &mut Columns, stream: i32) -> Option<(Entry, Bytes)> {
    let (position, recorded_at) = begin(row)?;
    let (entry, stored) = read(row, stream, position, recorded_at)?;
    Some((entry?, stored))
}

fn begin(row: &mut Columns) -> Option<(i64, DateTime<Utc>)> {
    let position = row.take()??.try_get_i64().ok()?;
    Some((position, time(row.take()??)?))
}

/// The entry, where labels and times are of their form, and the leaf hash beside it.
fn read(
    row: &mut Columns,
    stream: i32,
    position: i64,
    recorded_at: DateTime<Utc>,
) -> Option<(Option<Entry>, Bytes)> {
    let format = row.take()??.try_get_i16().ok()?;
    let id = text(row.take()?)?;
    let (actor_id, subject_id) = (number(row.take()?), number(row.take()?));
    let (action, resource_type) = (text(row.take()?)?, text(row.take()?));
    let (resource_id, outcome) = (text(row.take()?), text(row.take()?));
    let (occurred_at, labels) = (row.take()?, row.take()?);
    let (client, metadata) = (row.take()?, row.take()?);
    let stored = row.take()?.unwrap_or_default();
    let formed = (occurred_at.map(time), labels.map(self::labels));
    let (None | Some(Some(_)), None | Some(Some(_))) = &formed else { return Some((None, stored)) };
    let entry = Entry {
        stream,
        position,
        recorded_at,
        format,
        id,
        actor_id,
        subject_id,
        action,
        resource_type,
        resource_id,
        outcome,
        occurred_at: formed.0.flatten(),
        labels: formed.1.flatten(),
        client_sealed: client.map(Vec::from),
        metadata_sealed: metadata.map(Vec::from),
    };
    Some((Some(entry), stored))
}

fn text(column: Option<Bytes>) -> Option<String> {
    String::from_utf8(column?.into()).ok()
}

fn number(column: Option<Bytes>) -> Option<i64> {
    column?.try_get_i64().ok()
}

fn time(mut column: Bytes) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(column.try_get_i64().ok()?.checked_add(EPOCH)?)
}

/// `jsonb` comes as a version, which is 1, and text.
fn labels(mut column: Bytes) -> Option<Labels> {
    (column.try_get_u8().ok()? == 1).then(|| Labels::read(&column))?
}
