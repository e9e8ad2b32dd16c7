//! A connection of the owner of the tables to the very server that other programs are told of: for what changes a whole database.

use std::path::Path;

use tokio_postgres::types::ToSql;
use tokio_util::task::TaskTracker;

use super::connect::{self, ConnectError, SYSTEM_CA_FILE};
use super::libpq::Libpq;
use super::{Deadline, Dedicated};
use crate::config::Database;
use crate::error::{Error, Result};

/// Statements here take as long as they take, and find things by their full names.
const SETTINGS: &str =
    "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET search_path = pg_catalog";

/// An open connection. What it began ends when this is dropped.
pub struct Owned {
    connection: Dedicated,
    /// How another program connects to the same server.
    pub libpq: Libpq,
}

impl std::fmt::Debug for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Owned")
    }
}

impl Owned {
    /// Connects by this URL, to the first of its hosts that is a primary.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with what the server says.
    pub async fn connect(
        database: &Database,
        url: &str,
        tracker: &TaskTracker,
        deadline: &Deadline,
    ) -> Result<Self> {
        let away = |error: ConnectError| Error::unavailable(format!("the target: {error}"));
        let target = connect::Target::new(database, url, tracker.clone()).map_err(away)?;
        let connecting = deadline.run(target.connect_pinned()).await;
        let (connection, host) = connecting.map_err(|_| late())?.map_err(away)?;
        let ca_file = database.ca_file.as_deref().unwrap_or(Path::new(SYSTEM_CA_FILE));
        let libpq = Libpq::new(host, ca_file, database.connect_timeout.duration());
        let owned = Self { connection, libpq };
        owned.execute(SETTINGS, deadline).await?;
        Ok(owned)
    }

    /// Runs statements without values.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with what the server says.
    pub async fn execute(&self, statements: &str, deadline: &Deadline) -> Result<()> {
        let running = self.connection.client.batch_execute(statements);
        deadline.run(running).await.map_err(|_| late())?.map_err(said)
    }

    /// The rows of a statement.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with what the server says.
    pub async fn rows(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
        deadline: &Deadline,
    ) -> Result<Vec<tokio_postgres::Row>> {
        let asking = self.connection.client.query(statement, values);
        deadline.run(asking).await.map_err(|_| late())?.map_err(said)
    }

    /// The first column of every row.
    ///
    /// # Errors
    /// As [`Owned::rows`].
    pub async fn column<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
        deadline: &Deadline,
    ) -> Result<Vec<T>> {
        let rows = self.rows(statement, values, deadline).await?;
        rows.iter().map(|row| row.try_get(0).map_err(Error::internal)).collect()
    }

    /// The first column of the first row.
    ///
    /// # Errors
    /// As [`Owned::rows`]; there is none.
    pub async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        statement: &str,
        values: &[&(dyn ToSql + Sync)],
        deadline: &Deadline,
    ) -> Result<T> {
        let found = self.column(statement, values, deadline).await?.into_iter().next();
        found.ok_or_else(|| Error::internal("PostgreSQL answered without a row"))
    }
}

fn late() -> Error {
    Error::unavailable("it was not done in time")
}

/// The server's own words, without the statement.
fn said(error: tokio_postgres::Error) -> Error {
    let why = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    Error::unavailable(format!("PostgreSQL: {why}"))
}
