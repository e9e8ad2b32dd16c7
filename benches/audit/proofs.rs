//! Proofs over a million entries: one entry is in the log, and all of it is as it was written.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::append::SECOND;
use crate::baseline::connect;
use crate::entries;
use crate::support::load::{Load, Shape};
use crate::support::place::{Daemon, Place, memory};
use crate::support::report::{Report, Target, Turns, median, microseconds, quantile, times};
use crate::{Extent, SETTINGS};

const MIB: f64 = 1024.0 * 1024.0;
const ENTRIES: i64 = 1_000_000;
/// So many are verified first, to see whether memory grows with the log.
const FEW: i64 = 200_000;
const PROOFS: u32 = 200;
/// Rows of the log's own tables that were read, by indexes and without.
const READS: &str = "SELECT coalesce(sum(idx_tup_read), 0)::float8 + (SELECT coalesce(sum(seq_tup_read), 0)::float8 \
    FROM pg_stat_user_tables WHERE schemaname = 'sidekeep' AND relname LIKE 'audit%') \
    FROM pg_stat_user_indexes WHERE schemaname = 'sidekeep' AND relname LIKE 'audit%'";

/// Verification beside `COPY … TO`, then proofs of entries all over the log.
pub(crate) fn run(report: &mut Report, extent: Extent) -> anyhow::Result<()> {
    let place = Place::new(&SETTINGS)?;
    let daemon = place.serve("sidekeep", "")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let client = runtime.block_on(connect(&place.owner_url()))?;

    fill(&runtime, &client, &daemon, FEW)?;
    let few = verify(&place)?;
    fill(&runtime, &client, &daemon, ENTRIES)?;
    let mut turns = Turns::default();
    let mut memories = Vec::new();
    for _ in 0..(extent.turns / 4).max(1) {
        let (copied, seconds) = runtime.block_on(copy_out(&client))?;
        let verified = verify(&place)?;
        memories.push(verified.peak);
        turns.add(vec![copied / seconds], vec![verified.entries / verified.seconds]);
    }
    report.section("full verification (`sidekeep verify --full`), a million entries");
    report.figure("COPY TO, binary, of the months", &format!("{:>9.0}/s", median(&mut turns.baseline)));
    report.figure("verified", &format!("{:>9.0}/s", median(&mut turns.ours)));
    report.figure("memory at its highest", &format!("{:>9.1} MiB", median(&mut memories) / MIB));
    report.target("verification / COPY TO", turns.ratio(), "", Target::AtLeast(0.3));
    let growth = median(&mut memories) / few.peak;
    report.target(&format!("memory, {ENTRIES} / {FEW} entries"), growth, "", Target::AtMost(1.2));
    prove(report, &runtime, &client, &daemon)
}

/// Appends until there are so many.
fn fill(
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    daemon: &Daemon,
    until: i64,
) -> anyhow::Result<()> {
    const SIZE: &str = "SELECT coalesce(sum(size), 0)::bigint FROM sidekeep.audit_streams";
    let (load, lines) = (Load::new()?, entries::many(512, 50));
    let shape = Shape { connections: 8, depth: 2, length: SECOND };
    while runtime.block_on(client.query_one(SIZE, &[]))?.try_get::<_, i64>(0)? < until {
        load.run(&[daemon.socket()], &lines, shape)?;
    }
    // So that the planner knows the tables, as autovacuum would see to.
    Ok(runtime.block_on(client.batch_execute("VACUUM ANALYZE"))?)
}

/// Rows, and how long `COPY` took to give them, of each month that has some.
async fn copy_out(client: &Client) -> anyhow::Result<(f64, f64)> {
    const MONTHS: &str =
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'sidekeep.audit_logs'::regclass";
    let (mut rows, mut seconds) = (0.0, 0.0);
    for month in client.query(MONTHS, &[]).await? {
        let month: String = month.try_get(0)?;
        let count: i64 = client.query_one(&format!("SELECT count(*) FROM {month}"), &[]).await?.try_get(0)?;
        let begun = Instant::now();
        let bytes = client.copy_out(&format!("COPY {month} TO STDOUT (FORMAT binary)")).await?;
        bytes.try_for_each(|_| std::future::ready(Ok(()))).await?;
        seconds += begun.elapsed().as_secs_f64();
        rows += f64::from(u32::try_from(count)?);
    }
    Ok((rows, seconds))
}

struct Verified {
    entries: f64,
    seconds: f64,
    peak: f64,
}

/// Verifies everything in a process of its own.
fn verify(place: &Place) -> anyhow::Result<Verified> {
    let begun = Instant::now();
    let mut process = Command::new(env!("CARGO_BIN_EXE_sidekeep"))
        .arg("--config")
        .arg(place.configure("verify", "")?)
        .args(["verify", "--full", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut peak = 0.0;
    while process.try_wait()?.is_none() {
        // It is gone already when this fails.
        peak = memory(process.id(), "VmHWM:").unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let report: Value = serde_json::from_slice(&process.wait_with_output()?.stdout)?;
    anyhow::ensure!(report.get("verdict").is_some_and(|verdict| verdict == "intact"), "{report}");
    Ok(Verified { entries: report.get("entries").and_then(Value::as_f64).unwrap_or_default(), seconds, peak })
}

fn prove(
    report: &mut Report,
    runtime: &tokio::runtime::Runtime,
    client: &Client,
    daemon: &Daemon,
) -> anyhow::Result<()> {
    const SIZES: &str = "SELECT stream, size FROM sidekeep.audit_streams WHERE size > 0 ORDER BY stream";
    /// A session of PostgreSQL says what it has read when it has been idle for ten seconds.
    const COUNTED: Duration = Duration::from_secs(12);
    let streams = runtime.block_on(client.query(SIZES, &[]))?;
    let mut caller = daemon.connect()?;
    // Signs whatever is younger than the last checkpoint.
    let mut newest = 0.0;
    for row in &streams {
        let (stream, size): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
        let (took, _) = caller.timed("audit.prove", &json!({ "stream": stream, "position": size - 1 }))?;
        newest = f64::max(newest, took.as_secs_f64());
    }
    std::thread::sleep(COUNTED);
    let before: f64 = runtime.block_on(client.query_one(READS, &[]))?.try_get(0)?;
    let mut all = Vec::new();
    for number in 0..PROOFS {
        let row = streams.get(usize::try_from(number)? % streams.len().max(1));
        let row = row.ok_or_else(|| anyhow::anyhow!("no stream"))?;
        let (stream, size): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
        let position = i64::from(number.wrapping_mul(2_654_435_761)) % size;
        let (took, _) = caller.timed("audit.prove", &json!({ "stream": stream, "position": position }))?;
        all.push(microseconds(took));
    }
    std::thread::sleep(COUNTED);
    let after: f64 = runtime.block_on(client.query_one(READS, &[]))?.try_get(0)?;
    report.section("inclusion proofs (`audit.prove`) of a million entries");
    report.figure("audit.prove", &times(&mut all));
    report.figure("of the newest, with the checkpoint that it needs", &format!("{newest:>9.3} s"));
    report.target("audit.prove, 95 of 100 within", quantile(&mut all, 20) / 1e3, "ms", Target::AtMost(5.0));
    report.target("rows read for a proof", (after - before) / f64::from(PROOFS), "", Target::AtMost(20.0));
    Ok(())
}
