//! Eight daemons on one database beside one alone: they share no lock, so together they append as much.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::append::{CONNECTIONS, DEPTH, SECOND};
use crate::baseline::connect;
use crate::entries;
use crate::support::load::{Load, Shape};
use crate::support::place::{Daemon, Place};
use crate::support::report::{Report, Target, Turns, median};
use crate::{Extent, SETTINGS};

const DAEMONS: u32 = 8;
const SAMPLES: u32 = 1000;
/// How many writers of the log wait for a lock; how many for PostgreSQL to make a file longer, which it calls a lock too though
/// nobody holds it longer than that takes; how many are at work.
const LOCKS: &str = "SELECT count(*) FILTER (WHERE wait_event_type = 'Lock' AND wait_event <> 'extend'), \
    count(*) FILTER (WHERE wait_event_type = 'Lock' AND wait_event = 'extend'), count(*) FILTER (WHERE state = 'active') \
    FROM pg_stat_activity WHERE application_name = 'sidekeep'";

/// The same load, on all and on one.
pub(crate) fn run(report: &mut Report, extent: Extent) -> anyhow::Result<()> {
    let place = Place::new(&SETTINGS)?;
    let daemons = (0..DAEMONS)
        .map(|number| place.serve(&format!("d{number}"), ""))
        .collect::<anyhow::Result<Vec<Daemon>>>()?;
    let one = daemons.first().context("no daemon")?;
    let sockets: Vec<&Path> = daemons.iter().map(Daemon::socket).collect();
    let (load, lines) = (Load::new()?, entries::appends());
    let shape = Shape { connections: CONNECTIONS, depth: DEPTH, length: SECOND };
    for daemon in &daemons {
        load.run(&[daemon.socket()], &lines, Shape { length: SECOND * 2, ..shape })?;
    }
    let (mut turns, mut alone, mut together) = (Turns::default(), Vec::new(), Vec::new());
    for _ in 0..extent.turns {
        let before = batches(&[one])?;
        let baseline = load.run(&[one.socket()], &lines, shape)?.rate();
        alone.push(batches(&[one])?.since(before));
        let all: Vec<&Daemon> = daemons.iter().collect();
        let before = batches(&all)?;
        let ours = load.run(&sockets, &lines, shape)?.rate();
        together.push(batches(&all)?.since(before));
        turns.add(vec![baseline], vec![ours]);
    }
    let Samples { waits, extensions, active } =
        sample(&place, || load.run(&sockets, &lines, shape).map(drop))?;
    let slowest = daemons.iter().map(|daemon| daemon.ready_after.as_secs_f64()).fold(0.0, f64::max);
    report.section(&format!(
        "eight daemons with two streams each on one database, {CONNECTIONS} connections x {DEPTH} in all"
    ));
    report.figure("the slowest was ready after", &format!("{slowest:>9.2} s"));
    report.figure("one of them alone", &format!("{:>9.0}/s", median(&mut turns.baseline)));
    report.figure("all together", &format!("{:>9.0}/s", median(&mut turns.ours)));
    report.figure("entries in a commit, all together", &format!("{:>9.0}", median(&mut together)));
    report.figure("sessions at work, in the middle of the samples", &format!("{active:>9.0}"));
    report.figure("waits for a longer file in all samples", &format!("{extensions:>9.0}"));
    report.target("entries in a commit, one alone", median(&mut alone), "", Target::AtLeast(50.0));
    report.target("eight / one", turns.ratio(), "", Target::AtLeast(0.8));
    report.target(&format!("waits for a lock in {SAMPLES} samples"), waits, "", Target::AtMost(0.0));
    Ok(())
}

/// What the sessions were seen to do, all samples together.
struct Samples {
    waits: f64,
    extensions: f64,
    /// In the middle of the samples.
    active: f64,
}

/// Samples what the sessions wait for while the load is on.
fn sample(place: &Place, mut load: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Samples> {
    let url = place.owner_url();
    let sampling = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            let client = connect(&url).await?;
            let statement = client.prepare(LOCKS).await?;
            let (mut waits, mut extensions, mut active) = (0.0, 0.0, Vec::new());
            let count = |row: &tokio_postgres::Row, at: usize| -> anyhow::Result<f64> {
                Ok(f64::from(u32::try_from(row.try_get::<_, i64>(at)?)?))
            };
            for _ in 0..SAMPLES {
                let row = client.query_one(&statement, &[]).await?;
                waits += count(&row, 0)?;
                extensions += count(&row, 1)?;
                active.push(count(&row, 2)?);
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
            anyhow::Ok(Samples { waits, extensions, active: median(&mut active) })
        })
    });
    while !sampling.is_finished() {
        load()?;
    }
    sampling.join().map_err(|_| anyhow::anyhow!("the sampler panicked"))?
}

/// Batches and entries, as the daemons count them.
#[derive(Clone, Copy, Debug, Default)]
struct Batches {
    entries: f64,
    commits: f64,
}

impl Batches {
    /// Entries in a commit since then.
    fn since(self, before: Self) -> f64 {
        (self.entries - before.entries) / (self.commits - before.commits).max(1.0)
    }
}

fn batches(daemons: &[&Daemon]) -> anyhow::Result<Batches> {
    let mut all = Batches::default();
    for daemon in daemons {
        let metrics = daemon.connect()?.call("system.metrics", &Value::Null)?;
        let text = metrics.get("text").and_then(Value::as_str).unwrap_or_default();
        let figure = |name: &str| -> anyhow::Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map_or(Ok(0.0), |figure| Ok(figure.trim().parse()?))
        };
        all.entries += figure("sidekeep_audit_batch_entries_sum ")?;
        all.commits += figure("sidekeep_audit_batch_entries_count ")?;
    }
    Ok(all)
}
