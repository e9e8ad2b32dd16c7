//! Reading from a replica what never changes, once it has replayed all that the primary had. Never anything that opens with a
//! person's key: a replica may still have whom the primary has erased.

use std::sync::Arc;
use std::time::Duration;

use diesel_async::RunQueryDsl;

use super::connect::{ConnectError, Target};
use super::{Deadline, Dedicated, Store};
use crate::config::Database;
use crate::error::Result;

/// How long a replica may take to come up to where the primary was.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looks at how far it has come.
const AGAIN: Duration = Duration::from_millis(50);

/// Where the primary is in its history, and whose history that is.
#[derive(Debug, diesel::QueryableByName)]
struct Position {
    #[diesel(sql_type = diesel::sql_types::Text)]
    system: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    lsn: String,
}

impl Store {
    /// The same with a replica, where there is one.
    ///
    /// # Errors
    /// Its URL is wrong, or the certificates cannot be read.
    pub fn with_replica(self, database: &Database, url: Option<&str>) -> Result<Self, ConnectError> {
        let target = |url| Target::replica(database, url, self.tracker.clone()).map(Arc::new);
        let replica = url.map(target).transpose()?;
        Ok(Self { replica, ..self })
    }

    /// A connection to read what never changes: to the replica, if it has all that the primary has now, else to the primary.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::error::Error::Unavailable).
    pub async fn reading(&self, deadline: &Deadline) -> Result<Dedicated> {
        let Some(target) = &self.replica else { return self.dedicated(deadline).await };
        let within = deadline.within(PATIENCE);
        let why = match within.run(target.connect_replica()).await {
            Ok(Ok(connection)) => match self.come_up(&connection, &within).await {
                Ok(()) => return Ok(connection),
                Err(why) => why,
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no connection in time".to_owned(),
        };
        tracing::warn!(why, "the replica is not read from; the primary is");
        self.dedicated(deadline).await
    }

    /// Whether a connection of [`Store::reading`] still has all that the primary has now.
    pub async fn is_current(&self, connection: &Dedicated, deadline: &Deadline) -> bool {
        !connection.is_replica || self.come_up(connection, &deadline.within(PATIENCE)).await.is_ok()
    }

    /// Waits until a replica has replayed what the primary has now; the error says why it has not.
    async fn come_up(&self, replica: &Dedicated, deadline: &Deadline) -> Result<(), String> {
        const PRIMARY: &str = "SELECT system_identifier::text AS system, pg_current_wal_lsn()::text AS lsn FROM pg_control_system()";
        const REPLICA: &str = "SELECT system_identifier::text AS system, pg_is_in_recovery() AS is_replica, \
            coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false) AS has FROM pg_control_system()";
        let asking = self.single(deadline, "replica.position", async |connection| {
            Ok(diesel::sql_query(PRIMARY).get_result::<Position>(connection).await?)
        });
        let position = asking.await.map_err(|error| error.to_string())?;
        loop {
            let late = || format!("it is behind by more than {}", humantime::format_duration(PATIENCE));
            let lsn: &(dyn tokio_postgres::types::ToSql + Sync) = &position.lsn;
            let row = deadline
                .run(replica.client.query_one(REPLICA, &[lsn]))
                .await
                .map_err(|_| late())?
                .map_err(|error| error.to_string())?;
            if row.get::<_, String>("system") != position.system {
                return Err("it is of another cluster than the primary".to_owned());
            }
            if !row.get::<_, bool>("is_replica") {
                return Err("it is no replica, or was promoted".to_owned());
            }
            if row.get::<_, bool>("has") {
                return Ok(());
            }
            deadline.run(tokio::time::sleep(AGAIN)).await.map_err(|_| late())?;
        }
    }
}
