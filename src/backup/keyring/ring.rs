//! The keyring's backup as whoever restores reads it: manifest and shards, all of it proved before any of it is used.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
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
    copy: Option<Copied>,
    /// What is said of it.
    pub manifest: Manifest,
}

/// The shards as they were at one time, sealed as they are.
#[derive(Debug)]
struct Copied {
    file: File,
    /// Where each is that was there, and how long.
    places: BTreeMap<i16, (u64, usize)>,
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
        Ok(Some(Self { objects, deployment, keks: (*keyring.keks()).clone(), copy: None, manifest }))
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
    pub async fn check(&self) -> Result<()> {
        for number in 0..SHARDS {
            self.shard(number).await?;
        }
        Ok(())
    }

    /// As [`Ring::check`], and keeps what it looked at in this file: whoever reads a shard twice must not see somebody's key in it
    /// once and their erasure then, though a daemon goes on writing. At least so new must the backup be.
    ///
    /// # Errors
    /// As [`Ring::check`]; the file's.
    pub async fn copy(mut self, at_least: i64, file: File) -> Result<Self> {
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
        let (mut places, mut end) = (BTreeMap::new(), 0_u64);
        for number in 0..SHARDS {
            let Some(bytes) = self.fetch(number).await? else { continue };
            self.open_shard(number, &bytes)?;
            file.write_all_at(&bytes, end).map_err(Error::internal)?;
            places.insert(number, (end, bytes.len()));
            end = end.saturating_add(u64::try_from(bytes.len()).map_err(Error::internal)?);
        }
        self.copy = Some(Copied { file, places });
        Ok(self)
    }

    /// A shard, opened; nothing where nobody was ever in it.
    ///
    /// # Errors
    /// As [`Ring::check`].
    pub async fn shard(&self, number: i16) -> Result<Option<(Header, Zeroizing<Vec<u8>>)>> {
        let bytes = match &self.copy {
            Some(copy) => copy.read(number)?,
            None => self.fetch(number).await?,
        };
        bytes.map(|bytes| self.open_shard(number, &bytes)).transpose()
    }

    async fn fetch(&self, number: i16) -> Result<Option<Bytes>> {
        let name = shard_name(number);
        match self.objects.get(&name, LARGEST).await {
            Ok((bytes, _)) => Ok(Some(bytes)),
            Err(Trouble::Absent) if self.told(number).is_none() => Ok(None),
            Err(Trouble::Absent) => Err(refused(&name, "it is missing, though the manifest names it")),
            Err(trouble) => Err(Error::unavailable(format!("keyring.backup: {name}: {trouble}"))),
        }
    }

    /// The generation that the manifest tells of.
    fn told(&self, number: i16) -> Option<i64> {
        self.manifest.shards.iter().find(|kept| kept.shard == number).map(|kept| kept.generation)
    }

    fn open_shard(&self, number: i16, bytes: &[u8]) -> Result<(Header, Zeroizing<Vec<u8>>)> {
        let name = shard_name(number);
        let opened = shard::open(&self.keks, (&self.deployment, number), bytes);
        let (header, plain) = opened.map_err(|why| refused(&name, why))?;
        let least = self.told(number).unwrap_or_default();
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
        Ok((header, plain))
    }
}

impl Copied {
    fn read(&self, number: i16) -> Result<Option<Bytes>> {
        let Some((from, length)) = self.places.get(&number) else { return Ok(None) };
        let mut bytes = vec![0; *length];
        self.file.read_exact_at(&mut bytes, *from).map_err(Error::internal)?;
        Ok(Some(bytes.into()))
    }
}
