//! The daemon's own log and figures, once for each process. Never holds a parameter of a call or a person's data.

use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::config::{Log, LogLevel};

pub use figures::{
    AUDIT_GAPS, AUDIT_QUEUE, AUDIT_STAGED, AUDIT_STAGED_AGE, BUILD_INFO, CALL_DURATION, CALLS,
    CALLS_IN_FLIGHT, CONNECTIONS, JOB_AGE, JOB_DURATION, JOB_RUNS, KEYRING_BACKUP_LATE, POOL_CONNECTIONS,
    PUBLICATION, PUBLICATION_AGE, PUBLICATIONS, PUBLISHED_HEADS, REQUESTS, TRANSACTION_DURATION,
    TRANSACTION_RETRIES, TRANSACTIONS, VERIFIED_AGE, VERIFIED_ENTRIES,
};

mod figures;
mod level;
mod process;
mod subscriber;

/// How often what the histograms gathered is folded into their buckets. Until then each observation is kept.
const UPKEEP: Duration = Duration::from_secs(5);

static INSTALLED: OnceLock<Telemetry> = OnceLock::new();

/// The handles of the log and of the figures. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct Telemetry {
    level: level::Level,
    figures: PrometheusHandle,
    started: i64,
}

/// Installs the log and the figures. Later calls in the same process set the level, and change nothing else.
pub fn init(log: &Log) -> Telemetry {
    let mut fresh = false;
    let telemetry = INSTALLED.get_or_init(|| {
        fresh = true;
        Telemetry {
            level: subscriber::install(log),
            figures: figures::install(),
            started: clock::now().utc().timestamp(),
        }
    });
    if !fresh {
        telemetry.set_level(log.level);
    }
    telemetry.clone()
}

impl Telemetry {
    /// The least that is logged at this moment.
    pub fn level(&self) -> LogLevel {
        self.level.current()
    }

    /// Sets the least that is logged, and ends what [`Self::set_level_for`] began.
    pub fn set_level(&self, level: LogLevel) {
        self.level.set(level);
    }

    /// Sets the least that is logged for a while; then, or at `shutdown`, the level that was set before is back. A level that
    /// is set meanwhile stays.
    pub fn set_level_for(
        &self,
        level: LogLevel,
        period: Duration,
        tracker: &TaskTracker,
        shutdown: CancellationToken,
    ) {
        let lease = self.level.lend(level);
        tracker.spawn(async move {
            let _ = shutdown.run_until_cancelled(tokio::time::sleep(period)).await;
            lease.give_back();
        });
    }

    /// All figures in the text format of Prometheus, those of the process read at this moment.
    pub fn render(&self) -> String {
        let mut text = self.figures.render();
        process::render(&mut text, self.started);
        text
    }

    /// Keeps the histograms small until `shutdown`.
    pub fn upkeep(&self, tracker: &TaskTracker, shutdown: CancellationToken) {
        let figures = self.figures.clone();
        tracker.spawn(async move {
            let mut ticks = interval(UPKEEP);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
                figures.run_upkeep();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::{CALL_DURATION, CALLS, init};
    use crate::config::{Log, LogFormat, LogLevel};

    /// One test for all that is global: others would change the level under it.
    #[tokio::test]
    async fn telemetry_is_installed_once_and_its_level_falls_back() {
        let log = |level| Log { level, format: LogFormat::Json };
        let first = init(&log(LogLevel::Warn));
        let telemetry = init(&log(LogLevel::Error));
        assert_eq!(first.level(), LogLevel::Error, "both are the same");

        let (tracker, shutdown) = (TaskTracker::new(), CancellationToken::new());
        tracker.close();
        telemetry.set_level_for(LogLevel::Debug, Duration::from_millis(1), &tracker, shutdown.clone());
        assert_eq!(telemetry.level(), LogLevel::Debug);
        tracker.wait().await;
        assert_eq!(telemetry.level(), LogLevel::Error, "the while is over");

        telemetry.upkeep(&tracker, shutdown.clone());
        telemetry.set_level_for(LogLevel::Trace, Duration::from_secs(3600), &tracker, shutdown.clone());
        telemetry.set_level(LogLevel::Info);
        shutdown.cancel();
        tracker.wait().await;
        assert_eq!(telemetry.level(), LogLevel::Info, "what was set meanwhile stays");

        metrics::counter!(CALLS, "method" => "test.render", "outcome" => "ok").increment(1);
        metrics::histogram!(CALL_DURATION, "method" => "test.render").record(0.002);
        let text = telemetry.render();
        for line in [
            "# TYPE sidekeep_calls_total counter",
            "sidekeep_calls_total{method=\"test.render\",outcome=\"ok\"} 1",
            "sidekeep_call_duration_seconds_bucket{method=\"test.render\",le=\"0.001\"} 0",
            "sidekeep_call_duration_seconds_bucket{method=\"test.render\",le=\"0.0025\"} 1",
            concat!("sidekeep_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# TYPE process_cpu_seconds_total counter",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
