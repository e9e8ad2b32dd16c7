//! What there is to verify, from one snapshot: sizes and seals of the streams, and what stands where nothing may stand.
//! Entries never change, so that they may be read later.

use std::collections::HashMap;

use diesel::dsl::max;
use diesel::prelude::{ExpressionMethods, QueryDsl, QueryableByName, SelectableHelper};
use diesel::sql_types::{Int4, Int8};
use diesel_async::RunQueryDsl;

use super::findings::Findings;
use super::state::{self, State};
use crate::audit::dropped;
use crate::audit::gap::{self, Gap};
use crate::audit::heads::{CheckpointRow, StreamRow, newest};
use crate::audit::log::Log;
use crate::audit::staged;
use crate::audit::tree::HEADS;
use crate::error::Result;
use crate::keyring::Deployment;
use crate::store::schema::{audit_heads, audit_logs, audit_streams};
use crate::store::{Connection, Deadline};

/// So many rows of one kind that nobody may have written are listed.
const LISTED: i64 = 1000;

/// What there is to verify.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) streams: Vec<StreamRow>,
    /// How many heads there are.
    pub(super) heads: u64,
    pub(super) checkpoint: Option<CheckpointRow>,
    pub(super) states: HashMap<i32, State>,
    /// What streams have lost, as the log declares.
    pub(super) gaps: HashMap<i32, Gap>,
    /// How many entries were dropped of each stream.
    pub(super) dropped: HashMap<i32, i64>,
    pub(super) findings: Findings,
}

#[derive(QueryableByName)]
struct Stray {
    #[diesel(sql_type = Int4)]
    level: i32,
    #[diesel(sql_type = Int8)]
    index: i64,
}

