//! What is counted of a method's calls. Handles are looked up once and kept: a look-up by labels costs more than a small call.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Histogram};

use crate::telemetry;

/// The outcome of a call that was answered with a result.
pub(super) const OK: &str = "ok";

/// The figures of one method; they exist from its first call on.
#[derive(Default)]
pub(super) struct Figures {
    ok: OnceLock<Counter>,
    duration: OnceLock<Histogram>,
}

impl Figures {
    /// Counts a call that has ended.
    pub(super) fn count(&self, method: &'static str, outcome: &'static str, took: Duration) {
        let counter = || metrics::counter!(telemetry::CALLS, "method" => method, "outcome" => outcome);
        if outcome == OK {
            self.ok.get_or_init(counter).increment(1);
        } else {
            counter().increment(1);
        }
        self.duration
            .get_or_init(|| metrics::histogram!(telemetry::CALL_DURATION, "method" => method))
            .record(took);
    }
}
