//! Acknowledged appends under load, beside `COPY`, INSERTs and Redis.

use std::path::Path;
use std::time::Duration;

use crate::baseline::{Baseline, Commit};
use crate::cost::{self, Cost};
use crate::entries;
use crate::redis::Redis;
use crate::support::load::{Lines, Load, Shape};
use crate::support::place::{Daemon, Place};
use crate::support::report::{Report, Target, Turns, median};
use crate::{Extent, SETTINGS, work};

pub(crate) const CONNECTIONS: u32 = 32;
/// Calls in flight on each connection.
pub(crate) const DEPTH: usize = 16;
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// Rates and costs of one way of writing.
#[derive(Debug, Default)]
struct Way {
    rates: Vec<f64>,
    costs: Vec<Cost>,
}

impl Way {
    fn add(&mut self, rate: f64, cost: Cost) -> f64 {
        self.rates.push(rate);
        self.costs.push(cost);
        rate
    }

    fn print(&mut self, report: &Report, name: &str) {
        let (rate, cost) = (median(&mut self.rates), self.cost());
        let figures = format!(
            "{rate:>9.0}/s   {:>5.1} us: daemon {:>4.1}, PostgreSQL {:>4.1}, client {:>4.1}",
            cost.total(),
            cost.daemon,
            cost.postgres,
            cost.load
        );
        report.figure(name, &figures);
    }

    fn cost(&self) -> Cost {
        cost::median(&self.costs)
    }
}

/// A load on one daemon, and the `COPY` of the same rows.
struct Bench<'a> {
    place: &'a Place,
    baseline: Baseline,
    load: Load,
    lines: Lines,
    copies: Way,
}

impl Bench<'_> {
    /// Entries a second.
    fn appends(&self, daemon: &Daemon, depth: usize, way: &mut Way) -> anyhow::Result<(f64, u32)> {
        let shape = Shape { connections: CONNECTIONS, depth, length: SECOND };
        let since = Cost::now(&[daemon.id()], self.place.postgres());
        let answers = self.load.run(&[daemon.socket()], &self.lines, shape)?;
        let cost = Cost::now(&[daemon.id()], self.place.postgres()).each(since, f64::from(answers.count));
        Ok((way.add(answers.rate(), cost), answers.count))
    }

    /// The same entries by `COPY`; each answer before must have been an entry.
    fn copies(&mut self, appended: u32) -> anyhow::Result<f64> {
        let rows = self.baseline.take()?;
        anyhow::ensure!(rows.count >= appended, "{appended} answers, and {} entries", rows.count);
        let since = Cost::now(&[], self.place.postgres());
        let answers = self.baseline.copy(rows)?;
        let cost = Cost::now(&[], self.place.postgres()).each(since, f64::from(answers.count));
        Ok(self.copies.add(answers.rate(), cost))
    }

    fn insert(&self, commit: Commit, way: &mut Way) -> anyhow::Result<f64> {
        let since = Cost::now(&[], self.place.postgres());
        let answers = self.baseline.insert(32, commit, SECOND / 2)?;
        let cost = Cost::now(&[], self.place.postgres()).each(since, f64::from(answers.count));
        Ok(way.add(answers.rate(), cost))
    }

    fn add(&self, socket: &Path, additions: &Lines) -> anyhow::Result<f64> {
        let shape = Shape { connections: CONNECTIONS, depth: 1, length: SECOND / 2 };
        Ok(self.load.run(&[socket], additions, shape)?.rate())
    }
}

/// One daemon with one stream, then with two.
pub(crate) fn run(report: &mut Report, extent: Extent) -> anyhow::Result<()> {
    let place = Place::new(&SETTINGS)?;
    let (one, two) = (place.serve("one", "streams = 1")?, place.serve("two", "streams = 2")?);
    let mut bench = Bench {
        baseline: Baseline::new(&place)?,
        place: &place,
        load: Load::new()?,
        lines: entries::appends(),
        copies: Way::default(),
    };
    for daemon in [&one, &two] {
        // Until all persons are there, and known to each writer.
        let shape = Shape { connections: CONNECTIONS, depth: DEPTH, length: SECOND * 3 };
        bench.load.run(&[daemon.socket()], &bench.lines, shape)?;
    }
    let warm = bench.baseline.take()?;
    bench.baseline.copy(warm)?;
    let redis = Redis::start(place.directory())?;
    let additions = Redis::additions();

    let (mut ones, mut twos, mut single) = (Way::default(), Way::default(), Way::default());
    let (mut transactions, mut statements) = (Way::default(), Way::default());
    let (mut one_to_copy, mut two_to_copy) = (Turns::default(), Turns::default());
    let (mut to_transactions, mut to_statements, mut to_redis) =
        (Turns::default(), Turns::default(), Turns::default());
    for _ in 0..extent.turns {
        let (rate_of_one, count) = bench.appends(&one, DEPTH, &mut ones)?;
        one_to_copy.add(vec![bench.copies(count)?], vec![rate_of_one]);
        let (rate_of_two, count) = bench.appends(&two, DEPTH, &mut twos)?;
        two_to_copy.add(vec![bench.copies(count)?], vec![rate_of_two]);
        let inserted = bench.insert(Commit::Explicit, &mut transactions)?;
        to_transactions.add(vec![inserted], vec![rate_of_two]);
        let inserted = bench.insert(Commit::Implicit, &mut statements)?;
        to_statements.add(vec![inserted], vec![rate_of_two]);
        if let Some(redis) = &redis {
            to_redis.add(vec![bench.add(&redis.socket, &additions)?], vec![rate_of_two]);
        }
        bench.appends(&two, 1, &mut single)?;
        bench.baseline.take()?;
    }

    report.section(&format!(
        "audit.append, {CONNECTIONS} connections x {DEPTH}, {} bytes each: acknowledged in a second, processor time of each",
        entries::bytes()
    ));
    bench.copies.print(report, "COPY, binary, of the same rows");
    transactions.print(report, "32 x BEGIN, INSERT, prepared, and COMMIT");
    statements.print(report, "32 x INSERT, prepared, that commits by itself");
    ones.print(report, "audit.append, one stream");
    twos.print(report, "audit.append, two streams");
    single.print(report, "    the same with one call in flight on each connection");
    if redis.is_some() {
        report.figure(
            "Redis XADD, appendfsync always, 32 x 1",
            &format!("{:>9.0}/s", median(&mut to_redis.baseline)),
        );
    } else {
        report.figure("Redis XADD", "skipped: redis-server is not installed");
    }
    report.target("one stream / COPY", one_to_copy.ratio(), "", Target::AtLeast(0.35));
    report.target("two streams / COPY", two_to_copy.ratio(), "", Target::AtLeast(0.5));
    report.target(
        "two streams / 32 x BEGIN, INSERT, COMMIT",
        to_transactions.ratio(),
        "",
        Target::AtLeast(5.0),
    );
    report.figure("    the same / INSERT that commits by itself", &format!("{:.2}", to_statements.ratio()));
    if redis.is_some() {
        report.target("two streams / Redis XADD", to_redis.ratio(), "", Target::AtLeast(1.0));
    }
    work::of_the_proof(report, &place, median(&mut twos.rates), twos.cost())
}
