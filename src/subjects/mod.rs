//! Whole-person work: what the law lets a person ask for, or somebody ask about a person.

pub mod hold;
