//! A part of the keyring's own backup, sealed by a key-encryption key: a line that says what it is, and behind it the sealed bytes, which
//! open only under that very line.
//!
//! Knows nothing of what is in it, and of where it is kept.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::kek::{Kek, Keks};
use super::seal::bind;
use crate::error::{Error, Result};

/// What the line says it is.
const FORMAT: &str = "sidekeep-keyring-shard-1";
/// The longest line.
const LINE: usize = 64 << 10;

/// What is said of a shard in the clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    format: String,
    /// Whose keyring it is.
    pub deployment: String,
    /// Which part of it.
    pub shard: i16,
    /// The generation: whatever erases somebody raises it.
    pub generation: i64,
    /// The id of this write, which the database that wrote it knows.
    pub write: String,
    /// Which key-encryption key seals it.
    pub sealed_under: String,
    /// Which key-encryption keys wrap the keys in it.
    pub kek_ids: Vec<String>,
}

/// Why a shard does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// It is no shard, or was cut.
    #[error("it is no part of a keyring's backup")]
    Form,
    /// It is another deployment's.
    #[error("it is of the deployment {0:?}")]
    Deployment(String),
    /// It is another part than the one that its name says.
    #[error("it is the part {0}")]
    Number(i16),
    /// Its key-encryption key was not given.
    #[error("it is sealed by the key-encryption key {0}, which is in none of keyring.key_files")]
    Kek(String),
    /// It was changed.
    #[error("it does not open: it was changed")]
    Changed,
}

impl Header {
    /// Of a shard that is to be sealed by this key.
    pub fn new((deployment, shard, generation): (&str, i16, i64), write: &str, kek: &Kek) -> Self {
        Self {
            format: FORMAT.to_owned(),
            deployment: deployment.to_owned(),
            shard,
            generation,
            write: write.to_owned(),
            sealed_under: kek.id().to_owned(),
            kek_ids: Vec::new(),
        }
    }

    /// Reads the line of a shard, without opening it. What it says is proved by [`open`] alone.
    ///
    /// # Errors
    /// [`Unopened::Form`].
    pub fn read(bytes: &[u8]) -> Result<(Self, &[u8], &[u8]), Unopened> {
        let end = bytes.iter().take(LINE).position(|byte| *byte == b'\n').ok_or(Unopened::Form)?;
        let (line, rest) = bytes.split_at_checked(end).ok_or(Unopened::Form)?;
        let header: Self = serde_json::from_slice(line).map_err(|_| Unopened::Form)?;
        if header.format != FORMAT {
            return Err(Unopened::Form);
        }
        Ok((header, line, rest.get(1..).unwrap_or_default()))
    }
}

impl Keks {
    /// The key that seals shards: the one that wraps new people's keys, which all daemons have.
    ///
    /// # Errors
    /// There is none.
    pub fn sealing(&self) -> Result<&Kek> {
        self.wrapping()
    }
}

/// Seals a shard with the key that its header names.
///
/// # Errors
/// That key was not given, or the system's randomness failed.
pub fn seal(keks: &Keks, header: &Header, plain: &[u8]) -> Result<Vec<u8>> {
    let kek = keks.find(&header.sealed_under).ok_or_else(|| Error::internal("no key to seal with"))?;
    let mut bytes = serde_json::to_vec(header).map_err(Error::internal)?;
    let sealed = kek.seal(&bound(&bytes), plain)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&sealed);
    Ok(bytes)
}

/// Opens a shard of this deployment and number.
///
/// # Errors
/// [`Unopened`].
pub fn open(
    keks: &Keks,
    (deployment, shard): (&str, i16),
    bytes: &[u8],
) -> Result<(Header, Zeroizing<Vec<u8>>), Unopened> {
    let (header, line, sealed) = Header::read(bytes)?;
    if header.deployment != deployment {
        return Err(Unopened::Deployment(header.deployment));
    }
    if header.shard != shard {
        return Err(Unopened::Number(header.shard));
    }
    let kek = keks.find(&header.sealed_under).ok_or_else(|| Unopened::Kek(header.sealed_under.clone()))?;
    let plain = kek.open(&bound(line), sealed).ok_or(Unopened::Changed)?;
    Ok((header, plain))
}

fn bound(line: &[u8]) -> Vec<u8> {
    bind("sidekeep keyring shard", &[line])
}

#[cfg(test)]
mod tests {
    use super::super::kek::{Kek, Keks, generate};
    use super::{Header, Unopened, open, seal};

    fn keks() -> Keks {
        let kek = Kek::parse("kek".into(), &generate().unwrap()).unwrap();
        Keks::new(vec![("kek".into(), kek)]).unwrap()
    }

    #[test]
    fn a_shard_opens_under_its_own_line_alone() {
        let (own, other) = (keks(), keks());
        let kek = own.sealing().unwrap();
        let header = Header::new(("test", 7, 3), "w1", kek);
        let sealed = seal(&own, &header, b"people").unwrap();
        let (read, plain) = open(&own, ("test", 7), &sealed).unwrap();
        assert_eq!((read, plain.as_slice()), (header.clone(), b"people".as_slice()));
        assert!(!sealed.windows(6).any(|window| window == b"people"));
        assert_eq!(open(&own, ("other", 7), &sealed).unwrap_err(), Unopened::Deployment("test".into()));
        assert_eq!(open(&own, ("test", 8), &sealed).unwrap_err(), Unopened::Number(7));
        assert_eq!(open(&other, ("test", 7), &sealed).unwrap_err(), Unopened::Kek(kek.id().into()));
        // A line that claims another generation, and any byte that is another one.
        let text = String::from_utf8_lossy(&sealed[..sealed.len() - 34]).into_owned();
        let newer = text.replace("\"generation\":3", "\"generation\":9");
        let forged = [newer.as_bytes(), &sealed[text.len()..]].concat();
        assert!(open(&own, ("test", 7), &forged).is_err());
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(open(&own, ("test", 7), &flipped).is_err(), "byte {at}");
            assert!(open(&own, ("test", 7), &sealed[..at]).is_err(), "cut at {at}");
        }
    }
}
