//! The end of archived objects: past their period they are deleted, and their manifests stay, with a signed document that says
//! so. Not those in which a person is named who is held.
//!
//! The document comes first, then the object goes, then it is recorded: cut off in between, it is done again. While the object
//! goes, no hold is placed: whoever places one waits, and has it before or after. Months of the
//! database that are gone are not asked: whom an object names is read from the object. Nothing is said to be gone from a place
//! that has not its manifest: a directory may not be mounted, a bucket may be another one.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel_async::RunQueryDsl;

use super::manifest::{self, Body, LARGEST, REMOVED, Removed};
use super::run::{away, removal};
use super::unpack::unpack;
use crate::audit::archive::Archived;
use crate::audit::document::Signed;
use crate::clock;
use crate::config::{Config, Destination};
use crate::error::{Error, Result, chain};
use crate::objects::{Objects, Trouble};
use crate::records::Records;
use crate::records::retention::{Retired, Retiring};
use crate::store::schema::legal_holds;
use crate::store::{Connection, Deadline, Store};

/// How long an object may take to go, while those who place a hold wait: a store that is silent for longer is away.
const GOING: Duration = Duration::from_secs(15);
/// With the wait for those who are placing one.
const ALL_IN_ALL: Duration = Duration::from_secs(25);

/// Nobody is held, or let go, from here to the end of the transaction.
const STILL: &str = "LOCK TABLE sidekeep.legal_holds IN SHARE MODE";
/// However long the store takes, the server does not end the session for being idle.
const PATIENT: &str = "SELECT set_config('idle_in_transaction_session_timeout', '0', true)";

/// Counts the objects that are past their period, by the database alone: with those whose months go first, where they are
/// foreseen.
///
/// # Errors
/// The store's.
pub async fn due(records: &Records, at: DateTime<Utc>, foreseen: bool, deadline: &Deadline) -> Result<i64> {
    let due = records.log().expired_archives(at, foreseen, deadline).await?;
    i64::try_from(due.len()).map_err(Error::internal)
}

/// Counts the objects that [`retire`] will delete, after the months that go first: reads those that may name who is held.
///
/// # Errors
/// As [`retire`].
pub async fn foresee(
    records: &Records,
    config: &Config,
    at: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<i64> {
    let expiry = Expiry { records, config, deadline };
    let due = records.log().expired_archives(at, true, deadline).await?;
    Ok(expiry.each(due, None).await?.removed)
}

/// Deletes the objects that are past their period and whose months are gone. What is held is told as busy.
///
/// # Errors
/// [`Error::Unavailable`] where an archive cannot be reached, or is not where it was; [`Error::Conflict`] where it has something
/// else under the name, or without a signing key. The others were tried; what was deleted stays recorded.
pub async fn retire(records: &Records, config: &Config, retiring: &Retiring<'_>) -> Result<Retired> {
    let expiry = Expiry { records, config, deadline: retiring.deadline };
    let due = records.log().expired_archives(retiring.at, false, retiring.deadline).await?;
    expiry.each(due, Some(retiring)).await
}

struct Expiry<'a> {
    records: &'a Records,
    config: &'a Config,
    deadline: &'a Deadline,
}

