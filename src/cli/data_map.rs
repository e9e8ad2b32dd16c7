//! `sidekeep data-map`: what is held, as a record of processing. Reads the database's catalogue, and no data.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output};
use crate::app;
use crate::config;
use crate::store::Deadline;
use crate::subjects::data_map::data_map;

/// Print what is held, as a record of processing (GDPR Art. 30)
///
/// Each table and column of the database with its class, whose key opens it, how long it is kept, and what an export and an
/// erasure do with it. Needs no daemon and no key: it reads the catalogue of the configured database. Markdown, or JSON with --json.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let map = runtime()?.block_on(async {
        let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
        let store = app::open_store(&loaded.config, &tracker, &end)?;
        let deadline = Deadline::after(loaded.config.limits.call_timeout.duration(), end.clone());
        let map = data_map(&store, &loaded.config, &deadline).await;
        end.cancel();
        anyhow::Ok(map?)
    })?;
    if global.json {
        return Ok(output::line(&serde_json::to_string(&map)?)?);
    }
    Ok(output::bytes(map.markdown().as_bytes())?)
}
