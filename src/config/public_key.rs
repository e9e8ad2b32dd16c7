//! The public half of a signing key, as `sidekeep signing public-key` prints it (C2SP signed-note, "Verifier keys"). What is signed
//! with one is for the log to say.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::values::as_text;

/// What stands before the key's 32 bytes: the type of Ed25519.
const ED25519: u8 = 1;

/// A public key, as in `sidekeep/NAME+1a2b3c4d+AbCd…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(String);

impl PublicKey {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, '+');
        let is_key = |key: &str| {
            STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 33 && bytes.first() == Some(&ED25519))
        };
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), Some(id), Some(key)) if !name.is_empty() && id.len() == 8 && is_key(key) => {
                Ok(Self(text.to_owned()))
            }
            _ => {
                Err("must be a public key, as `sidekeep signing public-key` prints it: sidekeep/NAME+ID+KEY"
                    .into())
            }
        }
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

as_text!(PublicKey, "sidekeep/sidekeep+8ee7fb45+AXEitUMgmPDGcQrR3ENVqHJlJqEpwtjaBgvMcUuuvp9p");

#[cfg(test)]
mod tests {
    use super::PublicKey;

    #[test]
    fn a_public_key_is_taken_and_nothing_else() {
        let key = "sidekeep/sidekeep+8ee7fb45+AXEitUMgmPDGcQrR3ENVqHJlJqEpwtjaBgvMcUuuvp9p";
        assert_eq!(key.parse::<PublicKey>().unwrap().as_str(), key);
        let private = "sidekeep-signing-key-1:AXEitUMgmPDGcQrR3ENVqHJlJqEpwtjaBgvMcUuuvp9p";
        for wrong in ["", "a+b+c", private, &key.replace("+A", "+B"), &key[..70]] {
            let error = wrong.parse::<PublicKey>().unwrap_err();
            assert!(error.contains("signing public-key") && !error.contains("AXEit"), "{error}");
        }
    }
}
