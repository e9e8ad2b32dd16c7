//! The manifest of an archived part: what is in its object, and the proof that it is under a signed checkpoint. Pure.
//!
//! It is a signed document: whoever has the public key checks it without us.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::FOLDER;
use super::unpack::{Flaw, Unpacked};
use crate::audit::archive::{Evidence, Part};
use crate::audit::document::{self, Signed};
use crate::audit::entry::Head;
use crate::audit::merkle::{Frontier, Hash, is_consistent, root_by_inclusion};
use crate::audit::note::{self, VerifierKey, origin};
use crate::error::{Error, Result};

/// The form of a manifest.
pub const FORMAT: &str = "sidekeep-archive-1";
/// The form of what says that an object was deleted.
pub const REMOVED: &str = "sidekeep-archive-removed-1";
/// What the name of a manifest ends with.
pub const ENDS: &str = ".manifest.json";
/// The largest manifest that is read, in bytes: a proof has some hundred hashes.
pub const LARGEST: u64 = 1 << 20;

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// [`FORMAT`].
    pub format: String,
    /// Whose log it is.
    pub deployment: String,
    /// The stream.
    pub stream: i32,
    /// The month of `recorded_at`, in UTC, as in `2026-08`.
    pub month: String,
    /// The position of the first entry: the size of the tree before it.
    pub first_position: u64,
    /// The peaks of that tree, the largest first.
    pub first_peaks: Vec<String>,
    /// The position of the last entry.
    pub last_position: u64,
    /// The root after it.
    pub root: String,
    /// How many entries.
    pub entries: u64,
    /// The object with them, in the folder of the manifest.
    pub object: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// The size of the lines in bytes, decompressed.
    pub content_size: u64,
    /// The SHA-256 of the lines, decompressed.
    pub content_sha256: String,
    /// From the root to the head (RFC 6962 §2.1.2).
    pub consistency: Vec<String>,
    /// The canonical bytes of the first head that covers the last entry.
    pub head: String,
    /// The head's index in the heads log.
    pub head_index: u64,
    /// From the head to the checkpoint (RFC 6962 §2.1.1).
    pub heads_path: Vec<String>,
    /// The signed note.
    pub checkpoint: String,
    /// The public keys of the deployment, as `sidekeep signing public-key` prints them. Whoever checks has them from elsewhere.
    pub keys: Vec<String>,
}

/// What is signed before an object is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    /// [`REMOVED`].
    pub format: String,
    /// Whose log it is.
    pub deployment: String,
    /// The SHA-256 of the object.
    pub sha256: String,
    /// When.
    pub removed_at: crate::clock::Timestamp,
    /// Why: `retention`.
    pub reason: String,
}

/// The name of a part's manifest.
pub fn name(part: &Part) -> String {
    format!("{}{ENDS}", stem(part))
}

/// What the names of a part's objects begin with.
pub fn stem(part: &Part) -> String {
    format!("{FOLDER}{}/stream-{}", part.month.format("%Y-%m"), part.stream)
}

fn hexes(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(Hash::hex).collect()
}

fn hashes(hexes: &[String]) -> Option<Vec<Hash>> {
    hexes.iter().map(|hex| Hash::from_hex(hex)).collect()
}

impl Body {
    pub(super) fn new(
        deployment: &str,
        (part, object): (&Part, &str),
        evidence: &Evidence,
        found: &Unpacked,
    ) -> Self {
        Self {
            format: FORMAT.into(),
            deployment: deployment.into(),
            stream: part.stream,
            month: part.month.format("%Y-%m").to_string(),
            first_position: part.first,
            first_peaks: hexes(evidence.before.peaks()),
            last_position: part.last,
            root: evidence.root.hex(),
            entries: part.entries(),
            object: object.into(),
            size: found.size,
            sha256: found.sha256.hex(),
            content_size: found.content_size,
            content_sha256: found.content_sha256.hex(),
            consistency: hexes(&evidence.consistency),
            head: evidence.head.clone(),
            head_index: evidence.head_index,
            heads_path: hexes(&evidence.heads_path),
            checkpoint: evidence.checkpoint.clone(),
            keys: evidence.keys.iter().map(VerifierKey::encode).collect(),
        }
    }

    /// The part it is about.
    pub fn part(&self) -> Option<Part> {
        let month = NaiveDate::parse_from_str(&format!("{}-01", self.month), "%Y-%m-%d").ok()?;
        let part = Part { stream: self.stream, month, first: self.first_position, last: self.last_position };
        let sound = part.stream >= 0 && part.first <= part.last && part.entries() == self.entries;
        (sound && month.format("%Y-%m").to_string() == self.month).then_some(part)
    }

