//! An entry: what a caller gives, what is stored, and the canonical bytes that its leaf is made of.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;

use super::merkle::{Hash, hex};
use crate::clock::Timestamp;
use crate::values::{Json, RecordId, ResourceId, ShortText, Term, UserId};

/// The form of the canonical bytes that new entries have.
pub const FORMAT: i16 = 1;

/// What the labels begin with that only sidekeep writes.
pub const OWN_LABELS: &str = "sidekeep.";

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it was meant.
    Success,
    /// It did not work.
    Failure,
    /// It was not allowed.
    Denied,
}

impl Outcome {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Denied => "denied",
        }
    }
}

/// Words that reports filter by: at most 16, in the clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(
    /// In the order of their keys, each once: smaller than a map, of which each entry that waits would hold a node.
    Vec<(String, String)>,
);

/// The label with the SHA-256 of the row that was stored, which only sidekeep can give.
pub const DIGEST: &str = "sidekeep.row_sha256";

impl Labels {
    /// Labels that sidekeep gives itself.
    pub fn own(labels: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self::of(labels.into_iter().map(|(key, value)| (key.to_owned(), value)))
    }

    /// These labels, which were checked one by one.
    pub fn of(labels: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(labels.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect())
    }

    /// These labels and others, which win.
    #[must_use]
    pub fn with(self, others: Self) -> Self {
        Self::of(self.0.into_iter().chain(others.0))
    }

    /// Labels as they were stored.
    pub fn stored(value: &serde_json::Value) -> Option<Self> {
        serde_json::from_value::<BTreeMap<String, String>>(value.clone()).ok().map(Self::of)
    }

    /// Labels as PostgreSQL writes them.
    pub fn read(json: &[u8]) -> Option<Self> {
        serde_json::from_slice::<BTreeMap<String, String>>(json).ok().map(Self::of)
    }

    /// The digest of a stored row, where one is among them.
    pub fn digest(&self) -> Option<&str> {
        self.iter().find(|(key, _)| *key == DIGEST).map(|(_, digest)| digest)
    }

    /// The labels in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn check(&self) -> Result<(), String> {
        const KEY: &str = "keys must be 1 to 64 of a-z, 0-9, underscore, full stop and hyphen";
        if self.0.len() > 16 {
            return Err("must be at most 16".into());
        }
        let fits = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.' | b'-')
        };
        for (key, value) in &self.0 {
            if !(1..=64).contains(&key.len()) || !key.bytes().all(fits) {
                return Err(KEY.into());
            }
            if key.starts_with(OWN_LABELS) {
                return Err(format!("{key}: labels that begin with {OWN_LABELS} are sidekeep's own"));
            }
            if value.len() > 256 || value.chars().any(char::is_control) {
                return Err(format!("{key}: must be at most 256 bytes, without control characters"));
            }
        }
        Ok(())
    }
}

impl Serialize for Labels {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// Text to text in the order of the keys, none of them twice.
struct Distinct(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Distinct;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of text to text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Distinct, A::Error> {
                let mut pairs: Vec<(String, String)> = Vec::new();
                while let Some(pair) = members.next_entry()? {
                    pairs.push(pair);
                }
                pairs.sort_unstable();
                if pairs.is_sorted_by(|(before, _), (key, _)| before < key) {
                    Ok(Distinct(pairs))
                } else {
                    Err(de::Error::custom("a key comes twice"))
                }
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let labels = match serde_json::from_str::<Distinct>(raw.get()) {
            Ok(distinct) => Self(distinct.0),
            // The long way says what is wrong, and of keys that come twice which.
            Err(_) => Self::of(
                Json::parse(raw.get())
                    .map_err(de::Error::custom)?
                    .read::<BTreeMap<String, String>>()
                    .map_err(|_| de::Error::custom("must be an object of text to text"))?,
            ),
        };
        labels.check().map_err(de::Error::custom)?;
        Ok(labels)
    }
}

impl JsonSchema for Labels {
    fn schema_name() -> Cow<'static, str> {
        "Labels".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "maxProperties": 16,
            "propertyNames": { "pattern": "^[a-z0-9_.-]{1,64}$" },
            "additionalProperties": { "type": "string", "maxLength": 256 },
            "description": "Kept in the clear: never personal data. Keys that begin with sidekeep. are its own."
        })
    }
}

