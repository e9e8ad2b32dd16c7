//! A row of the log as diesel reads it.

use chrono::{DateTime, Utc};
use diesel::prelude::{Queryable, Selectable};

use super::entry::{Entry, Labels};
use super::merkle::Hash;
use crate::error::{Error, Result};
use crate::store::schema::audit_logs;
use crate::store::{AnyTime, AnyTimeOrNone};

/// The method that follows the log.
const TAIL: &str = "audit.tail";

/// A row of `audit_logs`.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = audit_logs, check_for_backend(diesel::pg::Pg))]
pub struct Stored {
    /// Its stream.
    pub stream: i32,
    /// Its position.
    pub position: i64,
    /// When it was appended.
    #[diesel(deserialize_as = AnyTime)]
    pub recorded_at: DateTime<Utc>,
    format: i16,
    /// Its id.
    pub id: String,
    /// Who acted.
    pub actor_id: Option<i64>,
    /// Whose data it was.
    pub subject_id: Option<i64>,
    action: String,
    resource_type: Option<String>,
    resource_id: Option<String>,
    outcome: Option<String>,
    #[diesel(deserialize_as = AnyTimeOrNone)]
    occurred_at: Option<DateTime<Utc>>,
    labels: Option<serde_json::Value>,
    client_sealed: Option<Vec<u8>>,
    metadata_sealed: Option<Vec<u8>>,
    leaf_hash: Vec<u8>,
}

impl Stored {
    /// Whether it says that somebody began to follow the log.
    pub fn is_of_tail(&self) -> bool {
        let method = self.labels.as_ref().and_then(|labels| labels.get("sidekeep.method"));
        self.action == TAIL && method.and_then(serde_json::Value::as_str) == Some(TAIL)
    }

    /// The entry, with the leaf hash that it has now and had when it was appended.
    ///
    /// # Errors
    /// [`Error::Tampered`], naming its place.
    pub fn verified(self) -> Result<(Entry, Hash)> {
        let at = format!("audit_logs, stream {} position {}", self.stream, self.position);
        match self.entry() {
            Some((entry, leaf)) if entry.leaf() == leaf => Ok((entry, leaf)),
            _ => Err(Error::Tampered { at }),
        }
    }

    /// The entry, and the leaf hash that stands beside it; nothing where labels or hash are not of their form.
    pub fn entry(self) -> Option<(Entry, Hash)> {
        let leaf = Hash::read(&self.leaf_hash)?;
        let labels = match &self.labels {
            None => None,
            Some(labels) => Some(Labels::stored(labels)?),
        };
        let entry = Entry {
            stream: self.stream,
            position: self.position,
            recorded_at: self.recorded_at,
            format: self.format,
            id: self.id,
            actor_id: self.actor_id,
            subject_id: self.subject_id,
            action: self.action,
            resource_type: self.resource_type,
            resource_id: self.resource_id,
            outcome: self.outcome,
            occurred_at: self.occurred_at,
            labels,
            client_sealed: self.client_sealed,
            metadata_sealed: self.metadata_sealed,
        };
        Some((entry, leaf))
    }
}
