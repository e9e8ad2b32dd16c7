//! Entries that a writer answers without writing them: those from the future, those whose ids are in the log already, and
//! staged ones that another daemon has taken in.

use std::collections::HashMap;

use chrono::{DateTime, Datelike as _, TimeDelta, Timelike as _, Utc};
use diesel::prelude::{ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::draft::Draft;
use super::log::in_entry;
use super::queue::Group;
use super::row::Stored;
use super::stream::Stream;
use super::work::Work;
use super::writer::Writer;
use super::{repeat, staged};
use crate::clock;
use crate::error::{Error, Result};
use crate::store::Deadline;
use crate::store::schema::audit_logs;

/// How far ahead of PostgreSQL's clock a caller's may be.
const AHEAD: TimeDelta = TimeDelta::minutes(5);

impl Writer {
    /// By PostgreSQL's clock, whatever this host's says.
    fn now(&self) -> DateTime<Utc> {
        self.stream.as_ref().map_or_else(|| clock::now().utc(), Stream::now)
    }

    /// Since when ids are looked for, at least.
    fn since(&self) -> Option<DateTime<Utc>> {
        self.now().checked_sub_signed(TimeDelta::from_std(self.idempotency).ok()?)
    }

    /// Refuses entries that claim to be from the future, alone.
    pub(super) async fn weed(&mut self, batch: Vec<Work>) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        let (now, since) = (self.now(), self.since());
        let latest = now.checked_add_signed(AHEAD);
        let early =
            |draft: &Draft| draft.entry.occurred_at.zip(latest).is_some_and(|(at, latest)| at > latest);
        let mut kept = Vec::with_capacity(batch.len());
        for work in batch {
            match work {
                Work::Append(group) => match group.drafts.iter().position(early) {
                    None => kept.push(Work::Append(group)),
                    Some(index) => {
                        let error = Error::invalid("occurred_at", "must not be more than five minutes ahead");
                        let listed = group.drafts.iter().any(|draft| draft.listed);
                        group.answer(Err(if listed { in_entry(index, error) } else { error }));
                    }
                },
                staged => kept.push(staged),
            }
        }
        // An id of yesterday may stand in last month, where no index of this month finds it.
        let month = |at: DateTime<Utc>| (at.year(), at.month());
        let new_month = since.is_none_or(|since| month(since) != month(now));
        if new_month && kept.iter().any(Work::is_repeatable) {
            return self.known_ids(kept).await;
        }
        Ok(kept)
    }

    /// Answers the groups whose ids are in the log already; the others are left.
    pub(super) async fn known_ids(&mut self, batch: Vec<Work>) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        let found = match self.find_ids(&batch).await {
            Ok(found) if found.is_empty() => return Ok(batch),
            Ok(found) => found,
            Err(error) => return Err((error, batch)),
        };
        let is_known = |work: &Work| work.drafts().any(|draft| found.contains_key(&draft.entry.id));
        // Its first sending may be what was found: from now on nobody may be told that nothing was appended.
        if !batch.iter().filter(|work| is_known(work)).all(Work::send) {
            return Ok(super::work::still_wanted(batch));
        }
        let deadline = self.step();
        // What is seen here a standby may lack, until something after it is committed.
        let confirmed = match &mut self.stream {
            Some(stream) => stream.renew(&deadline).await,
            None => Err(Error::unavailable("no stream")),
        };
        let proven = match confirmed {
            Ok(_) => true,
            Err(Error::UnknownOutcome) => false,
            Err(error) => return Err((error, batch)),
        };
        let mut left = Vec::new();
        for work in batch {
            match work {
                Work::Append(group)
                    if group.drafts.iter().any(|draft| found.contains_key(&draft.entry.id)) =>
                {
                    if !proven {
                        group.answer(Err(Error::UnknownOutcome));
                    } else if let Some(group) = self.repeated(group, &found, &deadline).await {
                        left.push(Work::Append(group));
                    }
                }
                // It was taken in before, and only its row is left.
                Work::Staged(staged) if found.contains_key(&staged.entry.id) => {
                    tracing::error!(id = staged.entry.id, "a staged entry is in the log already");
                }
                work => left.push(work),
            }
        }
        Ok(left)
    }

    /// Answers a group of which some entries are in the log already, or leaves the others of it to be written.
    async fn repeated(
        &self,
        mut group: Group,
        found: &HashMap<String, Stored>,
        deadline: &Deadline,
    ) -> Option<Group> {
        let listed = group.drafts.iter().any(|draft| draft.listed);
        let which = |place| if listed { format!("entries[{place}].id: ") } else { String::new() };
        let (places, drafts): (Vec<usize>, Vec<(String, &Draft)>) = group
            .drafts
            .iter()
            .enumerate()
            .filter(|(_, draft)| found.contains_key(&draft.entry.id))
            .map(|(place, draft)| (place, (which(place), draft)))
            .unzip();
        match repeat::answer(&self.store, &self.keyring, &drafts, found, deadline).await {
            Ok(receipts) => group.is_there(places.into_iter().zip(receipts).collect()),
            Err(error) => {
                group.answer(Err(error));
                return None;
            }
        }
        if group.drafts.is_empty() {
            group.appended(Vec::new());
            return None;
        }
        // All or none: what was found is of another call, and nothing of this one is there.
        group.not_sent();
        Some(group)
    }

    /// The entries that have these ids, of each the latest; as far back as ids are kept, and no months before.
    async fn find_ids(&self, batch: &[Work]) -> Result<HashMap<String, Stored>> {
        let ids: Vec<&str> = batch.iter().flat_map(Work::ids).collect();
        let first = |at: DateTime<Utc>| at.with_day(1)?.with_hour(0)?.with_minute(0)?.with_second(0);
        let since = self.since().and_then(first).unwrap_or(DateTime::UNIX_EPOCH);
        let rows: Vec<Stored> = self
            .store
            .single(&self.step(), "audit.ids", async |connection| {
                let rows = audit_logs::table
                    .filter(audit_logs::id.eq_any(&ids))
                    .filter(audit_logs::recorded_at.ge(since))
                    .order(audit_logs::recorded_at)
                    .select(Stored::as_select());
                Ok(rows.load(connection).await?)
            })
            .await?;
        Ok(rows.into_iter().map(|stored| (stored.id.clone(), stored)).collect())
    }

    /// Leaves out what another daemon has taken in meanwhile.
    pub(super) async fn still_staged(&self, batch: Vec<Work>) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        let numbers: Vec<i64> = batch.iter().filter_map(Work::number).collect();
        match staged::remaining(&self.store, &numbers, &self.step()).await {
            Ok(left) => {
                Ok(batch.into_iter().filter(|work| work.number().is_none_or(|n| left.contains(&n))).collect())
            }
            Err(error) => Err((error, batch)),
        }
    }
}
