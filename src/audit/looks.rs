//! How those who follow the log look at it: together, and never with more than half of the connections.
//!
//! However many follow, one statement now and then tells all of them whether there is anything new.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use diesel::prelude::QueryDsl;
use diesel_async::RunQueryDsl;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::store::schema::audit_streams;
use crate::store::{Deadline, Store};

/// For how long what was seen is good for the others.
const FRESH: Duration = Duration::from_millis(40);

/// How many entries each stream has.
pub(super) type Sizes = Arc<BTreeMap<i32, i64>>;

/// What those who follow the log share.
#[derive(Debug)]
pub(super) struct Looks {
    places: Semaphore,
    seen: Mutex<Option<(Instant, Sizes)>>,
}

impl Looks {
    /// For a pool of so many connections.
    pub(super) fn new(pool: usize) -> Self {
        Self { places: Semaphore::new((pool / 2).max(1)), seen: Mutex::default() }
    }

    /// A place at the database.
    ///
    /// # Errors
    /// [`Error::Overloaded`] at the deadline.
    pub(super) async fn place(&self, deadline: &Deadline) -> Result<SemaphorePermit<'_>> {
        let busy = || Error::Overloaded {
            what: "too many calls follow the log",
            retry_after: Duration::from_secs(1),
        };
        deadline.run(self.places.acquire()).await.map_err(|_| busy())?.map_err(Error::internal)
    }

    /// How large the streams are, or were a moment ago.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn sizes(&self, store: &Store, deadline: &Deadline) -> Result<Sizes> {
        let late = |_| Error::unavailable("no answer within the call's deadline");
        let mut seen = deadline.run(self.seen.lock()).await.map_err(late)?;
        if let Some((at, sizes)) = &*seen
            && at.elapsed() < FRESH
        {
            return Ok(sizes.clone());
        }
        let looked = store.single(deadline, "audit.tail.sizes", async |connection| {
            let rows = audit_streams::table.select((audit_streams::stream, audit_streams::size));
            let sizes: Vec<(i32, i64)> = rows.order(audit_streams::stream).load(connection).await?;
            Ok(sizes)
        });
        let sizes: Sizes = Arc::new(looked.await?.into_iter().collect());
        *seen = Some((Instant::now(), sizes.clone()));
        Ok(sizes)
    }
}
