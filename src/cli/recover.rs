//! `sidekeep recover`: after the database was brought back, or failed over to a server that lacked some of it.

use std::io::IsTerminal as _;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output};
use crate::app;
use crate::audit::gap::Gap;
use crate::audit::publication::Report as Publication;
use crate::audit::verify::{Range, Report, Scope};
use crate::backup::keyring::{Ring, refuse_missing};
use crate::backup::recover::{Recovered, Way, enter, recover};
use crate::config::{self, Config};
use crate::records::consent;
use crate::store::Deadline;

/// How long it may take: with the whole log to verify, as long as that is.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Take up a database that was brought back, or failed over, and has lost what came after
///
/// After a physical restore (a base backup, a snapshot of a disk or of a cloud) or a fail-over to a replica that lacked some of it. Daemons
/// serve nothing from such a database: the keyring's own backup and the published checkpoints tell them that it is behind. Needs the
/// configuration of a daemon that runs jobs, with its key-encryption and signing keys; works on the database, with or without daemons.
///
/// Without --accept-gap it changes nothing but heads that were published and lack no entry, which are taken over; it prints who was
/// erased since and what each stream has lost, and exits with 1 while there is anything to do.
///
/// With --accept-gap, whoever was erased since, as the keyring's backup says, is erased again; tombstones, holds and restrictions of that
/// time come back, and keys as they were wrapped last; entries of erasures that are missing are written again, with the label
/// sidekeep.restored; streams that lack published entries are closed, and the log says what they have lost; then the whole log is
/// verified. Holds and restrictions that were lifted in the lost time stand again; whether somebody withdrew a consent in it is not known.
/// It may be broken off and run again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Erase again, declare the loss and verify
    #[arg(long)]
    accept_gap: bool,
}

/// What was found, and done.
struct Told {
    keyring: Option<Recovered>,
    gaps: Vec<Gap>,
    publication: Publication,
    log: Option<Report>,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
    let told = runtime()?.block_on(async {
        let done = work(&loaded.config, args.accept_gap, (global, &tracker, &end)).await;
        // The writer gives its stream back; the connections end with the log.
        end.cancel();
        tracker.close();
        tracker.wait().await;
        done
    })?;
    show(&told, (args.accept_gap, global.json))
}

async fn work(
    config: &Config,
    accept: bool,
    (global, tracker, end): (&Global, &TaskTracker, &CancellationToken),
) -> anyhow::Result<Told> {
    let watched = std::io::stderr().is_terminal() && !global.json;
    let tell = |what: &str| {
        if watched {
            output::progress(what);
        }
    };
    let deadline = Deadline::after(PATIENCE, end.clone());
    let publishes = config.audit.publish.is_some() || !config.audit.publish_command.is_empty();
    anyhow::ensure!(
        publishes || config.keyring.backup.is_some(),
        "neither keyring.backup nor audit.publish is set: there is nothing to compare the database with"
    );
    tell("comparing with the keyring's backup");
    let ring = ring(config).await?;
    let store = app::open_store(config, tracker, end)?;
    app::fits(&store, &deadline).await?;
    let mut keyring = None;
    if ring.is_none() {
        refuse_missing(&store, config, &deadline).await?;
    }
    if let Some(ring) = &ring {
        let found = recover(&store, ring, Way::Look, &deadline).await?;
        if accept && found.behind {
            recover(&store, ring, Way::Keys, &deadline).await?;
        }
        keyring = Some(found);
    }
    drop(store);
    let url = config::database_url(config)?;
    let records = app::open_at(config, &url, tracker, end).await?;
    if let (true, Some(ring), Some(found)) = (accept, &ring, keyring.as_mut().filter(|found| found.behind)) {
        tell("erasing again");
        let done = recover(records.store(), ring, Way::Recover(&records), &deadline).await?;
        found.entries_staged = done.entries_staged;
        found.open_holds = done.open_holds;
    }
    tell("comparing with the publication");
    let gaps = if publishes { records.log().recover(accept, &deadline).await? } else { Vec::new() };
    let publication = records.log().publication().report();
    let behind = keyring.as_ref().is_some_and(|found| found.behind);
    let log = if accept && (behind || !gaps.is_empty()) {
        enter(&records, (keyring.as_ref(), gaps.len()), &deadline).await?;
        tell("verifying the log");
        let scope = Scope::Within(Range::EVERYTHING);
        Some(records.log().verify(scope, consent::digests, &deadline).await?)
    } else {
        None
    };
    tell("");
    Ok(Told { keyring, gaps, publication, log })
}

