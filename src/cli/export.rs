//! `sidekeep export`: everything that is held about a person, as a file, straight from the database.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output, subject};
use crate::app;
use crate::audit::{By, Pinned};
use crate::config;
use crate::error::chain;
use crate::store::Deadline;
use crate::subjects::export::{Export, Progress, Scope, Summary, Surroundings, archive};
use crate::values::{RecordId, Term, UserId};

/// How long an export may take: it is for as long as there is something to write.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Write everything that is held about a person to a ZIP file
///
/// It holds JSON for programs, pages that a person can read offline (index.html), and a signed manifest with the SHA-256 of
/// every file. It is made from one snapshot of the database of the configuration, under its keys; it needs no daemon, but is
/// entered in the log before the file gets its name. Its mode is 0600, and it replaces no file.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The person's user id; `-` reads it from standard input, where no other user of the host sees it
    #[arg(value_name = "USER")]
    user: String,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// All that is held (GDPR Art. 15), or what the person provided (Art. 20)
    #[arg(long, value_enum, default_value_t = Which::Access)]
    scope: Which,
    /// Why, as a code, for the log
    #[arg(long, value_name = "CODE")]
    purpose: Option<String>,
    /// The id of the person's request (`sidekeep request`) that this answers
    #[arg(long, value_name = "ID")]
    request: Option<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Which {
    Access,
    Portability,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let user_id = UserId::parse(subject::user_id(&args.user)?)
        .map_err(|fault| coded(Code::Usage, format!("USER: {fault}")))?;
    if args.out.as_os_str() == "-" {
        return Err(coded(Code::Usage, "--out must be a file: it gets its name only when it is whole"));
    }
    let purpose = args.purpose.clone().map(Term::parse).transpose();
    let purpose = purpose.map_err(|fault| coded(Code::Usage, format!("--purpose: {fault}")))?;
    check_purpose(&loaded.config, purpose.as_ref())?;
    let scope = match args.scope {
        Which::Access => Scope::Access,
        Which::Portability => Scope::Portability,
    };
    let request_id = args.request.clone().map(RecordId::parse).transpose();
    let request_id = request_id.map_err(|fault| coded(Code::Usage, format!("--request: {fault}")))?;
    let asked = Export { user_id, scope, request_id };
    let summary = runtime()?.block_on(write(&loaded.config, asked, purpose, args, global))?;
    show(&summary, args, global)
}

/// The rules of `[access]` on purposes hold for whoever goes past the socket, too.
fn check_purpose(config: &config::Config, purpose: Option<&Term>) -> anyhow::Result<()> {
    let purposes = &config.access.purposes;
    match purpose {
        None if config.access.require_purpose => {
            Err(coded(Code::Usage, "--purpose is missing; this deployment asks for a purpose"))
        }
        Some(purpose) if !purposes.is_empty() && !purposes.iter().any(|known| known == purpose.as_str()) => {
            Err(coded(Code::Usage, "--purpose is not one of access.purposes"))
        }
        _ => Ok(()),
    }
}

async fn write(
    config: &config::Config,
    asked: Export,
    purpose: Option<Term>,
    args: &Args,
    global: &Global,
) -> anyhow::Result<Summary> {
    let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
    let records = app::open_alone(config, &tracker, &end).await?;
    let around = Surroundings::of(config)?;
    let uid = nix::unistd::Uid::effective().as_raw();
    let mut by = By::new(Deadline::after(PATIENCE, end.clone()), Pinned::default(), "subject.export", uid);
    by.purpose = purpose;
    by.stages = config.audit.access != config::AuditAccess::None;
    let seen = Arc::new(Progress::default());
    let watching = std::io::stderr().is_terminal() && !global.json;
    let bar = tracker.spawn(progress(seen.clone(), watching, end.clone()));
    let written = archive(&records, &by, &asked, &around, (&args.out, &seen)).await;
    end.cancel();
    let _ = bar.await;
    written.map_err(|error| match &error {
        crate::error::Error::Internal(cause) => {
            anyhow::anyhow!("{}: {}", args.out.display(), chain(&**cause))
        }
        _ => anyhow::anyhow!(error),
    })
}

fn show(summary: &Summary, args: &Args, global: &Global) -> anyhow::Result<()> {
    if global.json {
        return Ok(output::line(&serde_json::to_string(summary)?)?);
    }
    let counts: Vec<String> = summary.counts.iter().map(|(part, items)| format!("{items} {part}")).collect();
    Ok(output::line(&format!(
        "{}: {} files, {} bytes\n{}",
        args.out.display(),
        summary.files,
        summary.bytes,
        counts.join(", ").replace('_', " ")
    ))?)
}

/// Shows how far it is, on a terminal.
async fn progress(seen: Arc<Progress>, watching: bool, end: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    while watching && !end.is_cancelled() {
        tokio::select! {
            _ = tick.tick() => {
                let (done, all) = seen.items();
                output::progress(&format!("{done} of {all} items written"));
            }
            () = end.cancelled() => output::progress(""),
        }
    }
}
