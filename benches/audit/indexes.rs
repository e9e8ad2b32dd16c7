//! What each index of `audit_logs` is for, and what it costs: only by `-- indexes`, as it takes a quarter of an hour.
//!
//! Ten million entries of 100,000 persons lie in one month. For each index the query of the interface that needs it is timed with and
//! without it (dropped in a transaction that is rolled back), in the caches' favour: the middle of five. Then 200,000 rows are copied,
//! in turns, into the month with all indexes and into months of which each lacks one.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{SinkExt as _, TryStreamExt as _};
use tokio_postgres::Client;

use crate::Extent;
use crate::baseline::connect;
use crate::support::place::Place;
use crate::support::report::{Report, median};

/// So that the log before ten million rows does not fill the disk.
const MODEST: [(&str, &str); 5] = [
    ("shared_buffers", "512MB"),
    ("max_wal_size", "1GB"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("autovacuum", "off"),
];

const ENTRIES: u32 = 10_000_000;
const COPIED: u32 = 200_000;

/// Rows as [`crate::entries`] has them, some 0.2 s of PostgreSQL's time apart, up to now.
const FILL: &str = "INSERT INTO sidekeep.audit_logs (stream, position, recorded_at, format, id, actor_id, subject_id, action, \
    resource_type, resource_id, outcome, labels, client_sealed, metadata_sealed, leaf_hash) \
    SELECT n % 2, n / 2, date_trunc('month', now()) + (now() - date_trunc('month', now())) * (n::float8 / $2), 1, \
        lpad(to_hex(n), 12, '0') || '-7000-8000-' || substr(md5(n::text), 1, 12), 1 + abs(hashint8(n)) % 100000, \
        CASE WHEN n % 4 < 2 THEN 1 + abs(hashint8(n + 1)) % 100000 END, \
        (ARRAY['invoice.read', 'invoice.export', 'order.update', 'address.read', 'ticket.read', 'user.login'])[1 + n % 6], \
        'invoice', 'inv-' || abs(hashint8(n + 2)) % 1000000, 'success', \
        jsonb_build_object('region', 'eu', 'tenant', 't' || abs(hashint8(n + 3)) % 50), \
        decode(repeat(md5(n::text), 8), 'hex'), decode(repeat(md5(n::text), 6), 'hex'), decode(md5(n::text) || md5(n::text), 'hex') \
    FROM generate_series($1::bigint, $1::bigint + 249999) AS n";

const COLUMNS: &str = "SELECT * FROM sidekeep.audit_logs WHERE";
const ORDER: &str = "ORDER BY recorded_at DESC, stream DESC, position DESC LIMIT 101";

/// An index, and the filter of the query that needs it.
const NEEDED: [(&str, &str, &str); 6] = [
    (
        "the primary key",
        "stream = 1 AND position = 2500000",
        "audit.get by position, audit.prove, audit.tail",
    ),
    (
        "id",
        "id = (SELECT id FROM sidekeep.audit_logs WHERE stream = 1 AND position = 77)",
        "audit.get by id, repeated ids",
    ),
    ("audit_logs_by_time", "outcome = 'success'", "audit.query without a person"),
    ("audit_logs_by_actor", "actor_id = 4711", "audit.query by user_id"),
    ("audit_logs_by_subject", "subject_id = 4711", "audit.query by subject_user_id, subject.accesses"),
    ("audit_logs_by_resource", "resource_id = 'inv-4711'", "audit.query by resource_id"),
];

/// Queries and costs.
pub(crate) fn run(report: &mut Report, extent: Extent) -> anyhow::Result<()> {
    let place = Place::new(&MODEST)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = connect(&place.owner_url()).await?;
        let fill = client.prepare(FILL).await?;
        for from in (0..ENTRIES).step_by(250_000) {
            client.execute(&fill, &[&i64::from(from), &f64::from(ENTRIES)]).await?;
        }
        client.batch_execute("VACUUM ANALYZE sidekeep.audit_logs").await?;
        let month: String = client
            .query_one("SELECT tableoid::regclass::text FROM sidekeep.audit_logs LIMIT 1", &[])
            .await?
            .try_get(0)?;
        report.section(&format!("queries at {ENTRIES} entries: with the index, and without"));
        for (index, filter, used) in NEEDED {
            let order = if index == "id" || index == "the primary key" { "" } else { ORDER };
            let query = format!("{COLUMNS} {filter} {order}");
            let with = timed(&client, &query).await?;
            client.batch_execute("BEGIN").await?;
            client.batch_execute(&dropping(index, &month)).await?;
            let without = timed(&client, &query).await?;
            client.batch_execute("ROLLBACK").await?;
            report.figure(
                &format!("{index}: {used}"),
                &format!("{:>9.2} ms   {:>9.0} ms", with * 1e3, without * 1e3),
            );
        }
        costs(report, &client, &month, extent).await
    })
}

