//! Group commit: whatever arrived while the last batch was committing is the next one. There is no timer to wait for.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{Datelike as _, TimeDelta};
use diesel::prelude::{ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::draft::Draft;
use super::log::in_entry;
use super::people::People;
use super::queue::Request;
use super::refused::Refused;
use super::repeat;
use super::row::Stored;
use super::staged;
use super::stream::{Sealed, Sent, Settled, Stream};
use super::work::{Work, answer, distinct, one_try_less, refuse, still_wanted, without};
use crate::clock;
use crate::error::{Error, Result};
use crate::keyring::Keyring;
use crate::store::schema::audit_logs;
use crate::store::{Deadline, Store};

/// The most entries in one statement: more are no faster (the knee is at about 100).
const BATCH: usize = 1000;
/// How long one step may take before it is tried again.
const STEP: Duration = Duration::from_secs(10);
/// How often the lease is renewed, and the table of staged entries looked through.
const BEAT: Duration = Duration::from_secs(3);
/// How long the end of the daemon waits for what is left.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between attempts while PostgreSQL is away.
const PAUSE: Duration = Duration::from_millis(100);

/// One writer: it has at most one stream at a time.
#[derive(Debug)]
pub struct Writer {
    store: Arc<Store>,
    keyring: Arc<Keyring>,
    requests: mpsc::Receiver<Request>,
    idempotency: Duration,
    end: CancellationToken,
    people: People,
    stream: Option<Stream>,
}

impl Writer {
    /// A writer without a stream yet.
    pub fn new(
        store: Arc<Store>,
        keyring: Arc<Keyring>,
        requests: mpsc::Receiver<Request>,
        idempotency: Duration,
        end: CancellationToken,
    ) -> Self {
        Self { store, keyring, requests, idempotency, end, people: People::default(), stream: None }
    }

    /// Writes until the end, and then for a little while what is left in the queue.
    pub async fn run(self) {
        let end = self.end.clone();
        let farewell = async {
            end.cancelled().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            () = self.work() => {}
            // A server that stands still does not keep the daemon from ending. Who still waits hears that the outcome is unknown.
            () = farewell => {}
        }
    }

    async fn work(mut self) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let end = self.end.clone();
        loop {
            let first = tokio::select! {
                biased;
                // First, so that a queue that is never empty keeps neither the clock nor the orphans waiting.
                _ = beat.tick() => {
                    self.beat().await;
                    continue;
                }
                request = self.requests.recv() => request,
                () = end.cancelled(), if !self.requests.is_closed() => {
                    self.requests.close();
                    continue;
                }
            };
            let Some(first) = first else { break };
            let batch = self.gather(first);
            self.write(batch).await;
        }
        if let Some(stream) = self.stream.take() {
            stream.release(&self.step()).await;
        }
    }

    fn step(&self) -> Deadline {
        Deadline::after(STEP, CancellationToken::new())
    }

    /// Everything that waits, up to a batch.
    fn gather(&mut self, first: Request) -> VecDeque<Work> {
        let mut batch = VecDeque::new();
        let mut entries = 0_usize;
        let mut next = Some(first);
        while let Some(request) = next {
            if let Some(work) = Work::begin(request) {
                entries = entries.saturating_add(work.len());
                batch.push_back(work);
            }
            next = if entries < BATCH { self.requests.try_recv().ok() } else { None };
        }
        batch
    }

    /// Renews the lease, and takes in what daemons that died have left staged.
    async fn beat(&mut self) {
        let deadline = self.step();
        if let Some(stream) = &mut self.stream
            && (stream.is_closed() || !stream.renew(&deadline).await.unwrap_or(false))
        {
            self.stream = None;
        }
        let Ok(own) = self.keyring.own() else { return };
        match staged::orphans(&self.store, own, &deadline).await {
            Ok(orphans) if !orphans.is_empty() => {
                self.write(orphans.into_iter().map(|sealed| Work::Staged(Box::new(sealed))).collect()).await
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "staged entries could not be looked for"),
        }
    }

    /// Writes all of it, in order, however often PostgreSQL goes away; callers withdraw at their own deadlines.
    async fn write(&mut self, mut waiting: VecDeque<Work>) {
        while !waiting.is_empty() {
            let mut batch = distinct(&mut waiting);
            let mut failures = 0_u32;
            while !batch.is_empty() {
                batch = match self.attempt(batch).await {
                    Ok(left) => left,
                    Err((error, batch)) => {
                        failures = failures.saturating_add(1);
                        if failures == 1 {
                            tracing::warn!(%error, "the audit log cannot be written; trying again and again");
                        }
                        if self.end.is_cancelled() {
                            refuse(batch, || Error::unavailable("this daemon is ending"));
                            return;
                        }
                        tokio::time::sleep(PAUSE.saturating_mul(failures.min(5))).await;
                        still_wanted(batch)
                    }
                };
            }
        }
    }

    /// One attempt; answers what is still to be written.
    async fn attempt(&mut self, batch: Vec<Work>) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        let deadline = self.step();
        if self.stream.as_ref().is_none_or(Stream::is_closed) {
            self.stream = None;
            match self.lease(&deadline).await {
                Ok(stream) => self.stream = Some(stream),
                Err(error) => return Err((error, batch)),
            }
        }
        let batch = match self.weed(batch).await {
            Ok(batch) => batch,
            Err(failed) => return Err(failed),
        };
        if batch.is_empty() {
            return Ok(batch);
        }
        let drafts: Vec<&Draft> = batch.iter().flat_map(Work::drafts).collect();
        let refused = match self.people.meet(&self.store, &self.keyring, &drafts, &deadline).await {
            Ok(refused) => refused,
            Err(error) => return Err((error, batch)),
        };
        let batch = without(batch, &refused);
        if batch.is_empty() {
            return Ok(batch);
        }
        let drafts: Vec<&Draft> = batch.iter().flat_map(Work::drafts).collect();
        let referred = self.people.referred(&drafts);
        let mut sealed = match self.seal(&batch) {
            Ok(sealed) => sealed,
            Err(error) => return Err((error, batch)),
        };
        let (Some(stream), Ok(own)) = (self.stream.as_mut(), self.keyring.own()) else {
            return Err((Error::unavailable("no stream"), batch));
        };
        // From here on a caller that gives up is told that the outcome is not known.
        if !batch.iter().all(Work::send) {
            batch.iter().for_each(Work::not_sent);
            return Ok(still_wanted(batch));
        }
        metrics::histogram!("sidekeep_audit_batch_entries")
            .record(f64::from(u32::try_from(sealed.len()).unwrap_or(u32::MAX)));
        match stream.append(own, &mut sealed, &referred, &deadline).await {
            Ok(_) => {
                answer(batch, &sealed);
                Ok(Vec::new())
            }
            Err((refused, sent)) => self.recover(refused, sent, batch, sealed).await,
        }
    }

    async fn lease(&self, deadline: &Deadline) -> Result<Stream> {
        Stream::lease(&self.store, self.keyring.own()?, deadline).await
    }

    fn seal(&self, batch: &[Work]) -> Result<Vec<Sealed>> {
        let own = self.keyring.own()?;
        let mut sealed = Vec::new();
        for work in batch {
            match work {
                Work::Staged(staged) => sealed.push((**staged).clone()),
                Work::Append(group) => {
                    for draft in &group.drafts {
                        sealed.push(Sealed { entry: draft.seal(self.people.known(), own)?, staged: None });
                    }
                }
            }
        }
        Ok(sealed)
    }

    /// What to do about a batch that was not appended; answers what is to be tried again.
    async fn recover(
        &mut self,
        refused: Refused,
        sent: Sent,
        batch: Vec<Work>,
        sealed: Vec<Sealed>,
    ) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        tracing::debug!(?refused, entries = sealed.len(), "a batch was not appended");
        metrics::counter!("sidekeep_audit_refused_batches_total").increment(1);
        if !matches!(refused, Refused::Unknown) {
            batch.iter().for_each(Work::not_sent);
        }
        match refused {
            Refused::Unknown => return Ok(self.settle(sent, batch, &sealed).await),
            Refused::Lost => self.stream = None,
            Refused::StalePeople => {
                let drafts: Vec<&Draft> = batch.iter().flat_map(Work::drafts).collect();
                self.people.forget(&drafts);
                return Ok(one_try_less(batch));
            }
            Refused::Clock => {
                let deadline = self.step();
                if let Some(stream) = &mut self.stream
                    && let Err(error) = stream.renew(&deadline).await
                {
                    return Err((error, batch));
                }
            }
            Refused::NoMonth => {
                if let Err(error) = super::months::create(&self.store, &self.step()).await {
                    return Err((error, batch));
                }
            }
            Refused::Unmatched => return self.still_staged(batch).await,
            Refused::Duplicate => return self.known_ids(batch).await,
            Refused::Unwritable(why) => {
                tracing::warn!(why, "PostgreSQL takes no entries at present");
                refuse(batch, || {
                    Error::unavailable(format!("PostgreSQL takes no entries at present: {why}"))
                });
                return Ok(Vec::new());
            }
            Refused::Data(code) => return Ok(self.halve(batch, &code).await),
        }
        Ok(batch)
    }

    /// Asks until the outcome of a batch is known. Nothing else is written to the stream meanwhile.
    async fn settle(&mut self, sent: Sent, batch: Vec<Work>, sealed: &[Sealed]) -> Vec<Work> {
        let Some(mut stream) = self.stream.take() else { return batch };
        let mut sent = sent;
        loop {
            let Ok(own) = self.keyring.own() else { return batch };
            match stream.settle(&self.store, own, sent, &self.step()).await {
                Ok((settled, next)) => {
                    self.stream = next;
                    match settled {
                        Settled::Committed => answer(batch, sealed),
                        Settled::Unproven => refuse(batch, || Error::UnknownOutcome),
                        Settled::NotCommitted => {
                            batch.iter().for_each(Work::not_sent);
                            return still_wanted(batch);
                        }
                    }
                    return Vec::new();
                }
                Err((error, old)) => {
                    if self.end.is_cancelled() {
                        refuse(batch, || Error::UnknownOutcome);
                        return Vec::new();
                    }
                    tracing::warn!(%error, "the outcome of a batch is not known yet; asking again");
                    tokio::time::sleep(PAUSE).await;
                    (stream, sent) = *old;
                }
            }
        }
    }

    /// Refuses entries that claim to be from the future, alone.
    async fn weed(&self, batch: Vec<Work>) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        // By PostgreSQL's clock, whatever this host's says.
        let now = self.stream.as_ref().map_or_else(|| clock::now().utc(), Stream::now);
        let latest = now.checked_add_signed(TimeDelta::minutes(5));
        let early =
            |draft: &Draft| draft.entry.occurred_at.zip(latest).is_some_and(|(at, latest)| at > latest);
        let mut kept = Vec::with_capacity(batch.len());
        for work in batch {
            match work {
                Work::Append(group) => match group.drafts.iter().position(early) {
                    None => kept.push(Work::Append(group)),
                    Some(index) => {
                        let error = Error::invalid("occurred_at", "must not be more than five minutes ahead");
                        let many = group.drafts.len() > 1;
                        group.answer(Err(if many { in_entry(index, error) } else { error }));
                    }
                },
                staged => kept.push(staged),
            }
        }
        // An id of yesterday may stand in last month, where no index of this month finds it.
        let since = now.checked_sub_signed(TimeDelta::from_std(self.idempotency).unwrap_or_default());
        let new_month = since.is_none_or(|since| since.month() != now.month());
        if new_month && kept.iter().any(Work::is_repeatable) {
            return self.known_ids(kept).await;
        }
        Ok(kept)
    }

    /// Answers the groups whose ids are in the log already; the others are left.
    async fn known_ids(&self, batch: Vec<Work>) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        let ids: Vec<&str> = batch.iter().flat_map(Work::ids).collect();
        let found = self
            .store
            .single(&self.step(), "audit.ids", async |connection| {
                let rows = audit_logs::table.filter(audit_logs::id.eq_any(&ids)).select(Stored::as_select());
                let rows: Vec<Stored> = rows.load(connection).await?;
                Ok(rows)
            })
            .await;
        let found: HashMap<String, Stored> = match found {
            Ok(found) => found.into_iter().map(|stored| (stored.id.clone(), stored)).collect(),
            Err(error) => return Err((error, batch)),
        };
        let mut left = Vec::new();
        for work in batch {
            match work {
                Work::Append(group)
                    if group.drafts.iter().any(|draft| found.contains_key(&draft.entry.id)) =>
                {
                    let result =
                        repeat::answer(&self.store, &self.keyring, &group.drafts, &found, &self.step()).await;
                    group.answer(result);
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

    /// Leaves out what another daemon has taken in meanwhile.
    async fn still_staged(&self, batch: Vec<Work>) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        let numbers: Vec<i64> = batch.iter().filter_map(Work::number).collect();
        match staged::remaining(&self.store, &numbers, &self.step()).await {
            Ok(left) => {
                Ok(batch.into_iter().filter(|work| work.number().is_none_or(|n| left.contains(&n))).collect())
            }
            Err(error) => Err((error, batch)),
        }
    }

    /// A batch that fails on its data is halved until the entry that sinks it is alone.
    async fn halve(&mut self, mut batch: Vec<Work>, code: &str) -> Vec<Work> {
        if batch.len() <= 1 {
            tracing::error!(code, "PostgreSQL refuses an entry");
            refuse(batch, || Error::internal(format!("PostgreSQL refuses the entry: {code}")));
            return Vec::new();
        }
        let second = batch.split_off(batch.len() / 2);
        for mut half in [batch, second] {
            while !half.is_empty() {
                half = match Box::pin(self.attempt(half)).await {
                    Ok(left) => left,
                    Err((error, half)) => {
                        tracing::warn!(%error, "the audit log cannot be written; trying again");
                        tokio::time::sleep(PAUSE).await;
                        still_wanted(half)
                    }
                };
            }
        }
        Vec::new()
    }
}
