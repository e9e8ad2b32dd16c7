//! The handles that calls and jobs share, and whether they may be used yet.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Log;
use crate::backup;
use crate::backup::keyring::{Guard, Lateness, refuse_behind};
use crate::clock::Anchor;
use crate::config::{self, Config, OnGap};
use crate::error::Error;
use crate::keyring::{KekError, Keyring, Listed, SigningKeyError, StartError};
use crate::records::Records;
use crate::store::connect::ConnectError;
use crate::store::{Deadline, Store};
use crate::subjects::request::Pressing;
use crate::telemetry::Telemetry;

pub use keys::public_keys;
use keys::{read_keks, read_signers};

mod keys;

/// How long the service manager waits for a PostgreSQL that is away, before it is told that this daemon serves.
const START: Duration = Duration::from_secs(2);
/// How often a PostgreSQL that answers, but not as it has to, is tried.
const AGAIN: Duration = Duration::from_millis(200);
/// How often profiles without digests are looked for.
const LATER: Duration = Duration::from_secs(10);

/// How long the other daemons may take to notice other keys.
const RELOAD: Duration = Duration::from_secs(20);

/// How long the first caller may be kept waiting for the first look at PostgreSQL, and how often it is asked whether it came.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

/// Everything a call may use.
#[derive(Debug)]
pub struct App {
    /// The configuration that the daemon started with.
    pub config: Config,
    /// The records, with their store and keyring.
    pub records: Records,
    /// How many requests of people press.
    pub pressing: Pressing,
    /// How late the keyring's backup is.
    pub keyring_lateness: Lateness,
    /// Whether the database has lost what the keyring's backup tells, and may not be served.
    pub keyring_guard: Guard,
    /// How far the dump is that this daemon makes.
    pub dumping: backup::run::Progress,
    /// The daemon's own log and figures.
    pub telemetry: Telemetry,
    /// When this daemon started.
    pub started: Instant,
    /// That moment by this host's clocks: whether one was moved since.
    pub clock: Anchor,
    /// Where every task is spawned.
    pub tracker: TaskTracker,
    /// Cancelled when the daemon ends.
    pub end: CancellationToken,
    reload_error: Mutex<Option<String>>,
    state: watch::Sender<State>,
}

