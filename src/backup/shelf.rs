//! The dumps at their destination, which alone says what there is: what their manifests tell, and which of them are proved.

use std::cmp::Reverse;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::manifest::{self, Manifest, Unsound};
use super::name;
use super::proof::Proof;
use super::sink::away;
use crate::audit::document::Signed;
use crate::clock::Timestamp;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::objects::{Objects, Trouble};
use crate::values::{Limit, Page, decode, encode};

/// So many manifests are read at once.
const AT_ONCE: usize = 8;
/// The largest proof, in bytes.
const LARGEST_PROOF: u64 = 64 << 10;

/// A destination of dumps, and whose they are.
#[derive(Debug)]
pub struct Shelf {
    /// The destination.
    pub objects: Objects,
    deployment: String,
    keys: Vec<Vec<u8>>,
}

/// A dump that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Dump {
    /// What is said of it.
    pub manifest: Manifest,
    /// What a drill says of it.
    pub proof: Option<Proof>,
}

/// A dump, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// When its snapshot was taken: what was committed later is not in it.
    pub created_at: Timestamp,
    /// The size of the object in bytes.
    pub size: u64,
    /// The object's SHA-256, in hexadecimal.
    pub sha256: String,
    /// When it was last restored, counted and verified; null where it never was.
    pub proved_at: Option<Timestamp>,
    /// The names of its objects at the destination.
    pub objects: Vec<String>,
}

/// Parameters of `backup.list`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// How many items at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// Why a dump is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    /// The destination.
    #[error("the manifest cannot be read: {0}")]
    Manifest(Trouble),
    /// What it says.
    #[error("the manifest is not sound: {0}")]
    Unsound(#[from] Unsound),
}

impl Shelf {
    /// The dumps of a deployment, signed with one of these public keys; nothing where no destination is set.
    ///
    /// # Errors
    /// The destination cannot be opened.
    pub fn open(config: &Config, keys: Vec<Vec<u8>>) -> Result<Option<Self>> {
        let Some(destination) = &config.backup.destination else { return Ok(None) };
        let objects = Objects::open(destination, config);
        let objects = objects.map_err(|trouble| away("backup.destination", &trouble))?;
        Ok(Some(Self { objects, deployment: config.deployment.name.as_str().to_owned(), keys }))
    }

    /// The names of all dumps, and of what was never finished, the newest first.
    ///
    /// # Errors
    /// The destination's.
    pub async fn names(&self) -> Result<Vec<String>> {
        let names = self.objects.folders(name::FOLDER).await;
        let mut names = names.map_err(|trouble| away(self.objects.url(), &trouble))?;
        names.retain(|name| name::time(name).is_some());
        names.sort_unstable_by_key(|name| Reverse(name.clone()));
        Ok(names)
    }

    /// What is said of a dump.
    ///
    /// # Errors
    /// [`Unread`].
    pub async fn manifest(&self, name: &str) -> Result<Manifest, Unread> {
        let read = self.objects.get(&name::manifest(name), manifest::LARGEST).await;
        let (bytes, _) = read.map_err(Unread::Manifest)?;
        Ok(Manifest::read(&bytes, name, &self.deployment, &self.keys)?)
    }

    /// Whether nothing is said of what stands there.
    ///
    /// # Errors
    /// The destination's.
    pub async fn is_unfinished(&self, name: &str) -> Result<bool> {
        match self.objects.get(&name::manifest(name), manifest::LARGEST).await {
            Ok(_) | Err(Trouble::TooLarge(_)) => Ok(false),
            Err(Trouble::Absent) => Ok(true),
            Err(trouble) => Err(away(self.objects.url(), &trouble)),
        }
    }

    /// A dump with its proof. A proof is worth nothing once the object is gone, or not as large as it was.
    ///
    /// # Errors
    /// [`Unread`].
    pub async fn dump(&self, name: &str) -> Result<Dump, Unread> {
        let manifest = self.manifest(name).await?;
        let found = self.objects.list(&format!("{}/", name::folder(name))).await.map_err(Unread::Manifest)?;
        if !found.iter().any(|found| found.name == manifest.object && found.size == manifest.size) {
            tracing::warn!(name, "the object of a dump is gone, or has not the size that its manifest tells");
            return Ok(Dump { manifest, proof: None });
        }
        let proof = match self.objects.get(&name::proof(name), LARGEST_PROOF).await {
            Ok((bytes, _)) => Proof::read(&bytes, &manifest, &self.keys),
            Err(Trouble::Absent | Trouble::TooLarge(_)) => None,
            Err(trouble) => return Err(Unread::Manifest(trouble)),
        };
        Ok(Dump { manifest, proof })
    }

