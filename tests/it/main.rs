//! Tests through the socket on a real PostgreSQL.
#![allow(
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::too_many_lines,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on fails by a panic"
)]

mod dev;
mod jobs;
mod records;
mod schema;
mod support;
