//! Restoring a dump into an empty database: everything is checked before anything is touched, and whoever was erased since does not
//! come back.
//!
//! Until the end the daemon's role may not use the schema, so that nothing serves what is half restored. A crash at any point leaves such
//! a schema, which the next restore refuses, and says what to do with it.

mod load;
mod people;
mod source;
mod target;

pub use source::{Source, unnamed};
pub use target::{Ready, Target};

use schemars::JsonSchema;
use serde::Serialize;

use super::keyring::Ring;
use crate::audit::entry::Outcome;
use crate::audit::gap::Gap;
use crate::audit::{By, Pinned};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::error::Result;
use crate::records::Records;
use crate::store::Deadline;
use crate::values::RecordId;

/// What the log calls it.
const METHOD: &str = "database.restore";

/// How far it is, for whoever waits.
pub type Tell<'a> = &'a (dyn Fn(&str) + Sync);

/// What a restore came to.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Restored {
    /// The dump.
    pub name: String,
    /// What was committed after this is not in it.
    pub lost_from: Timestamp,
    /// The last that is known of the deployment: between the two times everything is lost but what the keyring's backup tells.
    pub lost_until: Timestamp,
    /// How many rows were loaded.
    pub rows: i64,
    /// How many persons live.
    pub persons: i64,
    /// How many persons were erased since the dump, and are erased again.
    pub erased_again: i64,
    /// How many entries of erasures were written again.
    pub entries_staged: i64,
    /// How many persons of the dump have neither key nor tombstone, and went, as was accepted.
    pub lost_persons: i64,
    /// How many legal holds are open; those that were released since the dump are open again.
    pub open_holds: i64,
    /// The generation of the keyring's backup.
    pub keyring_generation: i64,
    /// What the audit log has lost of what was published, as it now says itself.
    pub gaps: Vec<Gap>,
    /// True: whether somebody withdrew a consent in the lost time is not known, and has to be asked for elsewhere.
    pub withdrawals_unknown: bool,
}

/// Loads the dump, and erases again. On return the tables are whole, and only the log has still to be told.
///
/// # Errors
/// [`crate::error::Error::Conflict`] with what to do; [`crate::error::Error::Unavailable`].
pub async fn load(
    ready: &Ready<'_>,
    ring: &Ring,
    accept_lost: i64,
    (tell, deadline): (Tell<'_>, &Deadline),
) -> Result<Restored> {
    let rows = ready.load_data(tell, deadline).await?;
    tell("bringing the keyring back");
    ready.bring_people(ring, deadline).await?;
    let sorted = ready.erase_again(ring, accept_lost, deadline).await?;
    ready.finish_tables(tell, deadline).await?;
    ready.adopt(ring, deadline).await?;
    let (persons, open_holds) = ready.counts(deadline).await?;
    let manifest = &ready.source.manifest;
    Ok(Restored {
        name: manifest.name.clone(),
        lost_from: manifest.snapshot_at,
        lost_until: manifest.snapshot_at.max(ring.manifest.written_at),
        rows,
        persons,
        erased_again: sorted.erased_again,
        entries_staged: 0,
        lost_persons: sorted.lost,
        open_holds,
        keyring_generation: ring.manifest.generation,
        gaps: Vec::new(),
        withdrawals_unknown: true,
    })
}

/// Tells the log: of the erasures that it lacks, and of what it has lost of its publication.
///
/// # Errors
/// The database's, the destination's; [`crate::error::Error::Conflict`] where the publication contradicts the log.
pub async fn tell_log(
    (records, config): (&Records, &Config),
    ring: &Ring,
    mut restored: Restored,
    (tell, deadline): (Tell<'_>, &Deadline),
) -> Result<Restored> {
    tell("telling the log");
    restored.entries_staged = people::stage_missing(records, ring, &restored.name, deadline).await?;
    if config.audit.publish.is_some() || !config.audit.publish_command.is_empty() {
        restored.gaps = records.log().recover(true, deadline).await?;
        let published = records.log().publication().report().at;
        restored.lost_until = published.map_or(restored.lost_until, |at| at.max(restored.lost_until));
    }
    let mut by = By::new(deadline.clone(), Pinned::default(), METHOD, nix::unistd::geteuid().as_raw());
    by.id = Some(RecordId::generate());
    by.about("dump", restored.name.as_str());
    by.tells("lost_from", restored.lost_from);
    by.tells("lost_until", restored.lost_until);
    by.tells("erased_again", restored.erased_again);
    by.tells("lost_persons", restored.lost_persons);
    records.log().note(&by, Outcome::Success, deadline).await?;
    Ok(restored)
}
