//! The log as the rest of sidekeep sees it: append to it, stage into it, read it, prove it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::by::By;
use super::doing::{Doing, Leased};
use super::draft::{Draft, Known};
use super::entry::{Append, Outcome};
use super::gap::Gap;
use super::looks::Looks;
use super::note::VerifierKey;
use super::publication::Publication;
use super::queue::{Pinned, Queue, Receipt};
use super::stream::Sealed;
use super::writer::Writer;
use super::{months, staged};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::keyring::{DataKey, Keyring, Person, Signers, Subject, Whole};
use crate::store::{Connection, Deadline, Store};
use crate::values::{RecordId, UserId};

/// The log of one deployment.
#[derive(Debug)]
pub struct Log {
    pub(super) store: Arc<Store>,
    pub(super) keyring: Arc<Keyring>,
    pub(super) signers: Arc<Signers>,
    pub(super) verified: AtomicU64,
    pub(super) to_verify: AtomicU64,
    pub(super) publication: Arc<Publication>,
    queue: Queue,
    /// Whether its own writers take in what is staged, at once.
    writes: bool,
    doing: Arc<Doing>,
    pub(super) looks: Looks,
}

/// What was staged, if anything is to be.
pub type Staged = Option<Box<Sealed>>;

/// The actor of a call does not exist yet: roll back, create the person, and begin anew.
#[derive(Debug, thiserror::Error)]
#[error("the actor does not exist yet")]
pub struct UnknownActor(pub UserId);

impl Log {
    /// Starts the writers; they end with `end`, after what is left in the queue.
    pub fn start(
        store: Arc<Store>,
        keyring: Arc<Keyring>,
        signers: Signers,
        config: &Config,
        end: &CancellationToken,
    ) -> Self {
        let audit = &config.audit;
        let (queue, receivers) = Queue::new(audit.streams, audit.max_wait.duration());
        let doing = Arc::new(Doing::default());
        let log = Self::with(store, keyring, (signers.into(), config), (queue, doing.clone()));
        let log = Self { writes: true, ..log };
        for requests in receivers {
            let idempotency = audit.idempotency.duration();
            let writer =
                Writer::new(log.publication.clone(), requests, idempotency, doing.clone(), end.clone());
            log.store.tracker().spawn(writer.run());
        }
        log.store.tracker().spawn(log.publication.clone().guard(end.clone()));
        log
    }

    /// The log for reading alone, by a process that appends nothing.
    pub fn reader(store: Arc<Store>, keyring: Arc<Keyring>, signers: Signers, config: &Config) -> Self {
        let (queue, _) = Queue::new(1, Duration::ZERO);
        Self::with(store, keyring, (signers.into(), config), (queue, Arc::default()))
    }

    /// The same log as it stands in another database, for reading alone; what was published of it does not count there.
    pub fn elsewhere(&self, store: Arc<Store>) -> Self {
        let (queue, _) = Queue::new(1, Duration::ZERO);
        let (signers, config) = (self.signers.clone(), Config::default());
        Self::with(store, self.keyring.clone(), (signers, &config), (queue, Arc::default()))
    }

    fn with(
        store: Arc<Store>,
        keyring: Arc<Keyring>,
        (signers, config): (Arc<Signers>, &Config),
        (queue, doing): (Queue, Arc<Doing>),
    ) -> Self {
        let keys = signers.public().map(|key| VerifierKey::new(keyring.deployment(), key)).collect();
        let publication = Arc::new(Publication::new(store.clone(), keyring.clone(), keys, config));
        let (verified, to_verify) = (AtomicU64::new(0), AtomicU64::new(0));
        let looks = Looks::new(config.database.pool);
        Self { store, keyring, signers, verified, to_verify, publication, queue, writes: false, doing, looks }
    }

    /// Its publication.
    pub fn publication(&self) -> &Publication {
        &self.publication
    }

    /// Compares the log with its publication. Answers what streams have lost; with `accept` that is declared, and in the log
    /// on return.
    ///
    /// # Errors
    /// [`Error::Conflict`] and [`Error::Unavailable`], saying what to do.
    pub async fn recover(&self, accept: bool, deadline: &Deadline) -> Result<Vec<Gap>> {
        let (gaps, entries) = self.publication.recover(accept, deadline).await?;
        entries.into_iter().for_each(|entry| self.enter_staged(entry));
        if accept {
            self.drained(deadline).await?;
        }
        Ok(gaps)
    }

