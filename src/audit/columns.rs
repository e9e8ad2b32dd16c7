//! A batch as PostgreSQL takes it: a list for each column.

use chrono::{DateTime, Utc};
use tokio_postgres::types::{Json, ToSql};

use super::entry::Labels;
use super::growth::Tile;
use super::merkle::Hash;
use super::stream::Placed;

/// A parameter of a statement.
pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

/// The values of a batch, a list for each column. The entries' own are borrowed: a batch is not copied on its way.
#[derive(Default)]
pub(super) struct Columns<'a> {
    pub(super) position: Vec<i64>,
    pub(super) id: Vec<&'a str>,
    pub(super) actor_id: Vec<Option<i64>>,
    pub(super) subject_id: Vec<Option<i64>>,
    pub(super) action: Vec<&'a str>,
    pub(super) resource_type: Vec<Option<&'a str>>,
    pub(super) resource_id: Vec<Option<&'a str>>,
    pub(super) outcome: Vec<Option<&'a str>>,
    pub(super) occurred_at: Vec<Option<DateTime<Utc>>>,
    pub(super) labels: Vec<Option<Json<&'a Labels>>>,
    pub(super) client_sealed: Vec<Option<&'a [u8]>>,
    pub(super) metadata_sealed: Vec<Option<&'a [u8]>>,
    pub(super) leaf_hash: Vec<&'a [u8]>,
    pub(super) level: Vec<i32>,
    pub(super) index: Vec<i64>,
    pub(super) hash: Vec<&'a [u8]>,
    pub(super) children: Vec<Vec<u8>>,
    pub(super) staged: Vec<i64>,
}

impl<'a> Columns<'a> {
    /// Entries that have their places, with their leaves, and the tiles that they complete.
    pub(super) fn of(entries: &'a [Placed<'_>], leaves: &'a [Hash], tiles: &'a [Tile]) -> Self {
        let mut columns = Self::default();
        for ((entry, staged), leaf) in entries.iter().zip(leaves) {
            columns.position.push(entry.position);
            columns.id.push(&entry.id);
            columns.actor_id.push(entry.actor_id);
            columns.subject_id.push(entry.subject_id);
            columns.action.push(&entry.action);
            columns.resource_type.push(entry.resource_type.as_deref());
            columns.resource_id.push(entry.resource_id.as_deref());
            columns.outcome.push(entry.outcome.as_deref());
            columns.occurred_at.push(entry.occurred_at);
            columns.labels.push(entry.labels.as_ref().map(Json));
            columns.client_sealed.push(entry.client_sealed.as_deref());
            columns.metadata_sealed.push(entry.metadata_sealed.as_deref());
            columns.leaf_hash.push(leaf.bytes());
            columns.staged.extend(*staged);
        }
        for tile in tiles {
            if let (Ok(level), Ok(index)) = (i32::try_from(tile.node.level), i64::try_from(tile.node.index)) {
                columns.level.push(level);
                columns.index.push(index);
                columns.hash.push(tile.hash.bytes());
                columns.children.push(tile.children.iter().flat_map(|hash| *hash.bytes()).collect());
            }
        }
        columns
    }

    /// The lists of the entries, in the order of the statements.
    pub(super) fn entries(&self) -> [Param<'_>; 13] {
        [
            &self.position,
            &self.id,
            &self.actor_id,
            &self.subject_id,
            &self.action,
            &self.resource_type,
            &self.resource_id,
            &self.outcome,
            &self.occurred_at,
            &self.labels,
            &self.client_sealed,
            &self.metadata_sealed,
            &self.leaf_hash,
        ]
    }

    /// The values of an entry that is the only one, in the same order.
    pub(super) fn alone(&self) -> Option<[Param<'_>; 13]> {
        fn only<T: ToSql + Sync>(list: &[T]) -> Option<Param<'_>> {
            match list {
                [value] => Some(value),
                _ => None,
            }
        }
        Some([
            only(&self.position)?,
            only(&self.id)?,
            only(&self.actor_id)?,
            only(&self.subject_id)?,
            only(&self.action)?,
            only(&self.resource_type)?,
            only(&self.resource_id)?,
            only(&self.outcome)?,
            only(&self.occurred_at)?,
            only(&self.labels)?,
            only(&self.client_sealed)?,
            only(&self.metadata_sealed)?,
            only(&self.leaf_hash)?,
        ])
    }
}
