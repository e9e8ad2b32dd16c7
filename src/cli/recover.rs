//! `sidekeep recover`: after the database was restored, or failed over to a server that lacked some of it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output};
use crate::audit::gap::Gap;
use crate::audit::publication::Report;
use crate::store::Deadline;
use crate::{app, config};

/// How long it may take: it reads what was published since.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Compare the audit log with its publication, and declare what is lost
///
/// After the database was restored from a backup, or failed over to a replica that lacked some of it. Works on the database,
/// with or without daemons. It prints what each stream has lost since it was published, and exits with 1 while that is not
/// declared. Heads that were published are taken over where no entry is lost.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Declare the loss: close the streams that lack entries for ever, and enter in the log what is missing
    #[arg(long)]
    accept_gap: bool,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let runtime = runtime()?;
    let (gaps, report) = runtime.block_on(async {
        let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
        let log = app::open_writer(&loaded.config, &tracker, &end).await?;
        let recovered = log.recover(args.accept_gap, &Deadline::after(PATIENCE, end.clone())).await;
        let report = log.publication().report();
        // The writer gives its stream back; the connections end with the log.
        end.cancel();
        drop(log);
        tracker.close();
        tracker.wait().await;
        anyhow::Ok((recovered?, report))
    })?;
    show(&gaps, &report, (args.accept_gap, global.json))
}

fn show(gaps: &[Gap], report: &Report, (declared, json): (bool, bool)) -> anyhow::Result<()> {
    if json {
        let told = serde_json::json!({ "gaps": gaps, "declared": declared && !gaps.is_empty(), "publication": report });
        output::line(&told.to_string())?;
    } else if gaps.is_empty() {
        output::line("no stream has lost entries since it was published")?;
    } else {
        for gap in gaps {
            let lost = gap.lost_size.saturating_sub(gap.kept_size);
            output::line(&format!(
                "stream {}: {lost} of {} published entries are lost, from position {} on",
                gap.stream, gap.lost_size, gap.kept_size
            ))?;
        }
        if declared {
            output::line("declared: these streams are closed, and the log says what they have lost")?;
        }
    }
    anyhow::ensure!(
        declared || gaps.is_empty(),
        "{} streams have lost entries; `sidekeep recover --accept-gap` declares it",
        gaps.len()
    );
    Ok(())
}