    /// Hands over what sidekeep itself has staged. Without a writer it is found in the table later.
    pub(super) fn enter_staged(&self, entry: Sealed) {
        self.queue.staged(&Pinned::default(), Box::new(entry));
    }

    /// Whether entries are taken: not while the log is behind its publication.
    pub fn takes_entries(&self) -> bool {
        self.may_append().is_ok()
    }

    fn may_append(&self) -> Result<()> {
        self.publication.refusal().map_or(Ok(()), Err)
    }

    /// The public keys of those that this daemon signs with, or has signed with before.
    pub fn public_keys(&self) -> Vec<Vec<u8>> {
        self.signers.public().map(<[u8]>::to_vec).collect()
    }

    /// Whether this daemon has a key to sign checkpoints with.
    pub fn signs(&self) -> bool {
        !self.signers.keys().is_empty()
    }

    /// About how many leaves the verification that runs has looked at, and how many entries the log has.
    pub fn verified(&self) -> (u64, u64) {
        (self.verified.load(Ordering::Relaxed), self.to_verify.load(Ordering::Relaxed))
    }

    /// How many requests wait, and how many may.
    pub fn waiting(&self) -> (usize, usize) {
        (self.queue.len(), self.queue.max())
    }

    /// The streams that this daemon has leased.
    pub fn leased(&self) -> Vec<Leased> {
        self.doing.leased()
    }

    /// How many entries were staged and waited when it was last looked, how long the oldest had, and how long ago that was.
    pub fn lag(&self) -> Option<(staged::Lag, Duration)> {
        self.doing.lag()
    }

    /// Makes the months ahead of need. Answers how many were made.
    ///
    /// # Errors
    /// The store's.
    pub async fn make_months(&self, deadline: &Deadline) -> Result<i64> {
        months::create(&self.store, deadline).await
    }

    /// How many months [`Log::make_months`] would make.
    ///
    /// # Errors
    /// The store's.
    pub async fn missing_months(&self, deadline: &Deadline) -> Result<i64> {
        months::missing(&self.store, deadline).await
    }

    /// Appends what an application gives.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Conflict`], and those of [`Queue::append`].
    pub async fn append(&self, by: &By, given: Append) -> Result<Receipt> {
        self.may_append()?;
        let drafts = vec![Draft::new(given, None)?];
        let receipts = self.queue.append(&by.pinned, drafts, by.turn(), &by.deadline).await?;
        receipts.into_iter().next().ok_or_else(|| Error::internal("an entry without a receipt"))
    }

    /// Appends what an application gives in a list, all or none.
    ///
    /// # Errors
    /// As [`Log::append`], naming the place in the list.
    pub async fn append_many(&self, by: &By, given: Vec<Append>) -> Result<Vec<Receipt>> {
        self.may_append()?;
        let mut drafts: Vec<Draft> = Vec::with_capacity(given.len());
        let mut ids = HashSet::new();
        for (index, given) in given.into_iter().enumerate() {
            let mut draft = Draft::new(given, None).map_err(|error| in_entry(index, error))?;
            draft.listed = true;
            if draft.given_id && !ids.insert(draft.entry.id.clone()) {
                return Err(Error::invalid(
                    format!("entries[{index}].id"),
                    "is that of another entry of this call",
                ));
            }
            drafts.push(draft);
        }
        self.queue.append(&by.pinned, drafts, by.turn(), &by.deadline).await
    }

    /// Appends the access entry of a call that staged none, and waits for the commit.
    ///
    /// # Errors
    /// As [`Log::append`]; the call must not be answered then.
    pub async fn note(&self, by: &By, outcome: Outcome, deadline: &Deadline) -> Result<()> {
        self.may_append()?;
        self.queue.append(&by.pinned, vec![by.draft(outcome)?], by.turn(), deadline).await.map(drop)
    }

