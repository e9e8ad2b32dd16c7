//! The audit log: streams of entries that only their leaseholders append to, and the proof over them.

pub mod accesses;
mod batch;
mod by;
mod columns;
mod doing;
mod draft;
mod dropped;
pub mod entry;
mod filter;
pub mod gap;
mod growth;
mod head_mac;
mod heads;
mod log;
pub mod merkle;
mod months;
pub mod note;
mod open;
mod people;
pub mod prove;
pub mod publication;
mod queue;
pub mod read;
mod refused;
mod repeat;
pub mod row;
pub mod staged;
mod stream;
pub mod succession;
mod tree;
mod turn;
#[cfg(test)]
mod vectors;
pub mod verify;
mod weed;
mod work;
mod writer;

pub use by::{ALSO, By, METHOD, PURPOSE, REQUEST_ID, UID};
pub use doing::Leased;
pub use draft::{ACTOR, Draft, Known, SUBJECT};
pub use log::{APPEND_MANY, Log, Staged, UnknownActor};
pub use open::Shown;
pub use queue::{Queue, Receipt};
pub use stream::Sealed;
pub use turn::{Turn, Turns};
pub use writer::Writer;