/// What takes an index away.
fn dropping(index: &str, month: &str) -> String {
    let table = month.strip_prefix("sidekeep.").unwrap_or(month);
    match index {
        "id" => format!("DROP INDEX sidekeep.{table}_id"),
        "the primary key" => "ALTER TABLE sidekeep.audit_logs DROP CONSTRAINT audit_logs_pkey".to_owned(),
        index => format!("DROP INDEX sidekeep.{index}"),
    }
}

/// The middle of five, in seconds.
async fn timed(client: &Client, query: &str) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        client.simple_query(query).await?;
        times.push(begun.elapsed().as_secs_f64());
        if begun.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    Ok(median(&mut times))
}

/// Microseconds more that a row costs with an index: on top of the ten million, where the index is as deep as it gets in a month.
async fn costs(report: &Report, client: &Client, month: &str, extent: Extent) -> anyhow::Result<()> {
    let newest = format!(
        "COPY (SELECT stream + 10, position, recorded_at, format, id || 'c', actor_id, subject_id, action, resource_type, \
         resource_id, outcome, occurred_at, labels, client_sealed, metadata_sealed, leaf_hash FROM {month} \
         ORDER BY recorded_at DESC LIMIT {COPIED}) TO STDOUT (FORMAT binary)"
    );
    let rows: Vec<Bytes> = client.copy_out(&newest).await?.try_collect().await?;
    let rows = Bytes::from(rows.concat());
    let mut all = Vec::new();
    let mut lacking: Vec<Vec<f64>> = NEEDED.iter().map(|_| Vec::new()).collect();
    for _ in 0..(extent.turns / 4).max(2) {
        all.push(copied(client, month, None, &rows).await?);
        for ((index, _, _), times) in NEEDED.iter().zip(&mut lacking) {
            times.push(copied(client, month, Some(index), &rows).await?);
        }
    }
    let each = |times: &mut [f64]| median(times) * 1e6 / f64::from(COPIED);
    let with = each(&mut all);
    report.section("what a row costs by COPY at this size");
    report.figure("with all indexes", &format!("{with:>9.2} us"));
    for ((index, _, _), times) in NEEDED.iter().zip(&mut lacking) {
        report.figure(&format!("    of these {index}"), &format!("{:>9.2} us", with - each(times)));
    }
    Ok(())
}

/// How long one `COPY` takes, which is rolled back.
async fn copied(client: &Client, month: &str, without: Option<&str>, rows: &Bytes) -> anyhow::Result<f64> {
    client.batch_execute("BEGIN").await?;
    if let Some(index) = without {
        client.batch_execute(&dropping(index, month)).await.context(index.to_owned())?;
    }
    let begun = Instant::now();
    let sink = client.copy_in::<_, Bytes>(&format!("COPY {month} FROM STDIN (FORMAT binary)")).await?;
    let mut sink = std::pin::pin!(sink);
    for at in (0..rows.len()).step_by(64 * 1024) {
        sink.send(rows.slice(at..rows.len().min(at + 64 * 1024))).await?;
    }
    sink.finish().await?;
    let took = begun.elapsed().as_secs_f64();
    client.batch_execute("ROLLBACK").await?;
    Ok(took)
}
