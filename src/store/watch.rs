//! What was last seen of the server, so that health can be told without asking it.

use std::sync::Mutex;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Int8, Text};
use diesel_async::RunQueryDsl;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Deadline, Store};

/// How often a healthy server is looked at.
const CALM: Duration = Duration::from_secs(5);
/// How often one that is away is looked for.
const ALARMED: Duration = Duration::from_millis(200);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The last look at the server.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Mutex<Option<Seen>>,
    look: Notify,
}

/// What a look found.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// When it was taken.
    pub at: Instant,
    /// What the server said, or why it did not.
    pub server: Result<Server, String>,
}

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, QueryableByName)]
pub struct Server {
    /// Its version, as in `150018`.
    #[diesel(sql_type = Text)]
    pub version: String,
    /// Whether it is a standby.
    #[diesel(sql_type = Bool)]
    pub in_recovery: bool,
    /// `synchronous_standby_names`: empty when a commit waits for nobody.
    #[diesel(sql_type = Text)]
    pub synchronous_standby_names: String,
    /// How many standbys a commit waits for are connected; only a role that may see them is told.
    #[diesel(sql_type = Int8)]
    pub synchronous_standbys: i64,
}

impl Watch {
    /// The last look, if there was one.
    pub fn seen(&self) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Notes that a call could not reach the server, and asks for a look.
    pub(super) fn lost(&self, why: &str) {
        self.note(Err(why.to_owned()));
        self.look.notify_one();
    }

    fn note(&self, server: Result<Server, String>) {
        let now = Seen { at: Instant::now(), server };
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let changed = match (seen.as_ref().map(|seen| &seen.server), &now.server) {
            (Some(Ok(_)) | None, Err(why)) => {
                tracing::error!("PostgreSQL cannot be reached: {why}");
                true
            }
            (Some(Err(_)), Ok(_)) => {
                tracing::info!("PostgreSQL is back");
                true
            }
            _ => false,
        };
        if changed {
            metrics::counter!("sidekeep_database_changes_total").increment(1);
        }
        *seen = Some(now);
    }
}

impl Store {
    /// Looks at the server again and again until the end of the daemon.
    pub async fn observe(&self, end: CancellationToken) {
        loop {
            self.look(&end).await;
            let healthy = matches!(self.watch.seen(), Some(Seen { server: Ok(_), .. }));
            tokio::select! {
                () = tokio::time::sleep(if healthy { CALM } else { ALARMED }) => {}
                () = self.watch.look.notified(), if healthy => {}
                () = end.cancelled() => return,
            }
        }
    }

    /// Looks at the server once.
    pub async fn look(&self, end: &CancellationToken) {
        const LOOK: &str = "SELECT current_setting('server_version_num') AS version, pg_is_in_recovery() AS in_recovery, \
            current_setting('synchronous_standby_names') AS synchronous_standby_names, \
            (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')) AS synchronous_standbys";
        let deadline = Deadline::after(PATIENCE, end.clone());
        let found = self
            .single(&deadline, "watch", async |connection| {
                Ok(diesel::sql_query(LOOK).get_result::<Server>(connection).await?)
            })
            .await;
        match found {
            Ok(server) => self.watch.note(Ok(server)),
            // A full pool says nothing of the server.
            Err(crate::error::Error::Overloaded { .. }) => {}
            Err(error) => self.watch.note(Err(error.to_string())),
        }
    }
}
