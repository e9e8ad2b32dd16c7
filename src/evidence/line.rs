//! One entry as a line of an archive: its canonical form with three more members, `client_sealed` and `metadata_sealed` (the
//! sealed bytes in base64, or null) and `leaf_hash`. Pure.
//!
//! The order is that of RFC 8785 with them too. Without them the line is the canonical bytes: whoever has no JSON library cuts
//! them out, since neither of their values can hold a quote.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::audit::entry::Entry;
use crate::audit::merkle::Hash;

const CLIENT: &str = "\"client_sealed\":";
const CLIENT_DIGEST: &str = "\"client_sealed_sha256\":";
const LEAF: &str = "\"leaf_hash\":\"";
const METADATA: &str = "\"metadata_sealed\":";
const METADATA_DIGEST: &str = "\"metadata_sealed_sha256\":";
/// A digest in hexadecimal between quotes.
const QUOTED_DIGEST: usize = 66;

/// The leaf of an entry, and its line with the newline.
pub(super) fn encode(entry: &Entry) -> Option<(Hash, String)> {
    let canonical = String::from_utf8(entry.canonical()).ok()?;
    let leaf = Hash::leaf(canonical.as_bytes());
    // Within a string a quote is escaped, and labels, which have quoted keys, come after the first and before the last.
    let (before, rest) = canonical.split_at_checked(canonical.find(CLIENT_DIGEST)?)?;
    let (between, after) = rest.split_at_checked(rest.rfind(METADATA_DIGEST)?)?;
    let mut line = String::with_capacity(canonical.len().saturating_add(256));
    line.extend([before, CLIENT]);
    sealed(&mut line, entry.client_sealed.as_deref());
    line.extend([",", between, LEAF, &leaf.hex(), "\",", METADATA]);
    sealed(&mut line, entry.metadata_sealed.as_deref());
    line.extend([",", after, "\n"]);
    Some((leaf, line))
}

fn sealed(line: &mut String, bytes: Option<&[u8]>) {
    match bytes {
        None => line.push_str("null"),
        Some(bytes) => {
            line.push('"');
            STANDARD.encode_string(bytes, line);
            line.push('"');
        }
    }
}

/// What a line says of its own leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// The leaf over the canonical bytes in it.
    pub(super) leaf: Hash,
    /// The leaf hash that stands in it.
    pub(super) said: Hash,
    /// Whether the sealed bytes have the digests in the canonical bytes.
    pub(super) sealed: bool,
}

/// Reads a line without its newline; nothing where it is not of the form.
pub(super) fn decode(line: &str) -> Option<Told> {
    let (before, rest) = line.split_at_checked(line.find(CLIENT)?)?;
    let (client, rest) = value(rest.strip_prefix(CLIENT)?)?;
    let (between, rest) = rest.split_at_checked(rest.rfind(LEAF)?)?;
    let (said, rest) = rest.strip_prefix(LEAF)?.split_once('"')?;
    let (metadata, after) = value(rest.strip_prefix(',')?.strip_prefix(METADATA)?)?;
    let sealed = has_digest(client, between.strip_prefix(CLIENT_DIGEST)?)?
        && has_digest(metadata, after.strip_prefix(METADATA_DIGEST)?)?;
    let leaf = Hash::of(&[&[0], before.as_bytes(), between.as_bytes(), after.as_bytes()]);
    Some(Told { leaf, said: Hash::from_hex(said)?, sealed })
}

/// A value that ends at the next comma: null, or text without quotes in it.
fn value(text: &str) -> Option<(Option<&str>, &str)> {
    let (value, rest) = text.split_once(',')?;
    if value == "null" {
        return Some((None, rest));
    }
    Some((Some(value.strip_prefix('"')?.strip_suffix('"')?), rest))
}

fn has_digest(sealed: Option<&str>, said: &str) -> Option<bool> {
    let Some(sealed) = sealed else { return Some(said.starts_with("null")) };
    let digest = Hash::of(&[&STANDARD.decode(sealed).ok()?]).hex();
    Some(said.get(..QUOTED_DIGEST)? == format!("\"{digest}\""))
}

/// The persons in a line.
#[derive(Deserialize)]
pub(super) struct Persons {
    actor_id: Option<i64>,
    subject_id: Option<i64>,
}

impl Persons {
    /// Those that an entry names; nothing where it is not one.
    pub(super) fn of(line: &str) -> Option<impl Iterator<Item = i64> + use<>> {
        let persons: Self = serde_json::from_str(line).ok()?;
        Some([persons.actor_id, persons.subject_id].into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::{Persons, decode, encode};
    use crate::audit::entry::{Entry, Labels};
    use crate::clock::Timestamp;
    use crate::values::jcs;

    fn entry() -> Entry {
        let hostile = "\",\"client_sealed_sha256\":null,\"leaf_hash\":\"x\"";
        Entry {
            stream: 3,
            position: 9,
            recorded_at: Timestamp::parse("2026-11-20T19:55:00.000001Z").unwrap().utc(),
            format: 1,
            id: hostile.into(),
            actor_id: Some(7),
            subject_id: Some(8),
            action: hostile.into(),
            resource_type: None,
            resource_id: Some(hostile.into()),
            outcome: None,
            occurred_at: None,
            labels: Some(Labels::of(
                [
                    "client_sealed",
                    "client_sealed_sha256",
                    "leaf_hash",
                    "metadata_sealed",
                    "metadata_sealed_sha256",
                ]
                .map(|key| (key.into(), hostile.into())),
            )),
            client_sealed: None,
            metadata_sealed: Some(b"sealed".to_vec()),
        }
    }

    #[test]
    fn a_line_is_canonical_json_and_leads_back_to_its_leaf() {
        for (client, metadata) in [
            (None, None),
            (Some(vec![1, 2]), None),
            (None, Some(vec![])),
            (Some(vec![9; 99]), Some(vec![7; 50])),
        ] {
            let entry = Entry { client_sealed: client, metadata_sealed: metadata, ..entry() };
            let (leaf, line) = encode(&entry).unwrap();
            assert_eq!(leaf, entry.leaf());
            let line = line.strip_suffix('\n').unwrap();
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(jcs(&value).unwrap(), line.as_bytes(), "of RFC 8785 with the members that were added");
            let told = decode(line).unwrap();
            assert_eq!((told.leaf, told.said, told.sealed), (leaf, leaf, true));
            assert_eq!(Persons::of(line).unwrap().collect::<Vec<_>>(), [7, 8]);
            // Another reader's way: take the three members out.
            let mut members = value.as_object().unwrap().clone();
            ["client_sealed", "leaf_hash", "metadata_sealed"]
                .iter()
                .for_each(|name| drop(members.remove(*name)));
            assert_eq!(jcs(&members.into()).unwrap(), entry.canonical());
        }
    }

    #[test]
    fn whatever_is_changed_in_a_line_changes_its_leaf_or_is_no_line() {
        let (leaf, line) = encode(&entry()).unwrap();
        let line = line.trim_end();
        for at in 0..line.len() {
            for other in ["x", "", "\"", "0"] {
                let Some(changed) =
                    line.get(..at).zip(line.get(at + 1..)).map(|(a, b)| format!("{a}{other}{b}"))
                else {
                    continue;
                };
                let whole = |told: super::Told| told.leaf == leaf && told.said == leaf && told.sealed;
                assert!(changed == line || !decode(&changed).is_some_and(whole), "{changed}");
            }
        }
    }
}
