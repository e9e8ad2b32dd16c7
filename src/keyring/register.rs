//! The living daemons: each lists the key-encryption keys that it has, and says every few seconds that it lives. The only
//! writer of `daemons`; its times are PostgreSQL's. Needs no connection of its own.
//!
//! What one daemon wraps the others must open: so each wraps new people's keys under the first of its keys that all list.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::kek::Keks;
use super::person::Keyring;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::store::{Deadline, Store};
use crate::values::RecordId;

/// How often a daemon says that it lives. Who has not for 15 seconds is taken for dead, here and in `rewrap_subjects`.
const BEAT: Duration = Duration::from_secs(3);
/// How long saying so may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Lists a daemon, or its other keys. It waits for the batches of a rotation that are under way, and none begins before it
/// is listed. Takes the dead off the list.
const ENLIST: &str = "WITH alone AS MATERIALIZED (SELECT pg_advisory_xact_lock(hashtext('sidekeep.daemons'))), \
    dead AS (DELETE FROM sidekeep.daemons WHERE seen_at < now() - interval '15 seconds' AND daemon <> $1) \
    INSERT INTO sidekeep.daemons (daemon, host, version, kek_ids, wraps_under, seen_at) \
    SELECT $1, $2, $3, $4, $5, clock_timestamp() FROM alone \
    ON CONFLICT (daemon) DO UPDATE SET kek_ids = excluded.kek_ids, wraps_under = excluded.wraps_under, seen_at = excluded.seen_at";
const LIVE: &str =
    "UPDATE sidekeep.daemons SET seen_at = now(), wraps_under = $3 WHERE daemon = $1 AND kek_ids = $2";
const LIVING: &str = "SELECT daemon, host, version, kek_ids, wraps_under, started_at, seen_at FROM sidekeep.daemons \
    WHERE seen_at > now() - interval '15 seconds' ORDER BY started_at, daemon";
const LEAVE: &str = "DELETE FROM sidekeep.daemons WHERE daemon = $1";

/// A daemon that lives.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Daemon {
    /// Host, process id and a random id.
    pub daemon: String,
    /// The name of its host or pod.
    pub host: String,
    /// Its version.
    pub version: String,
    /// The key-encryption keys that it has, in its order.
    pub kek_ids: Vec<String>,
    /// Which of them wraps the keys of new people.
    pub wraps_under: String,
    /// When it was first seen.
    pub started_at: Timestamp,
    /// When it last said that it lives.
    pub seen_at: Timestamp,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    daemon: String,
    #[diesel(sql_type = Text)]
    host: String,
    #[diesel(sql_type = Text)]
    version: String,
    #[diesel(sql_type = Array<Text>)]
    kek_ids: Vec<String>,
    #[diesel(sql_type = Text)]
    wraps_under: String,
    #[diesel(sql_type = Timestamptz)]
    started_at: DateTime<Utc>,
    #[diesel(sql_type = Timestamptz)]
    seen_at: DateTime<Utc>,
}

/// This daemon's own line, and what it last saw of the others.
#[derive(Debug)]
pub(super) struct Register {
    daemon: String,
    host: String,
    /// What this daemon lists: while one is to be taken away, fewer than it has.
    announced: ArcSwap<Vec<String>>,
    living: ArcSwap<Vec<Daemon>>,
}

impl Register {
    pub(super) fn new(kek_ids: Vec<String>) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
        Self {
            daemon: format!("{host} {} {}", std::process::id(), RecordId::generate().as_str()),
            host,
            announced: ArcSwap::from_pointee(kek_ids),
            living: ArcSwap::default(),
        }
    }
}

impl Keyring {
    /// This daemon, as it calls itself in the tables: host, process id and a random id.
    pub fn daemon(&self) -> &str {
        &self.register.daemon
    }

    /// The daemons that lived when that was last looked at, a few seconds ago.
    pub fn seen_daemons(&self) -> Arc<Vec<Daemon>> {
        self.register.living.load_full()
    }

    /// Says that this daemon lives, again and again, and ends with taking it off the list.
    pub async fn stay_listed(&self, store: &Store, end: &CancellationToken) {
        while end.run_until_cancelled(tokio::time::sleep(BEAT)).await.is_some() {
            let deadline = Deadline::after(PATIENCE, end.clone());
            if let Err(error) = self.look(store, &deadline).await {
                tracing::debug!(%error, "this daemon could not say that it lives");
            }
        }
        self.leave(store).await;
    }

    /// Takes this daemon off the list: nobody waits for it any more.
    pub async fn leave(&self, store: &Store) {
        let deadline = Deadline::after(FAREWELL, CancellationToken::new());
        let left = store.autocommit(&deadline, "daemons.leave", async |connection| {
            Ok(diesel::sql_query(LEAVE).bind::<Text, _>(self.daemon()).execute(connection).await?)
        });
        if let Err(error) = left.await {
            tracing::debug!(%error, "this daemon stays on the list for some seconds");
        }
    }

