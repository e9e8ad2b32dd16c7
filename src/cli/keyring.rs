//! `sidekeep keyring`: the key-encryption key: made, looked at, and replaced.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::Answer;
use super::exit::{Code, coded};
use super::{Global, output, socket};
use crate::config::{self, Recipient};
use crate::durable;
use crate::keyring::{escrow, kek};

/// Between looks at a rotation that goes on.
const AGAIN: Duration = Duration::from_millis(500);

/// Make key-encryption keys, see what they wrap, and replace one
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a key-encryption key
    ///
    /// It wraps the key of every person. It is never in the database, and so in none of the database's backups: WHO LOSES
    /// IT LOSES EVERYTHING that sidekeep ever sealed, for good, and nobody can help. Keep a copy where the database's
    /// backups are not, before the first record is written.
    ///
    /// With --escrow-to, or keyring.escrow_recipients in the configuration, a copy that only the recipients open is
    /// written beside it, to FILE.age: `age --decrypt --identity IDENTITY FILE.age` gives the key file back.
    Generate {
        /// Write it to a new file, for the owner's eyes only; an existing file is never overwritten
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Also write FILE.age, which this public key of age opens (age1…); may be given several times
        #[arg(long, value_name = "RECIPIENT", requires = "out")]
        escrow_to: Vec<Recipient>,
    },
    /// Ask the running daemon which key wraps how many people's keys, and which daemons have it
    Status {
        #[command(flatten)]
        socket: socket::Socket,
    },
    /// Wrap every person's key anew, under the first of keyring.key_files
    ///
    /// Calls go on meanwhile. To replace a key:
    ///
    ///   1. `sidekeep keyring generate --out NEW`, and keep a copy of it.
    ///
    ///   2. Name it in keyring.key_files of EVERY daemon, behind the old one, and send each SIGHUP (systemctl reload).
    ///
    ///   3. Put it first everywhere, and reload again. From now on it wraps the keys of new people.
    ///
    ///   4. `sidekeep keyring rotate`. It waits for daemons that lack the key, and names them. It may be cut off at any
    ///      time, and run again.
    ///
    ///   5. Take the old one away everywhere, and reload. A daemon that still needs it says so and keeps it.
    ///
    ///   6. Destroy the old one with all copies of it, once no backup is left that you want to restore with it. What it
    ///      wrapped is then unreadable for good in every physical copy: dead rows, WAL, base backups, old dumps of
    ///      subjects. The bare user id in such a row stays there until the copy expires.
    #[command(verbatim_doc_comment)]
    Rotate {
        #[command(flatten)]
        socket: socket::Socket,
    },
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    match args.action {
        Action::Generate { out, escrow_to } => generate(out.as_deref(), escrow_to, global),
        Action::Status { socket } => status(&socket, global),
        Action::Rotate { socket } => rotate(&socket, global),
    }
}

fn generate(out: Option<&Path>, escrow_to: Vec<Recipient>, global: &Global) -> anyhow::Result<()> {
    let recipients = if escrow_to.is_empty() { configured(global)? } else { escrow_to };
    let text = kek::generate()?;
    let Some(path) = out else {
        if !recipients.is_empty() {
            output::note("keyring.escrow_recipients get no copy of a key that is printed; use --out FILE");
        }
        return Ok(output::bytes(text.as_bytes())?);
    };
    let copy = PathBuf::from(format!("{}.age", path.display()));
    if path.exists() {
        return Err(exists(path));
    }
    // The copy first: a key without its copy might be used.
    if !recipients.is_empty() {
        create(&copy, escrow::for_recipients(&text, &recipients)?.as_bytes())?;
    }
    create(path, text.as_bytes())?;
    output::note(&format!(
        "{}: a new key-encryption key. Losing it loses everything that is sealed under it, and no backup of the \
         database holds it: put a copy where the database's backups are not.",
        path.display()
    ));
    if !recipients.is_empty() {
        output::note(&format!("{}: a copy that {} recipient(s) open", copy.display(), recipients.len()));
    }
    if global.json {
        let copy = (!recipients.is_empty()).then_some(copy);
        output::line(&serde_json::json!({ "file": path, "escrow": copy }).to_string())?;
    }
    Ok(())
}

/// `keyring.escrow_recipients`, where there is a configuration: a key may be made before that.
fn configured(global: &Global) -> anyhow::Result<Vec<Recipient>> {
    match config::load(global.config.as_deref()) {
        Ok(loaded) => Ok(loaded.config.keyring.escrow_recipients),
        Err(problem) if global.config.is_some() => Err(coded(Code::Config, problem)),
        Err(problem) => {
            if Path::new(config::DEFAULT_FILE).exists() && !problem.lacks_only_a_database() {
                output::note(&format!(
                    "keyring.escrow_recipients is not known, and no copy is made: {problem}"
                ));
            }
            Ok(Vec::new())
        }
    }
}

