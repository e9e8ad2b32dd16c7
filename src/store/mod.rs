//! PostgreSQL: the only module that opens connections and begins transactions.
//!
//! Everything above asks for a named transaction or a named read, with a deadline, and is told honestly how it ended.

mod any_time;
pub mod connect;
mod copy;
pub mod deadline;
mod dedicated;
mod fixed;
mod history;
pub mod libpq;
pub mod migrations;
mod owned;
mod pinned;
mod pool;
pub mod pooler;
pub mod private;
pub mod probe;
pub mod programs;
mod replica;
pub mod schema;
mod session;
mod transact;
mod verdict;
pub mod watch;

pub use any_time::{AnyDate, AnyTime, AnyTimeOrNone};
pub use copy::{Columns, CopiedRows};
pub use deadline::Deadline;
pub use dedicated::Dedicated;
pub use diesel_async::AsyncPgConnection as Connection;
pub use fixed::Fixed;
pub use owned::Owned;
pub use pinned::Pinned;
pub use transact::Body;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::task::TaskTracker;

use crate::config::Database;
use crate::error::Error;

/// The pool of connections to one database.
#[derive(Debug)]
pub struct Store {
    pool: deadpool::managed::Pool<pool::Manager>,
    target: Arc<connect::Target>,
    replica: Option<Arc<connect::Target>>,
    acquire_timeout: Duration,
    tracker: TaskTracker,
    watch: watch::Watch,
}

/// What is counted with a transaction, in it: the kind, and how many.
pub type Tally<'a> = dyn for<'c> Fn(&'c mut Connection, (&'static str, i64)) -> BoxFuture<'c, Result<(), Error>>
    + Send
    + Sync
    + 'a;

/// How many connections there are, and who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// The most there may be.
    pub max: usize,
    /// How many are open.
    pub open: usize,
    /// How many of them are free.
    pub free: usize,
    /// How many calls wait for one.
    pub waiting: usize,
}

impl Store {
    /// A pool that connects when it is first used, and once [`Store::observe`], which has to run beside it, has found the
    /// server.
    ///
    /// # Errors
    /// The URL is wrong, or its certificates cannot be read.
    pub fn new(database: &Database, url: &str, tracker: TaskTracker) -> Result<Self, connect::ConnectError> {
        let target = Arc::new(connect::Target::new(database, url, tracker.clone())?);
        let watch = watch::Watch::default();
        let manager = pool::Manager::new(target.clone(), watch.newest.clone());
        let pool = deadpool::managed::Pool::builder(manager)
            .max_size(database.pool)
            // The one used last: its server process has the caches warm, and the others may sleep.
            .queue_mode(deadpool::managed::QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|error| connect::ConnectError::Url(error.to_string()))?;
        Ok(Self {
            pool,
            target,
            replica: None,
            acquire_timeout: database.acquire_timeout.duration(),
            tracker,
            watch,
        })
    }

    /// What was last seen of the server.
    pub fn watch(&self) -> &watch::Watch {
        &self.watch
    }

    /// A connection outside of the pool, for a writer that keeps it.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn dedicated(&self, deadline: &Deadline) -> Result<Dedicated, Error> {
        match deadline.run(self.target.connect_alone()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Error::unavailable(error.to_string())),
            Err(_) => Err(Error::unavailable("no connection in time")),
        }
    }

    /// Where tasks are spawned.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// How full the pool is.
    pub fn pool_status(&self) -> PoolStatus {
        let status = self.pool.status();
        PoolStatus {
            max: status.max_size,
            open: status.size,
            free: status.available,
            waiting: status.waiting,
        }
    }
}

/// A random part of a time, so that many who wait do not all come back at once.
fn jitter(most: Duration) -> Duration {
    most.mul_f64(f64::from(random_byte()) / 255.0)
}

/// A random place in a short list.
fn random_below(length: usize) -> usize {
    usize::from(random_byte()).checked_rem(length).unwrap_or(0)
}

/// Nothing but timing depends on it, so that a failure of the system's randomness is let pass.
fn random_byte() -> u8 {
    let mut byte = [255];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    byte[0]
}

/// A database error on its way to `transact`, which alone decides what it means for the caller.
impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        Self::Internal(Box::new(error))
    }
}