impl Plan {
    /// Reads it.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn read(log: &Log, deadline: &Deadline) -> Result<Self> {
        let read = log.store.snapshot(deadline, "audit.verify.plan", async |connection| {
            let mut plan = Self::default();
            let own = log.keyring.own()?;
            plan.gaps = gap::declared(connection, own).await?;
            plan.states = state::read(connection, own, &mut plan.findings).await?;
            plan.streams = audit_streams::table
                .order(audit_streams::stream)
                .select(StreamRow::as_select())
                .load(connection)
                .await?;
            plan.checkpoint = newest(connection).await?;
            let last: Option<i64> =
                audit_heads::table.select(max(audit_heads::index)).get_result(connection).await?;
            plan.heads =
                last.and_then(|last| u64::try_from(last).ok()).map_or(0, |last| last.saturating_add(1));
            plan.dropped(connection, own).await?;
            plan.strays(connection).await?;
            for number in staged::strangers(connection, own).await? {
                let expected = "an entry that a daemon has staged";
                plan.findings.add((HEADS, number), "audit_staged", expected, "another one");
            }
            Ok(plan)
        });
        read.await
    }

    /// How many entries the streams have.
    pub(super) fn entries(&self) -> u64 {
        self.streams.iter().fold(0, |sum, stream| sum.saturating_add(stream.size()))
    }

    /// What retention has dropped of each stream: as a daemon has sealed it.
    async fn dropped(&mut self, connection: &mut Connection, own: &Deployment) -> Result<()> {
        for row in &self.streams {
            let rows = dropped::within(connection, row.stream, (-1, row.size)).await?;
            for row in rows {
                let place = (row.stream, row.size);
                match row.open(own) {
                    Some(dropped) => {
                        let size = i64::try_from(dropped.tree.size()).unwrap_or(i64::MAX);
                        let before = self.dropped.entry(place.0).or_default();
                        *before = size.max(*before);
                    }
                    None => {
                        let expected = "a row that a daemon has sealed";
                        self.findings.add(place, "audit_dropped", expected, "another");
                    }
                }
            }
        }
        Ok(())
    }

    async fn strays(&mut self, connection: &mut Connection) -> Result<()> {
        let mut trees: Vec<(i32, i64)> =
            self.streams.iter().map(|stream| (stream.stream, stream.size)).collect();
        for (stream, size) in &trees {
            let beyond: Vec<i64> = audit_logs::table
                .filter(audit_logs::stream.eq(*stream))
                .filter(audit_logs::position.ge(*size))
                .order(audit_logs::position)
                .select(audit_logs::position)
                .limit(LISTED)
                .load(connection)
                .await?;
            for position in beyond {
                let expected = format!("at most {size} entries");
                self.findings.add(
                    (*stream, position),
                    "size of the stream",
                    expected,
                    format!("entry {position}"),
                );
            }
        }
        let checkpointed = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.size);
        let heads = i64::try_from(self.heads).unwrap_or(i64::MAX);
        if checkpointed != heads {
            let what = "heads up to a checkpoint";
            self.findings.add((HEADS, heads), what, checkpointed.to_string(), heads.to_string());
        }
        self.strangers(connection).await?;
        trees.push((HEADS, heads));
        for (stream, size) in trees {
            self.stray_nodes(connection, stream, size).await?;
        }
        Ok(())
    }

    /// Entries and heads of streams that no daemon has ever leased. Goes from stream to stream along the index.
    async fn strangers(&mut self, connection: &mut Connection) -> Result<()> {
        const NEXT: &str = "SELECT min(l.stream) FROM sidekeep.audit_logs l WHERE l.stream > $1";
        #[derive(QueryableByName)]
        struct Next {
            #[diesel(sql_type = diesel::sql_types::Nullable<Int4>)]
            min: Option<i32>,
        }
        let mut after = -1_i32;
        loop {
            let next: Next = diesel::sql_query(NEXT).bind::<Int4, _>(after).get_result(connection).await?;
            let Some(stream) = next.min else { break };
            after = stream;
            if self.streams.iter().any(|known| known.stream == stream) {
                continue;
            }
            let positions: Vec<i64> = audit_logs::table
                .filter(audit_logs::stream.eq(stream))
                .order(audit_logs::position)
                .select(audit_logs::position)
                .limit(LISTED)
                .load(connection)
                .await?;
            for position in positions {
                self.findings.add(
                    (stream, position),
                    "stream",
                    "a stream of audit_streams",
                    stream.to_string(),
                );
            }
        }
        let latest: Vec<(i32, i64)> = audit_heads::table
            .distinct_on(audit_heads::stream)
            .order((audit_heads::stream, audit_heads::size.desc()))
            .select((audit_heads::stream, audit_heads::size))
            .load(connection)
            .await?;
        for (stream, size) in latest {
            let there =
                self.streams.iter().find(|known| known.stream == stream).map_or(0, |known| known.size);
            if size <= there {
                continue;
            }
            let beyond: Vec<(i64, Vec<u8>)> = audit_heads::table
                .filter(audit_heads::stream.eq(stream))
                .filter(audit_heads::size.gt(there))
                .order(audit_heads::size)
                .select((audit_heads::size, audit_heads::root))
                .limit(LISTED)
                .load(connection)
                .await?;
            let gap = self.gaps.get(&stream);
            for (size, root) in beyond {
                // A declared gap is no break.
                if !gap.is_some_and(|gap| gap.explains(there, size, &root)) {
                    let what = "entries up to a head";
                    self.findings.add((stream, there), what, size.to_string(), there.to_string());
                }
            }
        }
        Ok(())
    }

    /// Subtrees of which a tree of this size has none.
    async fn stray_nodes(&mut self, connection: &mut Connection, stream: i32, size: i64) -> Result<()> {
        const STRAYS: &str = "SELECT n.level, n.index FROM generate_series(4, 60, 4) AS k (level), LATERAL ( \
            SELECT * FROM sidekeep.audit_nodes n WHERE n.stream = $1 AND n.level = k.level AND n.index >= $2 >> k.level \
            LIMIT $3) AS n";
        let strays: Vec<Stray> = diesel::sql_query(STRAYS)
            .bind::<Int4, _>(stream)
            .bind::<Int8, _>(size)
            .bind::<Int8, _>(LISTED)
            .load(connection)
            .await?;
        for Stray { level, index } in strays {
            let found = format!("level {level} index {index}");
            self.findings.add((stream, index), "audit_nodes", "no such subtree", found);
        }
        Ok(())
    }
}
