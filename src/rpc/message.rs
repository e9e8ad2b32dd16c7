//! A message as requests: single, notification or batch, and what is to be answered to each.
//!
//! Owns the JSON-RPC 2.0 envelope (jsonrpc.org/specification); knows no method and no parameter.

use std::borrow::Cow;
use std::fmt;

use jsonrpsee::types::{ErrorObjectOwned, Id, Request, TwoPointZero};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::refusal::{self, NO_ID};
use crate::values::plain;

#[cfg(test)]
mod tests;

/// What one message asks.
#[derive(Debug)]
pub(super) enum Message {
    /// One object, or what should have been one.
    Single(Entry),
    /// An array: at least one entry, at most `limits.max_batch`.
    Batch(Vec<Entry>),
}

/// One request of a message.
#[derive(Debug)]
pub(super) enum Entry {
    /// To be run.
    Call(Box<Request<'static>>, Reply),
    /// Answered already, with an error.
    Refused(String),
}

/// How a call is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Not at all: it is a notification.
    Silence,
    /// With this id, as it was sent.
    To(Box<str>),
}

impl Message {
    /// Reads the bytes of one message.
    pub(super) fn parse(bytes: &[u8], max_batch: usize) -> Self {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text.trim_ascii(),
            Err(error) => {
                let why = format!("not UTF-8 at byte {}", error.valid_up_to());
                return Self::refused(&refusal::parse_error(why));
            }
        };
        if !text.starts_with('[') {
            return Self::Single(Entry::parse(text));
        }
        match serde_json::Deserializer::from_str(text).deserialize_seq(Entries { max: max_batch }) {
            Err(_) => Self::refused(&refusal::parse_error("not JSON")),
            Ok((_, 0)) => Self::refused(&refusal::invalid_request("an empty batch")),
            Ok((_, count)) if count > max_batch => Self::refused(&refusal::too_large("the batch", max_batch)),
            Ok((entries, _)) => {
                Self::Batch(entries.into_iter().map(|entry| Entry::parse(entry.get())).collect())
            }
        }
    }

    fn refused(error: &ErrorObjectOwned) -> Self {
        Self::Single(Entry::Refused(refusal::line(NO_ID, error)))
    }
}

impl Entry {
    fn parse(text: &str) -> Self {
        if !text.starts_with('{') {
            return Self::Refused(refusal::line(NO_ID, &refusal::invalid_request("not an object")));
        }
        let envelope = match serde_json::from_str::<Envelope<'_>>(text) {
            Ok(envelope) => envelope,
            Err(error) => return Self::invalid(text, plain(&error)),
        };
        if envelope.params.is_some_and(|params| !params.get().starts_with(['{', '['])) {
            return Self::invalid(text, "params is neither an object nor an array");
        }
        let Some(reply) = identify(envelope.id) else {
            return Self::invalid(text, "id is neither a string nor a number nor null");
        };
        let params = envelope.params.map(RawValue::to_owned);
        // jsonrpsee holds only some ids as they were sent; `reply` has them all.
        Self::Call(Box::new(Request::owned(envelope.method.into_owned(), params, Id::Null)), reply)
    }

    fn invalid(text: &str, why: impl fmt::Display) -> Self {
        let id = serde_json::from_str::<FoundId<'_>>(text).ok().and_then(|found| found.0);
        let id = id.filter(|id| identify(Some(id)).is_some()).map_or(NO_ID, RawValue::get);
        Self::Refused(refusal::line(id, &refusal::invalid_request(why)))
    }

    /// The id to answer with, as JSON; none for a notification.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::Refused(_) | Self::Call(_, Reply::Silence) => None,
            Self::Call(_, Reply::To(id)) => Some(id),
        }
    }
}

impl Reply {
    /// The line that answers with this, without the newline. Both parts are JSON already, so they are put together and not read again.
    pub(super) fn line(&self, outcome: Result<Box<RawValue>, ErrorObjectOwned>) -> Option<String> {
        let Self::To(id) = self else { return None };
        Some(match outcome {
            Ok(result) => [r#"{"jsonrpc":"2.0","id":"#, id, r#","result":"#, result.get(), "}"].concat(),
            Err(error) => refusal::line(id, &error),
        })
    }
}

/// How the id wants to be answered; none when it is of a wrong type.
fn identify(id: Option<&RawValue>) -> Option<Reply> {
    let Some(id) = id else { return Some(Reply::Silence) };
    match id.get().as_bytes() {
        b"null" | [b'"' | b'-' | b'0'..=b'9', ..] => Some(Reply::To(id.get().into())),
        _ => None,
    }
}

/// A request's own members. Others are let be, as extensions of the protocol add some.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "jsonrpc")]
    _version: TwoPointZero,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
}

/// Tells `null` from nothing: a request with the id null is not a notification.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The one id of an object that is not a request.
struct FoundId<'a>(Option<&'a RawValue>);

impl<'de> Deserialize<'de> for FoundId<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = FoundId<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let (mut found, mut count) = (None, 0);
                while let Some(key) = members.next_key::<Cow<'de, str>>()? {
                    let value = members.next_value::<&RawValue>()?;
                    if key == "id" {
                        (found, count) = (Some(value), count + 1);
                    }
                }
                Ok(FoundId(found.filter(|_| count == 1)))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Collects the entries of a batch: at most `max` are kept, all are counted.
struct Entries {
    max: usize,
}

impl<'de> Visitor<'de> for Entries {
    type Value = (Vec<&'de RawValue>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < self.max
            && let Some(item) = items.next_element()?
        {
            kept.push(item);
        }
        let mut count = kept.len();
        while items.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((kept, count))
    }
}
