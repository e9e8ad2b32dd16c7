//! The job that archives the log: months that are over go into the archive, once each.

use super::Counts;
use super::counting::Counting;
use crate::app::App;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::evidence::run::Archive;
use crate::objects::Objects;
use crate::store::Deadline;

/// Its name.
pub(super) const NAME: &str = "archive";
/// What it counts: months of streams, the entries in them, and the bytes of their objects.
const KINDS: [&str; 3] = ["months", "entries", "bytes"];

/// Archives what is due, or counts it.
///
/// # Errors
/// As [`Archive::run`].
pub(super) async fn run(app: &App, deadline: &Deadline, dry_run: bool) -> Result<Counts> {
    let config = &app.config;
    let destination = config.archive.destination.as_ref();
    let destination = destination.ok_or_else(|| Error::conflict("archive.destination is not set"))?;
    let objects = Objects::open(destination, config)
        .map_err(|trouble| Error::unavailable(format!("archive.destination: {trouble}")))?;
    let archive = Archive {
        objects,
        log: app.records.log(),
        deployment: config.deployment.name.as_str(),
        tracker: &app.tracker,
        deadline,
    };
    let after = config.archive.after.duration();
    if dry_run {
        let (months, entries) = archive.due(after).await?;
        return Ok(Counts::from([("months", months), ("entries", entries), ("bytes", 0)]));
    }
    let counting = Counting::begin(app.records.store(), NAME, &KINDS, deadline).await?;
    archive.run(after, &counting.tally()).await?;
    counting.counts(&KINDS, deadline).await
}

/// What has to be set first: a manifest is signed, so that daemons without a signing key leave it to those that have one.
pub(super) fn lacks(config: &Config) -> Option<&'static str> {
    match (&config.archive.destination, config.signing.key_files.as_slice()) {
        (None, _) => Some("archive.destination"),
        (_, []) => Some("signing.key_files"),
        _ => None,
    }
}
