//! `sidekeep verify`: recomputes the log, or one proof, without a daemon.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output, verify_archive};
use crate::app;
use crate::audit::Log;
use crate::audit::merkle::{Hash, root_by_inclusion};
use crate::audit::note::{self, VerifierKey};
use crate::audit::verify::{Range, Report, Scope};
use crate::config::{self, Destination};
use crate::records::consent;
use crate::store::Deadline;

/// How long a verification may take: it is for as long as the log is.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Verify the audit log, or a proof that somebody was given
///
/// Without --proof it reads the database of the configuration, and needs no daemon: every leaf is recomputed from its
/// columns and every root at every head, and all breaks are told. Exits with 1 when something is broken, and with 2 when nothing
/// is, but the log could not be compared with its publication.
///
/// With --proof it needs neither database nor configuration: FILE holds what `audit.prove` answered, and --key what
/// `sidekeep signing public-key` printed.
///
/// With --archive it proves what the job `archive` has written, from the objects alone: each manifest's signature, each object,
/// each leaf, root, proof and note, and that a stream's months follow one another. How a store is reached say AWS_* and GOOGLE_*
/// variables, or [s3] and [gs] of --config. A month is plain JSON lines: `zstd -dc stream-0-*.jsonl.zst | jq -c .action`, or in
/// DuckDB `SELECT action, count(*) FROM read_json('stream-*.jsonl.zst') GROUP BY action`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Everything from the beginning, and not only what the daemon has not verified yet and a part of the rest
    #[arg(long, conflicts_with = "proof")]
    full: bool,
    /// What `audit.prove` answered, or `-` for standard input
    #[arg(long, value_name = "FILE", requires = "key")]
    proof: Option<PathBuf>,
    /// The public keys that may have signed, one a line
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// An archive, as in file:///srv/archive, s3://bucket/prefix or gs://bucket/prefix; several are verified as one
    #[arg(long, value_name = "URL", conflicts_with_all = ["full", "proof"])]
    archive: Vec<Destination>,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    match (args.proof, args.key) {
        (None, key) if !args.archive.is_empty() => verify_archive::run(&args.archive, key.as_deref(), global),
        (Some(proof), Some(key)) => verify_proof(&proof, &key, global),
        (None, Some(_)) => Err(coded(Code::Usage, "--key goes with --proof or --archive")),
        _ => verify_log(args.full, global),
    }
}

/// The public keys in a file.
pub(super) fn keys(file: &Path) -> anyhow::Result<Vec<VerifierKey>> {
    let keys: Vec<VerifierKey> = read(file)?.lines().filter_map(VerifierKey::decode).collect();
    let none = || format!("{}: holds no public key of `sidekeep signing public-key`", file.display());
    if keys.is_empty() { Err(coded(Code::Usage, none())) } else { Ok(keys) }
}

/// What of a proof is needed.
#[derive(Deserialize)]
struct Proof {
    canonical: String,
    stream: i32,
    position: u64,
    size: u64,
    path: Vec<String>,
    head: String,
    head_index: u64,
    heads_size: u64,
    heads_path: Vec<String>,
    checkpoint: String,
}

#[derive(Deserialize)]
struct Placed {
    stream: i32,
    position: u64,
}

#[derive(Deserialize)]
struct Head {
    root: String,
    size: u64,
    stream: i32,
}

fn verify_proof(proof: &Path, key: &Path, global: &Global) -> anyhow::Result<()> {
    let proof = read(proof)?;
    let proof: Proof = serde_json::from_str(&proof)
        .map_err(|error| coded(Code::Usage, format!("the proof is not what audit.prove answers: {error}")))?;
    let keys = keys(key)?;
    check_proof(&proof, &keys)?;
    if global.json {
        let Proof { canonical, stream, position, checkpoint, .. } = &proof;
        let told = serde_json::json!({ "verdict": "intact", "stream": stream, "position": position,
            "canonical": canonical, "checkpoint": checkpoint });
        return Ok(output::line(&told.to_string())?);
    }
    Ok(output::line(&format!(
        "intact: this entry is at position {} of stream {}, under a checkpoint over {} heads\n{}",
        proof.position, proof.stream, proof.heads_size, proof.canonical
    ))?)
}

