//! Entries that are written in one transaction with the change they tell of. A stream takes them in with its next batch.

use chrono::{DateTime, Utc};
use diesel::prelude::{
    ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel_async::RunQueryDsl;

use super::entry::{Entry, FORMAT, Labels};
use super::stream::Sealed;
use crate::error::{Error, Result};
use crate::keyring::Deployment;
use crate::store::schema::audit_staged;
use crate::store::{Connection, Deadline, Store};

/// What the MAC of a staged entry is for.
const PURPOSE: &str = "sidekeep staged";

/// Staged so long ago, an entry's own daemon has not taken it in: it died, or is slow. One from the future is of a clock that
/// was set back.
const ORPHANED: &str = "staged_at NOT BETWEEN now() - interval '3 seconds' AND now() + interval '3 seconds'";

/// How many are looked at in one go.
const LIMIT: i64 = 500;

#[derive(Insertable)]
#[diesel(table_name = audit_staged, treat_none_as_default_value = false)]
struct New<'a> {
    id: &'a str,
    actor_id: Option<i64>,
    subject_id: Option<i64>,
    action: &'a str,
    resource_type: Option<&'a str>,
    resource_id: Option<&'a str>,
    outcome: Option<&'a str>,
    labels: Option<serde_json::Value>,
    client_sealed: Option<&'a [u8]>,
    mac: Vec<u8>,
    metadata_sealed: Option<&'a [u8]>,
    occurred_at: Option<DateTime<Utc>>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = audit_staged, check_for_backend(diesel::pg::Pg))]
struct Stored {
    number: i64,
    id: String,
    actor_id: Option<i64>,
    subject_id: Option<i64>,
    action: String,
    resource_type: Option<String>,
    resource_id: Option<String>,
    outcome: Option<String>,
    labels: Option<serde_json::Value>,
    client_sealed: Option<Vec<u8>>,
    mac: Vec<u8>,
    metadata_sealed: Option<Vec<u8>>,
    occurred_at: Option<DateTime<Utc>>,
}

impl Stored {
    fn entry(self) -> Option<(i64, Vec<u8>, Entry)> {
        let labels = match &self.labels {
            None => None,
            Some(labels) => Some(Labels::stored(labels)?),
        };
        let entry = Entry {
            stream: 0,
            position: 0,
            recorded_at: DateTime::<Utc>::UNIX_EPOCH,
            format: FORMAT,
            id: self.id,
            actor_id: self.actor_id,
            subject_id: self.subject_id,
            action: self.action,
            resource_type: self.resource_type,
            resource_id: self.resource_id,
            outcome: self.outcome,
            occurred_at: self.occurred_at,
            labels,
            client_sealed: self.client_sealed,
            metadata_sealed: self.metadata_sealed,
        };
        Some((self.number, self.mac, entry))
    }

    /// The entry, where a daemon has staged it; else its number.
    fn genuine(self, own: &Deployment) -> Result<Sealed, i64> {
        let number = self.number;
        self.entry()
            .filter(|(_, mac, entry)| {
                own.verifies(PURPOSE, &[own.name().as_bytes(), &entry.canonical()], mac)
            })
            .map(|(number, _, entry)| Sealed { entry, staged: Some(number) })
            .ok_or(number)
    }
}

/// The time by PostgreSQL's clock, which moves on within a transaction.
///
/// # Errors
/// The database's.
pub(super) async fn now(tx: &mut Connection) -> Result<DateTime<Utc>> {
    let now = diesel::dsl::sql::<diesel::sql_types::Timestamptz>("clock_timestamp()");
    Ok(diesel::select(now).get_result(tx).await?)
}

/// Stages an entry in the transaction of the change.
///
/// # Errors
/// The database's.
pub async fn stage(tx: &mut Connection, own: &Deployment, entry: Entry) -> Result<Sealed> {
    let new = New {
        id: &entry.id,
        actor_id: entry.actor_id,
        subject_id: entry.subject_id,
        action: &entry.action,
        resource_type: entry.resource_type.as_deref(),
        resource_id: entry.resource_id.as_deref(),
        outcome: entry.outcome.as_deref(),
        labels: entry.labels.as_ref().map(serde_json::to_value).transpose().map_err(Error::internal)?,
        client_sealed: entry.client_sealed.as_deref(),
        metadata_sealed: entry.metadata_sealed.as_deref(),
        occurred_at: entry.occurred_at,
        mac: own.mac(PURPOSE, &[own.name().as_bytes(), &entry.canonical()]),
    };
    let number: i64 = diesel::insert_into(audit_staged::table)
        .values(new)
        .returning(audit_staged::number)
        .get_result(tx)
        .await?;
    Ok(Sealed { entry, staged: Some(number) })
}

