//! JSON-RPC 2.0 over a Unix stream socket: as JSON values one after another, or in HTTP/1.1.

pub mod access;
pub mod call;
pub mod discover;
pub mod error;
pub mod http;
pub mod listener;
pub mod methods;
pub mod params;
pub mod peer;
pub mod server;

mod budget;
mod connection;
mod context;
mod execution;
mod figures;
mod frames;
mod framing;
mod message;
mod outbox;
mod refusal;
mod refusals;
mod stalling;

#[cfg(test)]
mod tests;
