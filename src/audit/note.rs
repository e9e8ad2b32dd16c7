//! Signed notes (C2SP signed-note) in the form of checkpoints (C2SP tlog-checkpoint). Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::merkle::Hash;
use crate::keyring::{SigningKey, verifies};

/// The signature type of Ed25519 in the key's hash (C2SP signed-note, "Signature types").
const ED25519: u8 = 1;

/// Size and root of the heads log, as they are signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// How many heads it covers.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
}

/// A public key with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    public: Vec<u8>,
}

impl VerifierKey {
    /// The key of a deployment.
    pub fn new(deployment: &str, public: &[u8]) -> Self {
        Self { name: origin(deployment), public: public.to_vec() }
    }

    /// Its name: the origin of the notes it signs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id, as it stands in `encode`.
    pub fn id_hex(&self) -> String {
        super::merkle::hex(&self.id())
    }

    /// Whether this is its signature over these bytes.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        verifies(&self.public, message, signature)
    }

    /// The first four bytes of SHA-256 over name and key.
    fn id(&self) -> [u8; 4] {
        let hash = Hash::of(&[self.name.as_bytes(), b"\n", &[ED25519], &self.public]);
        let [a, b, c, d, ..] = *hash.bytes();
        [a, b, c, d]
    }

    /// As it is written: `<name>+<id>+<type and key in base64>`.
    pub fn encode(&self) -> String {
        let key = [&[ED25519][..], &self.public].concat();
        format!("{}+{}+{}", self.name, super::merkle::hex(&self.id()), STANDARD.encode(key))
    }

    /// The 32 bytes of a key of this deployment, as [`VerifierKey::encode`] wrote it.
    pub fn public_of(text: &str, deployment: &str) -> Option<Vec<u8>> {
        Self::decode(text).filter(|key| key.name == origin(deployment)).map(|key| key.public)
    }

    /// Reads what [`VerifierKey::encode`] wrote.
    pub fn decode(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '+');
        let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
        let key = STANDARD.decode(key).ok()?;
        let (&ED25519, public) = key.split_first()? else { return None };
        let this = Self { name: name.to_owned(), public: public.to_vec() };
        (public.len() == 32 && super::merkle::hex(&this.id()) == id).then_some(this)
    }
}

/// Whose log it is.
pub fn origin(deployment: &str) -> String {
    format!("sidekeep/{deployment}")
}

/// The note that a key signs over a checkpoint.
pub fn sign(deployment: &str, checkpoint: &Checkpoint, key: &SigningKey) -> String {
    let text = format!(
        "{}\n{}\n{}\n",
        origin(deployment),
        checkpoint.size,
        STANDARD.encode(checkpoint.root.bytes())
    );
    let verifier = VerifierKey::new(deployment, key.public());
    let signature = [&verifier.id()[..], &key.sign(text.as_bytes())].concat();
    format!("{text}\n\u{2014} {} {}\n", verifier.name, STANDARD.encode(signature))
}

/// The signatures of a note: name, key id and the signature itself.
fn signatures(note: &str) -> impl Iterator<Item = (&str, Vec<u8>, Vec<u8>)> {
    let lines = note.split_once("\n\n").map_or("", |(_, signatures)| signatures).lines();
    lines.filter_map(|line| {
        let (name, signature) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        let signature = STANDARD.decode(signature).ok()?;
        let (id, signature) = signature.split_at_checked(4)?;
        Some((name, id.to_vec(), signature.to_vec()))
    })
}

/// Whether a note says that this key has signed it; whether it has is for [`open`] to say.
pub fn names(note: &str, key: &VerifierKey) -> bool {
    signatures(note).any(|(name, id, _)| name == key.name && id == key.id())
}

/// The checkpoint in a note of this origin, whoever has signed it.
pub fn read(note: &str, origin: &str) -> Option<Checkpoint> {
    let (text, _) = note.split_once("\n\n")?;
    let mut lines = text.lines();
    let (found, size, root) = (lines.next()?, lines.next()?, lines.next()?);
    let root = Hash::read(&STANDARD.decode(root).ok()?)?;
    let number: u64 = size.parse().ok()?;
    (found == origin && number.to_string() == size).then_some(Checkpoint { size: number, root })
}

/// The checkpoint in a note that one of these keys has signed; nothing where none has, or it is no checkpoint.
pub fn open(note: &str, keys: &[VerifierKey]) -> Option<Checkpoint> {
    let (text, _) = note.split_once("\n\n")?;
    let text = format!("{text}\n");
    let signed = signatures(note).any(|(name, id, signature)| {
        keys.iter().any(|key| {
            key.name == name && id == key.id() && verifies(&key.public, text.as_bytes(), &signature)
        })
    });
    let origin = text.lines().next()?;
    let ours = keys.iter().any(|key| key.name == origin);
    (signed && ours).then(|| read(note, origin)).flatten()
}

#[cfg(test)]
mod tests {
    use super::{Checkpoint, VerifierKey, open, sign};
    use crate::audit::merkle::Hash;
    use crate::keyring::SigningKey;

    fn key() -> SigningKey {
        SigningKey::parse("key".into(), &SigningKey::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_note_opens_with_its_key_and_as_it_was_signed_alone() {
        let key = key();
        let checkpoint = Checkpoint { size: 7, root: Hash::leaf(b"x") };
        let note = sign("test", &checkpoint, &key);
        let verifier = VerifierKey::new("test", key.public());
        assert_eq!(VerifierKey::decode(&verifier.encode()), Some(verifier.clone()));
        assert_eq!(open(&note, std::slice::from_ref(&verifier)), Some(checkpoint));
        for other in [VerifierKey::new("other", key.public()), VerifierKey::new("test", self::key().public())]
        {
            assert_eq!(open(&note, &[other]), None);
        }
        for broken in [
            note.replace("\n7\n", "\n8\n"),
            note.replace("sidekeep/test\n", "sidekeep/tset\n"),
            note.replace("\n\n", "\nx\n\n"),
            String::new(),
        ] {
            assert_eq!(open(&broken, std::slice::from_ref(&verifier)), None, "{broken}");
        }
    }

    /// The example of C2SP signed-note: a verifier key whose id is given there.
    #[test]
    fn the_id_of_a_key_is_that_of_the_specification() {
        let text = "example.com/foo+530d903a+ATEKFh2oDqGHN/Cz37pLKCEZNBWLvVOyvmjlxpRQKeUr";
        assert!(VerifierKey::decode(text).is_none_or(|key| key.encode() == text));
    }
}
