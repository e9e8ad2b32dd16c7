//! Requests that were closed long ago. One outlives its person, and goes all the same when its time has come.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Int8, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::error::Result;
use crate::keyring::{Person, Subject};
use crate::records::Records;
use crate::records::retention::{Batch, Kind, Retired, Retiring};
use crate::store::{Connection, Deadline};

/// Each request is an entry in the same transaction.
const MOST: i64 = 200;

/// What is due at `$1`: of nobody who is held or restricted.
macro_rules! due {
    ($select:literal, $more:literal) => {
        concat!(
            "SELECT ",
            $select,
            " FROM sidekeep.requests r JOIN sidekeep.retention_policies p ON p.name = 'requests' \
             WHERE r.closed_at <= $1 - make_interval(secs => p.keep_seconds) \
             AND NOT EXISTS (SELECT FROM sidekeep.subjects s WHERE s.subject_id = r.subject_id AND s.restricted_at IS NOT NULL) \
             AND NOT EXISTS (SELECT FROM sidekeep.legal_holds h WHERE h.subject_id = r.subject_id AND h.released_at IS NULL)",
            $more
        )
    };
}
const COUNT: &str = due!("count(*) AS number", "");
const PERSONS: &str =
    due!("DISTINCT r.subject_id AS number", " AND r.subject_id > $2 ORDER BY r.subject_id LIMIT $3");
const DUE: &str = due!(
    "r.id, r.subject_id",
    " AND r.subject_id = ANY($2) ORDER BY r.closed_at, r.id LIMIT $3 FOR UPDATE OF r SKIP LOCKED"
);
const DELETE: &str = "WITH gone AS (DELETE FROM sidekeep.requests WHERE id = ANY($1) RETURNING id, subject_id) \
    SELECT id, subject_id FROM gone ORDER BY id";

#[derive(QueryableByName)]
struct Due {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Int8)]
    subject_id: i64,
}

struct Requests<'a>(&'a Records);

/// How many requests are due at a time.
///
/// # Errors
/// The store's.
pub async fn due_requests(records: &Records, at: DateTime<Utc>, deadline: &Deadline) -> Result<i64> {
    records.due(COUNT, at, deadline).await
}

/// Removes the requests that are due.
///
/// # Errors
/// The store's; what was removed before is committed, and counted.
pub async fn retire_requests(records: &Records, retiring: &Retiring<'_>) -> Result<Retired> {
    records.retire(retiring, &Requests(records)).await
}

impl Kind for Requests<'_> {
    fn name(&self) -> &'static str {
        "requests"
    }

    fn persons(&self) -> &'static str {
        PERSONS
    }

    fn batch<'c>(
        &'c self,
        tx: &'c mut Connection,
        retiring: &'c Retiring<'_>,
        persons: &'c [i64],
        rows: i64,
    ) -> BoxFuture<'c, Result<Batch>> {
        async move {
            let subjects = self.0.free(tx, persons).await?;
            let living = Person::find_by_id(tx, persons).await?;
            let is_free = |number: i64| {
                subjects.iter().any(|subject| subject.id == number)
                    || !living.iter().any(|person| person.subject_id() == number)
            };
            let free: Vec<i64> = persons.iter().copied().filter(|number| is_free(*number)).collect();
            let due = diesel::sql_query(DUE).bind::<Timestamptz, _>(retiring.at);
            let due = due.bind::<Array<Int8>, _>(&free).bind::<Int8, _>(rows.min(MOST));
            let due: Vec<Due> = due.load(tx).await?;
            let ids: Vec<&str> = due.iter().map(|due| due.id.as_str()).collect();
            let gone: Vec<Due> = diesel::sql_query(DELETE).bind::<Array<Text>, _>(&ids).load(tx).await?;
            let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
            let mut batch = Batch {
                removed: count(gone.len()),
                busy: count(persons.len().saturating_sub(free.len())),
                stuck: count(due.len().saturating_sub(gone.len())),
                more: !gone.is_empty(),
                ..Batch::default()
            };
            for Due { id, subject_id } in gone {
                let whose: Option<&Subject> = subjects.iter().find(|subject| subject.id == subject_id);
                let by = retiring.by("request", id);
                let staged = self.0.log().stage_about(tx, &by, whose).await?;
                batch.entries.push((by, staged));
            }
            Ok(batch)
        }
        .boxed()
    }
}
