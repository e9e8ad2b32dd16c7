//! Evidence of consents of erased persons (`erasure.consents = "keep"`): with the erasure every consent has ended, so their
//! period counts from there.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Int8, Timestamptz};
use diesel_async::RunQueryDsl;

use crate::error::{Error, Result};
use crate::records::Records;
use crate::records::retention::{Retired, Retiring};
use crate::store::Deadline;

/// So many rows go in one transaction.
const BATCH: i64 = 1000;

const COUNT: &str = "SELECT count(*) AS number FROM sidekeep.consent_evidence c \
    JOIN sidekeep.subject_erasures e ON e.subject_id = c.subject_id JOIN sidekeep.retention_policies p ON p.name = 'consents' \
    WHERE e.erased_at <= $1 - make_interval(secs => p.keep_seconds)";
const DELETE: &str = "WITH due AS (SELECT c.subject_id, c.id FROM sidekeep.consent_evidence c \
        JOIN sidekeep.subject_erasures e ON e.subject_id = c.subject_id JOIN sidekeep.retention_policies p ON p.name = 'consents' \
        WHERE e.erased_at <= $1 - make_interval(secs => p.keep_seconds) LIMIT $2), \
    gone AS (DELETE FROM sidekeep.consent_evidence c USING due WHERE (c.subject_id, c.id) = (due.subject_id, due.id) RETURNING 1) \
    SELECT (SELECT count(*) FROM due) AS due, (SELECT count(*) FROM gone) AS gone";

#[derive(QueryableByName)]
struct Done {
    #[diesel(sql_type = Int8)]
    due: i64,
    #[diesel(sql_type = Int8)]
    gone: i64,
}

/// How much evidence is due at a time.
///
/// # Errors
/// The store's.
pub async fn due_evidence(records: &Records, at: DateTime<Utc>, deadline: &Deadline) -> Result<i64> {
    records.due(COUNT, at, deadline).await
}

/// Removes the evidence that is due. It counts as consents; an entry tells of each batch, since nobody is left whom it could name.
///
/// # Errors
/// The store's; what was removed before is committed, and counted.
pub async fn retire_evidence(records: &Records, retiring: &Retiring<'_>) -> Result<Retired> {
    let mut retired = Retired::default();
    loop {
        let done = records.store().transact(retiring.deadline, "retention", async |tx| {
            let query = diesel::sql_query(DELETE).bind::<Timestamptz, _>(retiring.at);
            let Done { due, gone } = query.bind::<Int8, _>(BATCH).get_result(tx).await?;
            if gone == 0 {
                return Ok((due, None));
            }
            let by = retiring.by("consent_evidence", "erased");
            by.tells("consents", gone);
            let staged = records.log().stage_about(tx, &by, None).await?;
            (retiring.tally)(tx, ("consents", gone)).await?;
            Ok((due, Some((gone, by, staged))))
        });
        match done.await {
            Ok((due, None)) => {
                retired.stuck = due;
                return Ok(retired);
            }
            Ok((_, Some((gone, by, staged)))) => {
                records.log().hand_over(&by, staged);
                retired.removed = retired.removed.saturating_add(gone);
            }
            Err(error @ Error::UnknownOutcome) if retiring.deadline.has_passed() => return Err(error),
            Err(Error::UnknownOutcome) => {}
            Err(error) => return Err(error),
        }
    }
}
