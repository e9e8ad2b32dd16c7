//! Rotation: re-wraps every data key under the first key-encryption key, in batches, while calls go on.
//!
//! A crash at any point leaves some keys under the old one and some under the new one, which every daemon has: whoever goes
//! on finds what is left by its index. A key is replaced only while it is the one that was re-wrapped.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::batch::{Batch, Stretch};
use super::kek::Kek;
use super::person::Keyring;
use super::register::Daemon;
use super::usage;
use crate::error::{Error, Result};
use crate::store::{Deadline, Store};

/// How many batches are under way at once, each with one thread that wraps and one connection of the pool.
const LANES: i64 = 2;
/// Subject ids are below this.
const IDS: i64 = 1 << 53;
/// How long daemons that lack something are waited for: longer than a dead one stays on the list.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between looks at what others have still to do.
const AGAIN: Duration = Duration::from_millis(200);
/// How long one statement may take.
const STEP: Duration = Duration::from_secs(30);

/// How far the rotation that runs in this daemon is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    rewrapped: AtomicI64,
    left: AtomicI64,
}

/// What one round through the keys under one key-encryption key has come to.
#[derive(Debug, Default)]
struct Round {
    unopened: i64,
    example: Option<i64>,
    blocked: bool,
}

/// What is waited for, and since when.
#[derive(Debug, Default)]
struct Waiting(Option<Instant>);

impl Keyring {
    /// Re-wraps every data key under the first key-encryption key, and answers how many were. On return no key is under
    /// another one, and no daemon wraps new ones under another one.
    ///
    /// # Errors
    /// [`Error::Conflict`] naming the daemons that do not have the key, or not in the first place; [`Error::Tampered`] when
    /// all but the keys that do not open were re-wrapped. What was done stays done.
    pub async fn rotate(&self, store: &Store, deadline: &Deadline) -> Result<i64> {
        let target = self.keks().intended()?;
        self.progress.rewrapped.store(0, Ordering::Relaxed);
        let mut waiting = Waiting::default();
        while !deadline.has_passed() {
            match self.go_on(store, deadline, &target, &mut waiting).await {
                Ok(true) => return Ok(self.progress.rewrapped.load(Ordering::Relaxed)),
                Ok(false) => {}
                Err(Error::Unavailable { .. } | Error::Overloaded { .. } | Error::UnknownOutcome) => {}
                Err(error) => return Err(error),
            }
            // The end of the deadline is noticed above.
            let _ = deadline.run(tokio::time::sleep(AGAIN)).await;
        }
        Err(Error::unavailable("the rotation was not done in time; run it again"))
    }

    /// How many keys the rotation that runs in this daemon has re-wrapped, and how many are left.
    pub fn rotated(&self) -> (i64, i64) {
        (self.progress.rewrapped.load(Ordering::Relaxed), self.progress.left.load(Ordering::Relaxed))
    }

    /// Does what can be done now. Answers whether that was all.
    async fn go_on(
        &self,
        store: &Store,
        deadline: &Deadline,
        target: &Arc<Kek>,
        waiting: &mut Waiting,
    ) -> Result<bool> {
        let step = deadline.within(STEP);
        let living = self.look(store, &step).await?;
        let lacking = |daemon: &&Daemon| !daemon.kek_ids.iter().any(|id| id == target.id());
        let lacking: Vec<&Daemon> = living.iter().filter(lacking).collect();
        if !lacking.is_empty() {
            let what =
                "not have it among keyring.key_files; add its file there, and restart it or send it SIGHUP";
            waiting.for_daemons(target, &lacking, what)?;
            return Ok(false);
        }
        let (mut left, mut unopened, mut example) = (0_i64, 0_i64, None);
        for kek_id in self.others(store, &step, target).await? {
            let round = self.round(store, deadline, target, &kek_id).await?;
            if round.blocked {
                return Ok(false);
            }
            left = left.saturating_add(usage::count(store, &step, &kek_id).await?);
            unopened = unopened.saturating_add(round.unopened);
            example = example.or(round.example);
        }
        self.progress.left.store(left, Ordering::Relaxed);
        let late: Vec<&Daemon> = living.iter().filter(|daemon| daemon.wraps_under != target.id()).collect();
        if !late.is_empty() {
            let what = "still wrap new people's keys under another one; put it first in its keyring.key_files, and \
                restart it or send it SIGHUP";
            waiting.for_daemons(target, &late, what)?;
            return Ok(false);
        }
        waiting.0 = None;
        match example {
            _ if left > unopened => Ok(false),
            Some(example) => Err(Error::Tampered {
                at: format!(
                    "subjects.wrapped_key of {unopened} person(s), as of subject id {example}; the keys of all others were re-wrapped"
                ),
            }),
            // Those who were created between the look and the round are found by another look.
            None => Ok(self.others(store, &step, target).await?.is_empty()),
        }
    }

