//! Key-encryption keys: files that are never in the database, and what they wrap.

use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    file: PathBuf,
    cipher: Cipher,
}

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kek").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys that this daemon was given, in the order of `keyring.key_files`.
#[derive(Clone, Debug)]
pub struct Keks {
    keys: Vec<Arc<Kek>>,
    wrapping: usize,
}

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
        Ok(Self { id, file, cipher })
    }

    /// The key's id: it tells nothing of the key.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The file that it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    pub(super) fn wrap(&self, owner: Owner<'_>, data_key: &[u8; 32]) -> Result<Vec<u8>> {
        self.cipher.seal(&self.bound_to(owner), data_key)
    }

    pub(super) fn unwrap(&self, owner: Owner<'_>, wrapped: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let opened = self.cipher.open(&self.bound_to(owner), wrapped)?;
        opened.as_slice().try_into().ok().map(Zeroizing::new)
    }

    pub(super) fn seal(&self, bound_to: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        self.cipher.seal(bound_to, plain)
    }

    pub(super) fn open(&self, bound_to: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        self.cipher.open(bound_to, sealed)
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
        let mut keks: Vec<Arc<Kek>> = Vec::with_capacity(keys.len());
        for (file, kek) in keys {
            if keks.iter().any(|other| other.id == kek.id) {
                return Err(KekError::Twice(file));
            }
            keks.push(Arc::new(kek));
        }
        if keks.is_empty() { Err(KekError::None) } else { Ok(Self { keys: keks, wrapping: 0 }) }
    }

    /// The key that is to wrap all: the first of `keyring.key_files`.
    pub(super) fn intended(&self) -> Result<Arc<Kek>> {
        self.keys.first().cloned().ok_or_else(|| Error::internal("no key-encryption key"))
    }

    /// The key that wraps new data keys.
    pub(super) fn wrapping(&self) -> Result<&Kek> {
        self.keys.get(self.wrapping).map(|kek| &**kek).ok_or_else(|| Error::internal("no key-encryption key"))
    }

    /// The same keys, where the first that is in all of these lists wraps new data keys: what it wraps opens everywhere.
    pub(super) fn agreeing<'a>(&self, lists: impl Iterator<Item = &'a [String]> + Clone) -> Self {
        let common = |kek: &Arc<Kek>| lists.clone().all(|list| list.contains(&kek.id));
        Self { keys: self.keys.clone(), wrapping: self.keys.iter().position(common).unwrap_or(0) }
    }

    /// These keys and then those of `others` that are not among them.
    pub(super) fn and(&self, others: &Self) -> Self {
        let more = others.keys.iter().filter(|kek| self.find(&kek.id).is_none());
        Self { keys: self.keys.iter().chain(more).cloned().collect(), wrapping: self.wrapping }
    }

    pub(super) fn find(&self, id: &str) -> Option<&Kek> {
        self.iter().find(|kek| kek.id == id)
    }

    /// The keys, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &Kek> {
        self.keys.iter().map(|kek| &**kek)
    }

    /// The ids, in their order.
    pub fn ids(&self) -> Vec<String> {
        self.iter().map(|kek| kek.id.clone()).collect()
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

    #[test]
    fn new_keys_are_wrapped_under_the_first_that_everybody_has() {
        let kek = |name: &str| (name.into(), Kek::parse(name.into(), &generate().unwrap()).unwrap());
        let keks = Keks::new(vec![kek("new"), kek("old")]).unwrap();
        let ids = keks.ids();
        let (both, new, old, other) =
            (ids.clone(), vec![ids[0].clone()], vec![ids[1].clone()], vec!["other".to_owned()]);
        let wraps = |lists: &[&Vec<String>]| {
            let lists: Vec<&[String]> = lists.iter().map(|list| list.as_slice()).collect();
            keks.agreeing(lists.into_iter()).wrapping().unwrap().id().to_owned()
        };
        assert_eq!(wraps(&[]), ids[0]);
        assert_eq!(wraps(&[&both, &new]), ids[0]);
        assert_eq!(wraps(&[&both, &old]), ids[1]);
        assert_eq!(
            wraps(&[&both, &other]),
            ids[0],
            "nothing would be right, and the first is what was asked for"
        );
    }
}
