//! A message of a conversation: sealed as it was sent, shown with its position and time.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use diesel::prelude::{Insertable, Queryable, Selectable};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::Subject;
use crate::records::row::Row;
use crate::store::schema::conversation_messages;
use crate::values::{Json, Object, RecordId, Term};

const TABLE: &str = "conversation_messages";
const COLUMN: &str = "message_sealed";

/// A message as the application sent it: an object with `role` and `content`, perhaps `id` and `created_at`, and whatever
/// else the application adds.
#[derive(Clone, Debug)]
pub struct Message {
    sent: Json,
    /// With it, the message may be sent again.
    pub id: Option<RecordId>,
    /// When it was sent; when it was stored where it is not said.
    pub created_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Known<'a> {
    #[serde(rename = "role")]
    _role: Term,
    #[serde(rename = "content", borrow)]
    content: &'a RawValue,
    id: Option<RecordId>,
    created_at: Option<Timestamp>,
    #[serde(default)]
    position: Given,
}

/// Whether a member is there, `null` or not.
#[derive(Default)]
struct Given(bool);

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

impl Message {
    /// The message as it was sent.
    pub fn sent(&self) -> &Json {
        &self.sent
    }

    fn new(sent: Json) -> Result<Self, String> {
        if !sent.as_str().starts_with('{') {
            return Err("must be an object with role and content".into());
        }
        let known: Known<'_> = sent.read()?;
        if known.position.0 {
            return Err("position is given by sidekeep; leave it out".into());
        }
        let (id, created_at) = (known.id, known.created_at);
        Ok(Self { sent, id, created_at })
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Json::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Message {
    fn schema_name() -> Cow<'static, str> {
        "Message".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "role": generator.subschema_for::<Term>(),
                "content": { "description": "Any JSON value." },
                "id": generator.subschema_for::<Option<RecordId>>(),
                "created_at": generator.subschema_for::<Option<Timestamp>>()
            },
            "not": { "required": ["position"] },
            "additionalProperties": true
        })
    }
}

/// A message's row as it is read.
#[derive(Clone, Queryable, Selectable)]
#[diesel(table_name = conversation_messages, check_for_backend(diesel::pg::Pg))]
pub(super) struct Stored {
    pub(super) conversation_id: String,
    pub(super) position: i64,
    pub(super) message_id: Option<String>,
    message_sealed: Vec<u8>,
    created_at: DateTime<Utc>,
}

/// A message's row as it is written.
#[derive(Insertable)]
#[diesel(table_name = conversation_messages, treat_none_as_default_value = false)]
pub(super) struct New {
    conversation_id: String,
    position: i64,
    message_id: Option<String>,
    message_sealed: Vec<u8>,
    pub(super) created_at: DateTime<Utc>,
}

impl New {
    pub(super) fn seal(
        subject: &Subject,
        conversation_id: &str,
        position: i64,
        message: &Message,
        now: DateTime<Utc>,
    ) -> Result<Self> {
        Ok(Self {
            conversation_id: conversation_id.to_owned(),
            position,
            message_id: message.id.clone().map(RecordId::into_string),
            message_sealed: row(subject, conversation_id, position).seal(COLUMN, message.sent.as_str())?,
            created_at: message.created_at.map_or(now, Timestamp::utc),
        })
    }
}

impl Stored {
    /// The message as it was sent.
    pub(super) fn sent(&self, subject: &Subject) -> Result<Json> {
        row(subject, &self.conversation_id, self.position).open_json(COLUMN, &self.message_sealed)
    }

    /// The message as it was sent, with its position, and with its time where it was sent without.
    pub(super) fn shown(&self, subject: &Subject) -> Result<Json> {
        let sent = self.sent(subject)?;
        let mut object = Object::parse(sent.as_str())
            .ok_or_else(|| Error::Tampered { at: format!("{TABLE}.{COLUMN}") })?;
        let raw = |text: String| RawValue::from_string(text).map_err(Error::internal);
        object.set("position", raw(self.position.to_string())?);
        if object.get("created_at").is_none_or(|sent| sent.get() == "null") {
            object.set("created_at", raw(format!("\"{}\"", Timestamp::from(self.created_at)))?);
        }
        Ok(object.into_json())
    }
}

fn row<'a>(subject: &'a Subject, conversation_id: &str, position: i64) -> Row<'a> {
    // A position has no NUL, so that the two cannot be shifted.
    Row::new(subject, TABLE, format!("{position}\0{conversation_id}"))
}

/// The text of a message that is searched: every string in its content but for the names of parts' types.
pub(super) fn text(sent: &Json) -> String {
    fn collect(value: &serde_json::Value, text: &mut String) {
        match value {
            serde_json::Value::String(part) => {
                text.push_str(part);
                text.push('\n');
            }
            serde_json::Value::Array(parts) => parts.iter().for_each(|part| collect(part, text)),
            serde_json::Value::Object(members) => {
                members.iter().filter(|(key, _)| *key != "type").for_each(|(_, part)| collect(part, text));
            }
            _ => {}
        }
    }
    let mut text = String::new();
    let content =
        sent.read::<Known<'_>>().ok().and_then(|known| serde_json::from_str(known.content.get()).ok());
    if let Some(content) = content {
        collect(&content, &mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Message, text};
    use crate::values::Json;

    #[test]
    fn a_message_has_a_role_and_content() {
        for bad in [
            r#"{"content":"x"}"#,
            r#"{"role":"user"}"#,
            r#"{"role":"","content":"x"}"#,
            r#"{"role":"user","content":"x","position":1}"#,
            r#"{"role":"user","content":"x","id":""}"#,
            r#"{"role":"user","content":"x","created_at":"now"}"#,
            r#"["user","x",null,null,null]"#,
            r#""x""#,
        ] {
            assert!(serde_json::from_str::<Message>(bad).is_err(), "{bad}");
        }
        let message: Message =
            serde_json::from_str(r#"{"role":"user","content":null,"extra":[1.0]}"#).unwrap();
        assert_eq!(message.sent.as_str(), r#"{"role":"user","content":null,"extra":[1.0]}"#);
    }

    #[test]
    fn every_text_of_the_content_is_searched() {
        let sent = Json::parse(
            r#"{"role":"r","content":[{"type":"text","text":"one"},{"a":{"b":["two",3]}}],"x":"no"}"#,
        );
        assert_eq!(text(&sent.unwrap()), "one\ntwo\n");
    }
}
