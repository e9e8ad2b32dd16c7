//! Copies of the database that survive it: dumps, what proves them, and the keyring's own backup.

mod child;
pub mod drill;
mod dump;
pub mod fetch;
pub mod keyring;
pub mod manifest;
pub mod name;
pub mod place;
pub mod policy;
pub mod proof;
pub mod recover;
pub mod restore;
pub mod rotation;
mod rows;
pub mod run;
pub mod shelf;
pub mod sink;
pub mod snapshot;
pub mod verify;