/// The keyring's backup, if there is to be one and it was ever made.
async fn ring(config: &Config) -> anyhow::Result<Option<Ring>> {
    if config.keyring.backup.is_none() {
        return Ok(None);
    }
    let (keyring, keys) = (app::open_keys(config)?, app::public_keys(config)?);
    Ok(Ring::find(config, &keyring, &keys).await?)
}

fn show(told: &Told, (accepted, json): (bool, bool)) -> anyhow::Result<()> {
    let behind = told.keyring.as_ref().is_some_and(|found| found.behind);
    if json {
        let declared = accepted && !told.gaps.is_empty();
        let told = serde_json::json!({
            "keyring": told.keyring, "gaps": told.gaps, "declared": declared, "publication": told.publication, "log": told.log,
        });
        output::line(&told.to_string())?;
    } else {
        for line in lines(told, accepted) {
            output::line(&line)?;
        }
    }
    anyhow::ensure!(
        accepted || (told.gaps.is_empty() && !behind),
        "the database has lost what is told above, and daemons serve nothing from it; `sidekeep recover --accept-gap` takes it up"
    );
    let breaks = told.log.as_ref().map_or(0, |log| log.breaks.len());
    anyhow::ensure!(
        breaks == 0,
        "the log is broken in {breaks} places; `sidekeep verify --full` tells of each"
    );
    Ok(())
}

fn lines(told: &Told, accepted: bool) -> Vec<String> {
    let mut lines = Vec::new();
    match &told.keyring {
        None => lines.push(
            "there is no keyring's backup to compare with: whether somebody was erased since is not known"
                .to_owned(),
        ),
        Some(found) if !found.behind => {
            lines.push("the database has all that the keyring's backup tells".to_owned())
        }
        Some(found) => lines.extend(of_keyring(found, accepted)),
    }
    if told.gaps.is_empty() && told.publication.size.is_none() && told.publication.state != "off" {
        lines.push(
            "nothing is published where audit.publish says: whether the log has lost entries is not known"
                .to_owned(),
        );
    } else if told.gaps.is_empty() && told.publication.state != "off" {
        lines.push("no stream has lost entries since it was published".to_owned());
    }
    for gap in &told.gaps {
        let lost = gap.lost_size.saturating_sub(gap.kept_size);
        lines.push(format!(
            "stream {}: {lost} of {} published entries are lost, from position {} on",
            gap.stream, gap.lost_size, gap.kept_size
        ));
    }
    if accepted && !told.gaps.is_empty() {
        lines.push("declared: these streams are closed, and the log says what they have lost".to_owned());
    }
    if let Some(log) = &told.log {
        lines.push(format!(
            "the log: {}, {} entries, {} gaps declared, {} erased persons",
            log.verdict, log.entries, log.gaps, log.erased_subjects
        ));
    }
    lines
}

fn of_keyring(found: &Recovered, accepted: bool) -> Vec<String> {
    let time = |at: Option<crate::clock::Timestamp>| {
        at.map_or_else(|| "an unknown time".to_owned(), |at| at.to_string())
    };
    let is = if accepted { "were" } else { "are to be" };
    vec![
        format!(
            "lost: what was committed between {} and at least {}",
            time(found.lost_from),
            time(found.lost_until)
        ),
        format!(
            "erased since: {} persons, who {is} erased again; {} tombstones and {} legal holds {is} brought back",
            found.erased_again, found.tombstones, found.holds
        ),
        format!("named first in that time: {} persons, whose keys {is} brought back, without records", found.persons),
        format!("entries of erasures that were written again: {}", found.entries_staged),
        format!("open legal holds: {}; those that were released in that time are open again", found.open_holds),
        "not known: whether somebody withdrew a consent in that time; ask the applications before you rely on one".to_owned(),
    ]
}
