//! The job `retention` while calls go on: how long it holds what others wait for.
//!
//! `cargo bench --bench retention` makes 1,000,000 messages (`-- --quick`: 100,000) that are past their period in a private
//! PostgreSQL, a tenth of them in one conversation, and lets the real daemon remove them while the same persons are written
//! to, restricted and held. Ends with PASS or FAIL for the targets.
//!
//! How it is measured: side by side, another session looks into PostgreSQL again and again, for the transaction that has
//! held locks longest and for the one that has waited longest for a lock; whatever a disk does to a commit is in that. The
//! calls' own times are shown with and without the job.

mod support {
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod client;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod place;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod report;
}

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use support::place::{Daemon, Place, memory};
use support::report::{Report, Target, microseconds, times};

/// Of each conversation.
const MESSAGES: u32 = 100;
const PERSONS: u32 = 1000;
const MIB: f64 = 1024.0 * 1024.0;
/// How long the calls go on without the job.
const ALONE: Duration = Duration::from_secs(5);

/// For how long somebody has held a lock that others may wait for, and for how long somebody has waited, in milliseconds.
const LOOK: &str = "SELECT \
    coalesce((SELECT max(extract(epoch FROM clock_timestamp() - a.xact_start)) FROM pg_stat_activity a \
        WHERE a.usename = 'sidekeep_app' AND a.state <> 'idle' AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted \
            AND l.mode IN ('RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', \
                'ExclusiveLock', 'AccessExclusiveLock') AND l.locktype IN ('relation', 'tuple'))), 0)::float8 * 1000 AS held, \
    coalesce((SELECT max(extract(epoch FROM clock_timestamp() - l.waitstart)) FROM pg_locks l WHERE NOT l.granted), 0)::float8 * 1000 \
        AS waited";

fn main() -> anyhow::Result<ExitCode> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let messages: u32 = if quick { 100_000 } else { 1_000_000 };
    let place = Place::new(&[])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    {
        let daemon = place.serve("persons", "access = \"none\"")?;
        let mut client = daemon.connect()?;
        for number in 0..PERSONS {
            let of = person(number);
            client.call("conversation.create", &json!({ "user_id": of, "id": format!("of {of}") }))?;
        }
    }
    runtime.block_on(fill(&place.owner_url(), messages))?;
    let daemon = place.serve("sidekeep", "access = \"none\"")?;

    let mut report = Report::default();
    report.section(&format!("retention, {messages} messages that are due"));
    let (mut quiet, _) = beside(&daemon, || {
        std::thread::sleep(ALONE);
        Ok(())
    })?;
    let before = memory(daemon.id(), "VmRSS:")?;
    let over = AtomicBool::new(false);
    let ((mut calls, (took, run)), seen) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| runtime.block_on(watch(&place.owner_url(), &over)));
        let ran = beside(&daemon, || daemon.run("retention"));
        over.store(true, Ordering::Relaxed);
        let seen = watching.join().unwrap_or_else(|_| anyhow::bail!("a thread failed"));
        anyhow::Ok((ran?, seen?))
    })?;
    let more = (memory(daemon.id(), "VmHWM:")? - before) / MIB;
    let gone = run.pointer("/counts/conversations").and_then(Value::as_i64);
    ensure!(gone > Some(0), "nothing was removed: {run}");

    report.figure("messages a second", &format!("{:.0}", f64::from(messages) / took.as_secs_f64()));
    report.figure("calls without the job", &times(&mut quiet));
    report.figure("calls beside the job", &times(&mut calls));
    let longest = calls.iter().copied().fold(0.0, f64::max) / 1000.0;
    report.figure("the longest call beside the job", &format!("{longest:.1} ms of {} calls", calls.len()));
    report.figure("looks into PostgreSQL's locks", &seen.looks.to_string());
    report.target("a lock held, at the longest", seen.held, "ms", Target::AtMost(100.0));
    report.target("somebody waited for a lock, at the longest", seen.waited, "ms", Target::AtMost(100.0));
    report.target("memory of the daemon while it removes, more", more, "MiB", Target::AtMost(64.0));
    Ok(report.verdict())
}