fn create(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    match durable::create_new(path, bytes, 0o600) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists(path)),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be written", path.display())),
    }
}

fn exists(path: &Path) -> anyhow::Error {
    let message = "is there already, and overwriting a key loses what it sealed; choose another name";
    coded(Code::Usage, format!("{}: {message}", path.display()))
}

/// What of `keyring.status` is shown to people.
#[derive(Deserialize)]
struct Status {
    active: Option<String>,
    keks: Vec<Kek>,
    daemons: Vec<serde_json::Value>,
    waiting_for: Vec<String>,
    rotation: Option<Run>,
}

#[derive(Deserialize)]
struct Kek {
    kek_id: String,
    file: Option<String>,
    keys: i64,
    oldest: Option<String>,
    listed_by: Vec<String>,
}

/// What of a run is shown to people.
#[derive(Deserialize)]
struct Run {
    run: String,
    state: String,
    counts: Option<Counts>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    rewrapped: i64,
    left: i64,
}

#[derive(Deserialize)]
struct History {
    items: Vec<Box<RawValue>>,
}

fn ask(
    socket: &socket::Socket,
    global: &Global,
    method: &str,
    params: &str,
) -> anyhow::Result<Box<RawValue>> {
    match socket.ask(global, method, &RawValue::from_string(params.to_owned())?)? {
        Answer::Error(refusal) => Err(refusal.into()),
        Answer::Result(result) => Ok(result),
    }
}

fn status(socket: &socket::Socket, global: &Global) -> anyhow::Result<()> {
    let result = ask(socket, global, "keyring.status", "{}")?;
    if global.json {
        return Ok(output::line(result.get())?);
    }
    let status: Status = serde_json::from_str(result.get())?;
    for kek in &status.keks {
        let role = if Some(&kek.kek_id) == status.active.as_ref() { "first" } else { "" };
        let oldest = kek.oldest.as_ref().map(|at| format!(", the oldest of {at}")).unwrap_or_default();
        output::line(&format!(
            "{}  {role:5}  {:>12} keys{oldest}; {} of {} daemons have it; {}",
            kek.kek_id,
            kek.keys,
            kek.listed_by.len(),
            status.daemons.len(),
            kek.file.as_deref().unwrap_or("in no file of this daemon")
        ))?;
    }
    for daemon in &status.waiting_for {
        output::line(&format!("the first key is missing at {daemon}"))?;
    }
    if let Some(run) = &status.rotation {
        output::line(&format!("rotation {}: {}", run.run, told(run)))?;
    }
    Ok(())
}

fn told(run: &Run) -> String {
    match (&run.error, &run.counts) {
        (Some(error), _) => format!("failed: {error}"),
        (None, Some(counts)) => {
            format!("{}, {} keys re-wrapped, {} left", run.state, counts.rewrapped, counts.left)
        }
        (None, None) => run.state.clone(),
    }
}

fn rotate(socket: &socket::Socket, global: &Global) -> anyhow::Result<()> {
    let watching = std::io::stderr().is_terminal() && !global.json;
    let mut result = ask(socket, global, "keyring.rotate", r#"{"wait":"1s"}"#)?;
    let mut run: Run = serde_json::from_str(result.get())?;
    while run.state == "running" {
        if watching {
            output::progress(&bar(&run));
        }
        std::thread::sleep(AGAIN);
        let page = ask(socket, global, "job.history", r#"{"name":"keyring.rotate","limit":100}"#)
            .context("the rotation goes on; `sidekeep keyring status` tells how far it is")?;
        let page: History = serde_json::from_str(page.get())?;
        let same = page
            .items
            .into_iter()
            .find(|item| serde_json::from_str(item.get()).is_ok_and(|found: Run| found.run == run.run));
        result = same.context("the run is not in job.history any more")?;
        run = serde_json::from_str(result.get())?;
    }
    if watching {
        output::progress("");
    }
    output::line(&if global.json { result.get().to_owned() } else { told(&run) })?;
    anyhow::ensure!(
        run.state == "ok",
        "the rotation is not done; what it has done stays done, and it may be run again"
    );
    Ok(())
}

/// How far it is, in one line.
fn bar(run: &Run) -> String {
    const WIDTH: i64 = 30;
    let Some(counts) = &run.counts else { return "waiting for all daemons to have the key".into() };
    let all = counts.rewrapped.saturating_add(counts.left).max(1);
    let done = counts.rewrapped.saturating_mul(WIDTH).checked_div(all).unwrap_or(0).clamp(0, WIDTH);
    let (done, left) = (usize::try_from(done).unwrap_or(0), usize::try_from(WIDTH - done).unwrap_or(0));
    format!("[{}{}] {} of {all} keys", "#".repeat(done), " ".repeat(left), counts.rewrapped)
}
