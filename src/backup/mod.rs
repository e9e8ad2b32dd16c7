//! Copies of the database that survive it: dumps, what proves them, and the keyring's own backup.

pub mod manifest;
