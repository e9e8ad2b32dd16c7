//! Whether a directory of dumps is the one that the last dump went to, and not what is there while it is not mounted. Asks the
//! database where that was, and looks for a file that is left with the first dump. Knows nothing of dumps.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::policy;
use super::shelf::Shelf;
use super::sink::away;
use crate::config::{Config, Destination};
use crate::error::{Error, Result};
use crate::objects::Trouble;
use crate::store::{Deadline, Store};

/// The file.
pub const MARK: &str = "sidekeep-dumps";
/// What is in it, for whoever finds it.
const TEXT: &[u8] = b"Dumps of sidekeep are kept in this directory. While this file is not here sidekeep makes none: it takes the directory for one \
that is not mounted.\n";
/// How long the database is asked by whoever can do without it.
const AT_MOST: Duration = Duration::from_secs(1);

/// Fails where the last dump was made to this destination, and it is a directory that lacks the file. Makes nothing.
///
/// # Errors
/// [`Error::Unavailable`], with what to do; the store's.
pub async fn stands(store: &Store, config: &Config, deadline: &Deadline) -> Result<()> {
    let before = policy::destination(store, deadline).await?;
    is_there(config, before, deadline).await
}

/// As [`stands`], for whoever only reads there: where the database is away that is no reason to refuse.
///
/// # Errors
/// [`Error::Unavailable`], with what to do.
pub async fn may_stand(store: &Store, config: &Config, deadline: &Deadline) -> Result<()> {
    match policy::destination(store, &deadline.within(AT_MOST)).await {
        Ok(before) => is_there(config, before, deadline).await,
        Err(_) => Ok(()),
    }
}

async fn is_there(config: &Config, before: Option<String>, deadline: &Deadline) -> Result<()> {
    let Some(destination @ Destination::Directory(path)) = &config.backup.destination else { return Ok(()) };
    if before.as_deref() != Some(destination.to_string().as_str()) {
        return Ok(());
    }
    let file = path.join(MARK);
    let looked = deadline.run(tokio::task::spawn_blocking(move || file.try_exists()));
    let looked = looked.await.map_err(|_| Error::unavailable("backup.destination did not answer in time"))?;
    match looked.map_err(Error::internal)? {
        Ok(true) => Ok(()),
        Ok(false) => {
            let (why, advice) = lost(path);
            Err(Error::unavailable(format!("backup.destination: {why}; {advice}")))
        }
        Err(error) => Err(Error::unavailable(format!("backup.destination: {}: {error}", path.display()))),
    }
}

/// What is said of a directory that lacks the file, and what to do.
pub fn lost(path: &Path) -> (String, String) {
    let (file, path) = (path.join(MARK), path.display());
    (
        format!("{path} is not where the dumps before are: there is no file {MARK} in it"),
        format!(
            "mount it; or where those dumps are lost, or came there without that file, let dumps go there from now on, as the \
             daemon's user: mkdir -p {path} && touch {}",
            file.display()
        ),
    )
}

/// Leaves the file in a directory, where there is none yet.
///
/// # Errors
/// The destination's.
pub async fn mark(shelf: &Shelf, config: &Config) -> Result<()> {
    if !matches!(config.backup.destination, Some(Destination::Directory(_))) {
        return Ok(());
    }
    match shelf.objects.create(MARK, Bytes::from_static(TEXT)).await {
        Ok(_) | Err(Trouble::Exists) => Ok(()),
        Err(trouble) => Err(away(shelf.objects.url(), &trouble)),
    }
}