fn check_proof(proof: &Proof, keys: &[VerifierKey]) -> anyhow::Result<()> {
    let checkpoint = note::open(&proof.checkpoint, keys)
        .context("broken: the checkpoint is not signed by one of these keys")?;
    anyhow::ensure!(
        checkpoint.size == proof.heads_size,
        "broken: the checkpoint covers {} heads",
        checkpoint.size
    );
    let head: Head = serde_json::from_str(&proof.head).context("broken: the head is not one")?;
    let placed: Placed = serde_json::from_str(&proof.canonical).context("broken: the entry is not one")?;
    anyhow::ensure!(
        placed.stream == proof.stream
            && head.stream == proof.stream
            && placed.position == proof.position
            && head.size == proof.size,
        "broken: entry, head and proof are not about the same place"
    );
    let leaf = Hash::leaf(proof.canonical.as_bytes());
    let root = root_by_inclusion(leaf, proof.position, proof.size, &hashes(&proof.path)?);
    anyhow::ensure!(
        root.is_some_and(|root| root.hex() == head.root),
        "broken: the path does not lead from the entry to the head"
    );
    let leaf = Hash::leaf(proof.head.as_bytes());
    let root = root_by_inclusion(leaf, proof.head_index, proof.heads_size, &hashes(&proof.heads_path)?);
    anyhow::ensure!(
        root == Some(checkpoint.root),
        "broken: the path does not lead from the head to the checkpoint"
    );
    Ok(())
}

fn hashes(path: &[String]) -> anyhow::Result<Vec<Hash>> {
    path.iter()
        .map(|step| Hash::from_hex(step).context("broken: a step is not a hash in hexadecimal"))
        .collect()
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        return std::io::read_to_string(std::io::stdin()).context("standard input");
    }
    std::fs::read_to_string(path).map_err(|error| coded(Code::Usage, format!("{}: {error}", path.display())))
}

fn verify_log(full: bool, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let report = runtime()?.block_on(async {
        let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
        let log: Arc<Log> = app::open_log(&loaded.config, &tracker, &end).await?;
        let watching = std::io::stderr().is_terminal() && !global.json;
        let bar = tracker.spawn(progress(log.clone(), watching, end.clone()));
        let scope = if full { Scope::Within(Range::EVERYTHING) } else { Scope::New };
        let deadline = Deadline::after(PATIENCE, end.clone());
        let report = log.verify_at_rest(scope, consent::digests, &deadline).await;
        end.cancel();
        let _ = bar.await;
        anyhow::Ok(report?)
    })?;
    show(&report, loaded.config.archive.destination.as_ref(), global)
}

fn show(report: &Report, archive: Option<&Destination>, global: &Global) -> anyhow::Result<()> {
    if global.json {
        output::line(&serde_json::to_string(report)?)?;
    } else {
        let erased = match report.erased_subjects {
            0 => String::new(),
            count => format!(", of them some of {count} erased persons"),
        };
        let gaps = match report.gaps {
            0 => String::new(),
            count => format!(", with {count} declared gaps"),
        };
        let dropped = match report.dropped {
            0 => String::new(),
            count => {
                let url = archive.map_or_else(|| "URL".to_owned(), ToString::to_string);
                format!(
                    ", and {count} dropped after their retention, of which only the hashes were looked at; \
                     `sidekeep verify --archive {url}` looks at the rest"
                )
            }
        };
        output::line(&format!("{}{gaps}: {} entries{erased}{dropped}", report.verdict, report.entries))?;
        for place in &report.breaks {
            let (stream, position) = (place.stream, place.position);
            output::line(&format!(
                "stream {stream} position {position}: {}\n  expected {}\n  found    {}",
                place.what, place.expected, place.found
            ))?;
        }
    }
    let told = u64::try_from(report.breaks.len()).unwrap_or(u64::MAX);
    let all = told.saturating_add(report.more_breaks);
    let places = if all == 1 { "place" } else { "places" };
    anyhow::ensure!(all == 0, "the log is broken in {all} {places}");
    report.not_compared.as_ref().map_or(Ok(()), |why| {
        let why = format!(
            "nothing is broken in the log itself, but it was not compared with its publication: {why}"
        );
        Err(coded(Code::Usage, why))
    })
}

/// Shows how far it is, on a terminal.
async fn progress(log: Arc<Log>, watching: bool, end: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    while watching && !end.is_cancelled() {
        tokio::select! {
            _ = tick.tick() => {
                let (verified, all) = log.verified();
                output::progress(&format!("{verified} of {all} entries verified"));
            }
            () = end.cancelled() => output::progress(""),
        }
    }
}
