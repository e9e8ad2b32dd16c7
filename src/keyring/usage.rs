//! Which key-encryption keys are in use, and how much. Reads only, and opens nothing.

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel::sql_types::{Int8, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use crate::error::Result;
use crate::store::schema::subjects;
use crate::store::{Deadline, Store};

/// Each key-encryption key in use, found by as many steps through its index as there are keys, however many the people.
const USED: &str = "WITH RECURSIVE used AS ( \
    (SELECT kek_id FROM sidekeep.subjects ORDER BY kek_id LIMIT 1) UNION ALL \
    SELECT (SELECT s.kek_id FROM sidekeep.subjects s WHERE s.kek_id > used.kek_id ORDER BY s.kek_id LIMIT 1) \
    FROM used WHERE used.kek_id IS NOT NULL) \
    SELECT kek_id FROM used WHERE kek_id IS NOT NULL";

const USAGE: &str =
    "SELECT kek_id, count(*) AS keys, min(created_at) AS oldest FROM sidekeep.subjects GROUP BY kek_id";

#[derive(QueryableByName)]
struct KekId {
    #[diesel(sql_type = Text)]
    kek_id: String,
}

/// What one key-encryption key wraps.
#[derive(Clone, Debug, QueryableByName)]
pub struct Usage {
    /// Its id.
    #[diesel(sql_type = Text)]
    pub kek_id: String,
    /// How many data keys.
    #[diesel(sql_type = Int8)]
    pub keys: i64,
    /// When the oldest of them was made.
    #[diesel(sql_type = Timestamptz)]
    pub oldest: DateTime<Utc>,
}

/// What every key-encryption key in use wraps. Looks at each row.
///
/// # Errors
/// The store's.
pub async fn usage(store: &Store, deadline: &Deadline) -> Result<Vec<Usage>> {
    let found = store.single(deadline, "keyring.usage", async |connection| {
        Ok(diesel::sql_query(USAGE).load(connection).await?)
    });
    found.await
}

/// The ids of the key-encryption keys in use.
pub(super) async fn used(store: &Store, deadline: &Deadline) -> Result<Vec<String>> {
    let found = store.single(deadline, "keyring.used", async |connection| {
        let used: Vec<KekId> = diesel::sql_query(USED).load(connection).await?;
        Ok(used)
    });
    Ok(found.await?.into_iter().map(|used| used.kek_id).collect())
}

/// How many data keys a key-encryption key wraps.
pub(super) async fn count(store: &Store, deadline: &Deadline, kek_id: &str) -> Result<i64> {
    let found = store.single(deadline, "keyring.count", async |connection| {
        Ok(subjects::table.filter(subjects::kek_id.eq(kek_id)).count().get_result(connection).await?)
    });
    found.await
}
