//! The running daemon, as commands find and ask it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::client::{self, Answer};
use super::exit::{Code, coded};
use super::{Global, output};
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

    /// The result of a call, which must succeed.
    pub(super) fn result(
        &self,
        global: &Global,
        method: &str,
        params: &Map<String, Value>,
    ) -> anyhow::Result<Box<RawValue>> {
        match self.ask(global, method, &serde_json::value::to_raw_value(params)?)? {
            Answer::Error(refusal) => Err(refusal.into()),
            Answer::Result(result) => Ok(result),
        }
    }

    /// At least a millisecond: zero means "for ever" to the operating system.
    fn limit(&self) -> Duration {
        self.timeout.duration().clamp(Duration::from_millis(1), Duration::from_secs(86_400))
    }
}

/// Which part of a list is asked for.
#[derive(Debug, clap::Args)]
pub(super) struct Page {
    /// How many a page has at most
    #[arg(long, value_name = "N")]
    limit: Option<u16>,
    /// Where the last page ended
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct Items<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

impl Page {
    /// Prints a line for each item of all pages from this one on; with `--json` this page as it came.
    pub(super) fn each<T: DeserializeOwned>(
        &self,
        socket: &Socket,
        global: &Global,
        (method, mut params): (&str, Map<String, Value>),
        line: impl Fn(&T) -> String,
    ) -> anyhow::Result<()> {
        params.extend(self.limit.map(|limit| ("limit".to_owned(), limit.into())));
        params.extend(self.cursor.clone().map(|cursor| ("cursor".to_owned(), cursor.into())));
        loop {
            let result = socket.result(global, method, &params)?;
            if global.json {
                return Ok(output::line(result.get())?);
            }
            let page: Items<T> = serde_json::from_str(result.get())?;
            page.items.iter().try_for_each(|item| output::line(&line(item)))?;
            let Some(cursor) = page.next_cursor else { return Ok(()) };
            params.insert("cursor".to_owned(), cursor.into());
        }
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

/// The parameters that were given.
pub(super) fn params<const N: usize>(given: [(&str, Option<&str>); N]) -> Map<String, Value> {
    given.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into()))).collect()
}

/// The parameters of a method that takes none.
pub(super) fn no_params() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
