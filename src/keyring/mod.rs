//! Identity and keys: who is behind a subject id, and what opens the person's data. The only module that sees key bytes.
//!
//! A person is one row of `subjects`. Whoever reads or writes a person's data has that row from the same snapshot, and
//! opens its key anew: nothing here outlives the row, so a person who is gone is gone for every daemon at once.

mod batch;
mod damaged;
mod deployment;
pub mod escrow;
pub mod kek;
mod person;
mod register;
mod rotation;
mod seal;
pub mod shard;
mod signing;
mod start;
mod taken;
mod usage;

pub use damaged::Whole;
pub use deployment::Deployment;
pub use kek::{Kek, KekError, Keks};
pub use person::{Keyring, Person, Subject, refused};
pub use register::Daemon;
pub use seal::{DataKey, Place};
pub use signing::{Signers, SigningKey, SigningKeyError, verifies};
pub use start::{Listed, StartError};
pub use usage::{Usage, usage};
