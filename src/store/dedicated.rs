//! A connection that one task has to itself: for a writer that keeps it, and wants the server's own error codes.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::session::{Ends, Raw, Seen, drive};

/// A connection that one task has to itself, with the server's own error codes.
pub struct Dedicated {
    /// The connection.
    pub client: tokio_postgres::Client,
    /// What its driver has seen.
    pub seen: Arc<Seen>,
    /// The run of the server that it leads to, as `watch::SERVER_RUN` says.
    pub run: String,
    /// Whether it leads to a replica.
    pub is_replica: bool,
    _ends: Ends,
}

impl std::fmt::Debug for Dedicated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dedicated").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Dedicated {
    pub(super) fn new<S>(client: tokio_postgres::Client, connection: Raw<S>, tracker: &TaskTracker) -> Self
    where
        S: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
    {
        let (seen, ends) = drive(connection, tracker);
        Self { client, seen, run: String::new(), is_replica: false, _ends: ends }
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// PostgreSQL's.
    pub async fn begin(&self) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute("BEGIN").await
    }

    /// Ends it without a trace.
    ///
    /// # Errors
    /// PostgreSQL's.
    pub async fn roll_back(&self) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute("ROLLBACK").await
    }

    /// Commits it. Without an answer its outcome is not known.
    ///
    /// # Errors
    /// PostgreSQL's.
    pub async fn commit(&self) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute("COMMIT").await
    }
}