/// Parameters of `audit.append`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Append {
    /// What was done.
    pub action: Term,
    /// Who did it.
    pub user_id: Option<UserId>,
    /// Whose data it was; with resource_type "user", the resource id where it is not said.
    pub subject_user_id: Option<UserId>,
    /// What kind of thing it was done to.
    pub resource_type: Option<Term>,
    /// Which one.
    pub resource_id: Option<ResourceId>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When it was done, by the caller's clock: at most five minutes ahead of PostgreSQL's.
    pub occurred_at: Option<Timestamp>,
    /// The address it was done from.
    pub ip_address: Option<ShortText>,
    /// The program it was done with.
    pub user_agent: Option<ShortText>,
    /// Words to filter by.
    pub labels: Option<Labels>,
    /// Whatever the application adds.
    pub metadata: Option<Json>,
    /// The entry's id: with it, the call may be repeated.
    pub id: Option<RecordId>,
}

/// An entry as it is stored, and as its leaf is computed: sealed parts stand for themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// In which stream.
    pub stream: i32,
    /// At which position, from 0.
    pub position: i64,
    /// By PostgreSQL's clock.
    pub recorded_at: DateTime<Utc>,
    /// The form of the canonical bytes.
    pub format: i16,
    /// Its id.
    pub id: String,
    /// Who acted, as a subject id.
    pub actor_id: Option<i64>,
    /// Whose data it was, as a subject id.
    pub subject_id: Option<i64>,
    /// What was done.
    pub action: String,
    /// What kind of thing it was done to.
    pub resource_type: Option<String>,
    /// Which one; `@actor` and `@subject` stand for the persons.
    pub resource_id: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
    /// When it was done, as the caller said, or a command that worked without a daemon.
    pub occurred_at: Option<DateTime<Utc>>,
    /// Words to filter by.
    pub labels: Option<Labels>,
    /// Address and program, sealed.
    pub client_sealed: Option<Vec<u8>>,
    /// Metadata, sealed.
    pub metadata_sealed: Option<Vec<u8>>,
}

/// The members of the canonical form, in the order of RFC 8785 §3.2.3.
#[derive(Serialize)]
struct Canonical<'a> {
    action: &'a str,
    actor_id: Option<i64>,
    client_sealed_sha256: Option<String>,
    format: i16,
    id: &'a str,
    labels: Option<&'a Labels>,
    metadata_sealed_sha256: Option<String>,
    occurred_at: Option<Timestamp>,
    outcome: Option<&'a str>,
    position: i64,
    recorded_at: Timestamp,
    resource_id: Option<&'a str>,
    resource_type: Option<&'a str>,
    stream: i32,
    subject_id: Option<i64>,
}

impl Entry {
    /// The canonical bytes, format 1: the RFC 8785 form of the entry. Its numbers are integers below 2^53, its keys are
    /// ASCII and in order, and serde_json escapes strings as ECMAScript does.
    pub fn canonical(&self) -> Vec<u8> {
        let digest =
            |sealed: &Option<Vec<u8>>| sealed.as_ref().map(|sealed| hex(Hash::of(&[sealed]).bytes()));
        let canonical = Canonical {
            action: &self.action,
            actor_id: self.actor_id,
            client_sealed_sha256: digest(&self.client_sealed),
            format: self.format,
            id: &self.id,
            labels: self.labels.as_ref(),
            metadata_sealed_sha256: digest(&self.metadata_sealed),
            occurred_at: self.occurred_at.map(Timestamp::from),
            outcome: self.outcome.as_deref(),
            position: self.position,
            recorded_at: self.recorded_at.into(),
            resource_id: self.resource_id.as_deref(),
            resource_type: self.resource_type.as_deref(),
            stream: self.stream,
            subject_id: self.subject_id,
        };
        // Most fit, so that it is allocated once. Text, integers and null are always JSON.
        let mut bytes = Vec::with_capacity(768);
        match serde_json::to_writer(&mut bytes, &canonical) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        }
    }

    /// The leaf of this entry.
    pub fn leaf(&self) -> Hash {
        Hash::leaf(&self.canonical())
    }
}

