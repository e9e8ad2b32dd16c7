//! The manifest of a dump: what it holds, how it is recognised, and what it needs beside it to be restored. A signed document
//! `{body, key, signature}` that stands beside the dump, and is written last: a dump without one is none.
//!
//! Reads and writes no object.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::audit::document::{Signed, Unsigned};
use crate::clock::Timestamp;

/// What the body of a manifest says it is, so that no other signed document passes for one.
pub const FORMAT: &str = "sidekeep-dump-1";

/// The largest manifest, in bytes.
pub const LARGEST: u64 = 8 << 20;

/// What is said of a dump. All that it tells of the database is of the one snapshot that the dump was taken from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// What this is: [`FORMAT`].
    pub format: String,
    /// Whose records these are.
    pub deployment: String,
    /// The dump's name.
    pub name: String,
    /// When the snapshot was taken, by PostgreSQL's clock: nothing that was committed later is in the dump.
    pub snapshot_at: Timestamp,
    /// When the dump was complete, by PostgreSQL's clock.
    pub created_at: Timestamp,
    /// The object's name below the destination.
    pub object: String,
    /// Its size in bytes, as it is stored.
    pub size: u64,
    /// Its SHA-256, as it is stored, in hexadecimal.
    pub sha256: String,
    /// The size of what `pg_restore` reads, in bytes: the same where the object is not encrypted.
    pub dump_size: u64,
    /// The SHA-256 of what `pg_restore` reads, in hexadecimal.
    pub dump_sha256: String,
    /// Whether the object is encrypted for recipients of age (age-encryption.org/v1).
    pub encrypted: bool,
    /// How many rows each table of the schema `sidekeep` has, of those whose rows are in the dump.
    pub tables: BTreeMap<String, i64>,
    /// The tables that are in the dump without their rows: those that tell who somebody is.
    pub left_out: Vec<String>,
    /// How many persons the keyring had, beside the deployment itself.
    pub persons: i64,
    /// The server's version, as in `15.18`.
    pub server_version: String,
    /// The version of the `pg_dump` that made it.
    pub pg_dump_version: String,
    /// The newest migration of the schema.
    pub schema_version: String,
    /// The version of the sidekeep that made it.
    pub sidekeep_version: String,
    /// The keyring's generation, as a stored backup of it that is newer than the snapshot has it: with an older one this dump
    /// must not be restored.
    pub keyring_generation: i64,
    /// The key-encryption keys that were in use.
    pub kek_ids: Vec<String>,
    /// What the audit log was.
    pub audit: Heads,
}

/// What the audit log was at the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heads {
    /// Every stream.
    pub streams: Vec<Head>,
    /// The newest checkpoint's signed note; null where there was none yet.
    pub checkpoint: Option<String>,
    /// How many entries were staged and in no stream yet.
    pub staged: i64,
}

/// What a stream was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Head {
    /// The stream.
    pub stream: i32,
    /// How many entries it had.
    pub size: i64,
    /// The root over them, in hexadecimal.
    pub root: String,
}

/// Why a manifest is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// It is no signed document, or was changed.
    #[error(transparent)]
    Unsigned(#[from] Unsigned),
    /// It is a signed document of another kind.
    #[error("it is not the manifest of a dump")]
    Kind,
    /// It is of another name than the one that it stands under.
    #[error("it is the manifest of {0}")]
    Name(String),
    /// It is another deployment's.
    #[error("it is of the deployment {0}")]
    Deployment(String),
    /// Who has signed it is not known here.
    #[error("it is signed with a key that is not one of signing.key_files, nor of signing.lost_keys")]
    Key,
}

impl Manifest {
    /// Reads a manifest, and checks that it is the one of this name and deployment, signed with one of these public keys.
    ///
    /// # Errors
    /// [`Unsound`].
    pub fn read(bytes: &[u8], name: &str, deployment: &str, keys: &[Vec<u8>]) -> Result<Self, Unsound> {
        let (Signed { body, .. }, key) = Signed::<Self>::read(bytes)?;
        if body.format != FORMAT {
            Err(Unsound::Kind)
        } else if body.deployment != deployment {
            Err(Unsound::Deployment(body.deployment))
        } else if body.name != name {
            Err(Unsound::Name(body.name))
        } else if !keys.contains(&key) {
            Err(Unsound::Key)
        } else {
            Ok(body)
        }
    }
}
