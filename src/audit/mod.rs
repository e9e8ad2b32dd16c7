//! The audit log: streams of entries that only their leaseholders append to, and the proof over them.

pub mod entry;
pub mod merkle;
