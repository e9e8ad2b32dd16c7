//! The errors that the transport answers with by itself, before any method is chosen.
//!
//! Runs nothing, and logs nothing of a message.

use std::time::Duration;

use jsonrpsee::types::{ErrorCode, ErrorObjectOwned};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

const TOO_LARGE: i32 = -32025;
const OVERLOADED: i32 = -32026;

/// The id of an answer to what has none that can be used.
pub(super) const NO_ID: &str = "null";

/// Not JSON, or not UTF-8.
pub(super) fn parse_error(why: impl std::fmt::Display) -> ErrorObjectOwned {
    ErrorObjectOwned::owned::<()>(ErrorCode::ParseError.code(), format!("Parse error: {why}"), None)
}

/// JSON, and not a request.
pub(super) fn invalid_request(why: impl std::fmt::Display) -> ErrorObjectOwned {
    ErrorObjectOwned::owned::<()>(ErrorCode::InvalidRequest.code(), format!("Invalid request: {why}"), None)
}

/// A fault of the daemon's.
pub(super) fn internal_error() -> ErrorObjectOwned {
    ErrorObjectOwned::owned::<()>(ErrorCode::InternalError.code(), "internal error", None)
}

/// A message, batch or answer over its limit.
pub(super) fn too_large(what: &str, max: usize) -> ErrorObjectOwned {
    let data = json!({"kind": "too_large", "retryable": false, "max": max});
    ErrorObjectOwned::owned(TOO_LARGE, format!("{what} is over its limit of {max}"), Some(data))
}

/// No room, for now.
pub(super) fn overloaded(what: &str, retry_after: Duration) -> ErrorObjectOwned {
    let after = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    let data = json!({"kind": "overloaded", "retryable": true, "retry_after_ms": after});
    ErrorObjectOwned::owned(OVERLOADED, format!("too busy: {what}"), Some(data))
}

/// An answer, or one that lost its id on the way: exactly one of `result` and `error` is there.
#[derive(Serialize)]
pub(super) struct Answer<'a> {
    pub(super) jsonrpc: &'static str,
    pub(super) id: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<&'a RawValue>,
}

/// The line that answers a request of this id (as JSON) with this error; without the newline.
pub(super) fn line(id: &str, error: &ErrorObjectOwned) -> String {
    let error = serde_json::to_string(error)
        .unwrap_or_else(|_| r#"{"code":-32603,"message":"internal error"}"#.into());
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
}
