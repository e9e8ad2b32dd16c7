//! Publication: checkpoints outside of the database, where whoever can change the database cannot change them.
//!
//! One object for each checkpoint, written once. The log is compared with the newest at the start, when PostgreSQL is another
//! server or another run of it, and before each checkpoint. A crash between two steps leaves a state that the next comparison
//! finds: a checkpoint that is signed and not published is published first, one that is published and not recorded as such is
//! recorded; nothing is published that is not committed.

mod bucket;
mod command;
mod compare;
mod declare;
mod directory;
mod object;
mod place;
mod standing;
mod write;

pub use object::{Object, Trust, name, size};
pub use standing::{Report, Standing};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gap::Gap;
use super::note::{VerifierKey, origin};
use super::stream::Sealed;
use super::tree::HEADS;
use super::verify::Break;
use crate::clock;
use crate::config::{Config, OnGap};
use crate::error::{Error, Result};
use crate::keyring::Keyring;
use crate::store::{Deadline, Store};
use compare::{Missing, Newest, Verdict};
use place::Place;

/// How often is looked whether PostgreSQL is another one.
const LOOK: Duration = Duration::from_millis(500);
/// How often a publication that cannot be used, or that the log is behind of, is tried again.
const AGAIN: Duration = Duration::from_secs(3);
/// How long a comparison may take.
const COMPARISON: Duration = Duration::from_secs(60);

/// The publication of one log.
#[derive(Debug)]
pub struct Publication {
    pub(super) store: Arc<Store>,
    pub(super) keyring: Arc<Keyring>,
    trust: Trust,
    place: Option<Place>,
    on_gap: OnGap,
    signs: bool,
    turn: Mutex<()>,
    state: watch::Sender<State>,
    wanted: Notify,
}

/// What the last comparison found.
#[derive(Clone, Debug, Default)]
struct State {
    standing: Standing,
    /// The run of the server that was compared.
    run: Option<String>,
    newest: Option<Newest>,
    /// Whether anything was ever published there.
    fresh: bool,
}

/// Heads that were published and are not there, though no entry is lost: the next comparison takes them over again.
fn unheaded(missing: &Missing) -> Break {
    let published = missing.newest.checkpoint.size;
    Break {
        stream: HEADS,
        position: i64::try_from(missing.count).unwrap_or(i64::MAX),
        expected: format!("{published} heads, as published"),
        found: missing.count.to_string(),
        what: "publication",
    }
}

/// Entries that were published, and that nobody has declared lost.
fn undeclared(gap: &Gap) -> Break {
    Break {
        stream: gap.stream,
        position: gap.kept_size,
        expected: format!("{} entries, as published", gap.lost_size),
        found: gap.kept_size.to_string(),
        what: "publication",
    }
}

impl Publication {
    /// What the configuration says, of which nothing is known yet.
    pub fn new(store: Arc<Store>, keyring: Arc<Keyring>, keys: Vec<VerifierKey>, config: &Config) -> Self {
        let place = Place::of(config);
        let standing = if place.is_some() { Standing::Unknown } else { Standing::Off };
        Self {
            trust: Trust { origin: origin(keyring.deployment()), keys },
            state: watch::Sender::new(State { standing, ..State::default() }),
            on_gap: config.audit.on_gap,
            signs: !config.signing.key_files.is_empty(),
            turn: Mutex::new(()),
            wanted: Notify::new(),
            store,
            keyring,
            place,
        }
    }

    /// How the log stands to it.
    pub fn standing(&self) -> Standing {
        self.state.borrow().standing.clone()
    }

    /// For `system.status`.
    pub fn report(&self) -> Report {
        let state = self.state.borrow().clone();
        let at = state.newest.and_then(|newest| newest.at);
        let age = at.and_then(|at| (clock::now().utc() - at.utc()).to_std().ok());
        Report {
            state: state.standing.word(),
            size: state.newest.map(|newest| newest.size),
            at,
            age_seconds: age.map(|age| age.as_secs()),
            message: state.standing.message(),
            gaps: if let Standing::Behind(gaps) = state.standing { gaps } else { Vec::new() },
        }
    }

