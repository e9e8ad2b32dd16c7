//! Which schema the database has, which one this daemon needs, and how the one becomes the other.
//!
//! `serve` only looks; `migrate` changes.

use diesel::QueryableByName;
use diesel::migration::{Migration, MigrationSource, MigrationVersion};
use diesel::pg::Pg;
use diesel::sql_types::{Bool, Int8, Text};
use diesel_async::{AsyncMigrationHarness, RunQueryDsl, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use tokio_util::task::TaskTracker;

use super::connect::{ConnectError, Target};
use super::session::Session;
use super::{Connection, Deadline, Store};
use crate::config::{Database, Period};
use crate::error::Result;

/// The migrations that this binary carries.
pub const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations");

/// The role that the daemon serves as.
pub const APP_ROLE: &str = "sidekeep_app";

/// An arbitrary number that two migrations at once agree on.
const LOCK: &str = "SELECT pg_advisory_lock(7306085893296054114)";

/// Why the schema could not be made what it should be.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The role that the daemon serves as is missing.
    #[error(
        "the role {APP_ROLE} does not exist; make it with `CREATE ROLE {APP_ROLE} LOGIN`, or run `sidekeep setup`"
    )]
    NoRole,
    /// What is there is no database to migrate.
    #[error("{0}")]
    Half(String),
    /// A migration failed, and was rolled back.
    #[error("migration: {0}")]
    Migration(Box<dyn std::error::Error + Send + Sync>),
    /// PostgreSQL refused.
    #[error("PostgreSQL: {0}")]
    Database(#[from] diesel::result::Error),
}

/// What the database's schema is to this daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schema {
    /// One that it can serve on.
    Fits,
    /// Migrations are missing.
    Older {
        /// Their versions.
        pending: Vec<String>,
    },
    /// A later sidekeep has migrated it, and says that this one is too old.
    Newer {
        /// The oldest version that may serve.
        min_daemon: String,
    },
    /// It is not whole, or not open to daemons: a restore into this database was broken off, or is still running.
    Shut,
}

impl Schema {
    /// What to do, where there is something to do.
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::Fits => None,
            Self::Shut => Some(format!(
                "the schema sidekeep is not whole, or not open to the role {APP_ROLE}: a restore into this database is still running, or was broken \
                 off, and what it has left is worth nothing; then DROP SCHEMA sidekeep CASCADE, and begin anew"
            )),
            Self::Older { pending } => Some(format!(
                "the database lacks {} migration(s), the first is {}; run `sidekeep migrate`",
                pending.len(),
                pending.iter().next().map_or("", String::as_str)
            )),
            Self::Newer { min_daemon } => Some(format!(
                "the database needs sidekeep {min_daemon} or later, and this is {}; install that version",
                env!("CARGO_PKG_VERSION")
            )),
        }
    }
}

/// The versions of all migrations that this binary carries, in order.
pub fn known() -> Vec<String> {
    let migrations: Vec<Box<dyn Migration<Pg>>> = MIGRATIONS.migrations().unwrap_or_default();
    let mut versions: Vec<_> = migrations.iter().map(|m| m.name().version().to_string()).collect();
    versions.sort();
    versions
}

/// Applies what is missing, as the owner of the tables, one caller at a time. Answers the versions applied.
///
/// # Errors
/// The first migration that fails is rolled back, and those after it are not begun.
pub async fn apply(
    database: &Database,
    url: &str,
    tracker: &TaskTracker,
) -> Result<Vec<String>, MigrateError> {
    let mut session = owner(database, url, tracker).await?;
    session.pg.batch_execute(LOCK).await?;
    if !role_exists(&mut session.pg).await? {
        return Err(MigrateError::NoRole);
    }
    if is_half(&mut session.pg).await? {
        return Err(MigrateError::Half(Schema::Shut.advice().unwrap_or_default()));
    }
    session
        .pg
        .batch_execute("CREATE SCHEMA IF NOT EXISTS sidekeep; SET search_path = sidekeep, pg_catalog")
        .await?;
    let mut harness = AsyncMigrationHarness::new(session.pg);
    let applied = harness.run_pending_migrations(MIGRATIONS).map_err(MigrateError::Migration)?;
    Ok(applied.iter().map(MigrationVersion::to_string).collect())
}

/// Takes back all migrations, in a test of their `down.sql`.
///
/// # Errors
/// The first that fails.
pub async fn revert_all(database: &Database, url: &str, tracker: &TaskTracker) -> Result<(), MigrateError> {
    let mut session = owner(database, url, tracker).await?;
    session.pg.batch_execute("SET search_path = sidekeep, pg_catalog").await?;
    let mut harness = AsyncMigrationHarness::new(session.pg);
    harness.revert_all_migrations(MIGRATIONS).map_err(MigrateError::Migration)?;
    Ok(())
}

/// What is missing, without changing anything.
///
/// # Errors
/// There is no connection, or PostgreSQL refused.
pub async fn check(database: &Database, url: &str, tracker: &TaskTracker) -> Result<Schema, MigrateError> {
    let mut session = owner(database, url, tracker).await?;
    Ok(examine(&mut session.pg).await?)
}

