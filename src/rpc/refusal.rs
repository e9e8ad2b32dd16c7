//! The errors that the transport answers with by itself, before any method is chosen.
//!
//! Runs nothing, and logs nothing of a message.

use jsonrpsee::types::ErrorObjectOwned;
use serde::Serialize;
use serde_json::value::RawValue;

pub(super) use super::error::{internal_error, invalid_request, overloaded, parse_error, too_large};

/// The id of an answer to what has none that can be used.
pub(super) const NO_ID: &str = "null";

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