    /// The key-encryption keys in use beside the new one; counts what they wrap when the rotation begins.
    async fn others(&self, store: &Store, deadline: &Deadline, target: &Kek) -> Result<Vec<String>> {
        let mut others = usage::used(store, deadline).await?;
        others.retain(|id| id != target.id());
        if self.progress.rewrapped.load(Ordering::Relaxed) == 0 {
            let mut left = 0_i64;
            for id in &others {
                left = left.saturating_add(usage::count(store, deadline, id).await?);
            }
            self.progress.left.store(left, Ordering::Relaxed);
        }
        Ok(others)
    }

    async fn round(
        &self,
        store: &Store,
        deadline: &Deadline,
        target: &Arc<Kek>,
        from: &str,
    ) -> Result<Round> {
        let width = IDS.checked_div(LANES).unwrap_or(IDS);
        let lanes = (0..LANES).map(|lane| {
            let after = lane.saturating_mul(width).saturating_sub(1);
            let last = if lane.saturating_add(1) == LANES { IDS } else { after.saturating_add(width) };
            self.lane(store, deadline, target, Stretch { from, after, last })
        });
        let mut whole = Round::default();
        for part in try_join_all(lanes).await? {
            whole.unopened = whole.unopened.saturating_add(part.unopened);
            whole.example = whole.example.or(part.example);
            whole.blocked |= part.blocked;
        }
        Ok(whole)
    }

    async fn lane(
        &self,
        store: &Store,
        deadline: &Deadline,
        target: &Arc<Kek>,
        mut left: Stretch<'_>,
    ) -> Result<Round> {
        let mut round = Round::default();
        loop {
            let step = deadline.within(STEP);
            let Some(batch) = Batch::read(store, &step, left).await? else { return Ok(round) };
            let (end, deployment, keks, kek) =
                (batch.last(), self.deployment.clone(), self.keks(), target.clone());
            let wrapping = store.tracker().spawn_blocking(move || batch.rewrap(&deployment, &keks, &kek));
            let batch = wrapping.await.map_err(Error::internal)??;
            for id in &batch.unopened {
                tracing::error!(subject_id = id, kek_id = left.from, "a wrapped key does not open");
            }
            let unopened = i64::try_from(batch.unopened.len()).unwrap_or(i64::MAX);
            round.unopened = round.unopened.saturating_add(unopened);
            round.example = round.example.or(batch.unopened.first().copied());
            let Some(rewrapped) = batch.replace(store, &step, target.id()).await? else {
                round.blocked = true;
                return Ok(round);
            };
            self.progress.rewrapped.fetch_add(rewrapped, Ordering::Relaxed);
            self.progress.left.fetch_sub(rewrapped, Ordering::Relaxed);
            left.after = end;
        }
    }
}

impl Waiting {
    /// Waits on, or gives up and says for whom.
    fn for_daemons(&mut self, target: &Kek, daemons: &[&Daemon], what: &str) -> Result<()> {
        if self.0.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return Ok(());
        }
        let names: Vec<&str> = daemons.iter().map(|daemon| daemon.daemon.as_str()).collect();
        Err(Error::conflict(format!(
            "the rotation to the key-encryption key {} waits for daemons that {what}; then rotate again: {}",
            target.id(),
            names.join(", ")
        )))
    }
}
