//! `sidekeep verify --archive`: an archive of the log proved from its objects alone, without a database or a daemon.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output, verify};
use crate::config::{self, Config, Destination};
use crate::evidence::check::{Progress, Report, check};
use crate::objects::Objects;

pub(super) fn run(places: &[Destination], key: Option<&Path>, global: &Global) -> anyhow::Result<()> {
    let config = match &global.config {
        Some(file) => config::load(Some(file)).map_err(|problem| coded(Code::Config, problem))?.config,
        None => Config::default(),
    };
    let keys = key.map(verify::keys).transpose()?;
    let unreachable = |trouble| coded(Code::Usage, trouble);
    let mut opened = Vec::with_capacity(places.len());
    for place in places {
        // A directory that is not there is a mistake here, and is not made.
        if let Destination::Directory(path) = place
            && !path.is_dir()
        {
            return Err(unreachable(format!("{place}: there is no such directory")));
        }
        let objects = Objects::open(place, &config).map_err(|trouble| unreachable(trouble.to_string()))?;
        opened.push(objects);
    }
    let report = runtime()?.block_on(async {
        let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
        let progress = Arc::new(Progress::default());
        let watching = std::io::stderr().is_terminal() && !global.json;
        let bar = tracker.spawn(shown(progress.clone(), watching, end.clone()));
        let report = check(&opened, keys.as_deref(), &tracker, &progress).await;
        end.cancel();
        let _ = bar.await;
        report
    });
    show(&report.map_err(|trouble| unreachable(trouble.to_string()))?, global)
}

fn show(report: &Report, global: &Global) -> anyhow::Result<()> {
    if global.json {
        output::line(&serde_json::to_string(report)?)?;
    } else {
        let removed = match report.removed {
            0 => String::new(),
            count => format!("; of {count} more the entries were deleted past retention"),
        };
        let (entries, streams) = (report.entries, report.streams);
        let whole = report.months.saturating_sub(report.removed);
        output::line(&format!(
            "{}: {entries} entries, {whole} months of {streams} streams{removed}",
            report.verdict
        ))?;
        for place in &report.breaks {
            let position =
                place.position.map_or_else(String::new, |position| format!(" position {position}"));
            output::line(&format!(
                "{}{position}: {}\n  expected {}\n  found    {}",
                place.object, place.what, place.expected, place.found
            ))?;
        }
        if !report.keys_checked {
            output::note(
                "Signed by these keys, which the archive itself names. Compare them, or give yours with --key:",
            );
            report.keys.iter().for_each(|key| output::note(key));
        }
    }
    let told = u64::try_from(report.breaks.len()).unwrap_or(u64::MAX);
    let all = told.saturating_add(report.more_breaks);
    anyhow::ensure!(all == 0, "the archive is broken in {all} places");
    Ok(())
}

/// Shows how far it is, on a terminal.
async fn shown(progress: Arc<Progress>, watching: bool, end: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    while watching && !end.is_cancelled() {
        tokio::select! {
            _ = tick.tick() => {
                let (months, all) = (progress.months.load(Ordering::Relaxed), progress.all.load(Ordering::Relaxed));
                output::progress(&format!("{months} of {all} months verified"));
            }
            () = end.cancelled() => output::progress(""),
        }
    }
}