impl Expiry<'_> {
    /// Object by object; counts alone where nothing is retiring.
    async fn each(&self, due: Vec<Archived>, retiring: Option<&Retiring<'_>>) -> Result<Retired> {
        let (mut retired, mut failed, mut unreachable) = (Retired::default(), None, HashSet::new());
        for archived in due {
            let object = Object::of(&archived)?;
            if unreachable.contains(object.place) {
                continue;
            }
            match self.one(&object, retiring).await {
                Ok(true) => retired.removed = retired.removed.saturating_add(1),
                Ok(false) => retired.busy = retired.busy.saturating_add(1),
                Err(error) => {
                    tracing::error!(part = archived.part.name(), error = %chain(&error), "it stays in the archive");
                    if matches!(error, Error::Unavailable { .. }) {
                        unreachable.insert(object.place.to_owned());
                    }
                    failed.get_or_insert(error);
                    if self.deadline.has_passed() {
                        break;
                    }
                }
            }
        }
        failed.map_or(Ok(retired), Err)
    }

    /// Whether it went, or would go: not while it names a person who is held.
    async fn one(&self, object: &Object<'_>, retiring: Option<&Retiring<'_>>) -> Result<bool> {
        let store = self.records.store();
        let place: Destination = object.place.parse().map_err(|_| wrong())?;
        let objects = Objects::open(&place, self.config).map_err(away)?;
        let body = object.described(&objects, self.config.deployment.name.as_str()).await?;
        let mut asked = held(store, self.deadline).await?;
        loop {
            if object.names(&objects, &body, asked.clone(), store).await? {
                return Ok(false);
            }
            if retiring.is_none() {
                return Ok(true);
            }
            // A hold may have been placed while the object was read.
            match self.unless_held((object, &objects), &body.deployment, &asked).await {
                Ok(None) => break,
                Ok(Some(held)) => asked = held,
                // It may have gone: then it is not there to be read again.
                Err(Error::UnknownOutcome) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(retiring) = retiring else { return Ok(true) };
        let archived = object.archived;
        let name = format!("{}/stream-{}", archived.part.month.format("%Y-%m"), archived.part.stream);
        let by = retiring.by("audit_archive", name);
        by.tells("entries", archived.part.entries());
        by.tells("sha256", archived.sha256.hex());
        self.records.log().record_removed(&archived.part, &by, retiring.tally).await
    }

    /// Deletes it, unless others are held than were asked for: answers them then. What is done twice here does no harm.
    async fn unless_held(
        &self,
        (object, objects): (&Object<'_>, &Objects),
        deployment: &str,
        asked: &HashSet<i64>,
    ) -> Result<Option<HashSet<i64>>> {
        let deadline = self.deadline.within(ALL_IN_ALL);
        let gone = self.records.store().transact(&deadline, "archive.delete", async |tx| {
            diesel::sql_query(PATIENT).execute(tx).await?;
            diesel::sql_query(STILL).execute(tx).await?;
            let held = open(tx).await?;
            if !held.is_subset(asked) {
                return Ok(Some(held));
            }
            let going = object.delete(objects, self.records, deployment);
            let silent =
                |_| Error::unavailable(format!("archive.destination: {} does not answer", object.place));
            deadline.within(GOING).run(going).await.map_err(silent)??;
            Ok(None)
        });
        gone.await
    }
}

/// One object, as the database has it.
struct Object<'a> {
    archived: &'a Archived,
    /// The destination.
    place: &'a str,
    /// Its name there.
    name: &'a str,
    /// Its manifest's name there.
    manifest: &'a str,
}

impl<'a> Object<'a> {
    fn of(archived: &'a Archived) -> Result<Self> {
        let (place, name) = split(&archived.object).ok_or_else(wrong)?;
        let (beside, manifest) = split(&archived.manifest).ok_or_else(wrong)?;
        (beside == place).then_some(Self { archived, place, name, manifest }).ok_or_else(wrong)
    }

    /// What its manifest says, which has to be of this object.
    async fn described(&self, objects: &Objects, deployment: &str) -> Result<Body> {
        let unlike = |what: &str| {
            let Self { place, manifest, .. } = self;
            Error::conflict(format!("{place}/{manifest} {what}; its object was not deleted"))
        };
        let bytes = match objects.get(self.manifest, LARGEST).await {
            Ok((bytes, _)) => bytes,
            Err(Trouble::Absent) => {
                return Err(Error::unavailable(format!(
                    "{}: the archive is not there, or has lost {}; nothing was deleted",
                    self.place, self.manifest
                )));
            }
            Err(trouble) => return Err(away(trouble)),
        };
        let (body, _) = manifest::read(&bytes).map_err(|why| unlike(&format!("cannot be read: {why}")))?;
        let same = body.deployment == deployment
            && body.part() == Some(self.archived.part)
            && body.sha256 == self.archived.sha256.hex();
        same.then_some(body).ok_or_else(|| unlike("is not of what was archived"))
    }

    /// Whether it names one of these persons. What cannot be read through may name anybody.
    async fn names(
        &self,
        objects: &Objects,
        body: &Body,
        persons: HashSet<i64>,
        store: &Store,
    ) -> Result<bool> {
        let Some(before) = body.before() else { return Ok(true) };
        match unpack(objects, self.name, before, persons, store.tracker()).await {
            Ok(found) => Ok(found.names || !found.flaws.is_empty() || found.sha256 != self.archived.sha256),
            // Deleted by a run that was cut off before it could record that.
            Err(Trouble::Absent) => Ok(false),
            Err(trouble) => Err(away(trouble)),
        }
    }

    async fn delete(&self, objects: &Objects, records: &Records, deployment: &str) -> Result<()> {
        let said = Removed {
            format: REMOVED.into(),
            deployment: deployment.into(),
            sha256: self.archived.sha256.hex(),
            removed_at: clock::now(),
            reason: "retention".into(),
        };
        let said = manifest::encode(&Signed::sign(records.log(), said)?)?;
        match objects.create(&removal(self.manifest), said).await {
            Ok(_) | Err(Trouble::Exists) => {}
            Err(trouble) => return Err(away(trouble)),
        }
        objects.delete(self.name).await.map_err(away)
    }
}

fn wrong() -> Error {
    Error::internal("audit_archives: a URL that is none of an archive")
}

/// A destination, and the name of an object there.
fn split(url: &str) -> Option<(&str, &str)> {
    let (place, rest) = url.rsplit_once("/archive/")?;
    let name = url.get(url.len().checked_sub(rest.len())?.checked_sub(super::FOLDER.len())?..)?;
    Some((place, name))
}

/// Who is held.
async fn held(store: &Store, deadline: &Deadline) -> Result<HashSet<i64>> {
    store.single(deadline, "archive.held", async |connection| open(connection).await).await
}

async fn open(connection: &mut Connection) -> Result<HashSet<i64>> {
    let open = legal_holds::table.filter(legal_holds::released_at.is_null());
    let held: Vec<i64> = open.select(legal_holds::subject_id).distinct().load(connection).await?;
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
