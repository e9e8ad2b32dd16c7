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

mod access;
mod accesses;
mod append_faults;
mod append_faults_clock;
mod append_faults_data;
mod append_faults_load;
mod archive;
mod archive_expiry;
mod archive_faults;
mod archive_tampering;
mod audit;
mod audit_contract;
mod backup;
mod backup_faults;
mod backup_stores;
mod bad_input;
mod commands;
mod damaged;
mod dev;
mod discover;
mod doctor;
mod doctor_faults;
mod drill;
mod erasure;
mod erasure_faults;
mod export;
mod faults;
mod find;
mod gap;
mod holds;
mod jobs;
mod keyring_backup;
mod keyring_faults;
mod keys;
mod limits;
mod month;
mod objects;
mod one_transaction;
mod outcome;
mod planted;
mod protocol;
mod publication;
mod readme;
mod records;
mod recover;
mod replica;
mod requests;
mod restore;
mod restore_dumps;
mod restriction;
mod retention;
mod retention_faults;
mod retention_months;
mod rotation;
mod schema;
mod sealing;
mod selector;
mod settings;
mod shutdown;
mod support;
mod system;
mod tls;
mod verification;
