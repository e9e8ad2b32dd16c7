//! `profile.get` against the SELECT that it makes, through tokio-postgres on the same PostgreSQL.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_postgres::{Client as Postgres, NoTls, Statement};
use tokio_util::task::TaskTracker;

use crate::Extent;
use crate::round_trip::rate;
use crate::support::client::request;
use crate::support::load::{Load, Shape};
use crate::support::place::{Daemon, Place};
use crate::support::placement::OneCpu;
use crate::support::report::{Report, Target, Turns, microseconds, times};

const USER: &str = "bench-profile";
/// The columns and the join of `profile.get`.
const SELECT: &str = "SELECT s.subject_id, s.user_id, s.wrapped_key, s.kek_id, s.restricted_at, \
    p.username_sealed, p.email_sealed, p.full_name_sealed, p.metadata_sealed, p.version, p.created_at, p.updated_at \
    FROM sidekeep.subjects s JOIN sidekeep.user_profiles p USING (subject_id) WHERE s.user_id = $1 LIMIT 1";

/// One connection and one call at a time; then 32 connections.
pub(crate) fn get(report: &mut Report, place: &Place, daemon: &Daemon, extent: Extent) -> anyhow::Result<()> {
    const CALLS: u32 = 50;
    let mut ours = daemon.connect()?;
    ours.call(
        "profile.create",
        &json!({
            "user_id": USER, "username": "ada", "email": "ada@example.org", "full_name": "Ada Lovelace",
            "metadata": { "team": "engines", "language": "en" },
        }),
    )?;
    let line = request("profile.get", &json!({ "user_id": USER }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (postgres, statement) = runtime.block_on(connect(&place.url()))?;
    let held = OneCpu::hold(&[daemon.id(), place.postgres()])?;
    let mut turns = Turns::default();
    for _ in 0..extent.turns * 20 {
        turns.add(runtime.block_on(select(&postgres, &statement, CALLS))?, ours.times(&line, CALLS)?);
    }
    drop(held);
    report.section("profile.get, one connection, one call at a time, all on one CPU");
    report.figure("the same SELECT through tokio-postgres, prepared", &times(&mut turns.baseline));
    report.figure("profile.get", &times(&mut turns.ours));
    report.target("profile.get / SELECT", turns.ratio(), "", Target::AtMost(1.5));

    let load = Load::new()?;
    for depth in [1, 16] {
        let shape = Shape { connections: 32, depth, length: Duration::from_secs(1) };
        let rate = rate(&load, daemon.socket(), &line, shape)?;
        report.figure(&format!("profile.get, 32 connections x {depth}"), &format!("{rate:>9.0}/s"));
    }
    Ok(())
}

async fn connect(url: &str) -> anyhow::Result<(Postgres, Statement)> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    TaskTracker::new().spawn(connection);
    let statement = client.prepare(SELECT).await?;
    Ok((client, statement))
}

/// How long each takes until its columns are read, in microseconds.
async fn select(client: &Postgres, statement: &Statement, count: u32) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..count {
        let begun = Instant::now();
        let row = client.query_one(statement, &[&USER]).await?;
        let _: (i64, Vec<u8>, Vec<u8>, Vec<u8>) =
            (row.try_get(0)?, row.try_get(2)?, row.try_get(5)?, row.try_get(6)?);
        times.push(microseconds(begun.elapsed()));
    }
    Ok(times)
}
