//! The job `archive` into a directory, beside `COPY … TO` of the same rows into a file.
//!
//! `cargo bench --bench archive` appends 1,000,000 entries (`-- --quick`: 100,000) in a private PostgreSQL whose clock is forty
//! days behind, then starts that again by the clock of this host, so that their month is over, and archives them. Needs
//! Debian's package `faketime`. Ends with PASS or FAIL for the targets.
//!
//! How it is fair: COPY and the job read the same rows of the same server in turns, and write to the same file system. COPY
//! writes the stored bytes as they are; the job recomputes each leaf and the tree, writes JSON, compresses, syncs, reads all
//! of it back, decompresses and verifies it, and signs a manifest; that is in its time.

mod support {
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod client;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod place;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod report;
}

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sidekeep::durable;
use support::place::{Daemon, Place, memory};
use support::report::{Report, Target, median};

/// As many as one call takes.
const BATCH: u64 = 1000;
const CONNECTIONS: u64 = 4;
const PERSONS: u64 = 1000;
const TURNS: u32 = 3;
const MIB: f64 = 1024.0 * 1024.0;

fn main() -> anyhow::Result<ExitCode> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let entries = if quick { 100_000 } else { 1_000_000 };
    let mut place = Place::long_ago("-40d")?;
    append(entries, &place.serve("long-ago", "access = \"none\"")?)?;
    place.come_back()?;
    let archive = place.directory().join("archived");
    configure(&place)?;
    let daemon = place.serve("sidekeep", "access = \"none\"")?;
    let month = psql(&place.url(), "SELECT min(recorded_at) FROM sidekeep.audit_logs", Stdio::piped())?;
    let before = memory(daemon.id(), "VmRSS:")?;

    let mut report = Report::default();
    report.section(&format!("archive, {entries} entries of {}", String::from_utf8_lossy(&month).trim()));
    let (mut ratios, mut copies, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let copied = copy(&place)?.as_secs_f64();
        let (took, run) = daemon.run("archive")?;
        let archived = run.pointer("/counts/entries").and_then(Value::as_u64);
        ensure!(archived >= Some(entries), "not all was archived: {run}");
        ratios.push(copied / took.as_secs_f64());
        copies.push(copied);
        ours.push(took.as_secs_f64());
        // As if nothing had been archived.
        psql(&place.owner_url(), "TRUNCATE sidekeep.audit_archives", Stdio::null())?;
        std::fs::remove_dir_all(&archive)?;
    }
    let more = (memory(daemon.id(), "VmHWM:")? - before) / MIB;
    report.figure("COPY TO, seconds", &format!("{:.2}", median(&mut copies)));
    report.figure("archive, written and read back, seconds", &format!("{:.2}", median(&mut ours)));
    report.target("speed of archive / COPY TO", median(&mut ratios), "", Target::AtLeast(0.15));
    report.target("memory of the daemon while it archives, more", more, "MiB", Target::AtMost(64.0));
    Ok(report.verdict())
}

/// Names the destination in a file beside the configuration.
fn configure(place: &Place) -> anyhow::Result<()> {
    let folder = place.directory().join("conf.d");
    durable::create_directory(&folder, 0o755)?;
    let url = Value::from(format!("file://{}/archived", place.directory().display()));
    let text = format!("[archive]\ndestination = {url}\nafter = \"1d\"\n[jobs.archive]\nenabled = false\n");
    Ok(durable::write(&folder.join("archive.toml"), text.as_bytes(), 0o600)?)
}

/// Entries as an application appends them, of many persons.
fn append(entries: u64, daemon: &Daemon) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let share = entries.div_ceil(CONNECTIONS);
        let mut threads = Vec::new();
        for connection in 0..CONNECTIONS {
            let mut numbers = (connection * share..entries.min((connection + 1) * share)).peekable();
            threads.push(scope.spawn(move || {
                let mut client = daemon.connect()?;
                while numbers.peek().is_some() {
                    let batch: Vec<Value> =
                        numbers.by_ref().take(usize::try_from(BATCH)?).map(entry).collect();
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

fn entry(number: u64) -> Value {
    json!({
        "user_id": format!("person-{}", number % PERSONS), "action": "document.read", "resource_type": "document",
        "resource_id": format!("doc-{number}"), "outcome": "success", "ip_address": "203.0.113.7",
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101", "labels": { "region": "eu-west-1" },
        "metadata": { "page": number, "query": "annual report", "filters": ["open", "mine"] },
    })
}

/// The same rows into a file, as they are stored.
fn copy(place: &Place) -> anyhow::Result<Duration> {
    const ROWS: &str = "COPY (SELECT * FROM sidekeep.audit_logs \
        WHERE recorded_at < date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' ORDER BY stream, position) TO STDOUT";
    let out = place.directory().join("copied");
    let begun = Instant::now();
    psql(&place.url(), ROWS, Stdio::from(std::fs::File::create(&out)?))?;
    let took = begun.elapsed();
    ensure!(out.metadata()?.len() > 0, "COPY wrote nothing");
    std::fs::remove_file(out)?;
    Ok(took)
}

/// What psql prints, where that is piped.
fn psql(url: &str, statement: &str, out: Stdio) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new("psql");
    let child = command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement, url]).stdout(out).spawn();
    let done = child.context("psql")?.wait_with_output()?;
    ensure!(done.status.success(), "psql: {statement}");
    Ok(done.stdout)
}