fn person(number: u32) -> String {
    format!("person-{}", number % PERSONS)
}

/// Conversations that are past their period, of these persons; messages of random bytes, as sealed ones are.
#[expect(clippy::disallowed_methods, reason = "the benchmark has no daemon's tracker")]
async fn fill(url: &str, messages: u32) -> anyhow::Result<()> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let large = messages / 10;
    let many = (messages - large) / MESSAGES;
    let sealed = "(SELECT decode(string_agg(md5(random()::text || c.id || m || g), ''), 'hex') FROM generate_series(1, 16) g)";
    let statements = format!(
        "SET search_path = sidekeep, public; \
         CREATE TEMP TABLE persons AS SELECT subject_id, row_number() OVER (ORDER BY subject_id) AS number FROM subjects WHERE subject_id > 0; \
         INSERT INTO conversations (id, subject_id, archived, message_count, version, created_at, updated_at) \
             SELECT 'c' || c, p.subject_id, false, CASE c WHEN 0 THEN {large} ELSE {MESSAGES} END, 1, now() - interval '100 days', \
             now() FROM generate_series(0, {many}) c JOIN persons p ON p.number = 1 + c % {PERSONS}; \
         INSERT INTO conversation_messages (conversation_id, position, message_sealed, created_at) \
             SELECT c.id, m, {sealed}, now() - interval '100 days' FROM conversations c, generate_series(0, c.message_count - 1) m \
             WHERE c.id ~ '^c[0-9]+$'; \
         ANALYZE; CHECKPOINT"
    );
    for statement in statements.split("; ") {
        client.batch_execute(statement).await.with_context(|| statement.to_owned())?;
    }
    Ok(())
}

/// What was seen of locks, in milliseconds.
#[derive(Debug, Default)]
struct Seen {
    held: f64,
    waited: f64,
    looks: u64,
}

#[expect(clippy::disallowed_methods, reason = "the benchmark has no daemon's tracker")]
async fn watch(url: &str, over: &AtomicBool) -> anyhow::Result<Seen> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let look = client.prepare(LOOK).await?;
    let mut seen = Seen::default();
    while !over.load(Ordering::Relaxed) {
        let row = client.query_one(&look, &[]).await?;
        seen.held = seen.held.max(row.try_get("held")?);
        seen.waited = seen.waited.max(row.try_get("waited")?);
        seen.looks += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(seen)
}

/// Does something while calls go on that need the same persons; how long each call took, in microseconds.
fn beside<T>(daemon: &Daemon, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Vec<f64>, T)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Appending shares the person's row with the job; restricting takes it alone.
        let threads: Vec<_> = (0..4_u32)
            .map(|thread| {
                scope.spawn({
                    let over = &over;
                    move || {
                        let mut client = daemon.connect()?;
                        let mut took = Vec::new();
                        for number in (thread..).step_by(4) {
                            if over.load(Ordering::Relaxed) {
                                break;
                            }
                            let of = person(number * 7);
                            if thread == 0 {
                                for method in ["subject.restrict", "subject.unrestrict"] {
                                    let params = json!({ "user_id": of, "reason": "a benchmark" });
                                    took.push(microseconds(client.timed(method, &params)?.0));
                                }
                            } else {
                                let message = json!({ "role": "user", "content": "hello" });
                                let params = json!({ "id": format!("of {of}"), "messages": [message] });
                                match client.timed("conversation.append", &params) {
                                    Ok((time, _)) => took.push(microseconds(time)),
                                    // Somebody restricts the person at this moment.
                                    Err(error) if error.to_string().contains("restricted") => {}
                                    Err(error) => return Err(error),
                                }
                            }
                        }
                        anyhow::Ok(took)
                    }
                })
            })
            .collect();
        let output = work();
        over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().unwrap_or_else(|_| anyhow::bail!("a thread failed"))?);
        }
        Ok((all, output?))
    })
}
