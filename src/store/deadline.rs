//! When a call must have ended, by the daemon's own clock.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is left for the answer, and its entry in the log, when a call stops waiting for something; at the most.
const ANSWER: Duration = Duration::from_secs(1);

/// The end of a call: a moment, or the end of the daemon's patience, whichever comes first.
#[derive(Clone, Debug)]
pub struct Deadline {
    at: Instant,
    // Every clone of a token takes the token's lock, and each call has several.
    cut: Arc<CancellationToken>,
}

/// The deadline came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed;

impl Deadline {
    /// So long from now, or when `cut` is cancelled.
    pub fn after(length: Duration, cut: impl Into<Arc<CancellationToken>>) -> Self {
        let now = Instant::now();
        Self { at: now.checked_add(length).unwrap_or(now), cut: cut.into() }
    }

    /// This deadline, or so long from now if that is earlier.
    pub fn within(&self, length: Duration) -> Self {
        let sooner = Self::after(length, self.cut.clone());
        if sooner.at < self.at { sooner } else { self.clone() }
    }

    /// The end of a wait that a caller asked for: so long from now, and early enough that the call can still be answered.
    pub fn waiting(&self, length: Duration) -> Self {
        let left = self.left();
        let answer = left.checked_div(10).unwrap_or_default().min(ANSWER);
        self.within(length.min(left.saturating_sub(answer)))
    }

    /// Waits for the work, or for the deadline; work that is ready in time wins.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Passed> {
        tokio::select! {
            biased;
            output = work => Ok(output),
            () = self.passing() => Err(Passed),
        }
    }

    /// As [`Deadline::run`], but lets the work notice the deadline by itself first.
    pub async fn run_with_grace<F: Future>(&self, grace: Duration, work: F) -> Result<F::Output, Passed> {
        tokio::select! {
            biased;
            output = work => Ok(output),
            () = async { self.passing().await; tokio::time::sleep(grace).await } => Err(Passed),
        }
    }

    /// Ends when the deadline has passed.
    pub async fn passing(&self) {
        tokio::select! {
            () = tokio::time::sleep_until(self.at) => {}
            () = self.cut.cancelled() => {}
        }
    }

    /// Whether it has passed.
    pub fn has_passed(&self) -> bool {
        self.cut.is_cancelled() || Instant::now() >= self.at
    }

    /// How long is left.
    pub fn left(&self) -> Duration {
        if self.cut.is_cancelled() {
            Duration::ZERO
        } else {
            self.at.saturating_duration_since(Instant::now())
        }
    }
}
