//! `system.health` against an echo of the same requests.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::echo::Echo;
use crate::Extent;
use crate::support::client::{Client, request};
use crate::support::load::{Lines, Load, Shape};
use crate::support::place::Daemon;
use crate::support::placement::OneCpu;
use crate::support::report::{Report, Target, Turns, median, times};

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
    let held = OneCpu::hold(&[daemon.id(), echo.id()])?;
    let mut turns = Turns::default();
    for _ in 0..extent.turns * 20 {
        turns.add(baseline.times(&line, CALLS)?, ours.times(&line, CALLS)?);
    }
    drop(held);
    report.section("system.health, one connection, one call at a time, all on one CPU");
    report.figure("bare echo of the request", &times(&mut turns.baseline));
    report.figure("system.health", &times(&mut turns.ours));
    report.target("system.health / echo", turns.ratio(), "", Target::AtMost(2.5));
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
        let (mut by_message, mut by_read) = (Turns::default(), Turns::default());
        for _ in 0..extent.turns {
            let echoed = rate(&load, &echo.by_message, &line, shape)?;
            let ours = rate(&load, daemon.socket(), &line, shape)?;
            by_message.add(vec![echoed], vec![ours]);
            by_read.add(vec![rate(&load, &echo.by_read, &line, shape)?], vec![ours]);
        }
        let figures = format!(
            "{:>9.0}   echo {:>9.0}, with one write a read {:>9.0}",
            median(&mut by_message.ours),
            median(&mut by_message.baseline),
            median(&mut by_read.baseline)
        );
        report.figure(&format!("{depth} in flight on each"), &figures);
        if depth == 16 {
            let name = "system.health / echo, 32 x 16 in flight";
            report.target(name, by_message.ratio(), "", Target::AtLeast(0.4));
        } else {
            report.figure("    / echo", &format!("{:.2}", by_message.ratio()));
        }
        report.figure("    / echo with one write a read (the ceiling)", &format!("{:.2}", by_read.ratio()));
    }
    Ok(())
}

/// Answers in a second to one request.
pub(crate) fn rate(load: &Load, path: &Path, line: &[u8], shape: Shape) -> anyhow::Result<f64> {
    let lines = Lines::new(std::iter::repeat_n(line.to_vec(), shape.depth), 1);
    Ok(load.run(&[path], &lines, shape)?.rate())
}
