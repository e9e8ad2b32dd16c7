//! `sidekeep serve`: the daemon, as a service manager runs it.

use std::path::Path;

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use super::Global;
use super::exit::{Code, coded};
use crate::config::Loaded;
use crate::daemon::{self, Ended, Settings};
use crate::rpc::listener::BindError;
use crate::{config, telemetry};

/// Serve applications on the socket
///
/// Until SIGTERM or SIGINT; SIGHUP reads the configuration again. The first signal lets calls in flight end (socket.drain), a second one cuts them. Never changes the schema: that is
/// `sidekeep migrate`. Exits with 78 when the configuration is wrong and with 75 when a living daemon owns the socket.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    serve(Settings { loaded, path: global.config.clone() }, || {})
}

/// Serves with this configuration until a signal ends it.
pub(super) fn serve(settings: Settings, ready: impl FnOnce()) -> anyhow::Result<()> {
    let telemetry = telemetry::init(&settings.loaded.config.log);
    let runtime = runtime()?;
    let tracker = TaskTracker::new();
    let ended = runtime.block_on(async {
        let signals = daemon::signals(&tracker).context("the signals cannot be taken over")?;
        let listener = {
            let config = &settings.loaded.config;
            daemon::listen(config).map_err(|error| unbound(error, &config.socket.path, &settings.loaded))?
        };
        let loaded = settings.loaded.clone();
        let how = daemon::run(settings, listener, telemetry, signals, ready).await.map_err(|error| {
            if error.is_configuration() {
                coded(Code::Config, loaded.located(&error.to_string()))
            } else {
                error.into()
            }
        })?;
        tracker.close();
        tracker.wait().await;
        anyhow::Ok(how)
    })?;
    match ended {
        Ended::Drained => Ok(()),
        Ended::Aborted => anyhow::bail!("a second signal cut the calls in flight"),
    }
}

/// A runtime for the commands that need one; building it is most of what a short command would cost.
pub(super) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot be started")
}

fn unbound(error: BindError, path: &Path, loaded: &Loaded) -> anyhow::Error {
    match error {
        BindError::NoGroup { .. } | BindError::GroupRefused { .. } | BindError::PathTooLong { .. } => {
            coded(Code::Config, loaded.located(&error.to_string()))
        }
        BindError::InUse { .. } => {
            coded(Code::Busy, format!("{}: a living daemon owns this socket", path.display()))
        }
        other => anyhow::Error::new(other).context(format!("{}: cannot listen", path.display())),
    }
}
