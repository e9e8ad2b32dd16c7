//! The figures that are read only when somebody asks for all of them. What is counted where it happens is not here.

use std::time::Duration;

use super::system;
use crate::audit::publication::Standing;
use crate::rpc::call::Call;

/// What is only worth knowing when somebody asks.
pub(super) fn read(call: &Call) {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let pool = call.app.records.store().pool_status();
    metrics::gauge!(crate::telemetry::POOL_CONNECTIONS, "state" => "open").set(number(pool.open));
    metrics::gauge!(crate::telemetry::POOL_CONNECTIONS, "state" => "free").set(number(pool.free));
    metrics::gauge!(crate::telemetry::POOL_CONNECTIONS, "state" => "waiting").set(number(pool.waiting));
    metrics::gauge!(crate::telemetry::CONNECTIONS).set(number(call.calls.connections()));
    metrics::gauge!(crate::telemetry::CALLS_IN_FLIGHT).set(number(call.calls.in_flight()));
    if let Some(requests) = call.app.pressing.seen() {
        let states =
            [("open", requests.open), ("due_soon", requests.due_soon), ("overdue", requests.overdue)];
        for (state, count) in states {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            metrics::gauge!(crate::telemetry::REQUESTS, "state" => state).set(number(count));
        }
    }
    if let Some(late) = call.app.keyring_lateness.seen() {
        metrics::gauge!(crate::telemetry::KEYRING_BACKUP_LATE).set(late.seconds.unwrap_or_default());
    }
    metrics::gauge!(crate::telemetry::AUDIT_QUEUE).set(number(call.app.records.log().waiting().0));
    if let Some((lag, _)) = call.app.records.log().lag() {
        let entries = usize::try_from(lag.entries).unwrap_or_default();
        metrics::gauge!(crate::telemetry::AUDIT_STAGED).set(number(entries));
        metrics::gauge!(crate::telemetry::AUDIT_STAGED_AGE).set(lag.seconds);
    }
    let publication = call.app.records.log().publication().report();
    for state in Standing::WORDS {
        let is = if publication.state == state { 1.0 } else { 0.0 };
        metrics::gauge!(crate::telemetry::PUBLICATION, "state" => state).set(is);
    }
    if let (Some(size), Some(age)) = (publication.size, publication.age_seconds) {
        let size = f64::from(u32::try_from(size).unwrap_or(u32::MAX));
        metrics::gauge!(crate::telemetry::PUBLISHED_HEADS).set(size);
        metrics::gauge!(crate::telemetry::PUBLICATION_AGE).set(Duration::from_secs(age).as_secs_f64());
    }
    let verified = system::verification(call);
    if let (Some(age), Some(entries)) = (verified.age_seconds, verified.entries) {
        metrics::gauge!(crate::telemetry::VERIFIED_AGE).set(Duration::from_secs(age).as_secs_f64());
        let entries = f64::from(u32::try_from(entries).unwrap_or(u32::MAX));
        metrics::gauge!(crate::telemetry::VERIFIED_ENTRIES).set(entries);
    }
    for (name, last) in call.calls.jobs().ended() {
        metrics::gauge!(crate::telemetry::JOB_AGE, "job" => name).set(last.age().as_secs_f64());
    }
}
