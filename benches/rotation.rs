//! Rotation of the key-encryption key, beside the same UPDATE with bytes that are ready.
//!
//! `cargo bench --bench rotation` makes 100,000 people (`-- --quick`: 20,000) in a private PostgreSQL and lets the real daemon
//! re-wrap their keys, back and forth between two key-encryption keys. Ends with PASS or FAIL for the target.
//!
//! How it is fair: the baseline is measured in turns with the daemon, on a copy of the table with the same indexes, by two
//! connections with batches of the same size, each committed to the disk; it opens and wraps nothing, and reads nothing.

mod support {
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod client;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod place;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod report;
}

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sidekeep::durable;
use support::place::{Daemon, Place};
use support::report::{Report, Target, median};

/// As many as the daemon re-wraps in one statement, on as many connections.
const BATCH: usize = 1000;
const CONNECTIONS: usize = 2;

fn main() -> anyhow::Result<ExitCode> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (people, turns) = if quick { (20_000, 2) } else { (100_000, 4) };
    let place = Place::new()?;
    let daemon = place.serve()?;
    make_people(&daemon, people)?;
    let keys = [place.directory().join("kek"), add_key(&place)?];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let url = std::fs::read_to_string(place.directory().join("owner-url"))?;
    let baseline = runtime.block_on(Baseline::make(&url))?;

    let mut report = Report::default();
    report.section(&format!("keyring.rotate, {people} people"));
    let (mut bare, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..turns {
        let (new, old) = if turn % 2 == 0 { (&keys[1], &keys[0]) } else { (&keys[0], &keys[1]) };
        let bare_rate = rate(baseline.keys(), runtime.block_on(baseline.update(turn))?);
        give(&place, &daemon, &[new, old])?;
        let (count, took) = rotate(&daemon)?;
        let our_rate = rate(count, took);
        ratios.push(our_rate / bare_rate);
        bare.push(bare_rate);
        ours.push(our_rate);
    }
    report.figure("the UPDATE alone, keys in a second", &format!("{:.0}", median(&mut bare)));
    report.figure("keyring.rotate / the UPDATE alone", &format!("{:.2}", median(&mut ratios)));
    report.target("keyring.rotate", median(&mut ours), "keys/s", Target::AtLeast(20_000.0));
    Ok(report.verdict())
}

fn rate(count: usize, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64()
}

/// An entry of the log makes the person whom it names.
fn make_people(daemon: &Daemon, people: usize) -> anyhow::Result<()> {
    let mut client = daemon.connect()?;
    for from in (0..people).step_by(BATCH) {
        let entries: Vec<Value> = (from..people.min(from + BATCH))
            .map(|number| json!({ "action": "seen", "user_id": format!("user-{number}") }))
            .collect();
        client.call("audit.append_many", &json!({ "entries": entries }))?;
    }
    Ok(())
}

fn add_key(place: &Place) -> anyhow::Result<PathBuf> {
    let path = place.directory().join("kek-2");
    let made = Command::new(env!("CARGO_BIN_EXE_sidekeep"))
        .args(["keyring", "generate", "--out"])
        .arg(&path)
        .output()?;
    if !made.status.success() {
        bail!("keyring generate: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(path)
}

/// Gives the daemon these keys in this order, and waits until it has them.
fn give(place: &Place, daemon: &Daemon, keys: &[&PathBuf]) -> anyhow::Result<()> {
    let file = place.directory().join("sidekeep.toml");
    let text = std::fs::read_to_string(&file)?;
    let listed = format!("key_files = {keys:?}");
    let lines = text.lines().map(|line| if line.starts_with("key_files") { &listed } else { line });
    durable::write(&file, lines.collect::<Vec<_>>().join("\n").as_bytes(), 0o600)?;
    kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGHUP)?;
    let first = key_id(keys.first().context("a key")?)?;
    let begun = Instant::now();
    let mut client = daemon.connect()?;
    while begun.elapsed() < Duration::from_secs(30) {
        let status = client.call("system.status", &Value::Null)?;
        if status.get("kek_ids").and_then(|ids| ids.get(0)) == Some(&Value::from(first.as_str())) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("the daemon does not take the keys over")
}

/// The id in the first line of a key file.
fn key_id(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file)?;
    let id = text.lines().next().and_then(|line| line.rsplit(' ').next());
    Ok(id.context("no id in the key file")?.to_owned())
}

/// How many keys were re-wrapped, and how long the call took.
fn rotate(daemon: &Daemon) -> anyhow::Result<(usize, Duration)> {
    let (took, run) = daemon.connect()?.timed("keyring.rotate", &json!({ "wait": "30s" }))?;
    let count = run.get("counts").and_then(|counts| counts.get("rewrapped")).and_then(Value::as_u64);
    match count.filter(|_| run.get("state").is_some_and(|state| state == "ok")) {
        Some(count) => Ok((usize::try_from(count)?, took)),
        None => bail!("keyring.rotate: {run}"),
    }
}

/// A copy of `subjects`, and what is written into it.
struct Baseline {
    url: String,
    ids: Vec<i64>,
    wrapped: Vec<Vec<u8>>,
}

impl Baseline {
    async fn make(url: &str) -> anyhow::Result<Self> {
        let client = connect(url).await?;
        client
            .batch_execute(
                "CREATE TABLE sidekeep.bench (LIKE sidekeep.subjects INCLUDING ALL); \
                 INSERT INTO sidekeep.bench SELECT * FROM sidekeep.subjects; ANALYZE sidekeep.bench",
            )
            .await?;
        let rows = client
            .query("SELECT subject_id, wrapped_key FROM sidekeep.bench ORDER BY subject_id", &[])
            .await?;
        let ids = rows.iter().map(|row| row.get(0)).collect();
        Ok(Self { url: url.to_owned(), ids, wrapped: rows.iter().map(|row| row.get(1)).collect() })
    }

    fn keys(&self) -> usize {
        self.ids.len()
    }

    /// Updates every row, and answers how long that took.
    async fn update(&self, turn: u32) -> anyhow::Result<Duration> {
        const UPDATE: &str = "UPDATE sidekeep.bench s SET wrapped_key = n.key, kek_id = $3 \
            FROM unnest($1::bigint[], $2::bytea[]) AS n (id, key) WHERE s.subject_id = n.id";
        let kek_id = format!("bench-{turn}");
        let half = self.ids.len().div_ceil(CONNECTIONS);
        let lanes = self.ids.chunks(half).zip(self.wrapped.chunks(half)).map(|(ids, wrapped)| {
            let kek_id = &kek_id;
            async move {
                let client = connect(&self.url).await?;
                let begun = Instant::now();
                for (ids, wrapped) in ids.chunks(BATCH).zip(wrapped.chunks(BATCH)) {
                    client.execute(UPDATE, &[&ids, &wrapped, kek_id]).await?;
                }
                anyhow::Ok(begun.elapsed())
            }
        });
        let took = futures_util::future::try_join_all(lanes).await?;
        took.into_iter().max().context("nobody")
    }
}

#[expect(clippy::disallowed_methods, reason = "the benchmark has no daemon's tracker")]
async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url.trim(), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
