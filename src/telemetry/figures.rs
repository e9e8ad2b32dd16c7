//! The names of the figures and what they mean. Labels come from closed sets (methods, outcomes, names of transactions): never
//! from what a caller sends.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge, with_local_recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Calls that ended, by `method` and `outcome` (`ok`, or the kind of the error).
pub const CALLS: &str = "sidekeep_calls_total";
/// How long calls took, by `method`: a histogram in seconds.
pub const CALL_DURATION: &str = "sidekeep_call_duration_seconds";
/// Open connections of clients.
pub const CONNECTIONS: &str = "sidekeep_connections";
/// Calls that have begun and not ended.
pub const CALLS_IN_FLIGHT: &str = "sidekeep_calls_in_flight";
/// Transactions that ended, by `name` and `outcome`.
pub const TRANSACTIONS: &str = "sidekeep_transactions_total";
/// How long transactions took with their retries, by `name`: a histogram in seconds.
pub const TRANSACTION_DURATION: &str = "sidekeep_transaction_duration_seconds";
/// Attempts after the first, by `name`.
pub const TRANSACTION_RETRIES: &str = "sidekeep_transaction_retries_total";
/// Connections to PostgreSQL, by `state` (`open`, `free` among them, `waiting` for one).
pub const POOL_CONNECTIONS: &str = "sidekeep_pool_connections";
/// Runs of jobs that ended here, by `job` and `outcome` (`ok`, `failed`, `cut`, `lost`).
pub const JOB_RUNS: &str = "sidekeep_job_runs_total";
/// How long runs of jobs took, by `job`: a histogram in seconds.
pub const JOB_DURATION: &str = "sidekeep_job_duration_seconds";
/// How long ago the last run of a job ended, by `job`.
pub const JOB_AGE: &str = "sidekeep_job_age_seconds";
/// How many requests of people are open: all, those due within seven days, those overdue.
pub const REQUESTS: &str = "sidekeep_requests";
/// How many requests wait for the writers of the audit log.
pub const AUDIT_QUEUE: &str = "sidekeep_audit_queue";
/// How many entries were staged with changes and are not in the audit log yet, in the whole database.
pub const AUDIT_STAGED: &str = "sidekeep_audit_staged";
/// How long the oldest of them has waited.
pub const AUDIT_STAGED_AGE: &str = "sidekeep_audit_staged_age_seconds";
/// How the audit log stands to its publication, by `state`: 1 for the one that it is.
pub const PUBLICATION: &str = "sidekeep_publication";
/// How many heads the newest published checkpoint covers.
pub const PUBLISHED_HEADS: &str = "sidekeep_published_heads";
/// How old the newest published checkpoint is.
pub const PUBLICATION_AGE: &str = "sidekeep_publication_age_seconds";
/// Checkpoints that this daemon has published.
pub const PUBLICATIONS: &str = "sidekeep_publications_total";
/// Streams whose loss this daemon has declared.
pub const AUDIT_GAPS: &str = "sidekeep_audit_gaps_total";
/// How long ago the last verification ended that found the audit log intact.
pub const VERIFIED_AGE: &str = "sidekeep_verified_age_seconds";
/// Up to how many entries.
pub const VERIFIED_ENTRIES: &str = "sidekeep_verified_entries";
/// How long the oldest erasure, hold or restriction has not been in the keyring's backup.
pub const KEYRING_BACKUP_LATE: &str = "sidekeep_keyring_backup_late_seconds";
/// Always 1, with the `version` that runs.
pub const BUILD_INFO: &str = "sidekeep_build_info";

/// The upper bounds of the histograms in seconds: from a call that touches no database to the default deadline.
const BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Installs the recorder for the whole process. Where there is one already, that one keeps the figures.
pub(super) fn install() -> PrometheusHandle {
    // It fails only without any bucket.
    let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS).unwrap_or_default().build_recorder();
    let handle = recorder.handle();
    with_local_recorder(&recorder, describe);
    let _ = metrics::set_global_recorder(recorder);
    handle
}

fn describe() {
    describe_counter!(CALLS, "Calls that ended, by method and outcome.");
    describe_histogram!(CALL_DURATION, Unit::Seconds, "How long calls took, by method.");
    describe_gauge!(CONNECTIONS, "Open connections of clients.");
    describe_gauge!(CALLS_IN_FLIGHT, "Calls that have begun and not ended.");
    describe_counter!(TRANSACTIONS, "Transactions that ended, by name and outcome.");
    describe_histogram!(
        TRANSACTION_DURATION,
        Unit::Seconds,
        "How long transactions took with their retries, by name."
    );
    describe_counter!(TRANSACTION_RETRIES, "Attempts of transactions after the first, by name.");
    describe_gauge!(POOL_CONNECTIONS, "Connections to PostgreSQL, by state.");
    describe_counter!(JOB_RUNS, "Runs of jobs that ended here, by job and outcome.");
    describe_histogram!(JOB_DURATION, Unit::Seconds, "How long runs of jobs took, by job.");
    describe_gauge!(JOB_AGE, Unit::Seconds, "How long ago the last run of a job ended, by job.");
    describe_gauge!(REQUESTS, Unit::Count, "Open requests of people: all, due within seven days, overdue.");
    describe_gauge!(AUDIT_QUEUE, "Requests that wait for the writers of the audit log.");
    describe_gauge!(AUDIT_STAGED, "Entries that were staged with changes and are not in the audit log yet.");
    describe_gauge!(AUDIT_STAGED_AGE, Unit::Seconds, "How long the oldest staged entry has waited.");
    describe_gauge!(PUBLICATION, "1 for the state in which the audit log is to its publication.");
    describe_gauge!(PUBLISHED_HEADS, "How many heads the newest published checkpoint covers.");
    describe_gauge!(PUBLICATION_AGE, Unit::Seconds, "How old the newest published checkpoint is.");
    describe_counter!(PUBLICATIONS, "Checkpoints that this daemon has published.");
    describe_counter!(AUDIT_GAPS, "Streams whose loss this daemon has declared.");
    describe_gauge!(VERIFIED_AGE, Unit::Seconds, "How long ago the audit log was last found intact.");
    describe_gauge!(VERIFIED_ENTRIES, "Up to how many entries the audit log is verified.");
    describe_gauge!(
        KEYRING_BACKUP_LATE,
        Unit::Seconds,
        "How long the oldest erasure, hold or restriction has not been in the keyring's backup; 0 where all are."
    );
    describe_gauge!(BUILD_INFO, "Always 1; the version that runs.");
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}
