//! Benchmarks of the daemon through its socket, each beside the baseline that it is measured against.
//!
//! `cargo bench` takes about a minute and a half, `cargo bench -- --quick` a third of it. Both start a private PostgreSQL in a
//! temporary folder and the real daemon (`sidekeep serve`, another process), and end with one PASS or FAIL for each target;
//! a target that is missed makes the exit code 1.
//!
//! How it is fair: baseline and daemon are measured by the same client, in turns of milliseconds, so that whatever else the machine
//! does meets both. A ratio is the median of the ratios of the turns. The baselines say of themselves what they do.

mod echo;
mod memory;
mod profile;
mod round_trip;
#[path = "../support/mod.rs"]
mod support;
mod writes;

use std::process::ExitCode;

use support::place::Place;
use support::report::Report;

/// Records are measured without their access entries, which cost a group commit each.
const AUDIT: &str = "access = \"none\"";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Turns of baseline and daemon.
    turns: u32,
    /// Starts of the daemon.
    starts: u32,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(path) = echo::asked_for(&arguments) {
        echo::serve(path)?;
        return Ok(ExitCode::SUCCESS);
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let extent = if quick { Extent { turns: 6, starts: 5 } } else { Extent { turns: 24, starts: 15 } };

    let mut report = Report::default();
    let place = Place::new(&[])?;
    memory::starts(&mut report, &place, extent)?;
    let daemon = place.serve("sidekeep", AUDIT)?;
    memory::idle(&mut report, &daemon)?;
    let echo = echo::Echo::start(place.directory())?;
    round_trip::one_at_a_time(&mut report, &daemon, &echo, extent)?;
    round_trip::pipelined(&mut report, &daemon, &echo, extent)?;
    profile::get(&mut report, &place, &daemon, extent)?;
    writes::all(&mut report, &daemon, extent)?;
    memory::after_load(&mut report, &daemon)?;
    Ok(report.verdict())
}
