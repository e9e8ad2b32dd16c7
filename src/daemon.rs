//! The daemon's life: build the App, serve, drain on the first signal, abort on the second.
//!
//! Also what the service manager hears of it. Knows nothing of methods or tables, and never migrates.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::app::{App, OpenError};
use crate::config::{self, Config, Loaded};
use crate::keyring::StartError;
use crate::rpc::access::PolicyError;
use crate::rpc::call::Calls;
use crate::rpc::listener::{BindError, Listener};
use crate::rpc::server::{self, Shutdown};
use crate::rpc::{http, listener};
use crate::telemetry::Telemetry;

pub use signals::{Signal, signals};

mod signals;
mod text;

/// What the daemon starts with, and where a reload finds what changed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration, and where each of its values is from.
    pub loaded: Loaded,
    /// The file it came from, as the command line named it.
    pub path: Option<PathBuf>,
}

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every call in flight was answered.
    Drained,
    /// A second signal came; calls in flight were cut.
    Aborted,
}

/// Takes over the socket that systemd hands us, or makes our own. Clients may connect on return, and wait.
///
/// # Errors
/// [`BindError::InUse`] when a living daemon owns the path.
pub fn listen(config: &Config) -> Result<Listener, BindError> {
    let handed_over = sd_notify::listen_fds().map_err(|_| BindError::NotListening)?.next();
    match handed_over {
        Some(descriptor) => Listener::from_systemd(own(descriptor)),
        None => listener::bind(&config.socket),
    }
}

/// Takes over a descriptor that systemd has opened for this process.
#[expect(
    unsafe_code,
    reason = "a bare number from the environment is all that the protocol of sd_listen_fds(3) gives"
)]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: LISTEN_PID was this process's id, so systemd opened the descriptor for it; it is taken once, before
    // anything else of this process could have opened or closed one of that number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Why nothing was served, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Keys, database and configuration do not belong together.
    #[error("{0}")]
    Open(Arc<OpenError>),
    /// A rule of `[access]` cannot be followed.
    #[error(transparent)]
    Access(#[from] PolicyError),
    /// `metrics.listen` cannot be listened on.
    #[error("metrics.listen: {0}")]
    Metrics(std::io::Error),
}

impl RunError {
    /// Whether another start with the same configuration would end the same way.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Open(error) => matches!(
                &**error,
                OpenError::Url(_)
                    | OpenError::KeyFile { .. }
                    | OpenError::Kek(_)
                    | OpenError::SigningKey(_)
                    | OpenError::LostKey(_)
                    | OpenError::Connect(_)
                    | OpenError::Keyring(StartError::OtherDeployment { .. } | StartError::MissingKek { .. })
            ),
            Self::Access(_) => true,
            Self::Metrics(_) => false,
        }
    }
}

/// Serves until a signal ends it. `ready` runs once, when calls are answered.
///
/// # Errors
/// Why it did not start, or could not go on.
pub async fn run(
    settings: Settings,
    listener: Listener,
    telemetry: Telemetry,
    mut signals: mpsc::Receiver<Signal>,
    ready: impl FnOnce(),
) -> Result<Ended, RunError> {
    raise_descriptor_limit();
    let (shutdown, end, tracker) = (Shutdown::default(), CancellationToken::new(), TaskTracker::new());
    telemetry.upkeep(&tracker, end.clone());
    tracker.spawn(feed_watchdog(end.clone()));
    let opened = open(&settings, telemetry, &tracker, &end, &shutdown).await;
    let ended = match opened {
        Err(error) => Err(error),
        Ok(calls) => {
            let serving = Serving { calls, settings, shutdown, reloading: tokio::sync::Mutex::default() };
            serving.until_end(listener, &mut signals, ready).await
        }
    };
    end.cancel();
    tracker.close();
    tracker.wait().await;
    ended
}

async fn open(
    settings: &Settings,
    telemetry: Telemetry,
    tracker: &TaskTracker,
    end: &CancellationToken,
    shutdown: &Shutdown,
) -> Result<Arc<Calls>, RunError> {
    let config = settings.loaded.config.clone();
    let metrics = config.metrics.listen;
    let app = App::open(config, telemetry, tracker.clone(), end.clone()).map_err(RunError::Open)?;
    let calls = Calls::new(app)?;
    if let Some(address) = metrics {
        let listener = tokio::net::TcpListener::bind(address).await.map_err(RunError::Metrics)?;
        tracker.spawn(http::serve_metrics(listener, calls.clone(), shutdown.clone()));
    }
    Ok(calls)
}

/// A daemon that serves.
struct Serving {
    calls: Arc<Calls>,
    settings: Settings,
    shutdown: Shutdown,
    /// One after another: the last one has read the newest files.
    reloading: tokio::sync::Mutex<()>,
}