    /// Why nothing may be appended, if that is so.
    pub(super) fn refusal(&self) -> Option<Error> {
        self.state.borrow().standing.refusal()
    }

    /// Waits until the log of this run of the server was compared: who appends first may contradict what was published.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where nothing may be appended, or it is not known yet.
    pub(super) async fn admit(&self, run: &str, deadline: &Deadline) -> Result<()> {
        if self.place.is_none() {
            return Ok(());
        }
        let mut state = self.state.subscribe();
        let compared = |state: &State| state.run.as_deref() == Some(run);
        if !compared(&state.borrow()) {
            self.wanted.notify_one();
            if deadline.run(state.wait_for(compared)).await.is_err() {
                return Err(Error::unavailable("the log is being compared with its publication"));
            }
        }
        self.refusal().map_or(Ok(()), Err)
    }

    /// Compares again whenever there is a reason to, until the end.
    pub(super) async fn guard(self: Arc<Self>, end: CancellationToken) {
        if self.place.is_none() {
            return;
        }
        let mut last = None::<Instant>;
        while !end.is_cancelled() {
            if self.is_due(last) {
                let deadline = Deadline::after(COMPARISON, end.clone());
                let compared = async {
                    let _turn = self.turn(&deadline).await?;
                    self.compare(&deadline).await
                };
                if let Err(error) = compared.await {
                    tracing::debug!(%error, "the log could not be compared with its publication");
                }
                last = Some(Instant::now());
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.wanted.notified() => last = None,
                () = end.cancelled() => {}
            }
        }
    }

    fn is_due(&self, last: Option<Instant>) -> bool {
        let state = self.state.borrow();
        let server = self.store.watch().seen().and_then(|seen| seen.server.ok());
        let other = server.is_some_and(|server| state.run.as_deref() != Some(server.run.as_str()));
        let well = matches!(state.standing, Standing::Whole);
        last.is_none_or(|last| last.elapsed() >= AGAIN && (other || !well))
    }