    /// The tree before the first entry.
    pub fn before(&self) -> Option<Frontier> {
        Frontier::new(self.first_position, hashes(&self.first_peaks)?)
    }

    /// Whether the proofs in it lead from the root after the last entry to a note that one of these keys has signed; what is
    /// wrong otherwise.
    pub(super) fn proof(&self, keys: &[VerifierKey]) -> Vec<Flaw> {
        let flaw = |what, expected: &str, found: &str| Flaw {
            position: Some(self.last_position),
            what,
            expected: expected.into(),
            found: found.into(),
        };
        let mut flaws = Vec::new();
        let size = self.last_position.saturating_add(1);
        let (root, head) = (Hash::from_hex(&self.root), Head::read(&self.head));
        let of_stream = head.filter(|head| head.stream == self.stream);
        let proved =
            root.zip(of_stream).zip(hashes(&self.consistency)).is_some_and(|((root, head), path)| {
                u64::try_from(head.size).is_ok_and(|head_size| {
                    size <= head_size && is_consistent((size, root), (head_size, head.root), &path)
                })
            });
        if !proved {
            flaws.push(flaw(
                "consistency",
                "a proof from the root to the head",
                "one that does not lead there",
            ));
        }
        let ours: Vec<VerifierKey> =
            keys.iter().filter(|key| key.name() == origin(&self.deployment)).cloned().collect();
        let Some(checkpoint) = note::open(&self.checkpoint, &ours) else {
            flaws.push(flaw("note", "a note that one of the keys has signed", "another one"));
            return flaws;
        };
        let under = head
            .zip(hashes(&self.heads_path))
            .and_then(|(head, path)| root_by_inclusion(head.leaf(), self.head_index, checkpoint.size, &path));
        if under != Some(checkpoint.root) {
            flaws.push(flaw(
                "inclusion",
                "a proof from the head to the checkpoint",
                "one that does not lead there",
            ));
        }
        flaws
    }

    /// What of an object that was read is not as it is said here.
    pub(super) fn compare(&self, found: &Unpacked) -> Vec<Flaw> {
        let mut flaws = found.flaws.clone();
        let mut compare = |what, expected: String, found: String| {
            if expected != found {
                flaws.push(Flaw { position: None, what, expected, found });
            }
        };
        compare("size", self.size.to_string(), found.size.to_string());
        compare("sha256", self.sha256.clone(), found.sha256.hex());
        compare("content_size", self.content_size.to_string(), found.content_size.to_string());
        compare("content_sha256", self.content_sha256.clone(), found.content_sha256.hex());
        let entries = found.tree.size().saturating_sub(self.first_position);
        compare("entries", self.entries.to_string(), entries.to_string());
        compare("root", self.root.clone(), found.tree.root().hex());
        flaws
    }
}

/// A manifest as it was read: what it says, and the public key that has signed it.
pub(super) fn read(bytes: &[u8]) -> Result<(Body, Vec<u8>), String> {
    let (signed, key): (Signed<Body>, _) = Signed::read(bytes).map_err(|error| error.to_string())?;
    let body = signed.body;
    (body.format == FORMAT).then_some(()).ok_or("it is of a format that this version does not know")?;
    Ok((body, key))
}

/// Whether a document says, signed by one of these keys, that the object with this digest was deleted.
pub(super) fn is_removed(bytes: &[u8], body: &Body, keys: &[VerifierKey]) -> bool {
    let Ok((signed, key)) = Signed::<Removed>::read(bytes) else { return false };
    let said = signed.body;
    said.format == REMOVED
        && said.deployment == body.deployment
        && said.sha256 == body.sha256
        && keys.contains(&VerifierKey::new(&body.deployment, &key))
}

/// The bytes of a signed document.
pub(super) fn encode<B: Serialize>(signed: &Signed<B>) -> Result<bytes::Bytes> {
    let mut bytes = document::canonical(signed)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// Refuses a manifest of another part, or of another deployment.
pub(super) fn is_of(body: &Body, deployment: &str, part: &Part, root: Hash) -> Result<()> {
    let same = body.deployment == deployment && body.part() == Some(*part) && body.root == root.hex();
    same.then_some(()).ok_or_else(|| {
        Error::conflict(format!(
            "archive.destination: {} is there already, and is of other entries; nothing was overwritten",
            name(part)
        ))
    })
}
