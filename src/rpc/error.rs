//! The only file that knows JSON-RPC codes: what each error is called on the wire, and what its data say.

use std::time::Duration;

use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::{
    INTERNAL_ERROR_CODE, INVALID_PARAMS_CODE, INVALID_REQUEST_CODE, METHOD_NOT_FOUND_CODE, PARSE_ERROR_CODE,
};
use serde_json::{Map, Value, json};

use crate::error::Error;

/// The codes of the protocol itself that any method may answer, and when.
pub const PROTOCOL: &[(i32, &str)] = &[
    (INVALID_PARAMS_CODE, "A parameter is missing, unknown or not of its form; data.field names it."),
    (
        INTERNAL_ERROR_CODE,
        "A fault that the caller cannot act on; the log has its cause under data.request_id.",
    ),
];

/// When it is worth calling again after what a restart or a fail-over of PostgreSQL causes.
const AGAIN: Duration = Duration::from_secs(1);

/// An error that is not one of the protocol itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `data.kind`.
    pub name: &'static str,
    /// The code, outside of those that JSON-RPC and jsonrpsee use.
    pub code: i32,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// When it is answered.
    pub when: &'static str,
}

macro_rules! kinds {
    ($($constant:ident = $name:literal, $code:literal, $retryable:literal, $when:literal;)+) => {
        $(
            #[doc = $when]
            pub const $constant: Kind = Kind { name: $name, code: $code, retryable: $retryable, when: $when };
        )+
        /// All of them.
        pub const KINDS: &[Kind] = &[$($constant),+];
    };
}

kinds! {
    NOT_FOUND = "not_found", -32020, false, "There is no such record, entry or subject.";
    CONFLICT = "conflict", -32021, false, "It exists already, the same id has other content, or expected_version is not current.";
    FORBIDDEN = "forbidden", -32022, false, "The peer may not call this method.";
    HELD = "held", -32023, false, "A legal hold forbids it: erasure, any delete, replacing messages. data.holds lists the holds.";
    RESTRICTED = "restricted", -32024, false, "The person's processing is restricted: store only.";
    TOO_LARGE = "too_large", -32025, false, "A message, record or answer is over its limit.";
    OVERLOADED = "overloaded", -32026, true, "A queue was full past its wait; nothing was done.";
    UNAVAILABLE = "unavailable", -32027, true, "PostgreSQL is away or this daemon is draining; nothing was committed.";
    TAMPERED = "tampered", -32028, false, "Stored bytes do not open or do not verify.";
    UNKNOWN_OUTCOME = "unknown_outcome", -32029, true, "A commit was sent and its answer did not arrive; retry with the same id.";
}

impl Kind {
    fn object(self, message: impl Into<String>, more: Value) -> ErrorObjectOwned {
        let mut data = Map::new();
        data.insert("kind".into(), self.name.into());
        data.insert("retryable".into(), self.retryable.into());
        if let Value::Object(more) = more {
            data.extend(more);
        }
        ErrorObjectOwned::owned(self.code, message.into(), Some(Value::Object(data)))
    }
}

/// What a caller is told of an error. `request_id` finds its cause in the log.
pub fn object(error: &Error, request_id: &str) -> ErrorObjectOwned {
    let text = error.to_string();
    match error {
        Error::Invalid { field, .. } => {
            ErrorObjectOwned::owned(INVALID_PARAMS_CODE, text, Some(json!({ "field": field })))
        }
        Error::NotFound { .. } => NOT_FOUND.object(text, Value::Null),
        Error::Archived { month, object } => {
            NOT_FOUND.object(text, json!({ "month": month, "archive": object }))
        }
        Error::Conflict { current_version, .. } => CONFLICT.object(
            text,
            current_version.map_or(Value::Null, |version| json!({ "current_version": version })),
        ),
        Error::Forbidden { .. } => FORBIDDEN.object(text, Value::Null),
        Error::Held { holds } => HELD.object(text, json!({ "holds": holds })),
        Error::Restricted => RESTRICTED.object(text, Value::Null),
        Error::TooLarge { max, .. } => TOO_LARGE.object(text, json!({ "max": max })),
        Error::Overloaded { retry_after, .. } => OVERLOADED.object(text, retry_after_ms(*retry_after)),
        Error::Unavailable { .. } => UNAVAILABLE.object(text, retry_after_ms(AGAIN)),
        Error::Tampered { at } => TAMPERED.object(text, json!({ "at": at })),
        Error::UnknownOutcome => UNKNOWN_OUTCOME.object(text, retry_after_ms(AGAIN)),
        Error::Internal(_) => {
            ErrorObjectOwned::owned(INTERNAL_ERROR_CODE, text, Some(json!({ "request_id": request_id })))
        }
    }
}

fn retry_after_ms(after: Duration) -> Value {
    json!({ "retry_after_ms": u64::try_from(after.as_millis()).unwrap_or(u64::MAX) })
}

/// One word for the log and the figures.
pub fn outcome(error: &Error) -> &'static str {
    match error {
        Error::Invalid { .. } => "invalid",
        Error::NotFound { .. } | Error::Archived { .. } => NOT_FOUND.name,
        Error::Conflict { .. } => CONFLICT.name,
        Error::Forbidden { .. } => FORBIDDEN.name,
        Error::Held { .. } => HELD.name,
        Error::Restricted => RESTRICTED.name,
        Error::TooLarge { .. } => TOO_LARGE.name,
        Error::Overloaded { .. } => OVERLOADED.name,
        Error::Unavailable { .. } => UNAVAILABLE.name,
        Error::Tampered { .. } => TAMPERED.name,
        Error::UnknownOutcome => UNKNOWN_OUTCOME.name,
        Error::Internal(_) => "internal",
    }
}

/// The text is not JSON, or not in a form that can be read on.
pub(super) fn parse_error(why: impl std::fmt::Display) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(PARSE_ERROR_CODE, format!("parse error: {why}"), None::<()>)
}

/// The JSON is no JSON-RPC 2.0 request.
pub(super) fn invalid_request(why: impl std::fmt::Display) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(INVALID_REQUEST_CODE, format!("invalid request: {why}"), None::<()>)
}

/// A fault of the daemon's.
pub(super) fn internal_error() -> ErrorObjectOwned {
    ErrorObjectOwned::owned(INTERNAL_ERROR_CODE, "internal error", None::<()>)
}

/// A message, batch or answer over its limit.
pub(super) fn too_large(what: &str, max: usize) -> ErrorObjectOwned {
    let max = u64::try_from(max).unwrap_or(u64::MAX);
    object(&Error::too_large(what, max), "")
}

/// No room, for now.
pub(super) fn overloaded(what: &'static str, retry_after: Duration) -> ErrorObjectOwned {
    object(&Error::Overloaded { what, retry_after }, "")
}

/// There is no such method; names the nearest one.
pub fn method_not_found(method: &str, nearest: Option<&str>) -> ErrorObjectOwned {
    let shown: String = method.chars().filter(|c| !c.is_control()).take(64).collect();
    let hint = nearest.map_or_else(
        || "; rpc.discover lists them".to_owned(),
        |nearest| format!("; did you mean {nearest}?"),
    );
    ErrorObjectOwned::owned(METHOD_NOT_FOUND_CODE, format!("there is no method {shown}{hint}"), None::<()>)
}
