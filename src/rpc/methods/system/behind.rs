//! How far the log is behind its callers and the records: what waits for its writers.

use schemars::JsonSchema;
use serde::Serialize;

use crate::rpc::call::Call;

/// Requests that wait for the writers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct QueueReport {
    /// How many wait.
    waiting: usize,
    /// How many may.
    max: usize,
}

/// How far the log is behind the records, in the whole database.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(super) struct LagReport {
    /// How many entries wait.
    staged: Option<i64>,
    /// How long the oldest has waited.
    oldest_seconds: Option<f64>,
    /// How long ago it was looked.
    age_seconds: Option<u64>,
}

pub(super) fn queue(call: &Call) -> QueueReport {
    let (waiting, max) = call.app.records.log().waiting();
    QueueReport { waiting, max }
}

pub(super) fn lag(call: &Call) -> LagReport {
    let lag = call.app.records.log().lag();
    LagReport {
        staged: lag.map(|(lag, _)| lag.entries),
        oldest_seconds: lag.map(|(lag, _)| lag.seconds),
        age_seconds: lag.map(|(_, age)| age.as_secs()),
    }
}
