//! The manifest of the keyring's backup: a signed document that says which shards there have to be, and how new each is at the least.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Writer;
use super::kept::{MANIFEST, away, forgets};
use crate::audit::document::{Signed, Unsigned};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::objects::Trouble;
use crate::values::RecordId;

/// What the body says it is.
const FORMAT: &str = "sidekeep-keyring-1";
/// The largest manifest, in bytes.
pub(super) const LARGEST: u64 = 4 << 20;
/// How often a manifest is written anew because something came in between.
const ROUNDS: usize = 50;

/// What is said of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    format: String,
    /// Whose keyring it is.
    pub deployment: String,
    /// The generation: raised with every shard that is stored.
    pub generation: i64,
    /// When it was written, by PostgreSQL's clock.
    pub written_at: Timestamp,
    /// The id of this write, which the database that wrote it knows.
    pub write: String,
    /// The shards that there are. Each may be newer by now.
    pub shards: Vec<Kept>,
}

/// One shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kept {
    /// Which one.
    pub shard: i16,
    /// Its generation.
    pub generation: i64,
    /// The key-encryption key that seals it.
    pub sealed_under: String,
    /// The key-encryption keys that wrap the keys in it.
    pub kek_ids: Vec<String>,
}

/// Why a manifest is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// It is no signed document, or was changed.
    #[error(transparent)]
    Unsigned(#[from] Unsigned),
    /// It is a signed document of another kind.
    #[error("it is not the manifest of a keyring's backup")]
    Kind,
    /// It is another deployment's.
    #[error("it is of the deployment {0:?}")]
    Deployment(String),
    /// Who has signed it is not known here.
    #[error("it is signed with a key that is not one of signing.key_files, nor of signing.lost_keys")]
    Key,
}

impl Manifest {
    /// Reads a manifest, and checks that it is this deployment's, signed with one of these public keys.
    ///
    /// # Errors
    /// [`Unsound`].
    pub fn read(bytes: &[u8], deployment: &str, keys: &[Vec<u8>]) -> Result<Self, Unsound> {
        let (Signed { body, .. }, key) = Signed::<Self>::read(bytes)?;
        if body.format != FORMAT {
            Err(Unsound::Kind)
        } else if body.deployment != deployment {
            Err(Unsound::Deployment(body.deployment))
        } else if !keys.contains(&key) {
            Err(Unsound::Key)
        } else {
            Ok(body)
        }
    }

    /// What it says, whoever has signed it: enough to see whether it may be replaced.
    pub(super) fn peek(bytes: &[u8]) -> Option<Self> {
        let signed: Signed<Self> = serde_json::from_slice(bytes).ok()?;
        Some(signed.body).filter(|body| body.format == FORMAT)
    }
}

impl Writer<'_> {
    /// Writes the manifest where it is behind, or not there. Answers the generation of the one that is stored.
    pub(super) async fn bring_manifest(&self, mut there: bool) -> Result<i64> {
        for _ in 0..ROUNDS {
            let (generation, stored, _) = self.to_tell().await?;
            if stored && there {
                return Ok(generation);
            }
            if self.deadline.has_passed() {
                break;
            }
            if let Some(generation) = self.try_manifest().await? {
                return Ok(generation);
            }
            there = true;
        }
        Err(Error::unavailable(format!("keyring.backup: {MANIFEST} changes faster than it is written")))
    }

    /// Answers the generation, where object and database agreed afterwards.
    async fn try_manifest(&self) -> Result<Option<i64>> {
        let there = self.manifest().await?;
        let write = RecordId::generate();
        self.begin_manifest(&write).await?;
        // After the object was read, so that it never names less than the one that it replaces.
        let (generation, _, shards) = self.to_tell().await?;
        let body = Manifest {
            format: FORMAT.to_owned(),
            deployment: self.records.keyring().deployment().to_owned(),
            generation,
            written_at: self.now().await?.into(),
            write: write.as_str().to_owned(),
            shards,
        };
        let signed = Signed::sign(self.records.log(), body)?;
        let bytes = serde_json::to_vec(&signed).map_err(Error::internal)?;
        let tag = there.map(|(_, tag)| tag);
        match self.objects.replace(MANIFEST, bytes.into(), tag).await {
            Ok(tag) => forgets(&self.objects, &tag)?,
            Err(Trouble::Changed) => return Ok(None),
            Err(trouble) => return Err(away(&trouble)),
        }
        let stored = self.manifest().await?;
        if stored.is_none_or(|(stored, _)| stored.write != write.as_str()) {
            return Ok(None);
        }
        self.settle_manifest(generation, &write).await?;
        Ok(Some(generation))
    }
}