    /// Enters that a peer was refused so often.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub async fn enter_refusals(
        &self,
        uid: u32,
        method: &'static str,
        count: u64,
        deadline: &Deadline,
    ) -> Result<()> {
        let mut by = By::new(deadline.clone(), Pinned::default(), method, uid);
        by.refused = Some(count);
        self.note(&by, Outcome::Denied, deadline).await
    }

    /// Stages the access entry of a call in the transaction of its change.
    ///
    /// # Errors
    /// The database's; [`UnknownActor`] within an internal error.
    pub async fn stage(&self, tx: &mut Connection, by: &By, subject: &Subject) -> Result<Staged> {
        self.stage_about(tx, by, Some(subject)).await
    }

    /// As [`Log::stage`], perhaps about a record whose person was erased.
    ///
    /// # Errors
    /// As [`Log::stage`].
    pub async fn stage_about(
        &self,
        tx: &mut Connection,
        by: &By,
        subject: Option<&Subject>,
    ) -> Result<Staged> {
        if !by.stages {
            return Ok(None);
        }
        if let Some(subject) = subject {
            by.concerns(&subject.user_id);
        }
        let subject =
            subject.map(|subject| (subject.user_id.as_str(), subject.id, Some(subject.key.clone())));
        self.stage_draft(tx, by, by.draft(Outcome::Success)?, subject).await
    }

    /// As [`Log::stage`], about a person whose key may be damaged: what would be sealed with it is left out then.
    ///
    /// # Errors
    /// As [`Log::stage`].
    pub async fn stage_keyless(&self, tx: &mut Connection, by: &By, person: &Whole) -> Result<Staged> {
        if let Whole::Yes(subject) = person {
            return self.stage(tx, by, subject).await;
        }
        if !by.stages {
            return Ok(None);
        }
        by.concerns_whole(person);
        let subject = (person.user_id(), person.subject_id(), None);
        self.stage_draft(tx, by, by.draft(Outcome::Success)?, Some(subject)).await
    }

    /// Stages the entry of an erasure in its transaction, whatever `audit.access` says: without it a key that is gone is one
    /// that somebody has taken. It bears the person's number, and nothing under the person's key. Whose address it came from
    /// is kept where that is another person's, who has a key to seal it with.
    ///
    /// # Errors
    /// As [`Log::stage`].
    pub async fn stage_erasure(
        &self,
        tx: &mut Connection,
        by: &By,
        erased: &Whole,
        entry_id: &RecordId,
    ) -> Result<Staged> {
        by.concerns_whole(erased);
        let mut draft = by.draft(Outcome::Success)?;
        draft.entry.id = entry_id.as_str().to_owned();
        if by.actor.as_ref().is_none_or(|actor| actor.as_str() == erased.user_id()) {
            draft.forget_client();
        }
        // The key goes with the person, damaged or not.
        draft.keyless = true;
        self.stage_draft(tx, by, draft, Some((erased.user_id(), erased.subject_id(), None))).await
    }

    async fn stage_draft(
        &self,
        tx: &mut Connection,
        by: &By,
        mut draft: Draft,
        subject: Option<(&str, i64, Option<DataKey>)>,
    ) -> Result<Staged> {
        self.may_append()?;
        let mut known = HashMap::new();
        if let Some((user_id, id, key)) = subject {
            known.insert(user_id.to_owned(), Known { id, key, wrapped_key: Vec::new() });
        }
        if let Some(actor) = by.actor.as_ref().filter(|actor| !known.contains_key(actor.as_str())) {
            let found = Person::find(tx, &[actor.as_str()]).await?;
            let Some(person) = found.into_iter().next() else {
                return Err(Error::internal(UnknownActor(actor.clone())));
            };
            let Subject { id, key, .. } = self.keyring.open(person)?;
            known.insert(actor.as_str().to_owned(), Known { id, key: Some(key), wrapped_key: Vec::new() });
        }
        let own = self.keyring.own()?;
        draft.seal(&known, own)?;
        if !self.writes {
            // A daemon takes it in whenever one runs: only the entry itself can tell when it was done.
            draft.entry.occurred_at = Some(staged::now(tx).await?);
        }
        let sealed = staged::stage(tx, own, draft.entry).await?;
        Ok(Some(Box::new(sealed)))
    }

    /// Hands over what was staged, after the commit.
    pub fn hand_over(&self, by: &By, staged: Staged) {
        if let Some(sealed) = staged {
            by.note_staged();
            self.queue.staged(&by.pinned, sealed);
        }
    }

    /// Waits until everything that was staged before now is in the log.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the deadline comes first.
    pub async fn drained(&self, deadline: &Deadline) -> Result<()> {
        self.may_append()?;
        staged::drained(&self.store, self.keyring.own()?, deadline).await
    }
}

/// At most so many entries in one call.
pub const APPEND_MANY: usize = 1000;

/// Names the entry that is wrong in a call with many.
pub(super) fn in_entry(index: usize, error: Error) -> Error {
    match error {
        Error::Invalid { field, message } => {
            Error::Invalid { field: format!("entries[{index}].{field}"), message }
        }
        other => other,
    }
}
