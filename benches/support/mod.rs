//! What the benchmarks share.

pub(crate) mod client;
pub(crate) mod echo;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod place;
pub(crate) mod placement;
pub(crate) mod profile;
pub(crate) mod report;
pub(crate) mod round_trip;
pub(crate) mod writes;
