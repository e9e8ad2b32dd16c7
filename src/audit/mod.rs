//! The audit log: streams of entries that only their leaseholders append to, and the proof over them.

mod draft;
pub mod entry;
pub mod merkle;
mod months;
mod open;
mod people;
mod queue;
mod repeat;
pub mod row;
pub mod staged;
mod stream;
mod writer;

pub use draft::Draft;
pub use open::Shown;
pub use queue::{Queue, Receipt};
pub use stream::Sealed;
pub use writer::Writer;
