//! The ticks of tokio-cron-scheduler: they wake, and decide nothing.
//!
//! The crate polls the wall clock twice a second. Its ticks come late, can be lost, doubled, or stop for as long as the clock
//! has gone back; it forgets its runs at a restart, lets a job overlap itself and does not wait for one at the end. None of
//! that matters to a tick without a meaning of its own: `job_runs` decides what is due, a timer of the monotonic clock wakes
//! on time and without it, and the runs are tasks of ours. What the ticks add is notice of a clock that jumped and of a host
//! that slept, which a monotonic timer sleeps through.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use crate::clock;

/// Two clocks that differ by more than this did not merely drift.
const JUMP: chrono::TimeDelta = chrono::TimeDelta::seconds(1);

/// A tick a second, while this value lives.
pub(super) struct Wakes {
    scheduler: Option<JobScheduler>,
    tick: Arc<Notify>,
}

impl Wakes {
    /// Begins to tick. Without ticks the timer still wakes, so a failure is only logged.
    pub(super) async fn start() -> Self {
        let tick = Arc::new(Notify::new());
        let scheduler = match begin(tick.clone()).await {
            Ok(scheduler) => Some(scheduler),
            Err(error) => {
                tracing::warn!(%error, "no ticks: a jump of the clock is noticed some seconds later");
                None
            }
        };
        Self { scheduler, tick }
    }

    /// The next tick. Several that were not waited for are one.
    pub(super) async fn next(&self) {
        self.tick.notified().await;
    }

    /// Ends the ticks.
    pub(super) async fn stop(self) {
        if let Some(mut scheduler) = self.scheduler
            && let Err(error) = scheduler.shutdown().await
        {
            tracing::debug!(%error, "the ticks go on until the process ends");
        }
    }
}

async fn begin(tick: Arc<Notify>) -> Result<JobScheduler, JobSchedulerError> {
    let mut scheduler = JobScheduler::new().await?;
    scheduler.init().await?;
    let job = Job::new_async("* * * * * *", move |_, _| {
        let tick = tick.clone();
        Box::pin(async move { tick.notify_one() })
    })?;
    scheduler.add(job).await?;
    scheduler.start().await?;
    Ok(scheduler)
}

/// One moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    monotonic: Instant,
    wall: chrono::DateTime<chrono::Utc>,
}

impl Moment {
    /// This one.
    pub(super) fn now() -> Self {
        Self { monotonic: Instant::now(), wall: clock::now().utc() }
    }

    /// Whether one of the clocks jumped, or the host slept, between this moment and a later one.
    pub(super) fn jumped(self, later: Self) -> bool {
        let passed = later.monotonic.saturating_duration_since(self.monotonic);
        let passed = chrono::TimeDelta::from_std(passed).unwrap_or(chrono::TimeDelta::MAX);
        let apart = later.wall.signed_duration_since(self.wall).checked_sub(&passed);
        apart.is_none_or(|apart| apart.abs() > JUMP)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::TimeDelta;

    use super::Moment;

    #[test]
    fn a_jump_is_told_from_time_that_passes() {
        let then = Moment::now();
        let later = |monotonic, wall| Moment {
            monotonic: then.monotonic + Duration::from_secs(monotonic),
            wall: then.wall + TimeDelta::seconds(wall),
        };
        assert!(!then.jumped(later(3600, 3600)));
        assert!(!then.jumped(later(3600, 3601)));
        assert!(then.jumped(later(1, 3601)), "forward, or the host slept");
        assert!(then.jumped(later(1, -3600)), "back");
        assert!(then.jumped(later(5, 0)), "stands still");
    }
}
