//! Persons of whom nothing is left: no record, no entry of the log, no open hold, no request. They are erased as on request,
//! with tombstone, entry and certificate: without a tombstone nobody could tell them from a person who was lost.
//!
//! Nobody asked for it, so the user id may be taken again at once. Subject 0 is no person.

use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Int8, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::records::Records;
use crate::records::retention::{Retired, Retiring};
use crate::store::{Connection, Deadline};
use crate::subjects::certificate::Reason;
use crate::subjects::erase::{Erase, forget};
use crate::subjects::selector::{SCHEMA, TABLES, Whose};
use crate::values::UserId;

/// So many persons are looked at in one go.
const PAGE: i64 = 500;

/// That nothing of what the selector knows refers to a person `s`. Whoever was named just now may be about to be written
/// about: a day is waited for.
static FORGOTTEN: LazyLock<String> = LazyLock::new(|| {
    let mut text = "s.restricted_at IS NULL AND s.created_at < now() - interval '1 day'".to_owned();
    for table in TABLES.iter().filter(|table| table.name != "subjects") {
        let columns: &[&str] = match table.whose {
            Whose::Subject => &["subject_id"],
            Whose::Named => &["subject_id", "actor_id"],
            // A message has its conversation.
            Whose::Through { .. } | Whose::Nobody => &[],
        };
        // A released hold goes with the person.
        let open = if table.name == "legal_holds" { " AND t.released_at IS NULL" } else { "" };
        for column in columns {
            let name = table.name;
            text.push_str(&format!(
                " AND NOT EXISTS (SELECT FROM {SCHEMA}.{name} t WHERE t.{column} = s.subject_id{open})"
            ));
        }
    }
    text
});
/// Of the next persons by number, those whom nothing refers to, and how far it looked.
static LOOK: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH page AS (SELECT * FROM {SCHEMA}.subjects WHERE subject_id > $1 AND created_at < $2 ORDER BY subject_id LIMIT $3) \
         SELECT s.subject_id, s.user_id, true AS forgotten FROM page s WHERE s.user_id IS NOT NULL AND {} \
         UNION ALL (SELECT p.subject_id, '', false FROM page p ORDER BY p.subject_id DESC LIMIT 1)",
        *FORGOTTEN
    )
});
static STILL: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT count(*) AS number FROM {SCHEMA}.subjects s WHERE s.subject_id = $1 AND s.subject_id > 0 AND {}",
        *FORGOTTEN
    )
});

#[derive(QueryableByName)]
struct Seen {
    #[diesel(sql_type = Int8)]
    subject_id: i64,
    #[diesel(sql_type = Text)]
    user_id: String,
    #[diesel(sql_type = diesel::sql_types::Bool)]
    forgotten: bool,
}

/// A page of persons: whom nothing refers to, and where the next page begins; nothing at the end.
async fn look(
    records: &Records,
    after: i64,
    at: DateTime<Utc>,
    deadline: &Deadline,
) -> Result<Option<(Vec<String>, i64)>> {
    let seen: Vec<Seen> = records
        .store()
        .single(deadline, "retention.people", async |connection| {
            let query = diesel::sql_query(LOOK.as_str()).bind::<Int8, _>(after);
            Ok(query.bind::<Timestamptz, _>(at).bind::<Int8, _>(PAGE).load(connection).await?)
        })
        .await?;
    let last = seen.iter().find(|seen| !seen.forgotten).map(|last| last.subject_id);
    let forgotten = seen.into_iter().filter(|seen| seen.forgotten).map(|seen| seen.user_id).collect();
    Ok(last.map(|last| (forgotten, last)))
}

/// How many persons nothing refers to.
///
/// # Errors
/// The store's.
pub async fn due_people(records: &Records, at: DateTime<Utc>, deadline: &Deadline) -> Result<i64> {
    let (mut after, mut due) = (0, 0_i64);
    while let Some((forgotten, last)) = look(records, after, at, deadline).await? {
        due = due.saturating_add(i64::try_from(forgotten.len()).unwrap_or(i64::MAX));
        after = last;
    }
    Ok(due)
}

/// Erases the persons whom nothing refers to.
///
/// # Errors
/// The store's; [`Error::Conflict`] where this daemon cannot sign their certificates.
pub async fn retire_people(records: &Records, config: &Config, retiring: &Retiring<'_>) -> Result<Retired> {
    let (mut after, mut retired) = (0, Retired::default());
    while let Some((forgotten, last)) = look(records, after, retiring.at, retiring.deadline).await? {
        for user_id in forgotten {
            let asked = Erase {
                user_id: UserId::parse(user_id).map_err(Error::internal)?,
                reason: Reason::Retention,
                note: None,
                id: None,
                salt: None,
                request_id: None,
                dry_run: false,
            };
            match forget(records, config, retiring, &asked).await? {
                true => retired.removed = retired.removed.saturating_add(1),
                // Somebody has written about the person, or erased or held it, since.
                false => retired.busy = retired.busy.saturating_add(1),
            }
        }
        after = last;
    }
    Ok(retired)
}

/// Whether still nothing refers to a person whose row is taken.
///
/// # Errors
/// The database's.
pub(in crate::subjects) async fn is_forgotten(tx: &mut Connection, subject_id: i64) -> Result<bool> {
    let found: crate::records::retention::Number =
        diesel::sql_query(STILL.as_str()).bind::<Int8, _>(subject_id).get_result(tx).await?;
    Ok(found.number > 0)
}
