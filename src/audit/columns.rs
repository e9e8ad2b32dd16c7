//! A batch as PostgreSQL takes it: a list for each column.

use chrono::{DateTime, Utc};

use super::growth::Tile;
use super::merkle::Hash;
use super::stream::Sealed;

/// The values of a batch, a list for each column.
#[derive(Default)]
pub(super) struct Columns {
    pub(super) position: Vec<i64>,
    pub(super) id: Vec<String>,
    pub(super) actor_id: Vec<Option<i64>>,
    pub(super) subject_id: Vec<Option<i64>>,
    pub(super) action: Vec<String>,
    pub(super) resource_type: Vec<Option<String>>,
    pub(super) resource_id: Vec<Option<String>>,
    pub(super) outcome: Vec<Option<String>>,
    pub(super) occurred_at: Vec<Option<DateTime<Utc>>>,
    pub(super) labels: Vec<Option<serde_json::Value>>,
    pub(super) client_sealed: Vec<Option<Vec<u8>>>,
    pub(super) metadata_sealed: Vec<Option<Vec<u8>>>,
    pub(super) leaf_hash: Vec<Vec<u8>>,
    pub(super) level: Vec<i32>,
    pub(super) index: Vec<i64>,
    pub(super) hash: Vec<Vec<u8>>,
    pub(super) children: Vec<Vec<u8>>,
    pub(super) staged: Vec<i64>,
}

impl Columns {
    /// Adds an entry.
    pub(super) fn push(&mut self, sealed: &Sealed, leaf: Hash) {
        let entry = &sealed.entry;
        self.position.push(entry.position);
        self.id.push(entry.id.clone());
        self.actor_id.push(entry.actor_id);
        self.subject_id.push(entry.subject_id);
        self.action.push(entry.action.clone());
        self.resource_type.push(entry.resource_type.clone());
        self.resource_id.push(entry.resource_id.clone());
        self.outcome.push(entry.outcome.clone());
        self.occurred_at.push(entry.occurred_at);
        self.labels.push(entry.labels.as_ref().and_then(|labels| serde_json::to_value(labels).ok()));
        self.client_sealed.push(entry.client_sealed.clone());
        self.metadata_sealed.push(entry.metadata_sealed.clone());
        self.leaf_hash.push(leaf.bytes().to_vec());
        self.staged.extend(sealed.staged);
    }

    /// Adds a tile that was completed.
    pub(super) fn complete(&mut self, tile: &Tile) {
        if let (Ok(level), Ok(index)) = (i32::try_from(tile.node.level), i64::try_from(tile.node.index)) {
            self.level.push(level);
            self.index.push(index);
            self.hash.push(tile.hash.bytes().to_vec());
            self.children.push(tile.children.iter().flat_map(|hash| *hash.bytes()).collect());
        }
    }
}
