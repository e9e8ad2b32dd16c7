//! What the benchmarks share: a place with PostgreSQL and daemons, clients and load, and the report with its verdicts.

pub(crate) mod client;
pub(crate) mod load;
#[expect(dead_code, reason = "other benchmarks use the rest")]
pub(crate) mod place;
pub(crate) mod placement;
pub(crate) mod report;
