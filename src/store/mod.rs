//! PostgreSQL: the only module that opens connections and begins transactions.
//!
//! Everything above asks for a named transaction or a named read, with a deadline, and is told honestly how it ended.

pub mod connect;
pub mod deadline;
mod fixed;
pub mod migrations;
mod pool;
pub mod private;
pub mod schema;
mod transact;
pub mod watch;

pub use deadline::Deadline;
pub use diesel_async::AsyncPgConnection as Connection;
pub use fixed::Fixed;
pub use transact::Body;

use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::config::Database;
use crate::error::Error;

/// The pool of connections to one database.
#[derive(Debug)]
pub struct Store {
    pool: deadpool::managed::Pool<pool::Manager>,
    acquire_timeout: Duration,
    tracker: TaskTracker,
    watch: watch::Watch,
}

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
    /// A pool that connects when it is first used.
    ///
    /// # Errors
    /// The URL is wrong, or its certificates cannot be read.
    pub fn new(database: &Database, url: &str, tracker: TaskTracker) -> Result<Self, connect::ConnectError> {
        let target = connect::Target::new(database, url, tracker.clone())?;
        let pool = deadpool::managed::Pool::builder(pool::Manager::new(target))
            .max_size(database.pool)
            // The one used last: its server process has the caches warm, and the others may sleep.
            .queue_mode(deadpool::managed::QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|error| connect::ConnectError::Url(error.to_string()))?;
        Ok(Self {
            pool,
            acquire_timeout: database.acquire_timeout.duration(),
            tracker,
            watch: watch::Watch::default(),
        })
    }

    /// What was last seen of the server.
    pub fn watch(&self) -> &watch::Watch {
        &self.watch
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

/// A database error on its way to `transact`, which alone decides what it means for the caller.
impl From<diesel::result::Error> for Error {
    fn from(error: diesel::result::Error) -> Self {
        Self::Internal(Box::new(error))
    }
}
