//! The keys that sign checkpoints: Ed25519 (RFC 8032), in files that only the daemons that sign are given.

use std::path::PathBuf;

use aws_lc_rs::rand;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// What the line with the key begins with.
const PREFIX: &str = "sidekeep-signing-key-1:";

/// A file that holds no signing key. Never holds anything of its content.
#[derive(Debug, thiserror::Error)]
#[error("{}: holds no signing key; expected one line `{PREFIX}` with 32 bytes in base64, as `sidekeep signing generate` writes it", .0.display())]
pub struct SigningKeyError(pub PathBuf);

/// A key that signs.
pub struct SigningKey(Ed25519KeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKey {
    /// A new key, as the text of its file.
    ///
    /// # Errors
    /// The system's randomness failed.
    pub fn generate() -> Result<Zeroizing<String>> {
        let mut seed = Zeroizing::new([0_u8; 32]);
        rand::fill(&mut *seed).map_err(Error::internal)?;
        let line = Zeroizing::new(STANDARD.encode(*seed));
        Ok(Zeroizing::new(format!(
            "# sidekeep signing key: it signs the checkpoints of the audit log. `sidekeep signing public-key` prints its other half.\n\
             # Whoever has it can sign another log in this deployment's name.\n{PREFIX}{}\n",
            *line
        )))
    }

    /// Reads the text of a key file.
    ///
    /// # Errors
    /// [`SigningKeyError`], naming the file.
    pub fn parse(file: PathBuf, text: &str) -> Result<Self, SigningKeyError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let form = || SigningKeyError(file.clone());
        let (Some(line), None) = (lines.next(), lines.next()) else { return Err(form()) };
        let encoded = line.strip_prefix(PREFIX).ok_or_else(form)?;
        let seed = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| form())?);
        Ed25519KeyPair::from_seed_unchecked(&seed).map(Self).map_err(|_| form())
    }

    /// Signs bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).as_ref().to_vec()
    }

    /// The public half: 32 bytes.
    pub fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
}

/// The keys of a deployment.
#[derive(Debug, Default)]
pub struct Signers {
    keys: Vec<SigningKey>,
    lost: Vec<Vec<u8>>,
}

impl Signers {
    /// Keys, of which the first signs, and the public halves of those that are lost.
    pub fn new(keys: Vec<SigningKey>, lost: Vec<Vec<u8>>) -> Self {
        Self { keys, lost }
    }

    /// Those that can sign.
    pub fn keys(&self) -> &[SigningKey] {
        &self.keys
    }

    /// The public halves of those that are lost.
    pub fn lost(&self) -> &[Vec<u8>] {
        &self.lost
    }

    /// The public halves of all.
    pub fn public(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.iter().map(SigningKey::public).chain(self.lost.iter().map(Vec::as_slice))
    }
}

/// Whether this is the key's signature over these bytes.
pub fn verifies(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(message, signature).is_ok()
}
