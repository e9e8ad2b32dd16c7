//! The objects of the keyring's backup: their names, and reading them as whoever is about to replace them.

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::Writer;
use super::compare::{Told, foreign};
use super::manifest::Manifest;
use crate::error::{Error, Result};
use crate::keyring::shard::Header;
use crate::objects::{Objects, Tag, Trouble};

/// The name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// What is written and removed to see whether the destination forgets.
const PROBE: &str = "probe";
/// Where the shards are.
pub(super) const SHARDS_FOLDER: &str = "shards/";
/// The largest shard, in bytes: ten times what one has where there are ten million people.
pub const LARGEST: u64 = 256 << 20;

/// The name of a shard.
pub fn shard_name(shard: i16) -> String {
    format!("{SHARDS_FOLDER}{shard:02x}")
}

/// What is wrong with the destination.
pub(super) fn away(trouble: &Trouble) -> Error {
    Error::unavailable(format!("keyring.backup: {trouble}"))
}

fn remembers() -> Error {
    Error::conflict(
        "keyring.backup keeps older versions of its objects, and so the keys of those who are erased: name a bucket without \
         versioning, object lock and retention",
    )
}

impl Writer<'_> {
    /// Refuses a destination that does not forget, before anything is written there. What a store does not tell (Google's
    /// versioning and soft delete) is not seen.
    pub(super) async fn probe(&self) -> Result<()> {
        let probed = match self.objects.get(PROBE, LARGEST).await {
            Ok((_, tag)) => self.objects.replace(PROBE, Bytes::from_static(b"sidekeep\n"), Some(tag)).await,
            Err(Trouble::Absent) => {
                self.objects.replace(PROBE, Bytes::from_static(b"sidekeep\n"), None).await
            }
            Err(trouble) => Err(trouble),
        };
        match probed {
            Ok(tag) => forgets(&self.objects, &tag)?,
            // Another daemon was probing.
            Err(Trouble::Changed) => {}
            Err(trouble) => return Err(away(&trouble)),
        }
        self.objects.delete(PROBE).await.map_err(|trouble| {
            Error::conflict(format!("keyring.backup does not let its objects be removed: {trouble}"))
        })
    }

    /// Shards that should be there and are not; those in `known` are not told.
    pub(super) async fn lost(&self, known: &[i16]) -> Result<Vec<i16>> {
        let believed = self.believed().await?.into_iter().map(|(shard, _)| shard);
        let listed = self.objects.list(SHARDS_FOLDER).await.map_err(|trouble| away(&trouble))?;
        let is_there = |shard: i16| listed.iter().any(|found| found.name == shard_name(shard));
        Ok(believed.filter(|shard| !known.contains(shard) && !is_there(*shard)).collect())
    }

    /// Shards that are there as they once were, and not as they were stored last: the destination was away and has come back, or
    /// something has put an earlier state of it back. They hold whoever was erased meanwhile. Those in `known` are not told.
    pub(super) async fn aged(&self, known: &[i16]) -> Result<Vec<i16>> {
        let believed = self.believed().await?;
        let unknown = believed.into_iter().filter(|(shard, _)| !known.contains(shard));
        let looked = futures_util::stream::iter(unknown)
            .map(|(shard, stored)| async move {
                let there = self.shard(shard).await?;
                Ok(there.filter(|(header, _)| header.generation < stored).map(|_| shard))
            })
            .buffer_unordered(super::LANES)
            .try_collect::<Vec<_>>();
        let aged: Result<Vec<Option<i16>>> = looked.await;
        Ok(aged?.into_iter().flatten().collect())
    }

    /// What is said of the shard that is there, for whoever replaces it.
    pub(super) async fn shard(&self, shard: i16) -> Result<Option<(Header, Tag)>> {
        let name = shard_name(shard);
        let (bytes, tag) = match self.objects.get(&name, LARGEST).await {
            Ok(found) => found,
            Err(Trouble::Absent) => return Ok(None),
            Err(trouble) => return Err(away(&trouble)),
        };
        // Whatever was damaged there, or put there by somebody else, is for an operator to remove.
        let (header, ..) = Header::read(&bytes).map_err(|_| foreign(&name))?;
        self.own(&header.deployment, Told::of_shard(&header)).await?;
        Ok(Some((header, tag)))
    }

    /// The manifest that is there, for whoever replaces it.
    pub(super) async fn manifest(&self) -> Result<Option<(Manifest, Tag)>> {
        let (bytes, tag) = match self.objects.get(MANIFEST, super::manifest::LARGEST).await {
            Ok(found) => found,
            Err(Trouble::Absent) => return Ok(None),
            Err(trouble) => return Err(away(&trouble)),
        };
        let manifest = Manifest::peek(&bytes).ok_or_else(|| foreign(MANIFEST))?;
        self.own(&manifest.deployment, Told::of_manifest(&manifest)).await?;
        Ok(Some((manifest, tag)))
    }

    /// Refuses what this database has not begun to write, or has lost some of since.
    async fn own(&self, deployment: &str, told: Told) -> Result<()> {
        let name = told.object.clone();
        let ours = deployment == self.records.keyring().deployment() && !self.is_later(told).await?;
        if ours { Ok(()) } else { Err(foreign(&name)) }
    }
}

/// Refuses a store that keeps the version before.
pub(super) fn forgets(objects: &Objects, written: &Tag) -> Result<()> {
    if objects.keeps_versions(written) { Err(remembers()) } else { Ok(()) }
}