    /// Says that this daemon lives, looks who else does, and follows what all have.
    ///
    /// # Errors
    /// The store's.
    pub async fn look(&self, store: &Store, deadline: &Deadline) -> Result<Arc<Vec<Daemon>>> {
        if !self.say_alive(store, deadline).await? {
            // Silent for too long, or with other keys than before.
            self.list(store, deadline).await?;
        }
        let living = self.living(store, deadline).await?;
        if self.follow(&living) {
            self.say_alive(store, deadline).await?;
            return self.living(store, deadline).await;
        }
        Ok(living)
    }

    /// Lists this daemon with these keys alone, and answers who lives.
    pub(super) async fn enlist(
        &self,
        store: &Store,
        deadline: &Deadline,
        keks: &Keks,
    ) -> Result<Arc<Vec<Daemon>>> {
        self.announce(keks);
        self.list(store, deadline).await?;
        let living = self.living(store, deadline).await?;
        if self.follow(&living) {
            self.list(store, deadline).await?;
        }
        self.living(store, deadline).await
    }

    /// What this daemon lists from now on.
    pub(super) fn announce(&self, keks: &Keks) {
        self.register.announced.store(Arc::new(keks.ids()));
    }

    /// These keys, wrapping under the first that all daemons list.
    pub(super) fn agreed(&self, keks: &Keks) -> Keks {
        let living = self.seen_daemons();
        let announced = self.register.announced.load_full();
        let lists =
            living.iter().filter(|daemon| daemon.daemon != self.daemon()).map(|daemon| &*daemon.kek_ids);
        keks.agreeing(lists.chain(std::iter::once(announced.as_slice())))
    }

    /// Wraps under what all have. Answers whether that is another one than before.
    fn follow(&self, living: &Arc<Vec<Daemon>>) -> bool {
        self.register.living.store(living.clone());
        let old = self.keks();
        let new = self.agreed(&old);
        let id = |keks: &Keks| keks.wrapping().ok().map(|kek| kek.id().to_owned());
        let changed = id(&old) != id(&new);
        if changed {
            tracing::info!(
                kek_id = id(&new),
                "new people's keys are wrapped under another key-encryption key"
            );
            // Keys that were given meanwhile win; the next look finds what they want.
            self.keks.compare_and_swap(&old, Arc::new(new));
        }
        changed
    }

    async fn say_alive(&self, store: &Store, deadline: &Deadline) -> Result<bool> {
        let (announced, keks) = (self.register.announced.load_full(), self.keks());
        let wraps_under = keks.wrapping()?.id();
        let rows = store.autocommit(deadline, "daemons.live", async |connection| {
            let query = diesel::sql_query(LIVE)
                .bind::<Text, _>(self.daemon())
                .bind::<Array<Text>, _>(&*announced)
                .bind::<Text, _>(wraps_under);
            Ok(query.execute(connection).await?)
        });
        Ok(rows.await? > 0)
    }

    async fn list(&self, store: &Store, deadline: &Deadline) -> Result<()> {
        let (announced, keks) = (self.register.announced.load_full(), self.keks());
        let wraps_under = keks.wrapping()?.id();
        let listed = store.autocommit(deadline, "daemons.enlist", async |connection| {
            let query = diesel::sql_query(ENLIST)
                .bind::<Text, _>(self.daemon())
                .bind::<Text, _>(&self.register.host)
                .bind::<Text, _>(env!("CARGO_PKG_VERSION"))
                .bind::<Array<Text>, _>(&*announced)
                .bind::<Text, _>(wraps_under);
            Ok(query.execute(connection).await?)
        });
        match listed.await {
            // Whether it was done is seen at the next look.
            Err(Error::UnknownOutcome) => Err(Error::unavailable("this daemon could not be listed")),
            listed => listed.map(drop),
        }
    }

    async fn living(&self, store: &Store, deadline: &Deadline) -> Result<Arc<Vec<Daemon>>> {
        let found = store.single(deadline, "daemons.living", async |connection| {
            let rows: Vec<Row> = diesel::sql_query(LIVING).load(connection).await?;
            Ok(rows)
        });
        Ok(Arc::new(found.await?.into_iter().map(Daemon::from).collect()))
    }
}

impl From<Row> for Daemon {
    fn from(row: Row) -> Self {
        Self {
            daemon: row.daemon,
            host: row.host,
            version: row.version,
            kek_ids: row.kek_ids,
            wraps_under: row.wraps_under,
            started_at: row.started_at.into(),
            seen_at: row.seen_at.into(),
        }
    }
}
