//! Whole-person work: what is held about somebody, and what the law lets them ask of it.
//!
//! Never lists tables of its own: what belongs to a person is said once, in [`selector`].

pub mod document;
pub mod export;
pub mod hold;
pub mod selector;
