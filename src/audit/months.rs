//! The months of the log, made ahead of need by the owner's function.

use diesel::QueryableByName;
use diesel::sql_types::Int8;
use diesel_async::RunQueryDsl;

use crate::error::Result;
use crate::store::{Deadline, Store};

#[derive(QueryableByName)]
struct Made {
    #[diesel(sql_type = Int8)]
    made: i64,
}

/// Makes this month and the two after it, where they are missing. Answers how many were made.
///
/// # Errors
/// The store's.
pub(super) async fn create(store: &Store, deadline: &Deadline) -> Result<i64> {
    const CREATE: &str = "SELECT count(*) FILTER (WHERE sidekeep.create_audit_month( \
        (now() AT TIME ZONE 'UTC' + make_interval(months => n))::date)) AS made FROM generate_series(0, 2) AS n";
    let made: Made = store
        .single(deadline, "audit.months", async |connection| {
            Ok(diesel::sql_query(CREATE).get_result(connection).await?)
        })
        .await?;
    Ok(made.made)
}

/// How many of them are missing.
///
/// # Errors
/// The store's.
pub(super) async fn missing(store: &Store, deadline: &Deadline) -> Result<i64> {
    const MISSING: &str = "SELECT count(*) AS made FROM generate_series(0, 2) AS n WHERE to_regclass( \
        'sidekeep.audit_logs_' || to_char(now() AT TIME ZONE 'UTC' + make_interval(months => n), 'YYYY_MM')) IS NULL";
    let missing: Made = store
        .single(deadline, "audit.missing_months", async |connection| {
            Ok(diesel::sql_query(MISSING).get_result(connection).await?)
        })
        .await?;
    Ok(missing.made)
}
