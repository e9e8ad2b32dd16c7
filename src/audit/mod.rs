//! The audit log: streams of entries that only their leaseholders append to, and the proof over them.

pub mod accesses;
mod by;
mod columns;
mod draft;
pub mod entry;
mod heads;
mod log;
pub mod merkle;
mod months;
pub mod note;
mod open;
mod people;
pub mod prove;
mod queue;
pub mod read;
mod refused;
mod repeat;
pub mod row;
pub mod staged;
mod stream;
mod tree;
pub mod verify;
mod work;
mod writer;

pub use by::{ALSO, By, METHOD, PURPOSE, REQUEST_ID, UID};
pub use draft::{ACTOR, Draft, SUBJECT};
pub use log::{APPEND_MANY, Log, Staged, UnknownActor};
pub use open::Shown;
pub use queue::{Queue, Receipt};
pub use stream::Sealed;
pub use writer::Writer;
