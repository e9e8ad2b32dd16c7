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

/// The checkpoint in a note that one of these keys has signed; nothing where none has, or it is no checkpoint.
pub fn open(note: &str, keys: &[VerifierKey]) -> Option<Checkpoint> {
    let (text, signatures) = note.split_once("\n\n")?;
    let text = format!("{text}\n");
    let signed = signatures.lines().any(|line| {
        let Some((name, signature)) = line.strip_prefix("\u{2014} ").and_then(|line| line.split_once(' '))
        else {
            return false;
        };
        let Ok(signature) = STANDARD.decode(signature) else { return false };
        let Some((id, signature)) = signature.split_at_checked(4) else { return false };
        keys.iter().any(|key| {
            key.name == name && key.id() == id && verifies(&key.public, text.as_bytes(), signature)
        })
    });
    let mut lines = text.lines();
    let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
    let root = Hash::read(&STANDARD.decode(root).ok()?)?;
    let size: u64 = size.parse().ok()?;
    let ours = keys.iter().any(|key| key.name == origin);
    (signed && ours && size.to_string() == text.lines().nth(1)?).then_some(Checkpoint { size, root })
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
