//! What the writers of this daemon are doing, for whoever asks how it is: noted as they go, without asking PostgreSQL.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use super::staged::Lag;
use crate::clock::Timestamp;

/// A stream that this daemon has leased.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Leased {
    /// Its number.
    pub stream: i32,
    /// How many entries it has.
    pub size: u64,
    /// Under which epoch this daemon has it.
    pub epoch: i64,
    /// Until when, by PostgreSQL's clock.
    pub leased_until: Timestamp,
}

/// What the writers are doing.
#[derive(Debug, Default)]
pub(super) struct Doing(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    leased: BTreeMap<i32, Leased>,
    lag: Option<(Lag, Instant)>,
}

impl Doing {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A writer had this stream, and has that one now.
    pub(super) fn has(&self, before: Option<i32>, now: Option<Leased>) {
        let mut noted = self.noted();
        before.map(|stream| noted.leased.remove(&stream));
        now.map(|leased| noted.leased.insert(leased.stream, leased));
    }

    /// How much was staged and waits, in the whole database.
    pub(super) fn lags(&self, lag: Lag) {
        self.noted().lag = Some((lag, Instant::now()));
    }

    /// The streams of this daemon.
    pub(super) fn leased(&self) -> Vec<Leased> {
        self.noted().leased.values().cloned().collect()
    }

    /// How much was staged and waited when it was last looked at, and how long ago that was.
    pub(super) fn lag(&self) -> Option<(Lag, Duration)> {
        self.noted().lag.map(|(lag, at)| (lag, at.elapsed()))
    }
}