    /// One comparison or publication at a time.
    pub(super) async fn turn(&self, deadline: &Deadline) -> Result<MutexGuard<'_, ()>> {
        let busy = || Error::unavailable("the publication is busy");
        deadline.run(self.turn.lock()).await.map_err(|_| busy())
    }

    /// Compares; declares a gap where that is to be done by itself. Whoever calls has the turn.
    ///
    /// # Errors
    /// The store's: nothing has become known.
    pub(super) async fn compare(&self, deadline: &Deadline) -> Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let (run, verdict) = self.look(place, deadline).await?;
        let (run, verdict) = match verdict {
            Verdict::Behind(missing) if self.declares(&missing) => {
                let entries = self.declare(&missing, deadline).await?;
                self.tell(&missing.gaps, entries.len());
                self.look(place, deadline).await?
            }
            verdict => (run, verdict),
        };
        self.note(run, verdict);
        Ok(())
    }

    fn declares(&self, missing: &Missing) -> bool {
        self.signs && (missing.gaps.is_empty() || self.on_gap == OnGap::Record)
    }

    fn tell(&self, gaps: &[Gap], entries: usize) {
        for gap in gaps {
            tracing::warn!(
                stream = gap.stream,
                kept_size = gap.kept_size,
                lost_size = gap.lost_size,
                "a gap was declared: entries that were published are lost"
            );
        }
        metrics::counter!(crate::telemetry::AUDIT_GAPS).increment(u64::try_from(entries).unwrap_or(0));
    }

    fn note(&self, run: String, verdict: Verdict) {
        let fresh = matches!(verdict, Verdict::Fresh);
        let (standing, newest) = match verdict {
            Verdict::Fresh => (Standing::Whole, None),
            Verdict::Whole(newest) => (Standing::Whole, Some(newest)),
            Verdict::Behind(missing) => (Standing::Behind(missing.gaps.clone()), Some(missing.newest())),
            Verdict::Forked(newest, why) => (Standing::Forked(why), Some(newest)),
            Verdict::Away(why) => (Standing::Away(why), self.state.borrow().newest),
        };
        self.set(State { standing, run: Some(run), newest, fresh });
    }

    fn set(&self, state: State) {
        let before = self.standing();
        if before.word() != state.standing.word() {
            match state.standing.message() {
                Some(message) => tracing::error!(state = state.standing.word(), "{message}"),
                None => {
                    tracing::info!(state = state.standing.word(), "the log was compared with its publication")
                }
            }
        }
        self.state.send_replace(state);
    }

    fn stand(&self, standing: Standing) -> Error {
        let state = self.state.borrow().clone();
        let error = standing.objection();
        self.set(State { standing, ..state });
        error.unwrap_or_else(|| Error::unavailable("the publication is busy"))
    }

    /// Where the log is not what was published, for a verification, and why it could not be compared, where that is so: what a
    /// verification without its publication does not find must not look as if it were not there.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn contradictions(&self, deadline: &Deadline) -> Result<(Vec<Break>, Option<String>)> {
        let Some(place) = &self.place else { return Ok((Vec::new(), None)) };
        let _turn = self.turn(deadline).await?;
        let (run, verdict) = self.look(place, deadline).await?;
        let mut not_compared = None;
        let found = match &verdict {
            Verdict::Forked(newest, why) => vec![Break {
                stream: HEADS,
                position: i64::try_from(newest.size).unwrap_or(i64::MAX),
                expected: "what was published".into(),
                found: format!("something else: {why}"),
                what: "publication",
            }],
            Verdict::Behind(missing) if missing.gaps.is_empty() => vec![unheaded(missing)],
            Verdict::Behind(missing) => missing.gaps.iter().map(undeclared).collect(),
            Verdict::Away(why) => {
                tracing::warn!(why, "the log was verified without its publication");
                not_compared = Some(why.clone());
                Vec::new()
            }
            Verdict::Fresh | Verdict::Whole(_) => Vec::new(),
        };
        self.note(run, verdict);
        Ok((found, not_compared))
    }

    /// What the log lacks of its publication, and, where it is accepted, declares it.
    ///
    /// # Errors
    /// [`Error::Conflict`] without a publication, without a key to check it by, or where it contradicts the log.
    pub(super) async fn recover(&self, accept: bool, deadline: &Deadline) -> Result<(Vec<Gap>, Vec<Sealed>)> {
        let Some(place) = &self.place else {
            return Err(Error::conflict(
                "audit.publish is not set: there is nothing to compare the log with",
            ));
        };
        if self.trust.keys.is_empty() {
            return Err(Error::conflict(
                "signing.key_files is empty: name the key that has signed, to check the publication by",
            ));
        }
        let _turn = self.turn(deadline).await?;
        let (run, verdict) = self.look(place, deadline).await?;
        let (gaps, entries) = match &verdict {
            Verdict::Behind(missing) if accept || missing.gaps.is_empty() => {
                let entries = self.declare(missing, deadline).await?;
                self.tell(&missing.gaps, entries.len());
                (missing.gaps.clone(), entries)
            }
            Verdict::Behind(missing) => (missing.gaps.clone(), Vec::new()),
            _ => (Vec::new(), Vec::new()),
        };
        let declared = matches!(&verdict, Verdict::Behind(missing) if accept || missing.gaps.is_empty());
        if declared {
            self.compare(deadline).await?;
        } else {
            self.note(run, verdict);
        }
        match self.standing() {
            Standing::Behind(_) | Standing::Whole => Ok((gaps, entries)),
            other => Err(other.objection().unwrap_or_else(|| Error::conflict("the publication is off"))),
        }
    }
}
