//! Group commit: whatever arrived while the last batch was committing is the next one. There is no timer to wait for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::doing::Doing;
use super::draft::Draft;
use super::people::People;
use super::publication::Publication;
use super::queue::Request;
use super::refused::Refused;
use super::staged;
use super::stream::{Placed, Sent, Settled, Stream};
use super::work::{Work, answer, distinct, one_try_less, refuse, still_wanted, without};
use crate::error::{Error, Result, chain};
use crate::keyring::Keyring;
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
/// Before a batch is sent again that another transaction was in the way of.
const AGAIN: Duration = Duration::from_millis(10);

/// One writer: it has at most one stream at a time.
#[derive(Debug)]
pub struct Writer {
    publication: Arc<Publication>,
    pub(super) store: Arc<Store>,
    pub(super) keyring: Arc<Keyring>,
    requests: mpsc::Receiver<Request>,
    pub(super) idempotency: Duration,
    end: CancellationToken,
    people: People,
    pub(super) stream: Option<Stream>,
    /// Where the look through what was staged goes on.
    staged: i64,
    /// What is told of it.
    doing: Arc<Doing>,
    told: Option<i32>,
}

impl Writer {
    /// A writer without a stream yet.
    pub(super) fn new(
        publication: Arc<Publication>,
        requests: mpsc::Receiver<Request>,
        idempotency: Duration,
        doing: Arc<Doing>,
        end: CancellationToken,
    ) -> Self {
        let (store, keyring) = (publication.store.clone(), publication.keyring.clone());
        Self {
            publication,
            store,
            keyring,
            requests,
            idempotency,
            end,
            people: People::default(),
            stream: None,
            staged: 0,
            doing,
            told: None,
        }
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
            self.tell();
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

    /// Notes which stream it has, for whoever asks.
    fn tell(&mut self) {
        let now = self.stream.as_ref().map(Stream::shown);
        let told = now.as_ref().map(|leased| leased.stream);
        self.doing.has(self.told, now);
        self.told = told;
    }

    pub(super) fn step(&self) -> Deadline {
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
        if let Ok(lag) = staged::lag(&self.store, &deadline).await {
            self.doing.lags(lag);
        }
        let Ok(own) = self.keyring.own() else { return };
        match staged::orphans(&self.store, own, self.staged, &deadline).await {
            Ok((orphans, next)) => {
                self.staged = next;
                self.write(orphans.into_iter().map(|sealed| Work::Staged(Box::new(sealed))).collect()).await
            }
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
                Err(error) if self.publication.refusal().is_none() => return Err((error, batch)),
                Err(_) => {}
            }
        }
        // What is staged stays so, until the gap is declared.
        if self.publication.refusal().is_some() {
            refuse(batch, || self.publication.refusal().unwrap_or_else(|| Error::unavailable("try again")));
            return Ok(Vec::new());
        }
        let batch = match self.weed(batch).await {
            Ok(batch) => batch,
            Err(failed) => return Err(failed),
        };
        if batch.is_empty() {
            return Ok(batch);
        }
        let mut batch = match self.meet(batch, &deadline).await {
            Ok(batch) if batch.is_empty() => return Ok(batch),
            Ok(batch) => batch,
            Err((error, batch)) => return self.unprepared(error, batch).await,
        };
        let drafts: Vec<&Draft> = batch.iter().flat_map(Work::drafts).collect();
        let referred = self.people.referred(&drafts);
        let (Some(stream), Ok(own)) = (self.stream.as_mut(), self.keyring.own()) else {
            return Err((Error::unavailable("no stream"), batch));
        };
        if let Err(error) = batch.iter_mut().try_for_each(|work| work.seal(self.people.known(), own)) {
            return self.unprepared(error, batch).await;
        }
        // From here on a caller that gives up is told that the outcome is not known.
        if !batch.iter().all(Work::send) {
            batch.iter().for_each(Work::not_sent);
            return Ok(still_wanted(batch));
        }
        let mut entries: Vec<Placed<'_>> = batch.iter_mut().flat_map(Work::entries).collect();
        metrics::histogram!("sidekeep_audit_batch_entries")
            .record(f64::from(u32::try_from(entries.len()).unwrap_or(u32::MAX)));
        match stream.append(own, &mut entries, &referred, &deadline).await {
            Ok(_) => {
                answer(batch);
                Ok(Vec::new())
            }
            Err((refused, sent)) => self.recover(refused, sent, batch).await,
        }
    }

