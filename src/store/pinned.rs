//! A transaction of one snapshot that others may read in too, at the very server that it is on: what a dump is taken from.

use std::path::Path;

use tokio_util::task::TaskTracker;

use super::connect::{self, ConnectError, SYSTEM_CA_FILE};
use super::libpq::Libpq;
use super::{Deadline, Dedicated};
use crate::config::Database;
use crate::error::{Error, Result};

/// Nothing is written, and a server that ends idle transactions does not end this one.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
    SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0; \
    SET LOCAL search_path = pg_catalog";

/// An open transaction whose snapshot is exported. It ends when this is dropped.
pub struct Pinned {
    connection: Dedicated,
    /// How another program connects to the same server.
    pub libpq: Libpq,
    /// The snapshot's name, as `SET TRANSACTION SNAPSHOT` takes it.
    pub snapshot: String,
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").field("snapshot", &self.snapshot).finish_non_exhaustive()
    }
}

impl Pinned {
    /// Connects by this URL, to the first of its hosts that is a primary, and begins.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with what the server says.
    pub async fn begin(
        database: &Database,
        url: &str,
        tracker: &TaskTracker,
        deadline: &Deadline,
    ) -> Result<Self> {
        let away = |error: ConnectError| Error::unavailable(format!("the database to dump: {error}"));
        let target = connect::Target::new(database, url, tracker.clone()).map_err(away)?;
        let connecting = deadline.run(target.connect_pinned()).await;
        let (connection, host) = connecting.map_err(|_| late())?.map_err(away)?;
        let ca_file = database.ca_file.as_deref().unwrap_or(Path::new(SYSTEM_CA_FILE));
        let libpq = Libpq::new(host, ca_file, database.connect_timeout.duration());
        let mut pinned = Self { connection, libpq, snapshot: String::new() };
        let beginning = async {
            pinned.connection.client.batch_execute(BEGIN).await?;
            pinned.connection.client.query_one("SELECT pg_export_snapshot()", &[]).await?.try_get(0)
        };
        pinned.snapshot = deadline.run(beginning).await.map_err(|_| late())?.map_err(said)?;
        Ok(pinned)
    }

    /// The rows of a query, in the snapshot. Its values are written into it by the caller.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with what the server says.
    pub async fn rows(&self, query: &str, deadline: &Deadline) -> Result<Vec<tokio_postgres::Row>> {
        let asking = self.connection.client.query(query, &[]);
        deadline.run(asking).await.map_err(|_| late())?.map_err(said)
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
