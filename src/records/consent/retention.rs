//! Consents whose end is long past. Each has an entry of its own, which tells verification that its row was removed and not
//! taken; what ended another one stays at least as long as that, so that nothing comes back to life.

use diesel::QueryableByName;
use diesel::sql_types::{Array, Int8, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::error::Result;
use crate::records::Records;
use crate::records::retention::{Batch, Kind, Retired, Retiring};
use crate::store::{Connection, Deadline};

/// Each consent is an entry in the same transaction.
const MOST: i64 = 200;

const COUNT: &str = "SELECT count(*) AS number FROM sidekeep.expired_consents WHERE expired_at <= $1";
const PERSONS: &str = "SELECT DISTINCT subject_id AS number FROM sidekeep.expired_consents \
    WHERE expired_at <= $1 AND subject_id > $2 ORDER BY 1 LIMIT $3";
const DUE: &str = "SELECT id, subject_id FROM sidekeep.expired_consents WHERE subject_id = ANY($1) AND expired_at <= $2 \
    ORDER BY expired_at, given_at, number LIMIT $3";
const DELETE: &str = "WITH gone AS (DELETE FROM sidekeep.consent_records WHERE id = ANY($1) RETURNING id, subject_id) \
    SELECT id, subject_id FROM gone ORDER BY id";

#[derive(QueryableByName)]
struct Due {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Int8)]
    subject_id: i64,
}

struct Consents<'a>(&'a Records);

impl Records {
    /// How many consents are due at a time.
    ///
    /// # Errors
    /// The store's.
    pub async fn due_consents(&self, at: chrono::DateTime<chrono::Utc>, deadline: &Deadline) -> Result<i64> {
        self.due(COUNT, at, deadline).await
    }

    /// Removes the consents that are due.
    ///
    /// # Errors
    /// The store's; what was removed before is committed, and counted.
    pub async fn retire_consents(&self, retiring: &Retiring<'_>) -> Result<Retired> {
        self.retire(retiring, &Consents(self)).await
    }
}

impl Kind for Consents<'_> {
    fn name(&self) -> &'static str {
        "consents"
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
            let free: Vec<i64> = subjects.iter().map(|subject| subject.id).collect();
            let due = diesel::sql_query(DUE).bind::<Array<Int8>, _>(&free);
            let due = due.bind::<Timestamptz, _>(retiring.at).bind::<Int8, _>(rows.min(MOST));
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
                let Some(subject) = subjects.iter().find(|subject| subject.id == subject_id) else {
                    continue;
                };
                let by = retiring.by("consent", id);
                let staged = self.0.log().stage(tx, &by, subject).await?;
                batch.entries.push((by, staged));
            }
            Ok(batch)
        }
        .boxed()
    }
}
