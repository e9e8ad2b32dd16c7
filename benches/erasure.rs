//! Erasing somebody whom many entries of the audit log name, beside somebody whom few do, and beside the classic way.
//!
//! `cargo bench --bench erasure` makes people with 10 and with 100,000 entries (`-- --quick`: 10,000) in a private PostgreSQL
//! whose commits reach the disk, and erases them through the real daemon. The classic way is
//! `UPDATE audit_logs SET user_id = 'anonymized'` on the same rows in a plain table with an index on the user id. Ends with one
//! PASS or FAIL for the target.
//!
//! How it is fair: person by person in turns, each with the same records, so that whatever else the machine does meets all.

mod support {
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod client;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod place;
    #[expect(dead_code, reason = "the other benchmark uses the rest")]
    pub(crate) mod report;
}

use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use support::client::Client;
use support::place::Place;
use support::report::{Report, Target, median, microseconds};
use tokio_postgres::{Client as Postgres, NoTls};
use tokio_util::task::TaskTracker;

const FEW: usize = 10;
/// As many as one call takes.
const BATCH: usize = 1000;

const PLAIN: &str = "CREATE TABLE plain_audit (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text NOT NULL, \
        at timestamptz NOT NULL, action text NOT NULL, ip_address text, metadata jsonb); \
    CREATE INDEX plain_audit_by_user ON plain_audit (user_id, at)";
/// The rows of one person, as a table without sidekeep would hold them.
const COPY: &str = "INSERT INTO plain_audit (user_id, at, action, ip_address, metadata) \
    SELECT $1, l.recorded_at, l.action, '192.0.2.1', '{\"invoice\": 17}' FROM sidekeep.audit_logs l \
    JOIN sidekeep.subjects s ON s.subject_id = l.actor_id WHERE s.user_id = $1";
const CLASSIC: &str =
    "UPDATE plain_audit SET user_id = 'anonymized', ip_address = NULL, metadata = NULL WHERE user_id = $1";

fn main() -> anyhow::Result<ExitCode> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (many, turns) = if quick { (10_000, 3) } else { (100_000, 5) };
    let place = Place::new(&[])?;
    let daemon = place.serve("sidekeep", "")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let url = std::fs::read_to_string(place.directory().join("owner-url"))?;
    let postgres = runtime.block_on(connect(&url))?;
    runtime.block_on(postgres.batch_execute(PLAIN))?;

    let mut client = daemon.connect()?;
    // The first of anything is slower: statements are prepared, and pages read.
    make(&mut client, "warm", FEW)?;
    erase(&mut client, "warm")?;
    let (mut few, mut lot, mut classic) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..turns {
        let (small, large) = (format!("few-{turn}"), format!("many-{turn}"));
        make(&mut client, &small, FEW)?;
        make(&mut client, &large, many)?;
        runtime.block_on(postgres.execute(COPY, &[&large]))?;
        runtime.block_on(postgres.batch_execute("CHECKPOINT"))?;
        few.push(erase(&mut client, &small)?);
        lot.push(erase(&mut client, &large)?);
        let begun = Instant::now();
        runtime.block_on(postgres.execute(CLASSIC, &[&large]))?;
        classic.push(microseconds(begun.elapsed()));
    }
    let mut report = Report::default();
    report.section("subject.erase, with its commit");
    let milliseconds = |figures: &mut [f64]| median(figures) / 1000.0;
    let (few, lot, classic) = (milliseconds(&mut few), milliseconds(&mut lot), milliseconds(&mut classic));
    report.figure(&format!("{FEW} entries"), &format!("{few:>9.2} ms"));
    report.figure(&format!("{many} entries"), &format!("{lot:>9.2} ms"));
    report.figure(&format!("UPDATE of {many} rows in a plain table"), &format!("{classic:>9.2} ms"));
    report.figure("the UPDATE / subject.erase", &format!("{:.1}", classic / lot));
    report.target(&format!("{many} entries / {FEW} entries"), lot / few, "", Target::AtMost(2.0));
    Ok(report.verdict())
}

/// A person with the same few records as the others, and so many entries.
fn make(client: &mut Client, user_id: &str, entries: usize) -> anyhow::Result<()> {
    client.call(
        "profile.create",
        &json!({ "user_id": user_id, "username": "ada", "email": "ada@example.org", "full_name": "Ada Lovelace" }),
    )?;
    client.call("preferences.set", &json!({ "user_id": user_id, "preferences": { "language": "en" } }))?;
    client.call(
        "consent.record",
        &json!({ "user_id": user_id, "consent_type": "newsletter", "granted": true }),
    )?;
    let message = json!({ "role": "user", "content": "Where is my order?" });
    client.call("conversation.create", &json!({ "user_id": user_id, "messages": [message] }))?;
    let entry = json!({ "user_id": user_id, "action": "invoice.read", "ip_address": "192.0.2.1", "metadata": { "invoice": 17 } });
    let mut left = entries;
    while left > 0 {
        let count = left.min(BATCH);
        client.call("audit.append_many", &json!({ "entries": vec![&entry; count] }))?;
        left -= count;
    }
    Ok(())
}

/// How long an erasure takes, in microseconds.
fn erase(client: &mut Client, user_id: &str) -> anyhow::Result<f64> {
    let (took, _) = client.timed("subject.erase", &json!({ "user_id": user_id, "reason": "request" }))?;
    Ok(microseconds(took))
}

async fn connect(url: &str) -> anyhow::Result<Postgres> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    TaskTracker::new().spawn(connection);
    Ok(client)
}
