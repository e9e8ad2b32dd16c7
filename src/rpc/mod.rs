//! JSON-RPC 2.0 over a Unix stream socket: as JSON values one after another, or in HTTP/1.1.

pub mod call;
pub mod peer;