/// What daemons that died, or are slow, have left, from `after` on; and where to look next time. A row that no daemon has
/// staged is reported, and never taken in.
///
/// # Errors
/// The store's.
pub async fn orphans(
    store: &Store,
    own: &Deployment,
    after: i64,
    deadline: &Deadline,
) -> Result<(Vec<Sealed>, i64)> {
    let rows: Vec<Stored> = store
        .single(deadline, "audit.orphans", async |connection| {
            let rows = audit_staged::table
                .filter(diesel::dsl::sql::<diesel::sql_types::Bool>(ORPHANED))
                .filter(audit_staged::number.gt(after))
                .order(audit_staged::number)
                .limit(LIMIT)
                .select(Stored::as_select());
            Ok(rows.load(connection).await?)
        })
        .await?;
    let more = i64::try_from(rows.len()).is_ok_and(|count| count >= LIMIT);
    let next = rows.last().filter(|_| more).map_or(0, |row| row.number);
    let mut orphans = Vec::with_capacity(rows.len());
    for row in rows {
        match row.genuine(own) {
            Ok(sealed) => orphans.push(sealed),
            Err(number) => tracing::error!(number, "a row of audit_staged was not staged by a daemon"),
        }
    }
    Ok((orphans, next))
}

/// The numbers of staged entries that no daemon has staged.
///
/// # Errors
/// The database's.
pub async fn strangers(connection: &mut Connection, own: &Deployment) -> Result<Vec<i64>> {
    let rows: Vec<Stored> =
        audit_staged::table.order(audit_staged::number).select(Stored::as_select()).load(connection).await?;
    Ok(rows.into_iter().filter_map(|row| row.genuine(own).err()).collect())
}

/// How many staged entries wait for their place, and how long the oldest has waited.
#[derive(Clone, Copy, Debug, diesel::QueryableByName)]
pub struct Lag {
    /// How many there are.
    #[diesel(sql_type = diesel::sql_types::Int8)]
    pub entries: i64,
    /// How long the oldest has waited, in seconds.
    #[diesel(sql_type = diesel::sql_types::Double)]
    pub seconds: f64,
}

/// Looks how much is staged and waits.
///
/// # Errors
/// The store's.
pub async fn lag(store: &Store, deadline: &Deadline) -> Result<Lag> {
    const LAG: &str = "SELECT count(*) AS entries, \
        greatest(coalesce(extract(epoch FROM now() - min(staged_at)), 0), 0)::float8 AS seconds FROM sidekeep.audit_staged";
    store
        .single(deadline, "audit.lag", async |connection| {
            Ok(diesel::sql_query(LAG).get_result(connection).await?)
        })
        .await
}

/// Entries with this action that a daemon has staged.
///
/// # Errors
/// The database's.
pub async fn genuine(connection: &mut Connection, own: &Deployment, action: &str) -> Result<Vec<Entry>> {
    let rows: Vec<Stored> = audit_staged::table
        .filter(audit_staged::action.eq(action))
        .order(audit_staged::number)
        .select(Stored::as_select())
        .load(connection)
        .await?;
    Ok(rows
        .into_iter()
        .filter_map(Stored::entry)
        .filter(|(_, mac, entry)| own.verifies(PURPOSE, &[own.name().as_bytes(), &entry.canonical()], mac))
        .map(|(_, _, entry)| entry)
        .collect())
}

/// Which of these are still there.
///
/// # Errors
/// The store's.
pub async fn remaining(store: &Store, numbers: &[i64], deadline: &Deadline) -> Result<Vec<i64>> {
    store
        .single(deadline, "audit.staged", async |connection| {
            let rows =
                audit_staged::table.filter(audit_staged::number.eq_any(numbers)).select(audit_staged::number);
            Ok(rows.load(connection).await?)
        })
        .await
}

/// Waits, within the deadline, until everything that was staged before now is in the log. What no daemon has staged holds
/// nobody up.
///
/// # Errors
/// [`Error::Unavailable`] when it takes longer.
pub async fn drained(store: &Store, own: &Deployment, deadline: &Deadline) -> Result<()> {
    let latest: Option<i64> = store
        .single(deadline, "audit.staged", async |connection| {
            Ok(audit_staged::table
                .select(diesel::dsl::max(audit_staged::number))
                .get_result(connection)
                .await?)
        })
        .await?;
    let Some(latest) = latest else { return Ok(()) };
    let (mut pause, mut after) = (std::time::Duration::from_millis(1), 0);
    loop {
        let oldest: Option<Stored> = store
            .single(deadline, "audit.staged", async |connection| {
                let rows = audit_staged::table
                    .filter(audit_staged::number.gt(after))
                    .filter(audit_staged::number.le(latest))
                    .order(audit_staged::number)
                    .select(Stored::as_select());
                Ok(rows.first(connection).await.optional()?)
            })
            .await?;
        let Some(oldest) = oldest else { return Ok(()) };
        if let Err(stranger) = oldest.genuine(own) {
            after = stranger;
            continue;
        }
        if deadline.left() <= pause {
            return Err(Error::unavailable("what was staged before is not in the log yet"));
        }
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(std::time::Duration::from_millis(100));
    }
}
