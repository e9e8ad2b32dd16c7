//! The handles that calls and jobs share, and whether they may be used yet.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Log;
use crate::config::{self, Config};
use crate::error::Error;
use crate::keyring::{Kek, KekError, Keks, Keyring, StartError};
use crate::records::Records;
use crate::store::connect::ConnectError;
use crate::store::{Deadline, Store};
use crate::telemetry::Telemetry;

/// How long the start waits for a PostgreSQL that is away, before it serves `unavailable` until it comes.
const START: Duration = Duration::from_secs(2);
/// How often it is tried from then on.
const AGAIN: Duration = Duration::from_millis(200);

/// Everything a call may use.
#[derive(Debug)]
pub struct App {
    /// The configuration that the daemon started with.
    pub config: Config,
    /// The records, with their store and keyring.
    pub records: Records,
    /// The daemon's own log and figures.
    pub telemetry: Telemetry,
    /// When this daemon started.
    pub started: Instant,
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
    #[error("keyring.key_files: {0}")]
    KeyFile(#[from] config::SecretError),
    /// A key file holds no key.
    #[error("keyring.key_files: {0}")]
    Kek(#[from] KekError),
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
    /// Opens keyring and store, and checks that they belong together; nothing of a person is served before. Where
    /// PostgreSQL is away it goes on trying, and every call that needs it is told so.
    ///
    /// # Errors
    /// Says what is missing and what to do about it.
    pub async fn open(
        config: Config,
        telemetry: Telemetry,
        tracker: TaskTracker,
        end: CancellationToken,
    ) -> Result<Arc<Self>, Arc<OpenError>> {
        let records = open_records(&config, &tracker, &end)?;
        let app = Arc::new(Self {
            records,
            state: watch::Sender::new(State::Waiting("not tried yet".into())),
            reload_error: Mutex::new(None),
            started: Instant::now(),
            config,
            telemetry,
            tracker,
            end,
        });
        app.prepare(START).await;
        if let State::Failed(error) = app.state() {
            return Err(error);
        }
        let waiting = app.clone();
        app.tracker.spawn(async move { waiting.keep_preparing().await });
        let observing = app.clone();
        app.tracker.spawn(async move { observing.records.store().observe(observing.end.clone()).await });
        Ok(app)
    }

    /// Whether calls may use the records.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// # Errors
    /// [`Error::Unavailable`] until database and keys have been found to belong together.
    pub fn ready(&self) -> Result<(), Error> {
        match &*self.state.borrow() {
            State::Ready => Ok(()),
            State::Waiting(why) => {
                Err(Error::unavailable(format!("PostgreSQL has not been reached since the start: {why}")))
            }
            State::Failed(error) => Err(Error::unavailable(error.to_string())),
        }
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

    async fn keep_preparing(&self) {
        while matches!(self.state(), State::Waiting(_)) {
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => self.prepare(self.config.limits.call_timeout.duration()).await,
                () = self.end.cancelled() => return,
            }
        }
    }

    async fn prepare(&self, patience: Duration) {
        let deadline = Deadline::after(patience, self.end.clone());
        let state = match self.check(&deadline).await {
            Ok(()) => State::Ready,
            Err(OpenError::Keyring(StartError::Database(error))) if is_away(&error) => {
                State::Waiting(error.to_string())
            }
            Err(error) => State::Failed(Arc::new(error)),
        };
        self.state.send_replace(state);
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
        self.records.keyring().check(store, deadline).await?;
        store.look(&self.end).await;
        Ok(())
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
    let store = Arc::new(Store::new(&config.database, &config::database_url(config)?, tracker.clone())?);
    let log = Arc::new(Log::start(store.clone(), keyring.clone(), &config.audit, end));
    Ok(Records::new(store, keyring, log, config.limits.clone()))
}

fn read_keks(config: &Config) -> Result<Keks, OpenError> {
    let mut keks = Vec::with_capacity(config.keyring.key_files.len());
    for file in &config.keyring.key_files {
        let path = PathBuf::from(file.to_string());
        keks.push((path.clone(), Kek::parse(path, &config::secret(file)?)?));
    }
    Ok(Keks::new(keks)?)
}
