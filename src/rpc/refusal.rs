//! The errors that the transport answers with by itself, before any method is chosen.
//!
//! Runs nothing, and logs nothing of a message.

use jsonrpsee::types::ErrorObjectOwned;

pub(super) use super::error::{internal_error, invalid_request, overloaded, parse_error, too_large};

/// The id of an answer to what has none that can be used.
pub(super) const NO_ID: &str = "null";

/// The line that answers a request of this id (as JSON) with this error; without the newline.
pub(super) fn line(id: &str, error: &ErrorObjectOwned) -> String {
    let error = serde_json::to_string(error)
        .unwrap_or_else(|_| r#"{"code":-32603,"message":"internal error"}"#.into());
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
}
