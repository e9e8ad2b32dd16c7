//! Publishing: what is signed is written where it is published, then recorded in the database.
//!
//! Cut off before the writing, it is done again; after it, the object is found there, and is the same; after the record,
//! nothing is left to do.

use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::super::heads::{CheckpointRow, HeadRow};
use super::compare::Newest;
use super::place::{Place, Trouble};
use super::{Object, Publication, Standing, State, name};
use crate::error::{Error, Result};
use crate::store::Deadline;
use crate::store::schema::{audit_checkpoints, audit_heads};

/// How many heads one object holds, where several checkpoints wait: then some of these are not published themselves.
const AT_ONCE: i64 = 4096;

impl Publication {
    /// What must be so before anything is signed: the log has all that was published, and what is signed is published.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Conflict`], saying what to do.
    pub(in crate::audit) async fn prepare(&self, deadline: &Deadline) -> Result<()> {
        self.compare(deadline).await?;
        self.standing().objection().map_or(Ok(()), Err)?;
        self.publish(deadline).await
    }

    /// Publishes what is signed and not published. Whoever calls has the turn, and has compared.
    ///
    /// # Errors
    /// As [`Publication::prepare`].
    pub(in crate::audit) async fn publish(&self, deadline: &Deadline) -> Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        if self.trust.keys.is_empty() {
            return Ok(());
        }
        loop {
            let state = self.state.borrow().clone();
            let from = state.newest.map_or(0, |newest| newest.size);
            let Some(object) = self.next(from, deadline).await? else { return Ok(()) };
            self.put(place, &object, state.fresh).await?;
            let newest = Newest { size: object.checkpoint.size, at: object.heads.last().map(|head| head.at) };
            self.record(place, newest.size, deadline).await?;
            metrics::counter!(crate::telemetry::PUBLICATIONS).increment(1);
            self.set(State { standing: Standing::Whole, newest: Some(newest), fresh: false, ..state });
        }
    }

    /// The next checkpoint after so many heads, with the heads from there.
    async fn next(&self, from: u64, deadline: &Deadline) -> Result<Option<Object>> {
        let start = i64::try_from(from).map_err(Error::internal)?;
        let found: Option<(CheckpointRow, Vec<HeadRow>)> = self
            .store
            .snapshot(deadline, "audit.publish", async |connection| {
                let after = || {
                    let rows = audit_checkpoints::table.filter(audit_checkpoints::size.gt(start));
                    rows.select(CheckpointRow::as_select())
                };
                let within: Option<CheckpointRow> = after()
                    .filter(audit_checkpoints::size.le(start.saturating_add(AT_ONCE)))
                    .order(audit_checkpoints::size.desc())
                    .first(connection)
                    .await
                    .optional()?;
                let next = match within {
                    Some(next) => Some(next),
                    None => after().order(audit_checkpoints::size).first(connection).await.optional()?,
                };
                let Some(next) = next else { return Ok(None) };
                let heads = audit_heads::table
                    .filter(audit_heads::index.ge(start))
                    .filter(audit_heads::index.lt(next.size))
                    .order(audit_heads::index)
                    .select(HeadRow::as_select())
                    .load(connection)
                    .await?;
                Ok(Some((next, heads)))
            })
            .await?;
        let Some((row, heads)) = found else { return Ok(None) };
        let size = u64::try_from(row.size).map_err(Error::internal)?;
        let heads: Option<Vec<_>> = heads.iter().map(HeadRow::head).collect();
        let object = heads.and_then(|heads| Object::of(row.note, size, (from, heads), &self.trust));
        let tampered = || Error::Tampered { at: format!("audit_checkpoints, size {size}") };
        object.map(Some).ok_or_else(tampered)
    }

    /// Writes an object. One that is there already must say the same.
    async fn put(&self, place: &Place, object: &Object, first: bool) -> Result<()> {
        let size = object.checkpoint.size;
        match place.put(size, object.encode(), first).await {
            Ok(()) => Ok(()),
            Err(Trouble::Exists) => match self.fetch(place, size).await {
                // Another daemon was faster, or this one was cut off after it had written.
                Ok(there) if there.checkpoint == object.checkpoint => Ok(()),
                Ok(_) => Err(self.stand(Standing::Forked(format!("{} has another root", name(size))))),
                Err(why) => Err(self.stand(Standing::Away(why))),
            },
            Err(trouble) => Err(self.stand(Standing::Away(trouble.into()))),
        }
    }

    async fn record(&self, place: &Place, size: u64, deadline: &Deadline) -> Result<()> {
        let size = i64::try_from(size).map_err(Error::internal)?;
        self.store
            .autocommit(deadline, "audit.published", async |connection| {
                diesel::sql_query(
                    "INSERT INTO sidekeep.audit_publications AS p (destination, size, at) VALUES ($1, $2, clock_timestamp()) \
                     ON CONFLICT (destination) DO UPDATE SET size = excluded.size, at = excluded.at WHERE p.size < excluded.size",
                )
                .bind::<diesel::sql_types::Text, _>(place.name())
                .bind::<diesel::sql_types::Int8, _>(size)
                .execute(connection)
                .await?;
                Ok(())
            })
            .await
    }
}
