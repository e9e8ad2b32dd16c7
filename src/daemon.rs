//! The daemon's life: build the App, serve, drain on the first signal, abort on the second.
//!
//! Also what the service manager hears of it. Knows nothing of methods or tables, and never migrates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::app::App;
use crate::config::Config;
use crate::error::Result;
use crate::rpc::call::Calls;
use crate::shims::app;
use crate::shims::config;
use crate::shims::rpc::listener::{BindError, Listener};
use crate::shims::rpc::{listener, server};

pub use signals::{Signal, signals};

mod signals;

/// What the daemon starts with, and where a reload finds what changed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
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
    match sd_notify::listen_fds()?.next() {
        Some(descriptor) => Listener::from_systemd(descriptor),
        None => listener::bind(&config.socket),
    }
}

/// Serves until a signal ends it. `ready` runs once, when calls are answered.
///
/// # Errors
/// Why it did not start: nothing was served then.
pub async fn run(
    settings: Settings,
    listener: Listener,
    mut signals: mpsc::Receiver<Signal>,
    ready: impl FnOnce(),
) -> Result<Ended> {
    raise_descriptor_limit();
    let Settings { config, path } = settings;
    let app = Arc::new(App::open(config).await?);
    let calls = Calls::new(app.clone());
    let (drain, abort) = (CancellationToken::new(), CancellationToken::new());
    let tracker = TaskTracker::new();
    tracker.spawn(feed_watchdog(abort.clone()));
    let serving =
        server::run(listener, calls, server::Shutdown { drain: drain.clone(), abort: abort.clone() });
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
    info!(version = env!("CARGO_PKG_VERSION"), "serving");
    ready();
    tokio::pin!(serving);
    let ended = loop {
        tokio::select! {
            done = &mut serving => break done,
            Some(signal) = signals.recv() => match signal {
                Signal::Reload => reload(&app, path.as_deref()),
                Signal::Stop if drain.is_cancelled() => {
                    warn!("a second signal: calls in flight are cut");
                    abort.cancel();
                }
                Signal::Stop => {
                    info!("draining");
                    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
                    drain.cancel();
                }
            },
        }
    };
    let aborted = abort.is_cancelled();
    abort.cancel();
    tracker.close();
    tracker.wait().await;
    ended?;
    Ok(if aborted { Ended::Aborted } else { Ended::Drained })
}

/// Applies what can change while serving. A configuration that is wrong changes nothing.
fn reload(app: &App, path: Option<&Path>) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
    let status = match config::load(path) {
        Err(problem) => {
            error!(%problem, "the configuration is wrong; the old one stays");
            format!("serving; the configuration is wrong and was not reloaded: {problem}")
        }
        Ok(loaded) => {
            let waiting = app::reload(app, loaded.config);
            if waiting.is_empty() {
                info!("the configuration was reloaded");
                "serving".to_owned()
            } else {
                let keys = waiting.join(", ");
                warn!(keys, "the configuration was reloaded; these keys need a restart");
                format!("serving; needs a restart for {keys}")
            }
        }
    };
    // A status is one line.
    let status = status.replace('\n', "; ");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
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
