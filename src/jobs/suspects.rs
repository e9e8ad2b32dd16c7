//! Which holder of a run is taken for dead. Takes nothing over itself.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::claim::{Run, STALE};

/// A heartbeat must stand still for so long, by this daemon's own clock, before its holder is taken for dead: PostgreSQL's
/// clock may have jumped over a living one.
const CONFIRM: Duration = Duration::from_secs(7);

/// Holders that may be dead: by job, the epoch and heartbeat that were seen, and since when.
#[derive(Debug, Default)]
pub(super) struct Suspects(HashMap<String, (i64, DateTime<Utc>, Instant)>);

impl Suspects {
    /// Whether the holder of a run has let it go, or has been silent for too long by both clocks. A heartbeat from the future
    /// is silence too: the clock was ahead.
    pub(super) fn is_dead(&mut self, run: &Run, now: DateTime<Utc>) -> bool {
        if run.holder.is_none() {
            return true;
        }
        if (now - run.heartbeat_at).abs() <= STALE {
            self.0.remove(&run.name);
            return false;
        }
        let seen = (run.epoch, run.heartbeat_at);
        match self.0.get(&run.name) {
            Some((epoch, heartbeat, since)) if (*epoch, *heartbeat) == seen => since.elapsed() >= CONFIRM,
            _ => {
                self.0.insert(run.name.clone(), (seen.0, seen.1, Instant::now()));
                false
            }
        }
    }
}
