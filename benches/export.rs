//! Benchmark of `sidekeep export` of a person with very many audit entries, beside `COPY … TO` of the same rows.
//!
//! `cargo bench --bench export` takes a million entries, `cargo bench --bench export -- 100000` as many as are said. It starts a
//! private PostgreSQL in a temporary folder and a real daemon to append through, and ends with one PASS or FAIL for each target.
//!
//! How it is fair: export and COPY read the same rows of the same server in turns, both write to the same folder. COPY writes
//! the stored bytes as they are; the export opens each sealed value, writes it twice (for programs and for people), compresses,
//! digests and signs. COPY into the fastest level of gzip is shown beside it.

#[path = "support/client.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod client;
#[path = "support/place.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod place;
#[path = "support/report.rs"]
#[allow(dead_code, reason = "other benchmarks use the rest")]
mod report;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use place::{Daemon, Place};
use report::{Report, Target, median};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_sidekeep");
const MIB: f64 = 1024.0 * 1024.0;
const BATCH: u32 = 1000;
const CONNECTIONS: u32 = 4;
const TURNS: u32 = 3;

fn main() -> anyhow::Result<ExitCode> {
    let wanted = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let entries: u32 = wanted.unwrap_or(1_000_000);
    let mut report = Report::default();
    let place = Place::new(&[])?;
    let daemon = place.serve("sidekeep", "")?;
    append("few", 10, &daemon)?;
    append("many", entries, &daemon)?;

    report.section(&format!("export of a person with {entries} audit entries"));
    let few = export(&place, "few")?;
    let (mut ratios, mut rates, mut peak) = (Vec::new(), Vec::new(), 0.0_f64);
    for _ in 0..TURNS {
        let copied = copy(&place, "cat")?;
        let exported = export(&place, "many")?;
        ratios.push(copied.as_secs_f64() / exported.took.as_secs_f64());
        rates.push(f64::from(entries) / exported.took.as_secs_f64());
        peak = peak.max(exported.peak);
    }
    report.figure("entries a second", &format!("{:.0}", median(&mut rates)));
    let zipped = copy(&place, "gzip -1")?.as_secs_f64();
    report.figure("COPY into gzip -1, entries a second", &format!("{:.0}", f64::from(entries) / zipped));
    report.target("as fast as COPY TO", median(&mut ratios), "times", Target::AtLeast(0.2));
    report.figure("memory at most, of a person with 10 entries", &format!("{:.1} MiB", few.peak / MIB));
    report.target("more of it for all of these", (peak - few.peak) / MIB, "MiB", Target::AtMost(64.0));
    Ok(report.verdict())
}

/// Entries as an application appends them, all of one person.
fn append(user_id: &str, entries: u32, daemon: &Daemon) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let share = entries.div_ceil(CONNECTIONS);
        let mut threads = Vec::new();
        for connection in 0..CONNECTIONS {
            let mut numbers = (connection * share..entries.min((connection + 1) * share)).peekable();
            threads.push(scope.spawn(move || {
                let mut client = daemon.connect()?;
                while numbers.peek().is_some() {
                    let batch: Vec<Value> =
                        numbers.by_ref().take(usize::try_from(BATCH)?).map(|n| entry(user_id, n)).collect();
                    client.call("audit.append_many", &json!({ "entries": batch }))?;
                }
                anyhow::Ok(())
            }));
        }
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread failed")))
    })
}

fn entry(user_id: &str, number: u32) -> Value {
    json!({
        "user_id": user_id, "action": "document.read", "resource_type": "document", "resource_id": format!("doc-{number}"),
        "outcome": "success", "ip_address": "203.0.113.7", "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101",
        "labels": { "region": "eu-west-1" }, "metadata": { "page": number, "query": "annual report", "filters": ["open", "mine"] },
    })
}

struct Exported {
    took: Duration,
    /// Resident, in bytes.
    peak: f64,
}

fn export(place: &Place, user_id: &str) -> anyhow::Result<Exported> {
    let out = place.directory().join("export.zip");
    let begun = Instant::now();
    let mut process = Command::new(PROGRAM)
        .arg("--config")
        .arg(place.directory().join("sidekeep.toml"))
        .args(["export", user_id, "--out"])
        .arg(&out)
        .stdout(Stdio::null())
        .spawn()?;
    let mut peak = 0.0;
    let status = loop {
        if let Some(status) = process.try_wait()? {
            break status;
        }
        peak = high_water(process.id()).unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(5));
    };
    let took = begun.elapsed();
    ensure!(status.success(), "the export failed");
    std::fs::remove_file(out)?;
    Ok(Exported { took, peak })
}

fn high_water(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u32 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(f64::from(kibibytes) * 1024.0)
}

/// `COPY … TO` of the same rows, through a filter into a file.
fn copy(place: &Place, filter: &str) -> anyhow::Result<Duration> {
    const ROWS: &str = "COPY (SELECT * FROM sidekeep.audit_logs WHERE actor_id = (SELECT subject_id FROM sidekeep.subjects \
        WHERE user_id = 'many') ORDER BY recorded_at, stream, position) TO STDOUT";
    let out = place.directory().join("copy");
    let begun = Instant::now();
    let pipe = format!("psql -XqAt -c \"$ROWS\" \"$URL\" | {filter} > \"$OUT\"");
    let status = Command::new("sh")
        .args(["-c", &pipe])
        .env("ROWS", ROWS)
        .env("URL", place.url())
        .env("OUT", &out)
        .status()
        .context("sh and psql")?;
    let took = begun.elapsed();
    ensure!(status.success() && size(&out)? > 0, "COPY failed");
    std::fs::remove_file(out)?;
    Ok(took)
}

fn size(path: &Path) -> anyhow::Result<u64> {
    Ok(path.metadata()?.len())
}
