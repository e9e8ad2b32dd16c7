//! The start, and the memory, of the daemon.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::Extent;
use crate::support::client::{Client, request};
use crate::support::place::{Daemon, Place};
use crate::support::report::{Report, Target, median};

const MIB: f64 = 1024.0 * 1024.0;
const CONNECTIONS: usize = 1000;
/// What a daemon that nobody calls does in this time, it does for good.
const CALM: Duration = Duration::from_secs(1);

/// From `exec` to the first health that is ok, on a migrated database.
pub(crate) fn starts(report: &mut Report, place: &Place, extent: Extent) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..extent.starts {
        times.push(place.serve("sidekeep", crate::AUDIT)?.ready_after.as_secs_f64());
    }
    report.section("start");
    report.target("ready after", median(&mut times), "s", Target::AtMost(0.3));
    Ok(())
}

/// A daemon that has answered one call, and the same with 1,000 connections.
pub(crate) fn idle(report: &mut Report, daemon: &Daemon) -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(4096).min(hard), hard)?;
    std::thread::sleep(CALM);
    report.section("memory (resident, shared pages included)");
    let idle = daemon.resident()?;
    report.target("idle", idle / MIB, "MiB", Target::AtMost(15.0));

    let mut clients = (0..CONNECTIONS).map(|_| daemon.connect()).collect::<anyhow::Result<Vec<Client>>>()?;
    // They are accepted in order: when the last one is served, all are.
    let health = request("system.health", &Value::Null);
    if let Some(last) = clients.last_mut() {
        last.round_trip(&health)?;
    }
    std::thread::sleep(CALM);
    let connected = daemon.resident()? - idle;
    report.target("1,000 idle connections", connected / MIB, "MiB more", Target::AtMost(20.0));
    for client in &mut clients {
        client.round_trip(&health)?;
    }
    std::thread::sleep(CALM);
    let used = daemon.resident()? - idle;
    report.target("the same, each after a call", used / MIB, "MiB more", Target::AtMost(20.0));
    Ok(())
}

/// What is left when all has been measured.
pub(crate) fn after_load(report: &mut Report, daemon: &Daemon) -> anyhow::Result<()> {
    std::thread::sleep(CALM);
    report.section("memory after all of this");
    report.figure("resident", &format!("{:.1} MiB", daemon.resident()? / MIB));
    Ok(())
}
