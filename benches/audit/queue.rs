//! The memory of a daemon under full load with a full queue: PostgreSQL stands still for two seconds, and the callers go on.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::baseline::connect;
use crate::entries;
use crate::support::load::{Lines, Load, Shape};
use crate::support::place::{Daemon, Place, memory};
use crate::support::report::{Report, Target};
use crate::{Extent, SETTINGS};

const MIB: f64 = 1024.0 * 1024.0;
/// How long PostgreSQL takes nothing.
const STILL: Duration = Duration::from_secs(2);

/// Single appends, as many in flight as a daemon takes (`limits.calls`), and twice as many; then many in each call, as much as the queue takes.
pub(crate) fn run(report: &mut Report, _: Extent) -> anyhow::Result<()> {
    let place = Place::new(&SETTINGS)?;
    report
        .section("memory (resident, at its highest) under full load, PostgreSQL standing still for a while");
    let daemon = place.serve("single", "")?;
    report.figure("at the start", &format!("{:.1} MiB", daemon.resident()? / MIB));
    let shape = Shape { connections: 64, depth: 64, length: STILL * 3 };
    let waited = full(&place, &daemon, &entries::appends(), shape)?;
    report.figure("audit.append, 64 connections x 64: waiting at most", &format!("{waited:>9.0} calls"));
    let peak = memory(daemon.id(), "VmHWM:")? / MIB;
    report.target("audit.append, with a full queue", peak, "MiB", Target::AtMost(64.0));
    let shape = Shape { connections: 128, ..shape };
    full(&place, &daemon, &entries::appends(), shape)?;
    let peak = memory(daemon.id(), "VmHWM:")? / MIB;
    report.figure("    with twice as many as are taken in, 128 x 64", &format!("{peak:>9.1} MiB"));
    drop(daemon);

    let daemon = place.serve("many", "")?;
    let shape = Shape { connections: 32, depth: 2, length: STILL * 3 };
    let waited = full(&place, &daemon, &entries::many(64, 500), shape)?;
    report.figure("audit.append_many of 500, 32 x 2: waiting at most", &format!("{waited:>9.0} calls"));
    report.figure("    resident", &format!("{:.1} MiB", memory(daemon.id(), "VmHWM:")? / MIB));
    Ok(())
}

/// Keeps up the load while the streams are locked for some time. How many requests waited at most.
fn full(place: &Place, daemon: &Daemon, lines: &Lines, shape: Shape) -> anyhow::Result<f64> {
    let (url, mut status) = (place.owner_url(), daemon.connect()?);
    let standing = std::thread::spawn(move || {
        let mut waiting = 0.0;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let client = connect(&url).await?;
            tokio::time::sleep(STILL / 2).await;
            client.batch_execute("BEGIN; LOCK TABLE sidekeep.audit_streams IN EXCLUSIVE MODE").await?;
            for _ in 0..20 {
                tokio::time::sleep(STILL / 20).await;
                let status = status.call("system.status", &Value::Null)?;
                let queue = status.pointer("/queue/waiting").and_then(Value::as_f64);
                waiting = f64::max(waiting, queue.context("no queue in the status")?);
            }
            client.batch_execute("COMMIT").await?;
            anyhow::Ok(waiting)
        })
    });
    Load::new()?.run(&[daemon.socket()], lines, shape)?;
    standing.join().map_err(|_| anyhow::anyhow!("who holds the lock panicked"))?
}
