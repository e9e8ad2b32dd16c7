//! What the tests share: a real PostgreSQL, daemons as processes, and clients that speak to their sockets.

pub mod appends;
mod client;
mod cluster;
mod daemon;
pub mod http;
pub mod json_schema;
pub mod kept;
pub mod peer;
mod pooler;
pub mod prometheus;
mod proxy;
mod psql;
mod session;
mod stores;

pub use client::{Answer, Client, RpcError, read};
pub use cluster::{Cluster, libfaketime, migrate, sql};
pub use daemon::{Daemon, World, sidekeep};
pub use pooler::Pooler;
pub use proxy::{Fault, Proxy};
pub use psql::Psql;
pub use session::Session;
pub use stores::{Passage, Store};

use std::time::{Duration, Instant};

/// How long anything that is waited for may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again, until it is so.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How long something took, with what it answered.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let output = work();
    (output, began.elapsed())
}
