//! One caller alone: an append beside a bare INSERT with its COMMIT, and a read with its access entry beside the two apart.

use serde_json::json;

use crate::baseline::Baseline;
use crate::entries::{self, entry};
use crate::support::client::request;
use crate::support::load::{Load, Shape};
use crate::support::place::Place;
use crate::support::placement::OneCpu;
use crate::support::report::{Report, Target, Turns, median, times};
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
    let (mut appends, mut reads) = (Turns::default(), Turns::default());
    for _ in 0..extent.turns * 20 {
        let inserted = baseline.times(&mut inserter, CALLS)?;
        let mut appended = without.times(&one, CALLS)?;
        let mut bare = without.times(&read, CALLS)?;
        let apart = median(&mut bare) + median(&mut appended);
        appends.add(inserted, appended);
        reads.add(vec![apart], with.times(&read, CALLS)?);
    }
    drop(held);
    report.section("one caller alone, all on one CPU");
    report.figure("INSERT and COMMIT of the row, prepared", &times(&mut appends.baseline));
    report.figure("audit.append", &times(&mut appends.ours));
    report.figure("profile.get without its entry, and an audit.append", &times(&mut reads.baseline));
    report.figure("profile.get with its entry", &times(&mut reads.ours));
    report.target("audit.append / INSERT", appends.ratio(), "", Target::AtMost(1.6));
    report.target("profile.get with its entry / both apart", reads.ratio(), "", Target::AtMost(1.0));
    Ok(())
}
