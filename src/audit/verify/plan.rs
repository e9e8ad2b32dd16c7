//! What there is to verify, from one snapshot: sizes and seals of the streams. Entries never change, so that they may be read
//! later.

use std::collections::HashMap;

use diesel::dsl::max;
use diesel::prelude::{ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::findings::Findings;
use super::state::{self, State};
use crate::audit::dropped;
use crate::audit::gap::{self, Gap};
use crate::audit::heads::{CheckpointRow, MOST, StreamRow, newest};
use crate::audit::log::Log;
use crate::audit::staged;
use crate::audit::tree::HEADS;
use crate::error::Result;
use crate::keyring::Deployment;
use crate::store::schema::{audit_heads, audit_streams};
use crate::store::{Connection, Deadline};

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
            plan.impossible(connection).await?;
            let last: Option<i64> = audit_heads::table
                .filter(audit_heads::index.ge(0))
                .filter(audit_heads::index.lt(MOST))
                .select(max(audit_heads::index))
                .get_result(connection)
                .await?;
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
}
