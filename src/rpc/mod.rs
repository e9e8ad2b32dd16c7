//! JSON-RPC 2.0 over a Unix stream socket: as JSON values one after another, or in HTTP/1.1.

pub mod access;
pub mod call;
pub mod discover;
pub mod error;
pub mod methods;
pub mod params;
pub mod peer;
