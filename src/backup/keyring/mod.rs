//! The keyring's own backup: all that a dump leaves out, in shards by subject id under a signed manifest, in a destination that forgets.
//!
//! A crash at any point leaves a shard that is older than the database says, and the next run writes it again. A writer that stalls between
//! reading the database and writing the object replaces nothing that was written meanwhile, and looks at both again after its write. An
//! object that this database has not begun to write is of a later state of it, and is never replaced: a database that was restored must
//! not bring back who was erased since. A destination that was away and comes back as it was is written again.

mod compare;
mod content;
mod kept;
mod lateness;
mod manifest;
mod ring;
mod shard;
mod standing;
mod state;

pub use compare::{behind, refuse_missing};
pub use content::{Line, Lines};
pub use kept::{LARGEST, MANIFEST, shard_name};
pub use lateness::Lateness;
pub use manifest::{Kept, Manifest, Unsound};
pub use ring::{Ring, SHARDS};
pub use standing::{Guard, Standing, refuse_behind};
pub use state::{Late, Needed, generation, late, needed};

use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::objects::Objects;
use crate::records::Records;
use crate::store::Deadline;

/// How many shards are written at once; each takes some megabytes where there are ten million people.
const LANES: usize = 2;

/// What was brought up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brought {
    /// The generation of the manifest that is stored: it covers whatever was committed before the call.
    pub generation: i64,
    /// How many shards were written.
    pub shards: i64,
}

/// One destination, and what is to be kept there.
struct Writer<'a> {
    records: &'a Records,
    objects: Objects,
    deadline: &'a Deadline,
}

/// Writes whatever of the keyring the backup lacks. On return everything that was committed before the call is stored.
///
/// # Errors
/// [`Error::Conflict`] where `keyring.backup` is not set, keeps older versions, or holds what this database has not written; where it
/// cannot be used, [`Error::Unavailable`]. The rest is written all the same.
pub async fn bring_up_to_date(records: &Records, config: &Config, deadline: &Deadline) -> Result<Brought> {
    let destination =
        config.keyring.backup.as_ref().ok_or_else(|| {
            Error::conflict("keyring.backup is not set: name a destination of its own there")
        })?;
    let objects = Objects::open(destination, config).map_err(|trouble| kept::away(&trouble))?;
    let writer = Writer { records, objects, deadline };
    // Before anything is written: without a manifest a backup is none.
    records.log().signer()?;
    writer.adopt().await?;
    // Before the object is read, which is never older than what is believed then.
    let believed = writer.believed_manifest().await?;
    let manifest = writer.manifest().await?;
    let put_back = manifest.as_ref().is_some_and(|(manifest, _)| manifest.generation < believed);
    let mut wanted = writer.wanted().await?;
    wanted.extend(writer.lost(&wanted).await?);
    if put_back {
        tracing::warn!(
            destination = writer.objects.url(),
            "the keyring's backup is an earlier one than was stored there; what is in it is written again"
        );
        wanted.extend(writer.aged(&wanted).await?);
    }
    if !wanted.is_empty() {
        writer.probe().await?;
    }
    let written = futures_util::stream::iter(wanted)
        .map(|shard| writer.bring(shard))
        .buffer_unordered(LANES)
        .try_fold(0_i64, async |count, ()| Ok(count.saturating_add(1)))
        .await?;
    let generation = writer.bring_manifest(manifest.is_some() && !put_back).await?;
    Ok(Brought { generation, shards: written })
}
