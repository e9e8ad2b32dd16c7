//! The validated values that cross the socket: each is checked once, where it comes in, and trusted from there on.

use std::borrow::Cow;

mod jcs;
mod json;
mod page;

pub use jcs::jcs;
pub use json::{Json, Object, member_fault, object, plain};
pub use page::{Limit, Page, decode, encode, fit, total};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// Reads null as if it were not there, as every parameter that may be left out takes it.
///
/// # Errors
/// The value's own.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Declares a text newtype with a length in bytes and no control characters.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $min:literal ..= $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Checks length and characters; the error says what would be right.
            pub fn parse(text: impl Into<String>) -> Result<Self, String> {
                let text = text.into();
                check(&text, $min, $max)?;
                Ok(Self(text))
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The text itself, owned.
            pub fn into_string(self) -> String {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(String::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "minLength": $min,
                    "maxLength": $max,
                    "description": concat!(stringify!($min), " to ", stringify!($max), " bytes of UTF-8, no control characters.")
                })
            }
        }
    };
}

text! {
    /// A person's name in the application, the one identity that the keyring knows.
    UserId, 1..=255
}
text! {
    /// The id of a record or an entry, from the caller or a UUIDv7. It outlives the person.
    RecordId, 1..=128
}
text! {
    /// A word that reports count or filter by, kept in the clear: a consent type, an action.
    Term, 1..=128
}
text! {
    /// The id of what an action was done to, kept in the clear.
    ResourceId, 1..=512
}
text! {
    /// A short text about a person, kept sealed: a name, an e-mail address, a title.
    ShortText, 1..=1024
}

impl RecordId {
    /// A fresh id that sorts by time (UUIDv7, RFC 9562 §5.7).
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }
}

fn check(text: &str, min: usize, max: usize) -> Result<(), String> {
    if text.len() < min {
        return Err("must not be empty".into());
    }
    if text.len() > max {
        return Err(format!("must be at most {max} bytes, and has {}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("must not hold control characters".into());
    }
    Ok(())
}

/// A SHA-256 digest: 64 hexadecimal digits, kept in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sha256Hex(String);

impl Sha256Hex {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Sha256Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        Err(de::Error::custom("must be a SHA-256 digest, 64 hexadecimal digits"))
    }
}

impl JsonSchema for Sha256Hex {
    fn schema_name() -> Cow<'static, str> {
        "Sha256Hex".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9A-Fa-f]{64}$", "description": "A SHA-256 digest in hexadecimal." })
    }
}

#[cfg(test)]
mod tests {
    use super::{RecordId, UserId};

    #[test]
    fn a_user_id_has_1_to_255_bytes_and_no_control_characters() {
        for good in ["a", "user:alice", "é漢字", &"x".repeat(255)] {
            assert!(UserId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "x\0y", "x\ny", "x\u{85}y", &"x".repeat(256), &"é".repeat(128)] {
            assert!(UserId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn generated_ids_sort_by_time() {
        let ids: Vec<_> = (0..100).map(|_| RecordId::generate()).collect();
        assert!(ids.is_sorted());
    }
}