    /// The dumps of these names that are there and sound, in the order of the names. What is of another deployment, damaged or
    /// unfinished is none.
    ///
    /// # Errors
    /// The destination's.
    pub async fn dumps(&self, names: &[String]) -> Result<Vec<Dump>> {
        let mut dumps = Vec::new();
        let reading: Vec<_> = names.iter().map(|name| self.dump(name).boxed()).collect();
        let mut reading = stream::iter(reading).buffered(AT_ONCE);
        for name in names {
            let Some(read) = reading.next().await else { break };
            match read {
                Ok(dump) => dumps.push(dump),
                Err(Unread::Manifest(Trouble::Absent)) => {}
                Err(Unread::Manifest(trouble @ Trouble::Away(_))) => {
                    return Err(away(self.objects.url(), &trouble));
                }
                Err(error) => tracing::warn!(name, %error, "what stands among the dumps is none of them"),
            }
        }
        Ok(dumps)
    }

    /// A page of the dumps, the newest first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cursor that is none; the destination's.
    pub async fn list(&self, asked: &List) -> Result<Page<Item>> {
        let of = "backup.list";
        let before: Option<String> = decode(&of, asked.cursor.as_deref())?;
        let mut names = self.names().await?;
        names.retain(|name| before.as_ref().is_none_or(|before| name < before));
        let (mut items, most) = (Vec::new(), asked.limit.items());
        // What is no dump takes no place on a page.
        for some in names.chunks(most.saturating_add(1)) {
            items.extend(self.dumps(some).await?.into_iter().map(Item::from));
            if items.len() > most {
                break;
            }
        }
        let more = items.len() > most;
        items.truncate(most);
        let last = items.last().filter(|_| more).map(|last| encode(&of, &last.name)).transpose()?;
        Ok(Page { items, next_cursor: last })
    }

    /// Writes what is said of a dump, where nothing is said of it yet: from now on it is one.
    ///
    /// # Errors
    /// The destination's.
    pub async fn put(&self, manifest: &Signed<Manifest>) -> Result<()> {
        let bytes = serde_json::to_vec(manifest).map_err(Error::internal)?;
        let name = name::manifest(&manifest.body.name);
        let put = self.objects.create(&name, Bytes::from(bytes)).await;
        put.map(drop).map_err(|trouble| away(self.objects.url(), &trouble))
    }

    /// Writes the proof of a dump, in place of an older one.
    ///
    /// # Errors
    /// The destination's.
    pub async fn prove(&self, proof: &Signed<Proof>) -> Result<()> {
        let bytes = Bytes::from(serde_json::to_vec(proof).map_err(Error::internal)?);
        let name = name::proof(&proof.body.name);
        let put = match self.objects.get(&name, LARGEST_PROOF).await {
            Ok((_, tag)) => self.objects.replace(&name, bytes, Some(tag)).await,
            Err(Trouble::Absent) => self.objects.create(&name, bytes).await,
            Err(trouble) => Err(trouble),
        };
        put.map(drop).map_err(|trouble| away(self.objects.url(), &trouble))
    }

    /// Takes the proof of a dump away, which has turned out to be none.
    ///
    /// # Errors
    /// The destination's.
    pub async fn disprove(&self, name: &str) -> Result<()> {
        let gone = self.objects.delete(&name::proof(name)).await;
        gone.map_err(|trouble| away(self.objects.url(), &trouble))
    }

    /// Removes a dump; without its manifest, which goes first, the rest is what the next run finds left over.
    ///
    /// # Errors
    /// The destination's.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let removed = async {
            self.objects.delete(&name::manifest(name)).await?;
            self.objects.clear(&name::folder(name)).await
        };
        removed.await.map_err(|trouble| away(self.objects.url(), &trouble))
    }
}

impl From<Dump> for Item {
    fn from(Dump { manifest, proof }: Dump) -> Self {
        let proof_name = proof.as_ref().map(|_| name::proof(&manifest.name));
        let objects =
            [manifest.object, name::manifest(&manifest.name)].into_iter().chain(proof_name).collect();
        Self {
            name: manifest.name,
            created_at: manifest.snapshot_at,
            size: manifest.size,
            sha256: manifest.sha256,
            proved_at: proof.map(|proof| proof.proved_at),
            objects,
        }
    }
}
