//! Identity and keys: who is behind a subject id, and what opens the person's data. The only module that sees key bytes.
//!
//! A person is one row of `subjects`. Whoever reads or writes a person's data has that row from the same snapshot, and
//! opens its key anew: nothing here outlives the row, so a person who is gone is gone for every daemon at once.

mod deployment;
pub mod kek;
mod person;
mod seal;
mod signing;
mod taken;

pub use deployment::Deployment;
pub use kek::{Kek, KekError, Keks};
pub use person::{Keyring, Person, StartError, Subject, refused};
pub use seal::{DataKey, Place};
pub use signing::{SigningKey, SigningKeyError, verifies};
