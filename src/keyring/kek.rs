//! Key-encryption keys: files that are never in the database, and what they wrap.

use std::path::PathBuf;

use aws_lc_rs::{hkdf, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::seal::{Cipher, bind};
use crate::error::{Error, Result};

/// What the line with the key begins with.
const PREFIX: &str = "sidekeep-kek-1:";

/// Why a key file is of no use. Never holds anything of its content.
#[derive(Debug, thiserror::Error)]
pub enum KekError {
    /// No file is named.
    #[error(
        "keyring.key_files is empty; make a key with `sidekeep keyring generate --out FILE` and name it there"
    )]
    None,
    /// The file does not hold a key.
    #[error("{}: holds no key-encryption key; expected one line `{PREFIX}` with 32 bytes in base64, as `sidekeep keyring generate` writes it", .0.display())]
    Form(PathBuf),
    /// Two files hold the same key.
    #[error("{}: holds the same key as another of keyring.key_files", .0.display())]
    Twice(PathBuf),
}

/// One key-encryption key.
pub struct Kek {
    id: String,
    cipher: Cipher,
}

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kek").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys that this daemon was given: the first is active.
#[derive(Debug)]
pub struct Keks(Vec<Kek>);

/// To whom a wrapped data key belongs: nobody swaps two people.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner<'a> {
    pub(super) deployment: &'a str,
    pub(super) subject_id: i64,
    pub(super) user_id: Option<&'a str>,
}

/// A new key, as the text of its file.
///
/// # Errors
/// The system's randomness failed.
pub fn generate() -> Result<Zeroizing<String>> {
    let mut key = Zeroizing::new([0_u8; 32]);
    rand::fill(&mut *key).map_err(Error::internal)?;
    let id = id(&key)?;
    let line = Zeroizing::new(STANDARD.encode(*key));
    Ok(Zeroizing::new(format!(
        "# sidekeep key-encryption key {id}\n\
         # It opens every record of this deployment, and no record opens without it: whoever loses it has lost them all.\n\
         # Keep a copy in a safe place, apart from the database and its backups.\n\
         {PREFIX}{}\n",
        *line
    )))
}

impl Kek {
    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`KekError::Form`], naming the file.
    pub fn parse(file: PathBuf, text: &str) -> Result<Self, KekError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let form = || KekError::Form(file.clone());
        let (Some(line), None) = (lines.next(), lines.next()) else { return Err(form()) };
        let encoded = line.strip_prefix(PREFIX).ok_or_else(form)?;
        let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| form())?);
        let key: Zeroizing<[u8; 32]> = Zeroizing::new(bytes.as_slice().try_into().map_err(|_| form())?);
        let id = id(&key).map_err(|_| form())?;
        let cipher = Cipher::new(&key).map_err(|_| form())?;
        Ok(Self { id, cipher })
    }

    /// The key's id: it tells nothing of the key.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn wrap(&self, owner: Owner<'_>, data_key: &[u8; 32]) -> Result<Vec<u8>> {
        self.cipher.seal(&self.bound_to(owner), data_key)
    }

    pub(super) fn unwrap(&self, owner: Owner<'_>, wrapped: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let opened = self.cipher.open(&self.bound_to(owner), wrapped)?;
        opened.as_slice().try_into().ok().map(Zeroizing::new)
    }

    fn bound_to(&self, owner: Owner<'_>) -> Vec<u8> {
        // Without a user id there are fewer parts, so that subject 0 is like nobody's.
        let subject = owner.subject_id.to_be_bytes();
        let mut parts: Vec<&[u8]> = vec![owner.deployment.as_bytes(), self.id.as_bytes(), &subject];
        parts.extend(owner.user_id.map(str::as_bytes));
        bind("sidekeep wrap", &parts)
    }
}

impl Keks {
    /// The keys in the order of `keyring.key_files`.
    ///
    /// # Errors
    /// [`KekError::None`] or [`KekError::Twice`].
    pub fn new(keys: Vec<(PathBuf, Kek)>) -> Result<Self, KekError> {
        let mut keks: Vec<Kek> = Vec::with_capacity(keys.len());
        for (file, kek) in keys {
            if keks.iter().any(|other| other.id == kek.id) {
                return Err(KekError::Twice(file));
            }
            keks.push(kek);
        }
        if keks.is_empty() { Err(KekError::None) } else { Ok(Self(keks)) }
    }

    /// The key that wraps new data keys.
    pub(super) fn active(&self) -> Result<&Kek> {
        self.0.first().ok_or_else(|| Error::internal("no key-encryption key"))
    }

    pub(super) fn find(&self, id: &str) -> Option<&Kek> {
        self.0.iter().find(|kek| kek.id == id)
    }

    /// The ids, the active one first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(Kek::id)
    }
}

/// 16 hexadecimal digits from HKDF-SHA-256 (RFC 5869) over the key.
fn id(key: &[u8; 32]) -> Result<String> {
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"sidekeep kek id").extract(key);
    let mut id = [0_u8; 8];
    let okm = prk.expand(&[b"1"], IdLength).map_err(Error::internal)?;
    okm.fill(&mut id).map_err(Error::internal)?;
    Ok(format!("{:016x}", u64::from_be_bytes(id)))
}

struct IdLength;

impl hkdf::KeyType for IdLength {
    fn len(&self) -> usize {
        8
    }
}

#[cfg(test)]
mod tests {
    use super::{Kek, Keks, Owner, generate};

    const ALICE: Owner<'_> = Owner { deployment: "test", subject_id: 7, user_id: Some("user:alice") };

    #[test]
    fn a_generated_key_wraps_and_unwraps_for_its_owner_alone() {
        let kek = Kek::parse("kek".into(), &generate().unwrap()).unwrap();
        let wrapped = kek.wrap(ALICE, &[9; 32]).unwrap();
        assert_eq!(kek.unwrap(ALICE, &wrapped).as_deref(), Some(&[9; 32]));
        let others = [
            Owner { subject_id: 8, ..ALICE },
            Owner { user_id: Some("user:bob"), ..ALICE },
            Owner { user_id: None, ..ALICE },
            Owner { deployment: "other", ..ALICE },
        ];
        for other in others {
            assert!(kek.unwrap(other, &wrapped).is_none(), "{other:?}");
        }
        let second = Kek::parse("kek".into(), &generate().unwrap()).unwrap();
        assert!(second.unwrap(ALICE, &wrapped).is_none());
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let good = generate().unwrap();
        let line = good.lines().last().unwrap();
        let bad = [
            "",
            "secret-text",
            "sidekeep-kek-1:",
            "sidekeep-kek-1:c2hvcnQ=",
            "sidekeep-kek-1:!!!",
            &format!("{line}\n{line}"),
        ];
        for text in bad {
            let error = Kek::parse("kek".into(), text).unwrap_err().to_string();
            assert!(error.starts_with("kek: ") && !error.contains("secret-text"), "{error}");
        }
    }

    #[test]
    fn the_same_key_twice_is_refused() {
        let text = generate().unwrap();
        let kek = |name: &str| (name.into(), Kek::parse(name.into(), &text).unwrap());
        assert!(Keks::new(vec![kek("a"), kek("b")]).unwrap_err().to_string().starts_with("b: "));
        assert!(Keks::new(vec![]).is_err());
    }
}
