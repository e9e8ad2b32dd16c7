//! `retention_policies`: `[retention]` as the views see it. The only writer of the table.

use diesel::sql_types::{Array, Int8, Text};
use diesel_async::RunQueryDsl;

use crate::config::Retention;
use crate::error::Result;
use crate::store::{Deadline, Store};

const MIRROR: &str = "INSERT INTO sidekeep.retention_policies AS p (name, keep_seconds) \
    SELECT * FROM unnest($1, $2) AS n (name, keep_seconds) ORDER BY name \
    ON CONFLICT (name) DO UPDATE SET keep_seconds = excluded.keep_seconds WHERE p.keep_seconds <> excluded.keep_seconds";

/// Writes what has changed.
///
/// # Errors
/// The store's.
pub(in crate::jobs) async fn mirror(store: &Store, retention: &Retention, deadline: &Deadline) -> Result<()> {
    let Retention { conversations, consents, audit_logs, requests, job_runs } = retention;
    let policies = [
        ("conversations", conversations),
        ("consents", consents),
        ("audit_logs", audit_logs),
        ("requests", requests),
        ("job_runs", job_runs),
    ];
    let names: Vec<&str> = policies.iter().map(|(name, _)| *name).collect();
    let seconds = |(_, period): &(&str, &crate::config::Period)| {
        i64::try_from(period.duration().as_secs()).unwrap_or(i64::MAX)
    };
    let seconds: Vec<i64> = policies.iter().map(seconds).collect();
    store
        .autocommit(deadline, "retention.policies", async |connection| {
            diesel::sql_query(MIRROR)
                .bind::<Array<Text>, _>(&names)
                .bind::<Array<Int8>, _>(&seconds)
                .execute(connection)
                .await?;
            Ok(())
        })
        .await
}
