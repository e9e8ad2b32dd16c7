//! Benchmarks of the audit log through the socket, each beside the baseline that it is measured against.
//!
//! `cargo bench --bench audit` takes some minutes; `-- append alone daemons queue proofs` runs those that are named, `--quick` with
//! fewer turns. It starts a private PostgreSQL in a temporary folder and the real daemon (`sidekeep serve`, another process), on the
//! same processors as itself, and ends with one PASS or FAIL for each target; a target that is missed makes the exit code 1.
//!
//! How it is fair: baseline and daemon are measured in turns of about a second, by the same program on the same PostgreSQL, so that
//! whatever else the machine does meets both. A ratio is the median of the ratios of the turns. The baselines' tables have the columns,
//! indexes and partitions of `audit_logs` and grow as it does; `COPY` gets the very rows that were appended a moment before. The
//! processor time of each side is shown, as it tells more than rates where others use the machine. Every figure is of commits that
//! reach the disk.

mod alone;
mod append;
mod baseline;
mod cost;
mod daemons;
mod entries;
mod indexes;
mod proofs;
mod queue;
mod redis;
#[path = "../support/mod.rs"]
mod support;
mod work;

use std::process::ExitCode;

use support::report::Report;

/// PostgreSQL's settings that differ from its defaults: neither a checkpoint nor a vacuum comes in the middle of one turn and not of
/// the next, and the 16 streams of eight daemons find connections.
const SETTINGS: [(&str, &str); 5] = [
    ("shared_buffers", "512MB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "1h"),
    ("autovacuum", "off"),
    ("max_connections", "250"),
];

/// Turns of baseline and daemon.
#[derive(Clone, Copy, Debug)]
struct Extent {
    turns: u32,
}

type Section = fn(&mut Report, Extent) -> anyhow::Result<()>;

/// What is measured, by name; the last one only when it is named.
const SECTIONS: [(&str, Section); 6] = [
    ("append", append::run),
    ("alone", alone::run),
    ("daemons", daemons::run),
    ("queue", queue::run),
    ("proofs", proofs::run),
    (INDEXES, indexes::run),
];
const INDEXES: &str = "indexes";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    for name in &named {
        anyhow::ensure!(SECTIONS.iter().any(|(known, _)| known == name), "nothing is called {name}");
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let extent = Extent { turns: if quick { 4 } else { 12 } };
    let mut report = Report::default();
    for (name, section) in SECTIONS {
        if (named.is_empty() && name != INDEXES) || named.iter().any(|wanted| *wanted == name) {
            section(&mut report, extent)?;
        }
    }
    Ok(report.verdict())
}
