//! `sidekeep backup`: a dump now, through the running daemon; which dumps there are; and whether one is what it says it is,
//! without a daemon.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output, socket};
use crate::app;
use crate::backup::fetch::Identities;
use crate::backup::shelf::Shelf;
use crate::backup::verify::verify;
use crate::config::{self, SecretFile};
use crate::store::Deadline;

/// Between looks at a dump that is being made.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the daemon may keep its answer back.
const WAIT: &str = "15s";
/// How long reading a dump may take.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Dump the database now
///
/// The dump goes to backup.destination, with a signed manifest beside it, and is listed once it was read back and the
/// keyring's own backup is at least as new: it holds no keys, and is worth nothing without. Waits until that is done.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    socket: socket::Socket,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Verify(Verify),
}

/// List the dumps, the newest first
///
/// Prints all of them, or with --json one page as `backup.list` answers it.
#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    page: socket::Page,
    #[command(flatten)]
    socket: socket::Socket,
}

/// Check that a dump is what its manifest says, without a daemon or a database
///
/// Signature, deployment, size and SHA-256, and that pg_restore reads its contents. That it can be restored whole is shown by
/// the job `drill` alone. One that is encrypted is opened only with --identity.
#[derive(Debug, clap::Args)]
struct Verify {
    /// The dump, as `sidekeep backup list` names it
    #[arg(value_name = "NAME")]
    name: String,
    /// A private key of age that opens it, as `age-keygen` writes it
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Run {
    run: String,
    state: String,
    counts: Option<Map<String, Value>>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Runs {
    items: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Dump {
    name: String,
    created_at: String,
    size: u64,
    proved_at: Option<String>,
}

impl Run {
    fn count(&self, name: &str) -> u64 {
        let count = self.counts.as_ref().and_then(|counts| counts.get(name));
        count.and_then(Value::as_u64).unwrap_or_default()
    }
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    match args.command {
        None => back_up(&args.socket, global),
        Some(Command::List(list)) => {
            let line = |dump: &Dump| {
                let proved =
                    dump.proved_at.as_ref().map_or("not proved".to_owned(), |at| format!("proved {at}"));
                format!("{}  {}  {} bytes  {proved}", dump.name, dump.created_at, dump.size)
            };
            list.page.each(&list.socket, global, ("backup.list", Map::new()), line)
        }
        Some(Command::Verify(asked)) => check(asked, global),
    }
}

fn back_up(socket: &socket::Socket, global: &Global) -> anyhow::Result<()> {
    let params = socket::params([("name", Some("backup")), ("wait", Some(WAIT))]);
    let began = Instant::now();
    let mut shown = socket.result(global, "job.run", &params)?;
    let run = loop {
        let run: Run = serde_json::from_str(shown.get())?;
        if run.state != "running" {
            break run;
        }
        if std::io::stderr().is_terminal() && !global.json {
            let seconds = began.elapsed().as_secs();
            output::progress(&format!("{} bytes written, {seconds} s", run.count("bytes")));
        }
        std::thread::sleep(AGAIN);
        shown = followed(socket, global, &run.run)?;
    };
    if std::io::stderr().is_terminal() && !global.json {
        output::progress("");
    }
    if global.json {
        output::line(shown.get())?;
    }
    if run.state != "ok" {
        return Err(anyhow::anyhow!("{}", run.error.unwrap_or_else(|| "the dump was not made".to_owned())));
    }
    if global.json {
        return Ok(());
    }
    let (bytes, rows) = (run.count("bytes"), run.count("rows"));
    let (kept, pruned) = (run.count("kept"), run.count("pruned"));
    Ok(output::line(&format!("{bytes} bytes, {rows} rows; {kept} dumps are kept, {pruned} were removed"))?)
}

/// The run as it is now.
fn followed(socket: &socket::Socket, global: &Global, run: &str) -> anyhow::Result<Box<RawValue>> {
    let params = socket::params([("name", Some("backup"))]);
    let runs = socket.result(global, "job.history", &params)?;
    let runs: Runs = serde_json::from_str(runs.get())?;
    let is_it = |item: &RawValue| serde_json::from_str::<Run>(item.get()).is_ok_and(|item| item.run == run);
    let found = runs.items.into_iter().find(|item| is_it(item));
    found.ok_or_else(|| anyhow::anyhow!("the daemon knows nothing of run {run} any more"))
}

fn check(asked: Verify, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let config = &loaded.config;
    let identities = match &asked.identity {
        None => None,
        Some(path) => {
            let path = std::path::absolute(path)?;
            let file = SecretFile::new(path.to_string_lossy());
            Some(Identities::read(&file).map_err(|why| coded(Code::Usage, why))?)
        }
    };
    let shelf = Shelf::open(config, app::public_keys(config)?)?;
    let shelf = shelf.ok_or_else(|| coded(Code::Config, "backup.destination is not set"))?;
    let verified = runtime()?.block_on(async {
        let deadline = Deadline::after(PATIENCE, CancellationToken::new());
        verify(&shelf, &asked.name, identities, &deadline).await
    })?;
    if global.json {
        return Ok(output::line(&serde_json::to_string(&verified)?)?);
    }
    let opened = if verified.opened {
        "pg_restore reads its contents"
    } else {
        "encrypted, and not opened: --identity FILE does"
    };
    let proved =
        verified.proved_at.map_or("never restored in a drill".to_owned(), |at| format!("proved {at}"));
    let (name, at, size, rows) = (verified.name, verified.created_at, verified.size, verified.rows);
    Ok(output::line(&format!("{name}: sound. Of {at}, {size} bytes, {rows} rows; {opened}; {proved}"))?)
}
