//! Declared gaps: what a restore or a lossy fail-over has cost a stream, as the log itself says it.
//!
//! A gap is one entry `log.gap` for a stream that is closed for ever: how much of it was kept, how much had been published,
//! and the root of that. Nobody but a daemon can write its labels. A stream that is shorter than one of its heads, and of
//! which no such entry tells, is broken.

use std::collections::HashMap;

use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::Serialize;

use super::entry::{Entry, Labels};
use super::merkle::Hash;
use super::staged;
use crate::error::Result;
use crate::keyring::Deployment;
use crate::store::Connection;
use crate::store::schema::{audit_logs, audit_streams};
use crate::values::RecordId;

/// The action of an entry that declares a gap.
pub const ACTION: &str = "log.gap";
/// What kind of thing it is about.
const KIND: &str = "stream";
const KEPT: &str = "sidekeep.kept_size";
const LOST: &str = "sidekeep.lost_size";
const ROOT: &str = "sidekeep.lost_root";

/// What a stream has lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Gap {
    /// The stream.
    pub stream: i32,
    /// How many entries of it are left.
    pub kept_size: i64,
    /// How many entries its last published head covers.
    pub lost_size: i64,
    /// The root of that head, in hexadecimal.
    pub lost_root: String,
}

impl Gap {
    /// Whether the gap explains that a head is not covered by the entries: it lies in the gap, and the last of them has
    /// the root that was declared. `size` and `root` are the head's, `kept` is how many entries there are.
    pub(super) fn explains(&self, kept: i64, size: i64, root: &[u8]) -> bool {
        let within = self.kept_size == kept && size > kept && size <= self.lost_size;
        within && (size < self.lost_size || Hash::read(root).is_some_and(|root| root.hex() == self.lost_root))
    }

    /// The entry that declares it.
    pub(super) fn entry(&self) -> Entry {
        Entry {
            stream: 0,
            position: 0,
            recorded_at: chrono::DateTime::UNIX_EPOCH,
            format: super::entry::FORMAT,
            id: RecordId::generate().into_string(),
            actor_id: None,
            subject_id: None,
            action: ACTION.to_owned(),
            resource_type: Some(KIND.to_owned()),
            resource_id: Some(self.stream.to_string()),
            outcome: Some("success".to_owned()),
            occurred_at: None,
            labels: Some(Labels::own([
                (KEPT, self.kept_size.to_string()),
                (LOST, self.lost_size.to_string()),
                (ROOT, self.lost_root.clone()),
            ])),
            client_sealed: None,
            metadata_sealed: None,
        }
    }

    fn read(stream: &str, labels: &Labels) -> Option<Self> {
        let label = |name| labels.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
        let gap = Self {
            stream: stream.parse().ok()?,
            kept_size: label(KEPT)?.parse().ok()?,
            lost_size: label(LOST)?.parse().ok()?,
            lost_root: Hash::from_hex(label(ROOT)?)?.hex(),
        };
        (0..gap.lost_size).contains(&gap.kept_size).then_some(gap)
    }
}

/// The gaps that the log declares, by stream: of closed streams alone, and of several of one stream the one that lost most.
/// One that is staged, and on its way into the log, counts.
///
/// # Errors
/// The database's.
pub(super) async fn declared(connection: &mut Connection, own: &Deployment) -> Result<HashMap<i32, Gap>> {
    let closed: Vec<i32> = audit_streams::table
        .filter(audit_streams::closed_at.is_not_null())
        .select(audit_streams::stream)
        .load(connection)
        .await?;
    if closed.is_empty() {
        return Ok(HashMap::new());
    }
    let numbers: Vec<String> = closed.iter().map(i32::to_string).collect();
    let entered: Vec<(Option<String>, Option<serde_json::Value>)> = audit_logs::table
        .filter(audit_logs::resource_id.eq_any(&numbers))
        .filter(audit_logs::action.eq(ACTION))
        .filter(audit_logs::resource_type.eq(KIND))
        .select((audit_logs::resource_id, audit_logs::labels))
        .load(connection)
        .await?;
    let mut told: Vec<(String, Labels)> = entered
        .into_iter()
        .filter_map(|(stream, labels)| Some((stream?, Labels::stored(&labels?)?)))
        .collect();
    let staged = staged::genuine(connection, own, ACTION).await?;
    told.extend(staged.into_iter().filter_map(|entry| Some((entry.resource_id?, entry.labels?))));
    let mut gaps: HashMap<i32, Gap> = HashMap::new();
    for gap in told.iter().filter_map(|(stream, labels)| Gap::read(stream, labels)) {
        let known = gaps.get(&gap.stream).map_or(0, |known| known.lost_size);
        if closed.contains(&gap.stream) && gap.lost_size > known {
            gaps.insert(gap.stream, gap);
        }
    }
    Ok(gaps)
}
