//! The job `backup` into a directory, beside `pg_dump` into a file.
//!
//! `cargo bench --bench backup` makes 1,000,000 messages (`-- --quick`: 100,000) in a private PostgreSQL and dumps them in turns,
//! by hand and by the real daemon. Ends with PASS or FAIL for the targets.
//!
//! How it is fair: the same `pg_dump` with the same options, on the same rows, to the same file system, in the same run. The
//! daemon also digests, syncs and reads back what it wrote, counts every table, backs the keyring up and writes a manifest; that
//! is in its time.

mod support {
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod client;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod place;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod report;
}

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use sidekeep::durable;
use sidekeep::store::programs::Program;
use support::place::{Daemon, Place, memory};
use support::report::{Report, Target, median};

/// Of each conversation.
const MESSAGES: usize = 100;
const MIB: f64 = 1024.0 * 1024.0;

fn main() -> anyhow::Result<ExitCode> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (messages, turns) = if quick { (100_000, 2) } else { (1_000_000, 5) };
    let place = Place::new(&[])?;
    place_dumps(&place)?;
    let daemon = place.serve("sidekeep", "access = \"none\"")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(fill(&place.owner_url(), messages))?;
    let before = memory(daemon.id(), "VmRSS:")?;

    let mut report = Report::default();
    report.section(&format!("backup, {messages} messages"));
    let (mut ratios, mut bare_times, mut our_times) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..turns {
        // Neither always finds what the other one has read.
        let (bare, ours) = if turn % 2 == 0 {
            let bare = pg_dump(&place)?;
            (bare, back_up(&daemon)?)
        } else {
            let ours = back_up(&daemon)?;
            (pg_dump(&place)?, ours)
        };
        let (bare, ours) = (bare.as_secs_f64(), ours.as_secs_f64());
        ratios.push(bare / ours);
        bare_times.push(bare);
        our_times.push(ours);
    }
    let more = (memory(daemon.id(), "VmHWM:")? - before) / MIB;
    report.figure("pg_dump -Fc, seconds", &format!("{:.2}", median(&mut bare_times)));
    report.figure("backup, seconds", &format!("{:.2}", median(&mut our_times)));
    report.target("speed of backup / pg_dump", median(&mut ratios), "", Target::AtLeast(0.8));
    report.target("memory of the daemon while it dumps, more", more, "MiB", Target::AtMost(64.0));
    Ok(report.verdict())
}

/// Names the destinations in a file beside the configuration.
fn place_dumps(place: &Place) -> anyhow::Result<()> {
    let folder = place.directory().join("conf.d");
    durable::create_directory(&folder, 0o755)?;
    let url = |name: &str| Value::from(format!("file://{}/{name}", place.directory().display()));
    let text =
        format!("[backup]\ndestination = {}\n[keyring]\nbackup = {}\n", url("dumps"), url("keyring-backup"));
    Ok(durable::write(&folder.join("backup.toml"), text.as_bytes(), 0o600)?)
}

/// Messages of random bytes, which do not shrink, as sealed ones do not.
#[expect(clippy::disallowed_methods, reason = "the benchmark has no daemon's tracker")]
async fn fill(url: &str, messages: usize) -> anyhow::Result<()> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let conversations = messages.div_ceil(MESSAGES);
    let statements = format!(
        "SET search_path = sidekeep, public; \
         INSERT INTO subjects (subject_id, user_id, wrapped_key, kek_id) VALUES (1, 'bench', '\\x00', 'bench'); \
         INSERT INTO conversations (id, subject_id, archived, message_count, version, created_at, updated_at) \
             SELECT 'c' || c, 1, false, {MESSAGES}, 1, now(), now() FROM generate_series(1, {conversations}) c; \
         INSERT INTO conversation_messages (conversation_id, position, message_sealed, created_at) \
             SELECT 'c' || c, m, (SELECT decode(string_agg(md5(random()::text || c || m || g), ''), 'hex') FROM generate_series(1, 16) g), \
             now() FROM generate_series(1, {conversations}) c, generate_series(0, {MESSAGES} - 1) m; \
         ANALYZE; CHECKPOINT"
    );
    for statement in statements.split("; ") {
        client.batch_execute(statement).await.with_context(|| statement.to_owned())?;
    }
    Ok(())
}

/// The same dump by hand.
fn pg_dump(place: &Place) -> anyhow::Result<Duration> {
    let program = Program::find("pg_dump", 0)?;
    let file = place.directory().join("bare");
    let begun = Instant::now();
    let done = Command::new(program.path)
        .args([
            place.owner_url().as_str(),
            "-Fc",
            "-n",
            "sidekeep",
            "--exclude-table-data=sidekeep.subjects",
            "-f",
        ])
        .arg(&file)
        .output()?;
    if !done.status.success() {
        bail!("pg_dump: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(begun.elapsed())
}

fn back_up(daemon: &Daemon) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut run = daemon.connect()?.call("job.run", &json!({ "name": "backup", "wait": "25s" }))?;
    while run.get("state").is_some_and(|state| state == "running") {
        std::thread::sleep(Duration::from_millis(20));
        let runs = daemon.connect()?.call("job.history", &json!({ "name": "backup", "limit": 1 }))?;
        run = runs.get("items").and_then(|items| items.get(0)).context("no run")?.clone();
    }
    if run.get("state").is_none_or(|state| state != "ok") {
        bail!("backup: {run}");
    }
    Ok(begun.elapsed())
}
