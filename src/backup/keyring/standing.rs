//! How the database stands to its keyring's backup, and whether anything may be answered from it.
//!
//! One that was brought back from a physical copy, or failed over to a server that lacked some of it, holds whoever was erased since. It is
//! compared at the start and whenever PostgreSQL is another server or another run of it; until then, and while it is behind, no call is
//! answered from it. A backup that cannot be read keeps nobody out: health tells. With `audit.on_gap = "record"` a daemon that signs
//! takes such a database up by itself.

use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::recover::{Way, enter, recover};
use super::compare::compare;
use super::ring::Ring;
use crate::config::{Config, OnGap};
use crate::error::{Error, Result};
use crate::records::Records;
use crate::store::{Deadline, Store};

/// How often is looked whether PostgreSQL is another one.
const LOOK: Duration = Duration::from_millis(500);
/// How often a backup that cannot be read, or that the database is behind of, is tried again.
const AGAIN: Duration = Duration::from_secs(3);
/// How long a comparison may take.
const COMPARISON: Duration = Duration::from_secs(30);

/// How the database stands to its keyring's backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// There is to be none.
    Off,
    /// It was not compared yet.
    #[default]
    Unknown,
    /// The database has done all that the backup tells.
    Whole,
    /// The backup cannot be read, or not believed.
    Away(String),
    /// This object of the backup tells of something that the database has lost.
    Behind(String),
}

impl Standing {
    /// What is wrong, and what to do.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Off | Self::Unknown | Self::Whole => None,
            Self::Away(why) => Some(format!(
                "the keyring's backup cannot be compared with the database, so nobody knows whether it has lost erasures: keyring.backup: {why}"
            )),
            Self::Behind(object) => Some(format!(
                "the database has lost what its keyring's backup tells ({object}), by a restore or a fail-over, and may hold persons \
                 who were erased since; nothing is served until `sidekeep recover --accept-gap` has erased them again"
            )),
        }
    }
}

/// What was last found, and of which run of the server.
#[derive(Debug, Default)]
struct State {
    standing: Standing,
    run: Option<String>,
}

impl State {
    /// Whether anything may be answered from the database as it is now; nothing where that is not known yet.
    fn verdict(&self, store: &Store) -> Option<Result<()>> {
        let same = self.run.as_deref().and_then(|run| store.watch().is_run(run));
        match &self.standing {
            Standing::Off => Some(Ok(())),
            Standing::Behind(_) => Some(Err(refusal(&self.standing))),
            // It may come back as another one.
            _ if store.watch().is_away() => None,
            _ => (same == Some(true)).then_some(Ok(())),
        }
    }
}

/// The gate before everything that is answered from the database.
#[derive(Debug)]
pub struct Guard {
    state: watch::Sender<State>,
    wanted: Notify,
}

impl Guard {
    /// Of a daemon with this configuration.
    pub fn new(config: &Config) -> Self {
        let standing = if config.keyring.backup.is_some() { Standing::Unknown } else { Standing::Off };
        Self { state: watch::Sender::new(State { standing, run: None }), wanted: Notify::new() }
    }

    /// What was last found.
    pub fn standing(&self) -> Standing {
        self.state.borrow().standing.clone()
    }

    /// Whether anything may be answered from the database as it is now, where that is known without waiting.
    pub fn is_open(&self, store: &Store) -> bool {
        matches!(self.state.borrow().verdict(store), Some(Ok(())))
    }

    /// Waits until the database was compared, as long as a call may.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where nothing may be answered from it.
    pub async fn admit(&self, store: &Store, deadline: &Deadline) -> Result<()> {
        if let Some(verdict) = self.state.borrow().verdict(store) {
            return verdict;
        }
        let mut state = self.state.subscribe();
        let known = deadline.run(async {
            loop {
                self.wanted.notify_one();
                let changes = store.watch().changes();
                if let Some(verdict) = state.borrow_and_update().verdict(store) {
                    return verdict;
                }
                tokio::select! {
                    _ = state.changed() => {}
                    () = changes => {}
                }
            }
        });
        known.await.unwrap_or_else(|_| {
            let why = if store.watch().is_away() {
                "PostgreSQL cannot be reached"
            } else {
                "the database is being compared with the keyring's backup; try again"
            };
            Err(Error::unavailable(why))
        })
    }

    /// Compares again whenever there is a reason to, until the end.
    pub async fn observe(&self, records: &Records, config: &Config, end: &CancellationToken) {
        if self.standing() == Standing::Off {
            return;
        }
        let mut last = None::<Instant>;
        while !end.is_cancelled() {
            if self.is_due(records.store(), last) {
                let deadline = Deadline::after(COMPARISON, end.clone());
                if let Err(error) = self.look(records, config, &deadline).await {
                    tracing::debug!(%error, "the database could not be compared with the keyring's backup");
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

    /// Compares; takes the database up where that is to be done by itself.
    async fn look(&self, records: &Records, config: &Config, deadline: &Deadline) -> Result<()> {
        let (run, standing) = compare(records, config, deadline).await?;
        let is_behind = matches!(standing, Standing::Behind(_));
        self.note(run, standing);
        if !is_behind || config.audit.on_gap != OnGap::Record || !records.log().signs() {
            return Ok(());
        }
        let ring = Ring::open(config, records.keyring(), &records.log().public_keys()).await?;
        let found = recover(records.store(), &ring, Way::Recover(records), deadline).await?;
        tracing::warn!(erased_again = found.erased_again, "a database that had lost erasures was taken up");
        let (run, standing) = compare(records, config, deadline).await?;
        self.note(run, standing);
        enter(records, (Some(&found), 0), deadline).await
    }

    fn is_due(&self, store: &Store, last: Option<Instant>) -> bool {
        let state = self.state.borrow();
        let same = state.run.as_deref().is_some_and(|run| store.watch().is_run(run) != Some(false));
        let well = matches!(state.standing, Standing::Whole);
        last.is_none_or(|last| last.elapsed() >= AGAIN && !(same && well))
    }

    fn note(&self, run: String, standing: Standing) {
        if standing != self.standing() {
            match standing.message() {
                Some(message) => tracing::error!("{message}"),
                None => tracing::info!("the database was compared with the keyring's backup"),
            }
        }
        self.state.send_replace(State { standing, run: Some(run) });
    }
}

/// Why nothing is answered.
fn refusal(standing: &Standing) -> Error {
    Error::unavailable(standing.message().unwrap_or_default())
}

/// For a command that works without a daemon: refuses a database that is behind.
///
/// # Errors
/// [`Error::Unavailable`]; the store's.
pub async fn refuse_behind(records: &Records, config: &Config, deadline: &Deadline) -> Result<()> {
    if config.keyring.backup.is_none() {
        return Ok(());
    }
    match compare(records, config, deadline).await? {
        (_, standing @ Standing::Behind(_)) => Err(refusal(&standing)),
        _ => Ok(()),
    }
}
