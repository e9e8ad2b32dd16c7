//! What belongs to no person: the deployment's own data key, and the key of MACs that is derived from it.

use std::sync::Arc;

use aws_lc_rs::{hkdf, hmac};
use zeroize::Zeroizing;

use super::seal::{DataKey, bind};
use crate::error::{Error, Result};

/// The deployment's own keys. Every daemon has them through the key-encryption key, and the owner of the tables has not.
pub struct Deployment {
    /// Seals what belongs to no person.
    pub key: DataKey,
    name: Arc<str>,
    mac: hmac::Key,
}

impl std::fmt::Debug for Deployment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deployment")
    }
}

impl Deployment {
    pub(super) fn new(name: Arc<str>, key: DataKey, bytes: &[u8; 32]) -> Result<Self> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"sidekeep mac").extract(bytes);
        let mut derived = Zeroizing::new([0_u8; 32]);
        let okm = prk.expand(&[b"1"], hmac::HMAC_SHA256).map_err(Error::internal)?;
        okm.fill(&mut *derived).map_err(Error::internal)?;
        Ok(Self { key, name, mac: hmac::Key::new(hmac::HMAC_SHA256, &*derived) })
    }

    /// The deployment's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// HMAC-SHA-256 (RFC 2104) over these parts, each behind its length.
    pub fn mac(&self, purpose: &str, parts: &[&[u8]]) -> Vec<u8> {
        hmac::sign(&self.mac, &bind(purpose, parts)).as_ref().to_vec()
    }

    /// Whether this is the MAC over these parts, in constant time.
    pub fn verifies(&self, purpose: &str, parts: &[&[u8]], mac: &[u8]) -> bool {
        hmac::verify(&self.mac, &bind(purpose, parts), mac).is_ok()
    }
}
