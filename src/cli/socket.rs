//! The running daemon, as commands find and ask it.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::value::RawValue;

use super::Global;
use super::client::{self, Answer, Refusal};
use super::exit::{Code, coded};
use crate::config;
use crate::config::Period;

/// Where the daemon is, and how long it may take.
#[derive(Debug, clap::Args)]
pub(super) struct Socket {
    /// The daemon's socket; without it that of the configuration, or the usual one where that may not be read
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", default_value = "60s")]
    timeout: Period,
}

impl Socket {
    /// Asks the daemon. An answer that is an error is one of the answers.
    pub(super) fn ask(&self, global: &Global, method: &str, params: &RawValue) -> anyhow::Result<Answer> {
        let path = match &self.socket {
            Some(path) => path.clone(),
            None => configured(global)?,
        };
        client::call(&path, method, params, self.limit()).map_err(|error| coded(Code::Usage, error))
    }

    /// At least a millisecond: zero means "for ever" to the operating system.
    fn limit(&self) -> Duration {
        self.timeout.duration().clamp(Duration::from_millis(1), Duration::from_secs(86_400))
    }
}

fn configured(global: &Global) -> anyhow::Result<PathBuf> {
    config::socket_path(global.config.as_deref()).map_err(|problem| {
        coded(
            Code::Config,
            format!("{problem}\n(the configuration says where the socket is; --socket PATH does without)"),
        )
    })
}

/// An error answer as a command's error.
pub(super) fn refused(refusal: &Refusal) -> anyhow::Error {
    let data = refusal.data.as_ref();
    let kind = data.and_then(|data| data.kind.clone()).unwrap_or_else(|| refusal.code.to_string());
    match data.and_then(|data| data.field.as_deref()) {
        Some(field) if !refusal.message.contains(field) => {
            anyhow::anyhow!("{kind}: {field}: {}", refusal.message)
        }
        _ => anyhow::anyhow!("{kind}: {}", refusal.message),
    }
}

/// The parameters of a method that takes none.
pub(super) fn no_params() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
