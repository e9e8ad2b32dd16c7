//! `subject.hold`, `.release`, `.holds`: legal holds (GDPR Art. 17(3)(e)).

pub use crate::records::{open_holds, unheld};
