//! The archive of the log: months of its streams as objects that prove themselves, without the database and without a key.
//!
//! Never opens what is sealed, and never writes a table of the log: what was archived is recorded by `audit`. Format: beside
//! each object, JSON lines under zstd, stands its manifest, a signed document. The manifest is what counts; it is written once,
//! after the object was read back and verified. A crash before it leaves an object that nobody refers to, and the next run takes
//! that up when it is whole.

pub mod check;
mod digest;
pub mod expiry;
mod line;
pub mod manifest;
mod pack;
pub mod run;
mod unpack;

/// What the names of everything in the archive begin with.
pub const FOLDER: &str = "archive/";
