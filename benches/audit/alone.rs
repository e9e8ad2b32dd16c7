//! One caller alone: an append beside an INSERT with its COMMIT, and a read with its access entry beside the two apart.

use serde_json::json;

use crate::baseline::{Baseline, Commit};
use crate::entries::{self, entry};
use crate::support::client::request;
use crate::support::load::{Load, Shape};
use crate::support::place::Place;
use crate::support::placement::OneCpu;
use crate::support::report::{Report, Target, Turns, times};
use crate::{Extent, SETTINGS, append};

/// Calls in a turn of each.
const CALLS: u32 = 20;

/// On one CPU, so that luck does not decide who has to wake whom across two.
pub(crate) fn run(report: &mut Report, extent: Extent) -> anyhow::Result<()> {
    let place = Place::new(&SETTINGS)?;
    let silent = place.serve("silent", "access = \"none\"")?;
    let shape = Shape { connections: append::CONNECTIONS, depth: append::DEPTH, length: append::SECOND };
    Load::new()?.run(&[silent.socket()], &entries::appends(), shape)?;
    let entering = place.serve("entering", "access = \"all\"")?;
    let baseline = Baseline::new(&place)?;
    let mut inserter = baseline.inserter()?;
    let (mut without, mut with) = (silent.connect()?, entering.connect()?);
    without.call(
        "profile.create",
        &json!({ "user_id": "user-0", "username": "ada", "email": "ada@example.org", "full_name": "Ada Lovelace" }),
    )?;
    let one = request("audit.append", &entry(0));
    let read = request("profile.get", &json!({ "user_id": "user-0", "context": { "user_id": "user-1" } }));
    let held = OneCpu::hold(&[silent.id(), entering.id(), place.postgres()])?;
    let (mut appends, mut bare, mut reads) = (Turns::default(), Turns::default(), Turns::default());
    for _ in 0..extent.turns * 20 {
        let transactions = baseline.times(&mut inserter, Commit::Explicit, CALLS)?;
        let statements = baseline.times(&mut inserter, Commit::Implicit, CALLS)?;
        let appended = without.times(&one, CALLS)?;
        appends.add(transactions, appended.clone());
        bare.add(statements, appended);
        // One after the other, as the two parts of the third: what alternates finds less of itself in the caches.
        let apart = without.sequences(&[&read, &one], CALLS)?;
        reads.add(apart, with.times(&read, CALLS)?);
    }
    drop(held);
    report.section("one caller alone, all on one CPU");
    report.figure("BEGIN, INSERT of the row, prepared, and COMMIT", &times(&mut appends.baseline));
    report.figure("INSERT of the row, prepared, that commits by itself", &times(&mut bare.baseline));
    report.figure("audit.append", &times(&mut appends.ours));
    report.figure("profile.get without its entry, and an audit.append", &times(&mut reads.baseline));
    report.figure("profile.get with its entry", &times(&mut reads.ours));
    report.target("audit.append / BEGIN, INSERT, COMMIT", appends.ratio(), "", Target::AtMost(1.6));
    report.figure("    the same / INSERT that commits by itself", &format!("{:.2}", bare.ratio()));
    report.target("profile.get with its entry / both apart", reads.ratio(), "", Target::AtMost(1.0));
    Ok(())
}