/// A leaf of the heads log: the same construction over a head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// When it was taken.
    pub at: Timestamp,
    /// The root over the entries.
    #[serde(serialize_with = "as_hex", deserialize_with = "from_hex")]
    pub root: Hash,
    /// How many entries.
    pub size: i64,
    /// Of which stream.
    pub stream: i32,
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
    let text = String::deserialize(deserializer)?;
    Hash::from_hex(&text).ok_or_else(|| de::Error::custom("must be a hash in hexadecimal"))
}

fn as_hex<S: serde::Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hash.hex())
}

impl Head {
    /// A stream's size and root at a time.
    pub fn new(at: DateTime<Utc>, root: Hash, size: i64, stream: i32) -> Self {
        Self { at: at.into(), root, size, stream }
    }

    /// The canonical bytes.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The head that has these canonical bytes.
    pub fn read(canonical: &str) -> Option<Self> {
        let head: Self = serde_json::from_str(canonical).ok()?;
        let sound = head.stream >= 0 && head.size > 0 && head.canonical() == canonical.as_bytes();
        sound.then_some(head)
    }

    /// The leaf of this head.
    pub fn leaf(&self) -> Hash {
        Hash::leaf(&self.canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Labels};
    use crate::clock::Timestamp;

    #[test]
    fn the_canonical_form_is_that_of_rfc_8785() {
        let at = Timestamp::parse("2026-11-20T19:55:00.000001Z").unwrap().utc();
        let entry = Entry {
            stream: 1,
            position: 9_007_199_254_740_991,
            recorded_at: at,
            format: 1,
            id: "é\u{20ac}\"\\/".into(),
            actor_id: Some(7),
            subject_id: None,
            action: "a.b".into(),
            resource_type: None,
            resource_id: Some("@actor".into()),
            outcome: Some("success".into()),
            occurred_at: None,
            labels: Some(Labels::own([("z", "1".into()), ("a-b", "2".into())])),
            client_sealed: Some(b"sealed".to_vec()),
            metadata_sealed: None,
        };
        let expected = r#"{"action":"a.b","actor_id":7,"client_sealed_sha256":"37cec8fa37a60aeac1f4b7a6a1e5a3f28b4a5f0ba68b2c8b1b9a2f4d2e3f0c11","format":1,"id":"é€\"\\/","labels":{"a-b":"2","z":"1"},"metadata_sealed_sha256":null,"occurred_at":null,"outcome":"success","position":9007199254740991,"recorded_at":"2026-11-20T19:55:00.000001Z","resource_id":"@actor","resource_type":null,"stream":1,"subject_id":null}"#;
        let canonical = String::from_utf8(entry.canonical()).unwrap();
        let digest = super::hex(super::Hash::of(&[b"sealed"]).bytes());
        let expected =
            expected.replace("37cec8fa37a60aeac1f4b7a6a1e5a3f28b4a5f0ba68b2c8b1b9a2f4d2e3f0c11", &digest);
        assert_eq!(canonical, expected);
    }

    #[test]
    fn labels_that_are_sidekeeps_own_or_too_much_are_refused() {
        let labels = |text: &str| serde_json::from_str::<Labels>(text);
        assert!(labels(r#"{"region":"eu","a-b_c.9":""}"#).is_ok());
        let many = serde_json::to_string(
            &(0..17).map(|n| (n.to_string(), "x")).collect::<std::collections::BTreeMap<_, _>>(),
        )
        .unwrap();
        for bad in [
            r#"{"sidekeep.uid":"0"}"#,
            r#"{"A":"x"}"#,
            r#"{"":"x"}"#,
            r#"{"a":1}"#,
            "[]",
            r#"{"a":"x\u0000"}"#,
            &many,
        ] {
            assert!(labels(bad).is_err(), "{bad}");
        }
    }
}
