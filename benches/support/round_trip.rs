//! `system.health` against an echo of the same requests.

use std::time::Duration;

use serde_json::Value;

use super::client::{Client, request};
use super::echo::Echo;
use super::load::{Load, Shape};
use super::place::Daemon;
use super::report::{Report, Target, median, times};
use crate::Extent;

/// One connection, one call at a time.
pub(crate) fn one_at_a_time(
    report: &mut Report,
    daemon: &Daemon,
    echo: &Echo,
    extent: Extent,
) -> anyhow::Result<()> {
    const CALLS: u32 = 4000;
    let line = request("system.health", &Value::Null);
    let (mut baseline, mut ours) = (Client::connect(echo.path())?, Client::connect(daemon.socket())?);
    let (mut all_baseline, mut all_ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..extent.turns {
        let mut baseline = baseline.times(&line, CALLS)?;
        let mut ours = ours.times(&line, CALLS)?;
        ratios.push(median(&mut ours) / median(&mut baseline));
        all_baseline.append(&mut baseline);
        all_ours.append(&mut ours);
    }
    report.section("system.health, one connection, one call at a time");
    report.figure("bare echo of the request", &times(&mut all_baseline));
    report.figure("system.health", &times(&mut all_ours));
    report.target("system.health / echo", median(&mut ratios), "", Target::AtMost(2.5));
    Ok(())
}

/// 32 connections with several calls in flight on each.
pub(crate) fn pipelined(
    report: &mut Report,
    daemon: &Daemon,
    echo: &Echo,
    extent: Extent,
) -> anyhow::Result<()> {
    let (line, load) = (request("system.health", &Value::Null), Load::new()?);
    report.section("system.health, 32 connections, pipelined");
    for depth in [16, 1, 64] {
        let shape = Shape { connections: 32, depth, length: Duration::from_millis(300) };
        let (mut all_baseline, mut all_ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..extent.turns {
            let baseline = load.rate(echo.path(), &line, shape)?;
            let ours = load.rate(daemon.socket(), &line, shape)?;
            ratios.push(ours / baseline);
            all_baseline.push(baseline);
            all_ours.push(ours);
        }
        let ratio = median(&mut ratios);
        let figures = format!("{:>9.0}/s   echo {:>9.0}/s", median(&mut all_ours), median(&mut all_baseline));
        report.figure(&format!("{depth} in flight on each"), &figures);
        if depth == 16 {
            report.target("system.health / echo, 32 x 16", ratio, "", Target::AtLeast(0.4));
        } else {
            report.figure(&format!("system.health / echo, 32 x {depth}"), &format!("{ratio:.2}"));
        }
    }
    Ok(())
}
