//! What was last seen of the server, so that health can be told without asking it.

use std::sync::Arc;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Bool, Int8, Text};
use diesel_async::RunQueryDsl;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Connection, Store, jitter};

/// How often a healthy server is looked at.
const CALM: Duration = Duration::from_secs(5);
/// How often one that is away is looked for, at least and at most.
const ALARMED: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(120));
/// How soon one may be looked at again because something took too long: every call may find it so.
const DOUBTED: Duration = Duration::from_millis(500);
/// How long each step of a look may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The last look at the server, which alone decides whether it is away. While it is, nobody else looks for it.
#[derive(Debug, Default)]
pub struct Watch {
    seen: watch::Sender<Option<Seen>>,
    /// The run that the newest connection leads to.
    pub(super) newest: Arc<watch::Sender<Option<String>>>,
    alarm: Notify,
    doubt: Notify,
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
    /// Whether it takes no writes.
    #[diesel(sql_type = Bool)]
    pub read_only: bool,
    /// `synchronous_standby_names`: empty when a commit waits for nobody.
    #[diesel(sql_type = Text)]
    pub synchronous_standby_names: String,
    /// How many standbys a commit may wait for are connected. A role that is not told which they are counts them all.
    #[diesel(sql_type = Int8)]
    pub synchronous_standbys: i64,
    /// As [`SERVER_RUN`] says.
    #[diesel(sql_type = Text)]
    pub run: String,
}

/// SQL that names one run of one server with one database: another one may have another history, because it was restored or
/// is a replica that was promoted. A server is never left and come back to within a run.
pub const SERVER_RUN: &str = "SELECT pg_postmaster_start_time()::text || ' ' || oid AS run FROM pg_database \
    WHERE datname = current_database()";

impl Watch {
    /// The last look, if there was one.
    pub fn seen(&self) -> Option<Seen> {
        self.seen.borrow().clone()
    }

    /// Whether the newest connection leads to this run of a server; nothing where there was none.
    pub fn is_run(&self, run: &str) -> Option<bool> {
        self.newest.borrow().as_ref().map(|newest| newest == run)
    }

    /// Ends when something else is seen than at the call.
    pub fn changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut seen, mut newest) = (self.seen.subscribe(), self.newest.subscribe());
        async move {
            tokio::select! {
                _ = seen.changed() => {}
                _ = newest.changed() => {}
            }
        }
    }

    /// Whether the server could not be reached when it was last tried.
    pub fn is_away(&self) -> bool {
        self.seen.borrow().as_ref().is_some_and(|seen| seen.server.is_err())
    }

    /// Why the server cannot be reached, if it could not when it was last tried.
    pub(super) fn away(&self) -> Option<String> {
        self.seen.borrow().as_ref().and_then(|seen| seen.server.as_ref().err().cloned())
    }

    /// Waits until the server was found, at first and while it is away: of several hosts, the look finds the good one.
    pub(super) async fn back(&self) {
        let here = |seen: &Option<Seen>| matches!(seen, Some(Seen { server: Ok(_), .. }));
        if self.seen.subscribe().wait_for(here).await.is_err() {
            // The sender is this watch.
            std::future::pending::<()>().await;
        }
    }

    /// Asks for a look soon, because something took too long.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Asks for a look at once, because a call could not reach the server.
    pub(super) fn alarm(&self) {
        self.alarm.notify_one();
    }

    fn note(&self, server: Result<Server, String>) {
        if let Ok(server) = &server {
            lead(&self.newest, &server.run);
        }
        let now = Seen { at: Instant::now(), server };
        self.seen.send_modify(|seen| {
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
        });
    }
}

/// Notes which run the newest connection leads to.
pub(super) fn lead(newest: &watch::Sender<Option<String>>, run: &str) {
    newest.send_if_modified(|known| {
        let other = known.as_deref() != Some(run);
        if other {
            *known = Some(run.to_owned());
        }
        other
    });
}

/// What is asked of the server at each look.
const LOOK: &str = "SELECT current_setting('server_version_num') AS version, pg_is_in_recovery() AS in_recovery, \
    current_setting('transaction_read_only')::bool AS read_only, \
    current_setting('synchronous_standby_names') AS synchronous_standby_names, \
    (SELECT count(*) FROM pg_stat_replication WHERE coalesce(sync_state IN ('sync', 'quorum'), true)) \
    AS synchronous_standbys, \
    (SELECT pg_postmaster_start_time()::text || ' ' || oid FROM pg_database WHERE datname = current_database()) AS run";

impl Store {
    /// Looks at the server again and again until the end of the daemon.
    pub async fn observe(&self, end: CancellationToken) {
        loop {
            tokio::select! {
                () = self.look() => {}
                () = end.cancelled() => return,
            }
            let (least, most) = ALARMED;
            let healthy = self.watch.away().is_none();
            let pause = if healthy { CALM } else { least + jitter(most.saturating_sub(least)) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.watch.alarm.notified(), if healthy => {}
                () = async { tokio::time::sleep(DOUBTED).await; self.watch.doubt.notified().await }, if healthy => {}
                () = end.cancelled() => return,
            }
        }
    }

    async fn look(&self) {
        let found = self.ask().await;
        if found.is_err() {
            self.purge();
        }
        self.watch.note(found);
    }

    /// Asks on a connection of the pool, or, where none is idle, on one made for it: that every connection is in use says
    /// nothing of the server.
    async fn ask(&self) -> Result<Server, String> {
        if let Some(mut idle) = self.idle().await {
            idle.busy = true;
            if let Ok(server) = ask(&mut idle.session.pg).await {
                idle.busy = false;
                return Ok(server);
            }
        }
        let mut session = self.target.connect_within(PATIENCE).await.map_err(|error| error.to_string())?;
        ask(&mut session.pg).await
    }
}

async fn ask(connection: &mut Connection) -> Result<Server, String> {
    match tokio::time::timeout(PATIENCE, diesel::sql_query(LOOK).get_result::<Server>(connection)).await {
        Ok(Ok(server)) => Ok(server),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it did not answer within {}", humantime::format_duration(PATIENCE))),
    }
}
