//! The end of archived objects: past their period they are deleted, and their manifests stay, with a signed document that says
//! so. Not those in which a person is named who is held.
//!
//! The document comes first, then the object goes, then it is recorded: cut off in between, it is done again. Months of the
//! database that are gone are not asked: whom an object names is read from the object.

use std::collections::HashSet;
use std::time::Duration;

use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel_async::RunQueryDsl;
use tokio_util::task::TaskTracker;

use super::manifest::{self, Body, LARGEST, REMOVED, Removed};
use super::run::{away, removal};
use super::unpack::unpack;
use crate::audit::Log;
use crate::audit::archive::Archived;
use crate::audit::document::Signed;
use crate::clock;
use crate::config::{Config, Destination};
use crate::error::{Error, Result};
use crate::objects::{Objects, Trouble};
use crate::store::schema::legal_holds;
use crate::store::{Deadline, Store};

/// What came of it, in objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Past their period, and there before.
    pub due: u64,
    /// Deleted, or to be deleted by a run that changes something.
    pub removed: u64,
    /// Kept for a person who is held.
    pub held: u64,
}

/// Deletes the objects of months that have been over for `keep`; counts alone where nothing is to be changed.
///
/// # Errors
/// [`Error::Unavailable`] where an archive cannot be reached; [`Error::Conflict`] without a signing key. What was deleted before
/// stays recorded.
pub async fn remove_expired(
    (store, log): (&Store, &Log),
    config: &Config,
    keep: Duration,
    dry_run: bool,
    deadline: &Deadline,
) -> Result<Expired> {
    let mut expired = Expired::default();
    for archived in log.expired_archives(keep, deadline).await? {
        expired.due = expired.due.saturating_add(1);
        let removing = Removing::new(&archived, config, store.tracker())?;
        // Asked for each: a hold may have been placed meanwhile.
        let held = held(store, deadline).await?;
        if !held.is_empty() && removing.names(held).await? {
            expired.held = expired.held.saturating_add(1);
            continue;
        }
        expired.removed = expired.removed.saturating_add(1);
        if !dry_run {
            removing.remove(log).await?;
            log.record_removed(&archived.part, deadline).await?;
        }
    }
    Ok(expired)
}

/// One object.
struct Removing<'a> {
    archived: &'a Archived,
    objects: Objects,
    object: &'a str,
    manifest: &'a str,
    deployment: &'a str,
    tracker: &'a TaskTracker,
}

impl<'a> Removing<'a> {
    fn new(archived: &'a Archived, config: &'a Config, tracker: &'a TaskTracker) -> Result<Self> {
        let wrong = || Error::internal("audit_archives: a URL that is none of an archive");
        let (place, object) = split(&archived.object).ok_or_else(wrong)?;
        let (_, manifest) = split(&archived.manifest).ok_or_else(wrong)?;
        let place: Destination = place.parse().map_err(|_| wrong())?;
        let objects = Objects::open(&place, config).map_err(away)?;
        let deployment = config.deployment.name.as_str();
        Ok(Self { archived, objects, object, manifest, deployment, tracker })
    }

    /// Whether it names one of these persons. What cannot be read through may name anybody.
    async fn names(&self, persons: HashSet<i64>) -> Result<bool> {
        let (bytes, _) = self.objects.get(self.manifest, LARGEST).await.map_err(away)?;
        let read = manifest::read(&bytes);
        let before = read.as_ref().ok().and_then(|(body, _): &(Body, _)| body.before());
        let Some(before) = before else { return Ok(true) };
        match unpack(&self.objects, self.object, before, persons, self.tracker).await {
            Ok(found) => Ok(found.names || !found.flaws.is_empty() || found.sha256 != self.archived.sha256),
            // Deleted by a run that was cut off before it could record that.
            Err(Trouble::Absent) => Ok(false),
            Err(trouble) => Err(away(trouble)),
        }
    }

    async fn remove(&self, log: &Log) -> Result<()> {
        let said = Removed {
            format: REMOVED.into(),
            deployment: self.deployment.into(),
            sha256: self.archived.sha256.hex(),
            removed_at: clock::now(),
            reason: "retention".into(),
        };
        let said = manifest::encode(&Signed::sign(log, said)?)?;
        match self.objects.create(&removal(self.manifest), said).await {
            Ok(_) | Err(Trouble::Exists) => {}
            Err(trouble) => return Err(away(trouble)),
        }
        self.objects.delete(self.object).await.map_err(away)
    }
}

/// A destination, and the name of an object there.
fn split(url: &str) -> Option<(&str, &str)> {
    let (place, rest) = url.rsplit_once("/archive/")?;
    let name = url.get(url.len().checked_sub(rest.len())?.checked_sub(super::FOLDER.len())?..)?;
    Some((place, name))
}

/// Who is held.
async fn held(store: &Store, deadline: &Deadline) -> Result<HashSet<i64>> {
    let held: Vec<i64> = store
        .single(deadline, "archive.held", async |connection| {
            let open = legal_holds::table.filter(legal_holds::released_at.is_null());
            Ok(open.select(legal_holds::subject_id).distinct().load(connection).await?)
        })
        .await?;
    Ok(held.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_url_is_a_destination_and_a_name() {
        let name = "archive/2026-08/stream-3-x.jsonl.zst";
        for place in ["s3://bucket/prefix", "file:///srv/archive", "gs://bucket"] {
            assert_eq!(split(&format!("{place}/{name}")), Some((place, name)));
        }
        assert_eq!(split("s3://bucket/x"), None);
    }
}
