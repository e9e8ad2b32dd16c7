//! What retention does with what is about a whole person: requests that are closed, evidence of consents of erased persons, and
//! persons of whom nothing is left.

mod evidence;
mod people;
mod requests;

pub use evidence::{due_evidence, retire_evidence};
pub(super) use people::is_forgotten;
pub use people::{due_people, retire_people};
pub use requests::{due_requests, retire_requests};
