//! What a snapshot of the database holds, told from within it: rows, heads of the log, keys in use, versions.
//!
//! Changes nothing, and reads no record.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use tokio_postgres::Row;

use super::manifest::{Head, Heads};
use crate::audit::merkle::hex;
use crate::error::{Error, Result};
use crate::store::{Deadline, Pinned};

/// The tables whose rows are in no dump: who somebody is, and who must not come back, is in the keyring's own backup alone.
pub const LEFT_OUT: [&str; 2] = ["subject_refusals", "subjects"];

const UNREADABLE: &str = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = 'sidekeep' AND CASE c.relkind \
        WHEN 'S' THEN NOT has_sequence_privilege(c.oid, 'SELECT') \
        ELSE c.relkind IN ('r', 'p') AND NOT has_table_privilege(c.oid, 'SELECT') END \
    ORDER BY 1 LIMIT 1";
const ABOUT: &str = "SELECT now() AS now, current_user::text AS role, current_setting('server_version') AS version, \
    current_setting('server_version_num')::int AS number, to_regclass('sidekeep.deployment') IS NOT NULL AS ours";
const SCHEMA: &str = "SELECT max(version)::text FROM sidekeep.__diesel_schema_migrations";
const TABLES: &str = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = 'sidekeep' AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1";
const PERSONS: &str = "SELECT count(*) FROM sidekeep.subjects WHERE subject_id <> 0";
const KEKS: &str = "SELECT DISTINCT kek_id FROM sidekeep.subjects ORDER BY 1";
const STREAMS: &str = "SELECT stream, size, root FROM sidekeep.audit_streams ORDER BY 1";
const CHECKPOINT: &str = "SELECT note FROM sidekeep.audit_checkpoints ORDER BY size DESC LIMIT 1";
const STAGED: &str = "SELECT count(*) FROM sidekeep.audit_staged";
const CLOCK: &str = "SELECT clock_timestamp()";

/// What a dump needs to know before it begins.
#[derive(Clone, Debug)]
pub struct About {
    /// When the snapshot was taken, by PostgreSQL's clock.
    pub at: DateTime<Utc>,
    /// The server's version, as in `15.18`.
    pub server_version: String,
    /// Its major version.
    pub major: u32,
}

/// What is in the snapshot.
#[derive(Clone, Debug)]
pub struct Contents {
    /// How many rows each table has whose rows are dumped.
    pub tables: BTreeMap<String, i64>,
    /// The newest migration.
    pub schema_version: String,
    /// How many persons there are.
    pub persons: i64,
    /// The key-encryption keys in use.
    pub kek_ids: Vec<String>,
    /// The log.
    pub audit: Heads,
}

/// What is known before anything is read at length.
///
/// # Errors
/// [`Error::Conflict`] where the role may not read everything, with what to do; the server's.
pub async fn about(pinned: &Pinned, deadline: &Deadline) -> Result<About> {
    let row = one(pinned, ABOUT, deadline).await?;
    let number: i32 = get(&row, "number")?;
    if !get::<bool>(&row, "ours")? {
        return Err(Error::conflict(
            "the database to dump has no schema sidekeep; is its URL the right one?",
        ));
    }
    if let Some(row) = pinned.rows(UNREADABLE, deadline).await?.first() {
        let (role, table): (String, String) =
            (get(&one(pinned, ABOUT, deadline).await?, "role")?, first(row)?);
        return Err(Error::conflict(format!(
            "the role {role} may not read {table}: name the URL of one that may read every table, as their owner may, \
             in database.direct_url_file"
        )));
    }
    Ok(About {
        at: get(&row, "now")?,
        server_version: get(&row, "version")?,
        major: u32::try_from(number / 10_000).unwrap_or_default(),
    })
}

/// Counts every table, and reads what the log and the keyring are.
///
/// # Errors
/// The server's.
pub async fn contents(pinned: &Pinned, deadline: &Deadline) -> Result<Contents> {
    let mut tables = BTreeMap::new();
    for row in pinned.rows(TABLES, deadline).await? {
        let table: String = first(&row)?;
        if !LEFT_OUT.contains(&table.as_str()) {
            let count = format!("SELECT count(*) FROM sidekeep.\"{}\"", table.replace('"', "\"\""));
            tables.insert(table, first(&one(pinned, &count, deadline).await?)?);
        }
    }
    let mut streams = Vec::new();
    for row in pinned.rows(STREAMS, deadline).await? {
        let root: Vec<u8> = get(&row, "root")?;
        streams.push(Head { stream: get(&row, "stream")?, size: get(&row, "size")?, root: hex(&root) });
    }
    let checkpoint = pinned.rows(CHECKPOINT, deadline).await?.first().map(first).transpose()?;
    let kek_ids = pinned.rows(KEKS, deadline).await?.iter().map(first).collect::<Result<_>>()?;
    Ok(Contents {
        tables,
        schema_version: first(&one(pinned, SCHEMA, deadline).await?)?,
        persons: first(&one(pinned, PERSONS, deadline).await?)?,
        kek_ids,
        audit: Heads { streams, checkpoint, staged: first(&one(pinned, STAGED, deadline).await?)? },
    })
}

/// What time it is, by PostgreSQL's clock.
///
/// # Errors
/// The server's.
pub async fn clock(pinned: &Pinned, deadline: &Deadline) -> Result<DateTime<Utc>> {
    first(&one(pinned, CLOCK, deadline).await?)
}

async fn one(pinned: &Pinned, query: &str, deadline: &Deadline) -> Result<Row> {
    let row = pinned.rows(query, deadline).await?.into_iter().next();
    row.ok_or_else(|| Error::internal("PostgreSQL answered without a row"))
}

fn first<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row) -> Result<T> {
    row.try_get(0).map_err(Error::internal)
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: &str) -> Result<T> {
    row.try_get(column).map_err(Error::internal)
}
