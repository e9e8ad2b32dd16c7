//! The pool: connections are made when they are wanted, and one that was left in an unknown state is never used again.

use deadpool::managed::{
    self, Metrics, Object, PoolError, RecycleError, RecycleResult, TimeoutType, Timeouts,
};

use super::connect::{ConnectError, Session, Target};
use super::{Deadline, Store};
use crate::error::{Error, Result};
use std::time::Duration;

/// Makes connections for the pool.
#[derive(Debug)]
pub(super) struct Manager {
    target: std::sync::Arc<Target>,
}

impl Manager {
    pub(super) fn new(target: std::sync::Arc<Target>) -> Self {
        Self { target }
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
        Ok(Pooled { session: Box::pin(self.target.connect()).await?, busy: false })
    }

    async fn recycle(&self, pooled: &mut Pooled, _: &Metrics) -> RecycleResult<ConnectError> {
        if pooled.busy || pooled.session.seen.closed() {
            return Err(RecycleError::message("left in an unknown state"));
        }
        Ok(())
    }
}

/// How long to wait before connecting again: in milliseconds, and from then on.
const BACK_OFF_MS: [u64; 6] = [20, 50, 100, 200, 300, 500];
const LONGEST: Duration = Duration::from_millis(500);

impl Store {
    /// A connection of the pool; tries again while PostgreSQL is away, as long as a call may wait.
    pub(super) async fn connection(&self, deadline: &Deadline) -> Result<Object<Manager>> {
        let deadline = deadline.within(self.acquire_timeout);
        let mut back_off = BACK_OFF_MS.into_iter().map(Duration::from_millis);
        loop {
            let timeouts = Timeouts { wait: Some(deadline.left()), ..Timeouts::default() };
            let why = match deadline.run(self.pool.timeout_get(&timeouts)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(PoolError::Backend(error))) => error.to_string(),
                Ok(Err(PoolError::Timeout(TimeoutType::Wait))) => return Err(Self::pool_full()),
                Ok(Err(error)) => error.to_string(),
                Err(_) if self.pool.status().size >= self.pool.status().max_size => {
                    return Err(Self::pool_full());
                }
                Err(_) => "no connection in time".into(),
            };
            self.watch.lost(&why);
            let pause = back_off.next().unwrap_or(LONGEST);
            if deadline.left() <= pause {
                return Err(Error::unavailable(format!("PostgreSQL cannot be reached: {why}")));
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn pool_full() -> Error {
        Error::Overloaded { what: "every database connection is in use", retry_after: Duration::from_secs(1) }
    }
}