/// Whether database and keys have been found to belong together.
#[derive(Clone, Debug)]
pub enum State {
    /// Not yet: PostgreSQL has not been reached.
    Waiting(String),
    /// They do.
    Ready,
    /// They do not, and never will.
    Failed(Arc<OpenError>),
}

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration names a URL that cannot be had.
    #[error(transparent)]
    Url(#[from] config::DatabaseUrlError),
    /// A key file cannot be read.
    #[error("{key}: {source}; {make}")]
    KeyFile {
        /// What names it.
        key: &'static str,
        /// Which file, and what is wrong.
        source: config::SecretError,
        /// How one is made.
        make: &'static str,
    },
    /// A key file holds no key.
    #[error("keyring.key_files: {0}")]
    Kek(#[from] KekError),
    /// A file holds no signing key.
    #[error("signing.key_files: {0}")]
    SigningKey(#[from] SigningKeyError),
    /// A public key is of another deployment, or not what its id says.
    #[error(
        "signing.lost_keys: {0} is no key of this deployment: it begins with sidekeep/ and deployment.name, and its id is the key's"
    )]
    LostKey(config::PublicKey),
    /// The database's URL or certificates are wrong.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The schema is not one that this daemon can serve on.
    #[error("{0}")]
    Schema(String),
    /// Keys and database do not belong together.
    #[error(transparent)]
    Keyring(#[from] StartError),
    /// PostgreSQL answered otherwise.
    #[error("PostgreSQL: {0}")]
    Database(String),
}

impl App {
    /// Opens keyring and store, and begins to check that they belong together; nothing of a person is served before. Where
    /// PostgreSQL is away it goes on trying, and every call that needs it is told so.
    ///
    /// # Errors
    /// Says what is missing and what to do about it.
    pub fn open(
        config: Config,
        telemetry: Telemetry,
        tracker: TaskTracker,
        end: CancellationToken,
    ) -> Result<Arc<Self>, Arc<OpenError>> {
        let records = open_records(&config, &tracker, &end)?;
        let app = Arc::new(Self {
            records,
            pressing: Pressing::default(),
            keyring_lateness: Lateness::default(),
            keyring_guard: Guard::new(&config),
            dumping: backup::run::Progress::default(),
            state: watch::Sender::new(State::Waiting("not tried yet".into())),
            reload_error: Mutex::new(None),
            started: Instant::now(),
            clock: Anchor::now(),
            config,
            telemetry,
            tracker,
            end,
        });
        let observing = app.clone();
        app.tracker.spawn(async move { observing.records.store().observe(observing.end.clone()).await });
        let preparing = app.clone();
        app.tracker.spawn(async move { preparing.prepare().await });
        let looking = app.clone();
        app.tracker.spawn(async move { looking.look_after().await });
        Ok(app)
    }

    /// Whether calls may use the records.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Whether database and keys have been found to belong together.
    pub fn is_ready(&self) -> bool {
        matches!(*self.state.borrow(), State::Ready)
    }

    /// Waits until database and keys have been found to belong together, and the database to lack nothing that the keyring's
    /// backup tells, as long as a call waits for a connection.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where that did not come.
    pub async fn ready(&self, deadline: &Deadline) -> Result<(), Error> {
        let deadline = deadline.within(self.config.database.acquire_timeout.duration());
        if self.is_ready() {
            return self.keyring_guard.admit(self.records.store(), &deadline).await;
        }
        let mut state = self.state.subscribe();
        // Whether the wait ended by itself is seen in the state.
        let _ = deadline.run(state.wait_for(|state| !matches!(state, State::Waiting(_)))).await;
        match &*state.borrow() {
            State::Ready => {}
            State::Waiting(why) => {
                return Err(Error::unavailable(format!(
                    "PostgreSQL has not been reached since the start: {why}"
                )));
            }
            // The keys or the schema are wrong, which is for the operator's eyes.
            State::Failed(_) => {
                return Err(Error::unavailable("this daemon cannot serve, as its log says"));
            }
        }
        self.keyring_guard.admit(self.records.store(), &deadline).await
    }

    /// Whether calls may be answered from the database as it is now, where that is known without waiting.
    pub fn serves(&self) -> bool {
        self.is_ready() && self.keyring_guard.is_open(self.records.store())
    }

    /// Ends when calls can be answered, or when PostgreSQL has kept them waiting so long that it is not waited for.
    pub async fn settled(&self) {
        let mut state = self.state.subscribe();
        let ready = state.wait_for(|state| matches!(state, State::Ready));
        if tokio::time::timeout(START, ready).await.is_err() && matches!(self.state(), State::Failed(_)) {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when it is known whether PostgreSQL is there: so that the first caller is not told that nobody has looked yet.
    pub async fn looked(&self) {
        let looked = async {
            loop {
                let seen = self.records.store().watch().seen();
                let waiting = matches!(self.state(), State::Waiting(_));
                if seen.is_some_and(|seen| !waiting || seen.server.is_err()) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        // A server that stands still is not waited for.
        let _ = tokio::time::timeout(FIRST_LOOK, looked).await;
    }

    /// Ends when calls may use the records.
    pub async fn opened(&self) {
        let mut state = self.state.subscribe();
        // The sender is in this value, and so outlives the wait.
        let _ = state.wait_for(|state| matches!(state, State::Ready)).await;
    }

    /// Ends when it turns out that this daemon can never serve.
    pub async fn failed(&self) -> Arc<OpenError> {
        let mut state = self.state.subscribe();
        loop {
            if let State::Failed(error) = &*state.borrow_and_update() {
                return error.clone();
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What was wrong with the configuration when it was last read again.
    pub fn reload_error(&self) -> Option<String> {
        self.reload_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how reading the configuration again ended.
    pub fn note_reload(&self, error: Option<String>) {
        *self.reload_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// Reads the key files of this configuration, and goes on with these keys.
    ///
    /// # Errors
    /// A file holds no key, or a key that is left out is still in use; the old ones stay.
    pub async fn adopt_keys(&self, config: &Config) -> Result<(), OpenError> {
        let keks = read_keks(config)?;
        let deadline = Deadline::after(RELOAD, self.end.clone());
        Ok(self.records.keyring().adopt(self.records.store(), &deadline, keks).await?)
    }

    /// What no call waits for: older profiles are made ready to be found, and requests that press are counted.
    async fn look_after(&self) {
        tokio::select! {
            () = self.opened() => {}
            () = self.end.cancelled() => return,
        }
        let backed_up = async {
            if self.config.keyring.backup.is_some() {
                self.keyring_lateness.observe(self.records.store(), &self.end).await;
            }
        };
        let pressing = self.pressing.observe(self.records.store(), &self.end);
        let guarded = self.keyring_guard.observe(&self.records, &self.config, &self.end);
        tokio::join!(self.make_digests(), pressing, backed_up, guarded);
    }

    async fn make_digests(&self) {
        while !self.end.is_cancelled() {
            let deadline = Deadline::after(self.config.limits.call_timeout.duration(), self.end.clone());
            let pause = match self.records.make_digests(&deadline).await {
                Ok(true) => Duration::ZERO,
                // Daemons of the version before may still write profiles without digests.
                Ok(false) => LATER,
                Err(error) => {
                    tracing::debug!(%error, "digests of older profiles are made later");
                    LATER
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.end.cancelled() => {}
            }
        }
    }

    async fn prepare(&self) {
        while !self.end.is_cancelled() {
            let deadline = Deadline::after(self.config.limits.call_timeout.duration(), self.end.clone());
            let state = match self.check(&deadline).await {
                Ok(()) => State::Ready,
                Err(OpenError::Keyring(StartError::Database(error))) if is_away(&error) => {
                    State::Waiting(error.to_string())
                }
                Err(error) => State::Failed(Arc::new(error)),
            };
            let (ready, failed) = (matches!(state, State::Ready), matches!(state, State::Failed(_)));
            self.state.send_replace(state);
            let (keyring, store) = (self.records.keyring(), self.records.store());
            if ready {
                return keyring.stay_listed(store, &self.end).await;
            } else if failed {
                return keyring.leave(store).await;
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.end.cancelled() => {}
            }
        }
    }

    async fn check(&self, deadline: &Deadline) -> Result<(), OpenError> {
        let store = self.records.store();
        let schema = match store.schema(deadline).await {
            Ok(schema) => schema,
            Err(Error::Internal(cause)) => return Err(OpenError::Database(cause.to_string())),
            Err(error) => return Err(StartError::Database(error).into()),
        };
        if let Some(advice) = schema.advice() {
            return Err(OpenError::Schema(advice));
        }
        Ok(self.records.keyring().check(store, deadline, Listed::Yes).await?)
    }
}

fn is_away(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Overloaded { .. } | Error::UnknownOutcome)
}

fn open_records(
    config: &Config,
    tracker: &TaskTracker,
    end: &CancellationToken,
) -> Result<Records, OpenError> {
    let keyring = Arc::new(Keyring::new(config.deployment.name.as_str(), read_keks(config)?));
    let store = Arc::new(read_store(config, tracker)?);
    let log = Arc::new(Log::start(store.clone(), keyring.clone(), read_signers(config)?, config, end));
    Ok(Records::new(store, keyring, log, config.limits.clone()))
}

/// Opens the log for reading, without a daemon.
///
/// # Errors
/// As [`App::open`].
pub async fn open_log(
    config: &Config,
    tracker: &TaskTracker,
    end: &CancellationToken,
) -> Result<Arc<Log>, OpenError> {
    let (store, keyring) = open_keyed(config, tracker, end).await?;
    Ok(Arc::new(Log::reader(store, keyring, read_signers(config)?, config)))
}

async fn open_keyed(
    config: &Config,
    tracker: &TaskTracker,
    end: &CancellationToken,
) -> Result<(Arc<Store>, Arc<Keyring>), OpenError> {
    let keyring = Arc::new(Keyring::new(config.deployment.name.as_str(), read_keks(config)?));
    let store = open_store(config, tracker, end)?;
    let deadline = Deadline::after(config.limits.call_timeout.duration(), end.clone());
    fits(&store, &deadline).await?;
    keyring.check(&store, &deadline, Listed::No).await?;
    Ok((store, keyring))
}

/// Whether the schema is one to work with; to be asked before the keys: an older one may not have what is read of them.
///
/// # Errors
/// [`OpenError::Schema`], with what to do; the store's.
pub async fn fits(store: &Store, deadline: &Deadline) -> Result<(), OpenError> {
    match store.schema(deadline).await.map_err(StartError::Database)?.advice() {
        Some(advice) => Err(OpenError::Schema(advice)),
        None => Ok(()),
    }
}

/// Opens the records for a command that works without a daemon: what it enters in the log is staged, and a daemon takes it in.
///
/// # Errors
/// As [`App::open`].
pub async fn open_alone(
    config: &Config,
    tracker: &TaskTracker,
    end: &CancellationToken,
) -> Result<Records, OpenError> {
    let keyring = Arc::new(Keyring::new(config.deployment.name.as_str(), read_keks(config)?));
    let store = open_store(config, tracker, end)?;
    let deadline = Deadline::after(config.limits.call_timeout.duration(), end.clone());
    fits(&store, &deadline).await?;
    keyring.check(&store, &deadline, Listed::No).await?;
    let log = Log::reader(store.clone(), keyring.clone(), read_signers(config)?, config);
    let log = Arc::new(log);
    let records = Records::new(store, keyring, log, config.limits.clone());
    refuse_behind(&records, config, &deadline).await.map_err(StartError::Database)?;
    Ok(records)
}

/// Opens the records of another database than the configuration's, to append what sidekeep itself has to say. Its writer ends
/// with `end`.
///
/// # Errors
/// As [`App::open`].
pub async fn open_at(
    config: &Config,
    url: &str,
    tracker: &TaskTracker,
    end: &CancellationToken,
) -> Result<Records, OpenError> {
    let keyring = Arc::new(Keyring::new(config.deployment.name.as_str(), read_keks(config)?));
    let store = Arc::new(Store::new(&config.database, url, tracker.clone())?);
    let (watched, watching) = (store.clone(), end.clone());
    tracker.spawn(async move { watched.observe(watching).await });
    let deadline = Deadline::after(config.limits.call_timeout.duration(), end.clone());
    keyring.check(&store, &deadline, Listed::No).await?;
    let audit = config::Audit { streams: 1, on_gap: OnGap::Refuse, ..config.audit.clone() };
    let config = Config { audit, ..config.clone() };
    let log = Arc::new(Log::start(store.clone(), keyring.clone(), read_signers(&config)?, &config, end));
    Ok(Records::new(store, keyring, log, config.limits))
}

/// The keys of the configuration alone, of which it is not known whether they are a database's.
///
/// # Errors
/// As [`App::open`].
pub fn open_keys(config: &Config) -> Result<Keyring, OpenError> {
    Ok(Keyring::new(config.deployment.name.as_str(), read_keks(config)?))
}

/// Opens the database, without a daemon and without keys.
///
/// # Errors
/// As [`App::open`].
pub fn open_store(
    config: &Config,
    tracker: &TaskTracker,
    end: &CancellationToken,
) -> Result<Arc<Store>, OpenError> {
    let store = Arc::new(read_store(config, tracker)?);
    let (watched, watching) = (store.clone(), end.clone());
    tracker.spawn(async move { watched.observe(watching).await });
    Ok(store)
}

fn read_store(config: &Config, tracker: &TaskTracker) -> Result<Store, OpenError> {
    let replica = config::replica_url(config)?;
    let store = Store::new(&config.database, &config::database_url(config)?, tracker.clone())?;
    Ok(store.with_replica(&config.database, replica.as_ref().map(|url| url.as_str()))?)
}
