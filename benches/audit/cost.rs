//! What a phase costs: the processor time of the daemon, of all of PostgreSQL, and of this program.

use std::fs;

/// Processor time in seconds, of each since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// The daemons, or none.
    pub(crate) daemon: f64,
    /// PostgreSQL with all its processes.
    pub(crate) postgres: f64,
    /// The load generator.
    pub(crate) load: f64,
}

impl Cost {
    /// Until now.
    pub(crate) fn now(daemons: &[u32], postgres: u32) -> Self {
        Self {
            daemon: daemons.iter().map(|daemon| seconds(*daemon)).sum(),
            postgres: family(postgres),
            load: seconds(std::process::id()),
        }
    }

    /// Microseconds for each of so many, since then.
    pub(crate) fn each(self, since: Self, count: f64) -> Self {
        let each = |now: f64, then: f64| (now - then) * 1e6 / count;
        Self {
            daemon: each(self.daemon, since.daemon),
            postgres: each(self.postgres, since.postgres),
            load: each(self.load, since.load),
        }
    }

    pub(crate) fn total(self) -> f64 {
        self.daemon + self.postgres + self.load
    }
}

/// The middle of each.
pub(crate) fn median(costs: &[Cost]) -> Cost {
    let middle = |part: fn(&Cost) -> f64| {
        crate::support::report::median(&mut costs.iter().map(part).collect::<Vec<f64>>())
    };
    Cost { daemon: middle(|c| c.daemon), postgres: middle(|c| c.postgres), load: middle(|c| c.load) }
}

/// A process and those that it has started.
fn family(process: u32) -> f64 {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|child| child.parse().ok());
    seconds(process) + children.map(family).sum::<f64>()
}

/// A process, and those that it has started and that have ended. Nothing for one that has ended itself.
fn seconds(process: u32) -> f64 {
    /// The kernel counts in hundredths of a second, whatever it ticks in (proc(5)).
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: utime, stime, cutime and cstime are the 12th to 15th.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let times = fields.split_ascii_whitespace().skip(11).take(4);
    times.filter_map(|time| time.parse::<f64>().ok()).sum::<f64>() / TICKS
}
