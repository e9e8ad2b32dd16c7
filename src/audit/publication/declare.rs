//! Declaring what is lost, in one transaction: the missing heads are taken over, the streams that lack entries are closed for
//! ever, and an entry for each of them is staged. A crash before the commit leaves nothing, one after it everything.

use diesel::prelude::{ExpressionMethods, Insertable, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::super::entry::Head;
use super::super::gap::Gap;
use super::super::head_mac::{HEAD, head_parts};
use super::super::heads::{CheckpointRow, HeadRow, NewNode, StreamRow};
use super::super::merkle::Frontier;
use super::super::staged;
use super::super::stream::Sealed;
use super::super::tree::Tree;
use super::Publication;
use super::compare::{Missing, count, gaps};
use crate::error::{Error, Result};
use crate::keyring::Deployment;
use crate::store::schema::{audit_checkpoints, audit_heads, audit_nodes, audit_streams};
use crate::store::{Connection, Deadline};

/// How many rows one statement takes.
const ROWS: usize = 5000;

/// Two who declare at once: the second waits, and finds nothing left to do.
const ALONE: &str = "SELECT pg_advisory_xact_lock(hashtext('sidekeep.audit_gap'))";

/// A stream of which the log has nothing left: its number is not given again.
#[derive(Insertable)]
#[diesel(table_name = audit_streams)]
struct Lost {
    stream: i32,
    epoch: i64,
    size: i64,
    root: Vec<u8>,
    head_mac: Vec<u8>,
    frontier: Vec<u8>,
}

impl Publication {
    /// Takes over the heads that the log lacks, closes the streams that have lost entries, and stages an entry for each.
    /// Answers those entries; none where somebody else has done it.
    ///
    /// # Errors
    /// [`Error::Tampered`] where the log contradicts what was published.
    pub(super) async fn declare(&self, missing: &Missing, deadline: &Deadline) -> Result<Vec<Sealed>> {
        let own = self.keyring.own()?;
        self.store
            .transact(deadline, "audit.gap", async |tx| {
                diesel::sql_query(ALONE).execute(tx).await?;
                let count = count(tx).await?;
                if count >= missing.newest.checkpoint.size {
                    return Ok(Vec::new());
                }
                let lacking = missing.after(count);
                take_over(tx, count, lacking, missing).await?;
                let mut streams: Vec<i32> = lacking.iter().map(|head| head.stream).collect();
                streams.sort_unstable();
                streams.dedup();
                // Whoever appends to one of them waits for this, and finds it closed.
                let rows: Vec<StreamRow> = audit_streams::table
                    .filter(audit_streams::stream.eq_any(streams))
                    .order(audit_streams::stream)
                    .for_update()
                    .select(StreamRow::as_select())
                    .load(tx)
                    .await?;
                let mut entries = Vec::new();
                for gap in gaps(tx, lacking, &rows).await? {
                    let row = rows.iter().find(|row| row.stream == gap.stream);
                    close(tx, own, (&gap, row)).await?;
                    entries.push(staged::stage(tx, own, gap.entry()).await?);
                }
                Ok(entries)
            })
            .await
    }
}

/// Heads, the subtrees over them, and the newest note.
async fn take_over(tx: &mut Connection, count: u64, lacking: &[Head], missing: &Missing) -> Result<()> {
    let mut heads = Tree::Heads.growth(tx).await?;
    if heads.size() != count {
        return Err(Error::Tampered { at: format!("the heads log, at {count} heads") });
    }
    let (mut rows, mut nodes) = (Vec::with_capacity(lacking.len()), Vec::new());
    for head in lacking {
        let (index, leaf) = (i64::try_from(heads.size()).map_err(Error::internal)?, head.leaf());
        heads.push(leaf, |tile| nodes.extend(NewNode::of_heads(&tile)));
        rows.push(HeadRow {
            index,
            stream: head.stream,
            size: head.size,
            root: head.root.bytes().to_vec(),
            at: head.at.utc(),
            leaf_hash: leaf.bytes().to_vec(),
        });
    }
    let checkpoint = &missing.newest.checkpoint;
    if heads.root() != checkpoint.root {
        return Err(Error::Tampered { at: format!("the heads log, at {count} heads") });
    }
    for some in rows.chunks(ROWS) {
        diesel::insert_into(audit_heads::table).values(some.to_vec()).execute(tx).await?;
    }
    for some in nodes.chunks(ROWS) {
        diesel::insert_into(audit_nodes::table).values(some.to_vec()).execute(tx).await?;
    }
    let Some(last) = lacking.last() else { return Ok(()) };
    let note = CheckpointRow {
        size: i64::try_from(checkpoint.size).map_err(Error::internal)?,
        root: checkpoint.root.bytes().to_vec(),
        note: missing.newest.note.clone(),
        at: last.at.utc(),
        edge: Some(heads.edge()),
    };
    diesel::insert_into(audit_checkpoints::table).values(note).on_conflict_do_nothing().execute(tx).await?;
    Ok(())
}

/// Closes a stream under a new epoch: whoever believes to have it has lost it.
async fn close(tx: &mut Connection, own: &Deployment, (gap, row): (&Gap, Option<&StreamRow>)) -> Result<()> {
    let tampered = || Error::Tampered { at: format!("audit_streams, stream {}", gap.stream) };
    match row {
        Some(row) => {
            let (size, root) = row.sealed(own).ok_or_else(tampered)?;
            let epoch = row.epoch.saturating_add(1);
            let mac = own.mac(HEAD, &head_parts(own.name(), row.stream, epoch, size, root).parts());
            diesel::update(audit_streams::table.find(row.stream))
                .set((
                    audit_streams::epoch.eq(epoch),
                    audit_streams::head_mac.eq(mac),
                    audit_streams::closed_at.eq(diesel::dsl::now),
                    audit_streams::leased_until.eq(diesel::dsl::now),
                ))
                .execute(tx)
                .await?;
        }
        None => {
            let root = Frontier::default().root();
            let lost = Lost {
                stream: gap.stream,
                epoch: 1,
                size: 0,
                root: root.bytes().to_vec(),
                head_mac: own.mac(HEAD, &head_parts(own.name(), gap.stream, 1, 0, root).parts()),
                frontier: Vec::new(),
            };
            let now = (
                audit_streams::closed_at.eq(diesel::dsl::now),
                audit_streams::leased_until.eq(diesel::dsl::now),
            );
            diesel::insert_into(audit_streams::table).values((lost, now)).execute(tx).await?;
        }
    }
    Ok(())
}
