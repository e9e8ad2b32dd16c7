//! The pool: connections are made when they are wanted, and one that was left in an unknown state is never used again.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, PoolError, RecycleError, RecycleResult, Timeouts};
use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use tokio::sync::watch;

use super::connect::{ConnectError, Target};
use super::session::Session;
use super::watch::{SERVER_RUN, lead};
use super::{Deadline, Store, jitter};
use crate::error::{Error, Result};

/// Makes connections for the pool.
#[derive(Debug)]
pub(super) struct Manager {
    target: Arc<Target>,
    newest: Arc<watch::Sender<Option<String>>>,
}

/// Which run of a server a connection leads to.
#[derive(QueryableByName)]
struct Run {
    #[diesel(sql_type = Text)]
    run: String,
}

impl Manager {
    pub(super) fn new(target: Arc<Target>, newest: Arc<watch::Sender<Option<String>>>) -> Self {
        Self { target, newest }
    }

    async fn make(&self) -> Result<Pooled, ConnectError> {
        let mut session = self.target.connect().await?;
        let found: Run = diesel::sql_query(SERVER_RUN).get_result(&mut session.pg).await?;
        // Before anybody has it: it may lead to another server than all that were before.
        lead(&self.newest, &found.run);
        Ok(Pooled { session, busy: false })
    }
}

/// A session in the pool.
#[derive(Debug)]
pub(super) struct Pooled {
    pub(super) session: Session,
    /// Set while a statement or transaction is under way: a call that was dropped half-way leaves it set.
    pub(super) busy: bool,
}

impl managed::Manager for Manager {
    type Type = Pooled;
    type Error = ConnectError;

    async fn create(&self) -> Result<Pooled, ConnectError> {
        // Boxed, as it is rarely run and large: unboxed, every call would be as large, and is moved several times.
        Box::pin(self.make()).await
    }

    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<ConnectError> {
        if pooled.busy || pooled.session.seen.closed() {
            return Err(RecycleError::message("left in an unknown state"));
        }
        Ok(())
    }
}

/// A connection that goes back to the pool, or, when it was left in an unknown state, is given up and cancelled.
pub(super) struct Lease<'s> {
    store: &'s Store,
    connection: Option<Object<Manager>>,
}

impl Deref for Lease<'_> {
    type Target = Pooled;

    #[expect(clippy::expect_used, reason = "it is taken out on drop alone")]
    fn deref(&self) -> &Pooled {
        self.connection.as_ref().expect("a lease that was not dropped")
    }
}

impl DerefMut for Lease<'_> {
    #[expect(clippy::expect_used, reason = "it is taken out on drop alone")]
    fn deref_mut(&mut self) -> &mut Pooled {
        self.connection.as_mut().expect("a lease that was not dropped")
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take_if(|connection| connection.busy) else { return };
        let session = Object::take(connection).session;
        if !session.seen.closed() {
            self.store.tracker.spawn(session.cancel());
        }
    }
}

/// How long to wait before the pool is asked again, in milliseconds, and from then on.
const BACK_OFF_MS: [u64; 4] = [20, 50, 100, 200];
const LONGEST: Duration = Duration::from_millis(400);

impl Store {
    /// A connection of the pool. While PostgreSQL is away it is the watch that looks for it, and everybody else waits for
    /// its word, as long as a call may wait.
    pub(super) async fn connection(&self, deadline: &Deadline) -> Result<Lease<'_>> {
        let deadline = deadline.within(self.acquire_timeout);
        let mut back_off = BACK_OFF_MS.into_iter().map(Duration::from_millis);
        let mut why = None;
        loop {
            if self.pool.status().available == 0 && deadline.run(self.watch.back()).await.is_err() {
                return Err(self.none_in_time(why));
            }
            match deadline.run(self.pool.timeout_get(&Timeouts::default())).await {
                Ok(Ok(connection)) => return Ok(Lease { store: self, connection: Some(connection) }),
                Ok(Err(PoolError::Backend(error))) => {
                    tracing::debug!(%error, "no connection to PostgreSQL");
                    why = Some(error.to_string());
                    self.watch.alarm();
                }
                Ok(Err(error)) => return Err(Error::internal(error)),
                Err(_) => return Err(self.none_in_time(why)),
            }
            let pause = jitter(back_off.next().unwrap_or(LONGEST));
            if deadline.run(tokio::time::sleep(pause)).await.is_err() {
                return Err(self.none_in_time(why));
            }
        }
    }

    /// A connection of the pool if one is idle; opens none, and waits for nobody.
    pub(super) async fn idle(&self) -> Option<Lease<'_>> {
        if self.pool.status().available == 0 {
            return None;
        }
        let at_once = Timeouts { wait: Some(Duration::ZERO), create: Some(Duration::ZERO), recycle: None };
        let connection = self.pool.timeout_get(&at_once).await.ok()?;
        Some(Lease { store: self, connection: Some(connection) })
    }

    /// Gives up every idle connection.
    pub(super) fn purge(&self) {
        self.pool.retain(|_, _| false);
    }

    fn none_in_time(&self, why: Option<String>) -> Error {
        if let Some(why) = self.watch.away().or(why) {
            return unreachable(&why);
        }
        self.watch.doubt();
        let status = self.pool.status();
        if status.size < status.max_size || status.available > 0 {
            return unreachable("no connection in time");
        }
        self.overloaded("every database connection is in use")
    }

    /// Why something was waited for in vain that others hold while PostgreSQL works for them: it may do so no longer.
    pub fn overloaded(&self, what: &'static str) -> Error {
        match self.watch.away() {
            Some(why) => unreachable(&why),
            None => Error::Overloaded { what, retry_after: Duration::from_secs(1) },
        }
    }
}

fn unreachable(why: &str) -> Error {
    Error::unavailable(format!("PostgreSQL cannot be reached: {why}"))
}
