//! The certificate of an erasure: what was erased, signed, and tied to the person by a salt that sidekeep does not keep.
//!
//! Never holds an identifier: without the salt nobody, not even its signer, can tell whom it is about.

use std::collections::BTreeMap;

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::audit::document::Signed;
use crate::audit::merkle::hex;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::values::UserId;

/// What the body of a certificate says it is, so that no other signed document passes for one.
pub const FORMAT: &str = "sidekeep-erasure-1";

/// What is said where the operator has not declared how long physical copies live, or where dumps do not go in their time.
pub const UNKNOWN: &str = "unknown";

/// The grounds of an erasure (GDPR Art. 17(1)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The person asked for it.
    Request,
    /// A consent was withdrawn.
    ConsentWithdrawn,
    /// The person objected.
    Objection,
    /// The processing was unlawful.
    Unlawful,
    /// A period has ended.
    Retention,
    /// Another ground, which the note may name.
    Other,
}

impl Reason {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::ConsentWithdrawn => "consent_withdrawn",
            Self::Objection => "objection",
            Self::Unlawful => "unlawful",
            Self::Retention => "retention",
            Self::Other => "other",
        }
    }
}

/// How many rows of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// 1 where there is a profile.
    pub profile: i64,
    /// 1 where there are preferences.
    pub preferences: i64,
    /// Consents and withdrawals.
    pub consents: i64,
    /// Conversations.
    pub conversations: i64,
    /// Their messages.
    pub messages: i64,
}

impl Counts {
    /// From rows by the name that the selector counts them under.
    ///
    /// # Errors
    /// A name is missing, or not one of these.
    pub fn of(rows: &BTreeMap<&'static str, i64>) -> Result<Self> {
        serde_json::to_value(rows).and_then(serde_json::from_value).map_err(Error::internal)
    }
}

/// What stays under a number that leads nowhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kept {
    /// Consents whose clear columns are kept as evidence (`erasure.consents = "keep"`).
    pub consents: i64,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Body {
    /// What this is.
    pub format: String,
    /// Whose records they were.
    pub deployment: String,
    /// The certificate's id.
    pub id: String,
    /// When the erasure was made, by PostgreSQL's clock.
    pub erased_at: Timestamp,
    /// Why.
    pub reason: Reason,
    /// HMAC-SHA-256 of the user id under the salt, in hexadecimal.
    pub commitment: String,
    /// How many rows were deleted.
    pub counts: Counts,
    /// How many stay.
    pub kept: Kept,
    /// The entry of the audit log that tells of it.
    pub entry_id: String,
    /// The day after which no backup that sidekeep makes can open anything; null where it makes none, "unknown" while dumps are
    /// not made and proved as they are scheduled, because none goes before a newer one is proved.
    pub backups_gone_after: Option<String>,
    /// The day after which dead tuples, WAL and base backups are gone; "unknown" where that is not declared.
    pub physical_copies_gone_after: String,
    /// Without these key-encryption keys no copy opens, whatever exists.
    pub kek_ids: Vec<String>,
}

/// What `subject.erase` answers.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Certificate {
    /// The certificate itself.
    #[serde(flatten)]
    pub signed: Signed<Body>,
    /// What ties it to the user id, in base64. It is kept nowhere else.
    pub salt: Salt,
}

/// 32 bytes that make a commitment one that nobody can guess.
#[derive(Clone, PartialEq, Eq)]
pub struct Salt([u8; 32]);

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt")
    }
}

impl Salt {
    /// A fresh one.
    ///
    /// # Errors
    /// The system's randomness failed.
    pub fn generate() -> Result<Self> {
        let mut salt = [0_u8; 32];
        rand::fill(&mut salt).map_err(Error::internal)?;
        Ok(Self(salt))
    }

    /// Reads 32 bytes in base64.
    pub fn parse(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// HMAC-SHA-256 (RFC 2104) of a user id under this salt, in hexadecimal.
    pub fn commitment(&self, user_id: &UserId) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        hex(hmac::sign(&key, user_id.as_str().as_bytes()).as_ref())
    }
}

impl Serialize for Salt {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Salt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("must be 32 bytes in base64"))
    }
}

impl JsonSchema for Salt {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Salt".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9+/]{43}=$", "description": "32 random bytes in base64." })
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Salt};
    use crate::subjects::selector::TABLES;
    use crate::values::UserId;

    #[test]
    fn the_commitment_is_hmac_sha_256_under_the_salt() {
        let salt = Salt::parse("CwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCws=").unwrap();
        let user = UserId::parse("Hi There").unwrap();
        // RFC 4231, test case 1, has a key of 20 bytes; this is Python's hmac over 32 of them.
        assert_eq!(
            salt.commitment(&user),
            "198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7"
        );
        for bad in ["", "CwsLCw==", "not base64", "CwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCws"] {
            assert_eq!(Salt::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_the_selector_counts_is_what_a_certificate_tells() {
        let mut rows: std::collections::BTreeMap<_, _> =
            TABLES.iter().filter_map(|table| table.counted).map(|name| (name, 1)).collect();
        rows.remove("audit_entries");
        assert!(Counts::of(&rows).is_ok(), "{rows:?}");
        rows.insert("anything", 1);
        assert!(Counts::of(&rows).is_err());
    }
}
