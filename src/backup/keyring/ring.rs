//! The keyring's backup as whoever restores reads it: manifest and shards, all of it proved before any of it is used.

use zeroize::Zeroizing;

use super::kept::{LARGEST, MANIFEST, shard_name};
use super::manifest::{self, Manifest};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::keyring::shard::{self, Header};
use crate::keyring::{Keks, Keyring};
use crate::objects::{Objects, Trouble};

/// How many shards there may be.
pub const SHARDS: i16 = 256;

/// A backup that was found.
#[derive(Debug)]
pub struct Ring {
    objects: Objects,
    deployment: String,
    keks: Keks,
    /// What is said of it.
    pub manifest: Manifest,
}

fn refused(name: &str, why: impl std::fmt::Display) -> Error {
    Error::conflict(format!("keyring.backup: {name}: {why}"))
}

impl Ring {
    /// The backup of this configuration, signed with one of these public keys.
    ///
    /// # Errors
    /// [`Error::Conflict`] where there is none, or none to be trusted; the destination's.
    pub async fn open(config: &Config, keyring: &Keyring, keys: &[Vec<u8>]) -> Result<Self> {
        let found = Self::find(config, keyring, keys).await?;
        found.ok_or_else(|| refused(MANIFEST, Trouble::Absent))
    }

    /// As [`Ring::open`]; nothing where no manifest is there.
    ///
    /// # Errors
    /// As [`Ring::open`].
    pub async fn find(config: &Config, keyring: &Keyring, keys: &[Vec<u8>]) -> Result<Option<Self>> {
        let destination = config.keyring.backup.as_ref().ok_or_else(|| {
            Error::conflict(
                "keyring.backup is not set: nobody's data opens without the keyring's own backup, and only there is known who was erased",
            )
        })?;
        let objects = Objects::open(destination, config)
            .map_err(|trouble| Error::unavailable(format!("keyring.backup: {trouble}")))?;
        let bytes = match objects.get(MANIFEST, manifest::LARGEST).await {
            Ok((bytes, _)) => bytes,
            Err(Trouble::Absent) => return Ok(None),
            Err(Trouble::Away(why)) => return Err(Error::unavailable(format!("keyring.backup: {why}"))),
            Err(why) => return Err(refused(MANIFEST, why)),
        };
        let deployment = config.deployment.name.as_str().to_owned();
        let manifest = Manifest::read(&bytes, &deployment, keys).map_err(|why| refused(MANIFEST, why))?;
        Ok(Some(Self { objects, deployment, keks: (*keyring.keks()).clone(), manifest }))
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        self.objects.url()
    }

    /// Looks at everything: every shard that the manifest names is there, opens, and is as new as it says or newer, and every
    /// key in it is wrapped by a key-encryption key that was given.
    ///
    /// # Errors
    /// [`Error::Conflict`], naming what is wrong; the destination's.
    pub async fn check(&self, at_least: i64) -> Result<()> {
        if self.manifest.generation < at_least {
            return Err(refused(
                MANIFEST,
                format!(
                    "it is of generation {}, and the dump needs {at_least} or later: an older one would bring back who \
                     was erased since",
                    self.manifest.generation
                ),
            ));
        }
        for number in 0..SHARDS {
            self.shard(number).await?;
        }
        Ok(())
    }

    /// A shard, opened; nothing where nobody was ever in it.
    ///
    /// # Errors
    /// As [`Ring::check`].
    pub async fn shard(&self, number: i16) -> Result<Option<(Header, Zeroizing<Vec<u8>>)>> {
        let name = shard_name(number);
        let told = self.manifest.shards.iter().find(|kept| kept.shard == number);
        let bytes = match self.objects.get(&name, LARGEST).await {
            Ok((bytes, _)) => bytes,
            Err(Trouble::Absent) if told.is_none() => return Ok(None),
            Err(Trouble::Absent) => {
                return Err(refused(&name, "it is missing, though the manifest names it"));
            }
            Err(trouble) => return Err(Error::unavailable(format!("keyring.backup: {name}: {trouble}"))),
        };
        let opened = shard::open(&self.keks, (&self.deployment, number), &bytes);
        let (header, plain) = opened.map_err(|why| refused(&name, why))?;
        let least = told.map_or(0, |told| told.generation);
        if header.generation < least {
            return Err(refused(
                &name,
                format!(
                    "it is of generation {}, and should be of {least} or later: an older one was put in its place",
                    header.generation
                ),
            ));
        }
        let given = self.keks.ids();
        if let Some(missing) = header.kek_ids.iter().find(|id| !given.contains(id)) {
            return Err(refused(
                &name,
                format!(
                    "keys in it are wrapped by the key-encryption key {missing}, which is in none of keyring.key_files"
                ),
            ));
        }
        Ok(Some((header, plain)))
    }
}
