//! One published checkpoint, as it lies outside of the database. Pure.
//!
//! A JSON object: `checkpoint` is the signed note, `from` the size of the checkpoint that was published before, `heads` the
//! leaves of the heads log from there on (their canonical bytes, as text), `format` is 1. Its name has the size.

use serde::{Deserialize, Serialize};

use super::super::entry::Head;
use super::super::note::{self, Checkpoint, VerifierKey};

/// The form of objects.
const FORMAT: u8 = 1;

/// A checkpoint with the heads since the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What was signed.
    pub checkpoint: Checkpoint,
    /// The signed note.
    pub note: String,
    /// The size of the checkpoint that was published before.
    pub from: u64,
    /// The heads from there on.
    pub heads: Vec<Head>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Document {
    checkpoint: String,
    format: u8,
    from: u64,
    heads: Vec<String>,
}

/// Whose objects are believed.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The origin of their notes.
    pub origin: String,
    /// The keys that may have signed them; of none, signatures are not looked at.
    pub keys: Vec<VerifierKey>,
}

/// The name of the object of a checkpoint: names sort as sizes do.
pub fn name(size: u64) -> String {
    format!("checkpoint-{size:016}.json")
}

/// The size in a name.
pub fn size(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("checkpoint-")?.strip_suffix(".json")?;
    let size = digits.parse().ok()?;
    (digits.len() == 16 && self::name(size) == name).then_some(size)
}

impl Object {
    /// The object of a note over so many heads, with the heads from another size on; nothing where they do not fit.
    pub fn of(note: String, size: u64, (from, heads): (u64, Vec<Head>), trust: &Trust) -> Option<Self> {
        let checkpoint = note::read(&note, &trust.origin).filter(|checkpoint| checkpoint.size == size)?;
        let fits = from.checked_add(u64::try_from(heads.len()).ok()?) == Some(size);
        fits.then_some(Self { checkpoint, note, from, heads })
    }

    /// The bytes of the object.
    pub fn encode(&self) -> Vec<u8> {
        let head = |head: &Head| String::from_utf8(head.canonical()).unwrap_or_default();
        let document = Document {
            checkpoint: self.note.clone(),
            format: FORMAT,
            from: self.from,
            heads: self.heads.iter().map(head).collect(),
        };
        // Text and integers are always JSON.
        let mut bytes = serde_json::to_vec(&document).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads the object of the checkpoint of this size. That its heads lead to the root is for the reader to find out, who has
    /// those before them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &[u8], size: u64, trust: &Trust) -> Result<Self, &'static str> {
        let document: Document =
            serde_json::from_slice(bytes).map_err(|_| "it is not an object that sidekeep publishes")?;
        let checkpoint = note::read(&document.checkpoint, &trust.origin)
            .ok_or("it is not of this deployment, or holds no note")?;
        if !trust.keys.is_empty() && note::open(&document.checkpoint, &trust.keys).is_none() {
            return Err("none of signing.key_files or signing.lost_keys has signed it");
        }
        let heads: Option<Vec<Head>> = document.heads.iter().map(|head| Head::read(head)).collect();
        let heads = heads.ok_or("it holds a head that is none")?;
        let count = u64::try_from(heads.len()).map_err(|_| "it holds too many heads")?;
        let sound = document.format == FORMAT
            && checkpoint.size == size
            && count > 0
            && document.from.checked_add(count) == Some(size);
        sound.then_some(()).ok_or("name, note and heads do not fit one another")?;
        Ok(Self { checkpoint, note: document.checkpoint, from: document.from, heads })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::merkle::{Frontier, Hash};
    use super::{Head, Object, Trust, VerifierKey, name, note, size};
    use crate::clock::Timestamp;
    use crate::keyring::SigningKey;

    #[test]
    fn a_name_has_its_size() {
        assert_eq!((name(42).as_str(), size(&name(42))), ("checkpoint-0000000000000042.json", Some(42)));
        for other in [
            "checkpoint-42.json",
            ".checkpoint-0000000000000042.json.1.tmp",
            "x",
            "checkpoint-+000000000000042.json",
        ] {
            assert_eq!(size(other), None, "{other}");
        }
    }

    #[test]
    fn an_object_is_read_as_it_was_written_and_by_nobody_elses_key() {
        let key = SigningKey::parse("key".into(), &SigningKey::generate().unwrap()).unwrap();
        let at = Timestamp::parse("2026-11-20T19:55:00Z").unwrap();
        let heads: Vec<Head> =
            (0..3).map(|stream| Head { at, root: Hash::leaf(b"x"), size: 7, stream }).collect();
        let mut frontier = Frontier::default();
        heads.iter().for_each(|head| frontier.push(head.leaf(), |_, _| ()));
        let checkpoint = super::Checkpoint { size: 3, root: frontier.root() };
        let note = note::sign("test", &checkpoint, &key);
        let object = Object { checkpoint, note, from: 0, heads };
        let trust = |public: &[u8]| Trust {
            origin: "sidekeep/test".into(),
            keys: vec![VerifierKey::new("test", public)],
        };
        let bytes = object.encode();
        assert_eq!(Object::decode(&bytes, 3, &trust(key.public())), Ok(object.clone()));
        let other = SigningKey::parse("key".into(), &SigningKey::generate().unwrap()).unwrap();
        assert!(Object::decode(&bytes, 3, &trust(other.public())).is_err());
        assert!(Object::decode(&bytes, 4, &trust(key.public())).is_err());
        let keyless = Trust { origin: "sidekeep/test".into(), keys: Vec::new() };
        assert_eq!(Object::decode(&bytes, 3, &keyless), Ok(object));
        assert!(
            Object::decode(&bytes, 3, &Trust { origin: "sidekeep/other".into(), keys: Vec::new() }).is_err()
        );
        for broken in [&bytes[..bytes.len() / 2], b"", b"{}"] {
            assert!(Object::decode(broken, 3, &keyless).is_err());
        }
    }
}
