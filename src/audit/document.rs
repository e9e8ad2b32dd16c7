//! Signed documents: `{body, key, signature}`, Ed25519 (RFC 8032) over the canonical form of the body (RFC 8785).
//!
//! Whoever has the public key checks one without us. Never says anything about what is in a body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Log;
use crate::error::{Error, Result};
use crate::keyring::verifies;
use crate::values::jcs;

/// A body that the deployment has signed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Signed<B> {
    /// What is signed.
    pub body: B,
    /// The public key, Ed25519, in base64.
    pub key: String,
    /// The signature over the RFC 8785 form of the body, in base64.
    pub signature: String,
}

/// What is wrong with a document that claims to be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// It is not of the form of one.
    #[error("it is no signed document: it needs body, key and signature")]
    Form,
    /// The signature is not one over this body.
    #[error("the signature does not verify: the document was changed, or was never signed")]
    Signature,
}

impl<B: Serialize> Signed<B> {
    /// Signs a body with the key that signs.
    ///
    /// # Errors
    /// [`Error::Conflict`] in a daemon without a signing key.
    pub fn sign(log: &Log, body: B) -> Result<Self> {
        let signer = log.signer()?;
        let bytes = canonical(&body)?;
        Ok(Self {
            key: STANDARD.encode(signer.public()),
            signature: STANDARD.encode(signer.sign(&bytes)),
            body,
        })
    }
}

/// The bytes that are signed.
///
/// # Errors
/// The body is not one that has a canonical form.
pub fn canonical(body: &impl Serialize) -> Result<Vec<u8>> {
    let body = serde_json::to_value(body).map_err(Error::internal)?;
    jcs(&body).ok_or_else(|| Error::internal("a signed document holds a number that is no double"))
}

impl<B: DeserializeOwned> Signed<B> {
    /// Reads a document, and checks its signature; answers the public key that has signed it, too. Whether that key is one to
    /// trust is for the caller to say.
    ///
    /// # Errors
    /// [`Unsigned`].
    pub fn read(bytes: &[u8]) -> Result<(Self, Vec<u8>), Unsigned> {
        let document: Value = serde_json::from_slice(bytes).map_err(|_| Unsigned::Form)?;
        let key = verify(&document)?;
        Ok((serde_json::from_value(document).map_err(|_| Unsigned::Form)?, key))
    }
}

/// Checks a document, and answers the public key that has signed it.
///
/// # Errors
/// [`Unsigned`].
pub fn verify(document: &Value) -> Result<Vec<u8>, Unsigned> {
    let bytes = |name: &str| {
        let text = document.get(name).and_then(Value::as_str).ok_or(Unsigned::Form)?;
        STANDARD.decode(text).map_err(|_| Unsigned::Form)
    };
    let (key, signature) = (bytes("key")?, bytes("signature")?);
    let body = document.get("body").and_then(jcs).ok_or(Unsigned::Form)?;
    if verifies(&key, &body, &signature) { Ok(key) } else { Err(Unsigned::Signature) }
}
