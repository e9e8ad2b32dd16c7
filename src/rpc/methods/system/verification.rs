//! How far the audit log is verified, and whether that is late. Says what the scheduler has seen; verifies nothing.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::jobs::Job;
use crate::rpc::call::Call;
use crate::telemetry;

/// The job that verifies the log.
const VERIFY: &str = "verify";

/// The verification of the audit log.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "VerificationReport")]
pub(super) struct Report {
    /// How long ago the last one ended that found the log intact.
    pub(super) age_seconds: Option<u64>,
    /// Up to how many entries.
    pub(super) entries: Option<u64>,
}

/// Whether the log should have been found intact again by now.
pub(super) fn is_late(call: &Call) -> bool {
    Job::find(VERIFY).is_ok_and(|job| call.calls.jobs().is_overdue(job))
}

/// What is known of it.
pub(super) fn report(call: &Call) -> Report {
    let last = call.calls.jobs().succeeded(VERIFY);
    let counts = last.as_ref().and_then(|last| last.run.counts.as_ref());
    Report {
        age_seconds: last.as_ref().map(|last| last.age().as_secs()),
        entries: counts.and_then(|counts| counts.get("reached")?.as_u64()),
    }
}

/// The same as figures.
pub(super) fn gauges(call: &Call) {
    let verified = report(call);
    if let (Some(age), Some(entries)) = (verified.age_seconds, verified.entries) {
        metrics::gauge!(telemetry::VERIFIED_AGE).set(Duration::from_secs(age).as_secs_f64());
        let entries = f64::from(u32::try_from(entries).unwrap_or(u32::MAX));
        metrics::gauge!(telemetry::VERIFIED_ENTRIES).set(entries);
    }
}
