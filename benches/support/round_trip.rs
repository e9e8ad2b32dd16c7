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
    const CALLS: u32 = 200;
    let line = request("system.health", &Value::Null);
    let (mut baseline, mut ours) = (Client::connect(&echo.by_message)?, Client::connect(daemon.socket())?);
    let (mut all_baseline, mut all_ours) = (Vec::new(), Vec::new());
    for _ in 0..extent.turns * 20 {
        all_baseline.append(&mut baseline.times(&line, CALLS)?);
        all_ours.append(&mut ours.times(&line, CALLS)?);
    }
    report.section("system.health, one connection, one call at a time");
    report.figure("bare echo of the request", &times(&mut all_baseline));
    report.figure("system.health", &times(&mut all_ours));
    let ratio = median(&mut all_ours) / median(&mut all_baseline);
    report.target("system.health / echo", ratio, "", Target::AtMost(2.5));
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
    report.section("system.health, 32 connections, pipelined: answers in a second");
    for depth in [1, 16, 64] {
        let shape = Shape { connections: 32, depth, length: Duration::from_millis(100) };
        let (mut ours, mut by_message, mut by_read) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..extent.turns {
            by_message.push(load.rate(&echo.by_message, &line, shape)?);
            ours.push(load.rate(daemon.socket(), &line, shape)?);
            by_read.push(load.rate(&echo.by_read, &line, shape)?);
        }
        let (ours, by_message, by_read) = (median(&mut ours), median(&mut by_message), median(&mut by_read));
        let figures = format!("{ours:>9.0}   echo {by_message:>9.0}, one write a read {by_read:>9.0}");
        report.figure(&format!("{depth} in flight on each"), &figures);
        if depth == 16 {
            let name = "system.health / echo, 32 x 16 in flight";
            report.target(name, ours / by_message, "", Target::AtLeast(0.4));
        } else {
            report.figure("    / echo", &format!("{:.2}", ours / by_message));
        }
        report.figure("    / echo with one write a read (the ceiling)", &format!("{:.2}", ours / by_read));
    }
    Ok(())
}
