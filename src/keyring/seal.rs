//! A value sealed with a data key and bound to the one place it stands in: moved anywhere else, it does not open.
//!
//! AES-256-GCM-SIV (RFC 8452) under random nonces, the tag over deployment, table, row and column as well.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// The first byte of what is sealed.
const FORMAT: u8 = 1;
const NONCE: usize = 12;
const TAG: usize = 16;

/// Where a sealed value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The table.
    pub table: &'static str,
    /// The column.
    pub column: &'static str,
    /// The row's key, as text.
    pub row: &'a str,
}

/// What one key seals and opens, whatever it is the key of. Cannot be shown.
pub(super) struct Cipher(RandomizedNonceKey);

impl Cipher {
    pub(super) fn new(key: &[u8; 32]) -> Result<Self> {
        RandomizedNonceKey::new(&AES_256_GCM_SIV, key).map(Self).map_err(Error::internal)
    }

    /// Format, nonce, sealed bytes, tag.
    pub(super) fn seal(&self, bound_to: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(plain.len().saturating_add(TAG)));
        text.extend_from_slice(plain);
        let nonce =
            self.0.seal_in_place_append_tag(Aad::from(bound_to), &mut *text).map_err(Error::internal)?;
        let mut sealed = Vec::with_capacity(text.len().saturating_add(NONCE + 1));
        sealed.push(FORMAT);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    /// The bytes that were sealed, or nothing when anything about them is different now.
    pub(super) fn open(&self, bound_to: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (&FORMAT, rest) = sealed.split_first()? else { return None };
        let (nonce, text) = rest.split_at_checked(NONCE)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(text.to_vec());
        let length = self.0.open_in_place(nonce, Aad::from(bound_to), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

/// Parts one after another, each behind its length, so that no two lists of parts give the same bytes.
pub(super) fn bind(purpose: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
        bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// A person's opened data key, for as long as one call holds it.
#[derive(Clone)]
pub struct DataKey {
    cipher: std::sync::Arc<Cipher>,
    deployment: std::sync::Arc<str>,
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DataKey")
    }
}

impl DataKey {
    pub(super) fn new(deployment: std::sync::Arc<str>, key: &[u8; 32]) -> Result<Self> {
        Ok(Self { cipher: std::sync::Arc::new(Cipher::new(key)?), deployment })
    }

    /// Seals a value for its place.
    ///
    /// # Errors
    /// The system's randomness failed.
    pub fn seal(&self, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>> {
        self.cipher.seal(&self.bound_to(place), plain)
    }

    /// Opens a value in its place.
    ///
    /// # Errors
    /// [`Error::Tampered`] when it was sealed for another place or person, or changed.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        self.cipher.open(&self.bound_to(place), sealed).ok_or_else(|| tampered(place))
    }

    /// Opens a text in its place.
    ///
    /// # Errors
    /// [`Error::Tampered`] as [`DataKey::open`].
    pub fn open_text(&self, place: Place<'_>, sealed: &[u8]) -> Result<String> {
        let plain = self.open(place, sealed)?;
        String::from_utf8(plain.to_vec()).map_err(|_| tampered(place))
    }

    fn bound_to(&self, place: Place<'_>) -> Vec<u8> {
        let parts = [
            self.deployment.as_bytes(),
            place.table.as_bytes(),
            place.row.as_bytes(),
            place.column.as_bytes(),
        ];
        bind("sidekeep seal", &parts)
    }
}

fn tampered(place: Place<'_>) -> Error {
    Error::Tampered { at: format!("{}.{}", place.table, place.column) }
}

#[cfg(test)]
mod tests {
    use super::{Cipher, DataKey, Place, bind};
    use proptest::prelude::*;

    const HERE: Place<'_> = Place { table: "user_profiles", column: "email_sealed", row: "17" };

    fn key(byte: u8) -> DataKey {
        DataKey::new("test".into(), &[byte; 32]).unwrap()
    }

    #[test]
    fn sealed_bytes_open_only_in_their_place() {
        let sealed = key(1).seal(HERE, b"alice@mail.example").unwrap();
        assert_eq!(&**key(1).open(HERE, &sealed).unwrap(), b"alice@mail.example");
        let elsewhere = [
            Place { table: "user_preferences", ..HERE },
            Place { column: "username_sealed", ..HERE },
            Place { row: "18", ..HERE },
        ];
        for place in elsewhere {
            assert!(key(1).open(place, &sealed).is_err(), "{place:?}");
        }
        assert!(key(2).open(HERE, &sealed).is_err());
        assert!(DataKey::new("other".into(), &[1; 32]).unwrap().open(HERE, &sealed).is_err());
    }

    #[test]
    fn parts_cannot_be_shifted() {
        assert_ne!(bind("x", &[b"ab", b"c"]), bind("x", &[b"a", b"bc"]));
        assert_ne!(bind("x", &[b"ab"]), bind("x", &[b"ab", b""]));
    }

    /// RFC 8452, appendix C.2: AES-256-GCM-SIV, 8 bytes of plaintext, no associated data.
    #[test]
    fn the_cipher_is_the_one_of_the_rfc() {
        let mut key = [0_u8; 32];
        key[0] = 1;
        let sealed = [
            &[1_u8][..],
            &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xc2, 0xef, 0x32, 0x8e, 0x5c, 0x71, 0xc8, 0x3b],
            &[0x84, 0x31, 0x22, 0x13, 0x0f, 0x73, 0x64, 0xb7, 0x61, 0xe0, 0xb9, 0x74, 0x27, 0xe3, 0xdf, 0x28],
        ]
        .concat();
        let plain = Cipher::new(&key).unwrap().open(&[], &sealed).unwrap();
        assert_eq!(&**plain, &[1, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_a_flipped_bit_does_not(plain: Vec<u8>, flip: prop::sample::Index) {
            let sealed = key(3).seal(HERE, &plain).unwrap();
            prop_assert_eq!(&**key(3).open(HERE, &sealed).unwrap(), &plain[..]);
            let mut broken = sealed.clone();
            let bit = flip.index(broken.len() * 8);
            broken[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(key(3).open(HERE, &broken).is_err());
        }
    }
}
