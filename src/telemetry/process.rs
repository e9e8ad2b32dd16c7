//! The figures of the process itself, under the names that Prometheus gives them everywhere. What cannot be read is left out.

use std::fmt::Write;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;

/// Appends the figures; `started` is in seconds since 1970.
pub(super) fn render(text: &mut String, started: i64) {
    let figures = [
        ("process_cpu_seconds_total", "counter", "User and system CPU time, in seconds.", cpu_seconds()),
        ("process_resident_memory_bytes", "gauge", "Resident memory, in bytes.", resident_bytes()),
        ("process_open_fds", "gauge", "Open file descriptors.", open_files()),
        ("process_max_fds", "gauge", "The most open file descriptors.", max_files()),
        (
            "process_start_time_seconds",
            "gauge",
            "When the process began, in seconds since 1970.",
            Some(started.to_string()),
        ),
    ];
    for (name, kind, help, value) in figures {
        if let Some(value) = value {
            // Writing to text cannot fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n");
        }
    }
}

fn cpu_seconds() -> Option<String> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Some(format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000))
}

/// proc_pid_status(5): `VmRSS` is in units of 1024 bytes.
fn resident_bytes() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib * 1024).to_string())
}

/// Without the one that lists them.
fn open_files() -> Option<String> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1).to_string())
}

fn max_files() -> Option<String> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_figure_of_the_process_is_a_number() {
        let mut text = String::new();
        super::render(&mut text, 7);
        let values: Vec<(&str, f64)> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect();
        assert_eq!(values.len(), 5, "{text}");
        assert!(values.iter().any(|(name, value)| *name == "process_resident_memory_bytes" && *value > 1e6));
        assert!(values.iter().any(|(name, value)| *name == "process_open_fds" && *value >= 3.0));
    }
}
