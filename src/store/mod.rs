//! PostgreSQL: the only module that opens connections and begins transactions.

pub mod private;