    /// Makes sure that everybody is known whom these entries name. Who is not yet is created, but not by an entry that is
    /// refused because its id is taken.
    async fn meet(&mut self, batch: Vec<Work>, deadline: &Deadline) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        let drafts: Vec<&Draft> = batch.iter().flat_map(Work::drafts).collect();
        if let Err(error) = self.people.find(&self.store, &self.keyring, &drafts, deadline).await {
            return Err((error, batch));
        }
        let creating = |work: &Work| work.is_repeatable() && self.people.lacks(work.drafts());
        let batch = if batch.iter().any(creating) { self.known_ids(batch).await? } else { batch };
        let drafts: Vec<&Draft> = batch.iter().flat_map(Work::drafts).collect();
        match self.people.create(&self.store, &self.keyring, &drafts, deadline).await {
            Ok(refused) => Ok(without(batch, &refused)),
            Err(error) => Err((error, batch)),
        }
    }

    async fn lease(&self, deadline: &Deadline) -> Result<Stream> {
        Stream::lease(&self.publication, self.keyring.own()?, deadline).await
    }

    /// What to do about a batch that was not appended; answers what is to be tried again.
    async fn recover(
        &mut self,
        refused: Refused,
        sent: Sent,
        batch: Vec<Work>,
    ) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        tracing::debug!(?refused, calls = batch.len(), "a batch was not appended");
        metrics::counter!("sidekeep_audit_refused_batches_total").increment(1);
        if !matches!(refused, Refused::Unknown) {
            batch.iter().for_each(Work::not_sent);
        }
        match refused {
            Refused::Unknown => return Ok(self.settle(sent, batch).await),
            Refused::Lost => self.stream = None,
            Refused::StalePeople => {
                let drafts: Vec<&Draft> = batch.iter().flat_map(Work::drafts).collect();
                let before = self.people.referred_ids(&drafts);
                self.people.forget(&drafts);
                let found = self.people.find(&self.store, &self.keyring, &drafts, &self.step()).await;
                // A rotation re-wraps each key once: the same people under other keys are no reason to give up.
                let same = found.is_ok() && self.people.referred_ids(&drafts) == before;
                return Ok(if same { batch } else { one_try_less(batch) });
            }
            Refused::Clock => {
                if let Err(error) = self.set_clock().await {
                    return Err((error, batch));
                }
            }
            Refused::NoMonth => match super::months::create(&self.store, &self.step()).await {
                Ok(0) => return Err((Error::unavailable("the month of this entry cannot be made"), batch)),
                Ok(_) => {}
                Err(error) => return Err((error, batch)),
            },
            Refused::Contended => tokio::time::sleep(AGAIN).await,
            Refused::Unmatched => return self.still_staged(batch).await,
            Refused::Duplicate => return self.known_ids(batch).await,
            Refused::Unwritable(why) => {
                tracing::warn!(why, "PostgreSQL takes no entries at present");
                refuse(batch, || {
                    Error::unavailable(format!("PostgreSQL takes no entries at present: {why}"))
                });
                return Ok(Vec::new());
            }
            Refused::Data(code) => {
                let error = Error::internal(format!("PostgreSQL refuses the entry: {code}"));
                return Ok(self.halve(batch, error).await);
            }
        }
        Ok(batch)
    }

    /// Takes PostgreSQL's time. Where it was set back, another stream goes on: the entries of this one would have to wait.
    async fn set_clock(&mut self) -> Result<()> {
        let deadline = self.step();
        let Some(stream) = &mut self.stream else { return Ok(()) };
        stream.renew(&deadline).await?;
        if stream.is_ahead()
            && let Some(stream) = self.stream.take()
        {
            tracing::warn!(stream = stream.number, "PostgreSQL's clock is behind its last entry");
            stream.release(&deadline).await;
        }
        Ok(())
    }

    /// Asks until the outcome of a batch is known. Nothing else is written to the stream meanwhile.
    async fn settle(&mut self, sent: Sent, batch: Vec<Work>) -> Vec<Work> {
        let Some(mut stream) = self.stream.take() else { return batch };
        let mut sent = sent;
        loop {
            let Ok(own) = self.keyring.own() else { return batch };
            match stream.settle(&self.store, own, sent, &self.step()).await {
                Ok((settled, next)) => {
                    self.stream = next;
                    match settled {
                        Settled::Committed => answer(batch),
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

    /// Whoever sinks a batch is found by halving it, until it is alone.
    async fn halve(&mut self, mut batch: Vec<Work>, error: Error) -> Vec<Work> {
        if batch.len() <= 1 {
            tracing::error!(error = %chain(&error), "an entry cannot be written");
            let error = std::cell::Cell::new(Some(error));
            refuse(batch, || {
                error.take().unwrap_or_else(|| Error::internal("refused with the entry before"))
            });
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

    /// What becomes of a batch that cannot be prepared: while PostgreSQL is away all of it waits, and anything else is the
    /// fault of one of its entries.
    async fn unprepared(&mut self, error: Error, batch: Vec<Work>) -> Result<Vec<Work>, (Error, Vec<Work>)> {
        match error {
            Error::Unavailable { .. } | Error::Overloaded { .. } | Error::UnknownOutcome => {
                Err((error, batch))
            }
            error => Ok(self.halve(batch, error).await),
        }
    }
}