impl Serving {
    async fn until_end(
        &self,
        listener: Listener,
        signals: &mut mpsc::Receiver<Signal>,
        ready: impl FnOnce(),
    ) -> Result<Ended, RunError> {
        let Shutdown { drain, abort } = &self.shutdown;
        let serving = async {
            tokio::join!(
                server::run(listener, self.calls.clone(), self.shutdown.clone()),
                self.calls.jobs().run(drain, abort),
            )
        };
        self.calls.app().looked().await;
        let settled = self.calls.app().settled();
        tokio::pin!(serving, settled);
        let (mut failure, mut ready, mut reloads) = (None, Some(ready), FuturesUnordered::new());
        loop {
            tokio::select! {
                _ = &mut serving => break,
                error = self.calls.app().failed(), if failure.is_none() => {
                    error!("cannot serve: {error}");
                    failure = Some(error);
                    self.stop();
                }
                () = &mut settled, if ready.is_some() && failure.is_none() => {
                    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
                    info!(version = env!("CARGO_PKG_VERSION"), "serving");
                    ready.take().into_iter().for_each(|ready| ready());
                    let app = self.calls.app();
                    app.tracker.spawn(app.end.clone().run_until_cancelled_owned(text::let_go_when_calm()));
                }
                Some(()) = reloads.next(), if !reloads.is_empty() => {}
                Some(signal) = signals.recv() => match signal {
                    Signal::Reload => reloads.push(self.reload()),
                    Signal::Stop => self.stop(),
                },
            }
        }
        let aborted = self.shutdown.abort.is_cancelled();
        if !aborted {
            self.calls.enter_refusals().await;
        }
        self.shutdown.drain.cancel();
        self.shutdown.abort.cancel();
        match failure {
            Some(error) => Err(RunError::Open(error)),
            None if aborted => Ok(Ended::Aborted),
            None => Ok(Ended::Drained),
        }
    }

    /// The first time drains, the second time aborts.
    fn stop(&self) {
        if self.shutdown.drain.is_cancelled() {
            warn!("asked to stop again: calls in flight are cut");
            self.calls.cut();
            self.shutdown.abort.cancel();
            return;
        }
        info!("draining");
        tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
        self.calls.drain();
        self.shutdown.drain.cancel();
    }

    /// Applies what can change while serving. A configuration that is wrong changes nothing.
    async fn reload(&self) {
        let _one = self.reloading.lock().await;
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            tell(&[NotifyState::Reloading, now]);
        }
        let applied = self.apply().await;
        // Before it is logged: whoever has read that finds it in the status.
        self.calls.app().note_reload(applied.as_ref().err().cloned());
        let status = match applied {
            Err(problem) => {
                error!("the configuration is wrong; the old one stays: {problem}");
                format!("serving; the configuration is wrong and was not reloaded: {problem}")
            }
            Ok(waiting) if waiting.is_empty() => {
                info!("the configuration was reloaded");
                "serving".to_owned()
            }
            Ok(waiting) => {
                let keys = waiting.join(", ");
                warn!(keys, "the configuration was reloaded; these keys need a restart");
                format!("serving; needs a restart for {keys}")
            }
        };
        // A status is one line.
        let status = status.replace('\n', "; ");
        tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// Takes over `keyring.key_files`, `[access]` and `log.level`; answers the keys of others that differ from those this
    /// daemon started with.
    async fn apply(&self) -> Result<Vec<String>, String> {
        let loaded = config::load(self.settings.path.as_deref()).map_err(|problem| problem.to_string())?;
        self.calls.check_access(&loaded.config.access).map_err(|problem| problem.to_string())?;
        self.calls.app().adopt_keys(&loaded.config).await.map_err(|problem| problem.to_string())?;
        self.calls.grant(&loaded.config.access).map_err(|problem| problem.to_string())?;
        self.calls.app().telemetry.set_level(loaded.config.log.level);
        let values = |loaded: &Loaded| -> BTreeMap<String, Option<String>> {
            loaded.settings().into_iter().map(|setting| (setting.key, setting.value)).collect()
        };
        let (old, new) = (values(&self.settings.loaded), values(&loaded));
        let live = |key: &str| {
            key.starts_with("access.") || key.starts_with("keyring.key_files") || key == "log.level"
        };
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        Ok(keys.into_iter().filter(|key| old.get(*key) != new.get(*key) && !live(key)).cloned().collect())
    }
}

/// Tells systemd that the runtime still runs its tasks: a ping goes out only when a timer fired and a worker took it up.
async fn feed_watchdog(end: CancellationToken) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(limit / 2);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = tick.tick() => tell(&[NotifyState::Watchdog]),
        }
    }
}

/// Tells the service manager, if there is one.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(problem) = sd_notify::notify(states) {
        warn!(%problem, "the service manager could not be told");
    }
}

/// Every connection is a descriptor, and the usual soft limit of 1024 is there for `select`, which nobody uses here.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(problem) = raised {
        warn!(%problem, "the limit of open files could not be raised");
    }
}