/// Writes, as the owner of the tables, how long the log is kept at the least, and that PostgreSQL's clock is right now.
///
/// # Errors
/// There is no connection, or PostgreSQL refused.
pub async fn confirm_retention(
    database: &Database,
    url: &str,
    tracker: &TaskTracker,
    period: Period,
) -> Result<(), MigrateError> {
    const CONFIRM: &str = "INSERT INTO sidekeep.retention_floor AS f (keep_seconds, confirmed_at, clock_seen) \
        SELECT $1, now(), greatest(now(), (SELECT max(s.last_recorded_at) FROM sidekeep.audit_streams s), \
            (SELECT max(r.heartbeat_at) FROM sidekeep.job_runs r)) \
        ON CONFLICT ((true)) DO UPDATE SET keep_seconds = excluded.keep_seconds, confirmed_at = excluded.confirmed_at, \
            clock_seen = excluded.clock_seen";
    let mut session = owner(database, url, tracker).await?;
    let seconds = i64::try_from(period.duration().as_secs()).unwrap_or(i64::MAX);
    diesel::sql_query(CONFIRM).bind::<Int8, _>(seconds).execute(&mut session.pg).await?;
    Ok(())
}

impl Store {
    /// What the database's schema is to this daemon.
    ///
    /// # Errors
    /// [`crate::error::Error::Unavailable`] while PostgreSQL is away.
    pub async fn schema(&self, deadline: &Deadline) -> Result<Schema> {
        self.single(deadline, "schema", async |connection| Ok(examine(connection).await?)).await
    }
}

/// The session ends soon after it is dropped: whoever takes its connection out of it keeps the rest.
async fn owner(database: &Database, url: &str, tracker: &TaskTracker) -> Result<Session, ConnectError> {
    Target::new(database, url, tracker.clone())?.connect().await
}

#[derive(QueryableByName)]
struct Exists {
    #[diesel(sql_type = Bool)]
    exists: bool,
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

async fn role_exists(connection: &mut Connection) -> Result<bool, diesel::result::Error> {
    let found: Exists =
        diesel::sql_query("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1) AS exists")
            .bind::<Text, _>(APP_ROLE)
            .get_result(connection)
            .await?;
    Ok(found.exists)
}

/// A restore opens the schema last.
const SHUT: &str = "SELECT EXISTS (SELECT FROM pg_namespace n JOIN pg_roles r ON r.rolname = $1 \
    WHERE n.nspname = 'sidekeep' AND NOT has_schema_privilege(r.oid, n.oid, 'USAGE')) AS exists";

/// Whether there are tables that no migration has made: those of a restore that was killed before it shut the schema.
async fn is_half(connection: &mut Connection) -> Result<bool, diesel::result::Error> {
    const TABLES: &str = "SELECT to_regclass('sidekeep.deployment') IS NOT NULL \
        AND to_regclass('sidekeep.__diesel_schema_migrations') IS NOT NULL AS exists";
    const NONE: &str = "SELECT NOT EXISTS (SELECT FROM sidekeep.__diesel_schema_migrations) AS exists";
    let tables: Exists = diesel::sql_query(TABLES).get_result(connection).await?;
    Ok(tables.exists && diesel::sql_query(NONE).get_result::<Exists>(connection).await?.exists)
}

async fn examine(connection: &mut Connection) -> Result<Schema, diesel::result::Error> {
    let shut: Exists = diesel::sql_query(SHUT).bind::<Text, _>(APP_ROLE).get_result(connection).await?;
    if shut.exists || is_half(connection).await? {
        return Ok(Schema::Shut);
    }
    let made: Exists =
        diesel::sql_query("SELECT to_regclass('sidekeep.__diesel_schema_migrations') IS NOT NULL AS exists")
            .get_result(connection)
            .await?;
    let known = known();
    if !made.exists {
        return Ok(Schema::Older { pending: known });
    }
    let applied: Vec<Version> =
        diesel::sql_query("SELECT version FROM sidekeep.__diesel_schema_migrations").load(connection).await?;
    let pending: Vec<_> =
        known.into_iter().filter(|version| !applied.iter().any(|a| a.version == *version)).collect();
    if !pending.is_empty() {
        return Ok(Schema::Older { pending });
    }
    let least: Vec<Version> =
        diesel::sql_query("SELECT min_daemon AS version FROM sidekeep.schema_compatibility")
            .load(connection)
            .await?;
    let own = parts(env!("CARGO_PKG_VERSION"));
    match least.into_iter().find(|least| parts(&least.version) > own) {
        Some(least) => Ok(Schema::Newer { min_daemon: least.version }),
        None => Ok(Schema::Fits),
    }
}

/// `1.2.3` as numbers, to compare.
fn parts(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn versions_compare_by_number() {
        assert!(parts("0.10.0") > parts("0.9.9"));
        assert!(parts("1.0.0") > parts("0.99.0"));
        assert!(parts("0.1.0") == parts("0.1.0"));
    }
}
