//! `sidekeep restore`: a dump into an empty database, without a daemon.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output};
use crate::app;
use crate::audit::verify::{Range, Report, Scope};
use crate::backup::fetch::Identities;
use crate::backup::keyring::Ring;
use crate::backup::restore::{self, Restored, Source, Target};
use crate::config::{self, Config, SecretFile};
use crate::records::consent;
use crate::store::{Deadline, Owned};

/// How long it may take: as long as the dump is.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a break is called where the log lacks something that was published: all of it was declared just before.
const PUBLISHED: &str = "publication";

/// Restore a dump into an empty database
///
/// Needs the configuration with its key-encryption and signing keys, and no daemon. Everything is checked before the target is touched:
/// the manifest, the whole dump, the keyring's own backup, pg_restore, and that the target has no schema sidekeep. Persons come back from the
/// keyring's backup: who was erased after the dump is erased again. What the audit log has lost of its publication is declared in the log,
/// and the log is verified. Daemons find nothing in the target before that. Then point database.url there.
///
/// A restore that was broken off leaves a schema that is worth nothing: DROP SCHEMA sidekeep CASCADE, and begin anew.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The dump, as `sidekeep backup list` names it, or the file of one that has its manifest.json beside it
    #[arg(value_name = "NAME|FILE")]
    what: String,
    /// The database, as the URL of a role that may make a schema there (and the role sidekeep_app)
    #[arg(long, value_name = "URL", required_unless_present = "into_file")]
    into: Option<String>,
    /// A file that holds that URL, which may then hold a password
    #[arg(long, value_name = "FILE", conflicts_with = "into")]
    into_file: Option<PathBuf>,
    /// A private key of age that opens an encrypted dump, as `age-keygen` writes it
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// How many persons may have neither key nor tombstone; what they left is deleted
    #[arg(long, value_name = "N", default_value_t = 0)]
    accept_lost: i64,
    /// Where the dump is copied to, in a file without a name that ends with this command: `pg_restore` reads it more than once
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let config = &loaded.config;
    let url = into(&args, config)?;
    let identities = args.identity.as_deref().map(identities).transpose()?;
    let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
    let (restored, report) = runtime()?.block_on(async {
        let done = restore(&args, (config, &url), identities, (global, &tracker, &end)).await;
        // The writer gives its stream back; the connections end with the log.
        end.cancel();
        tracker.close();
        tracker.wait().await;
        done
    })?;
    show(&restored, &report, global)
}

fn into(args: &Args, config: &Config) -> anyhow::Result<Zeroizing<String>> {
    let tls = config.database.tls;
    if let Some(file) = &args.into_file {
        let file = SecretFile::new(std::path::absolute(file)?.to_string_lossy());
        return config::url_of(&file, tls).map_err(|error| coded(Code::Usage, error));
    }
    let text = args.into.as_deref().unwrap_or_default();
    config::given_url(text, tls).map_err(|why| coded(Code::Usage, format!("--into: {why}")))
}

fn identities(path: &std::path::Path) -> anyhow::Result<Identities> {
    let file = SecretFile::new(std::path::absolute(path)?.to_string_lossy());
    Identities::read(&file).map_err(|why| coded(Code::Usage, why))
}

async fn restore(
    args: &Args,
    (config, url): (&Config, &str),
    identities: Option<Identities>,
    (global, tracker, end): (&Global, &TaskTracker, &CancellationToken),
) -> anyhow::Result<(Restored, Report)> {
    let watched = std::io::stderr().is_terminal() && !global.json;
    let tell = |what: &str| {
        if watched {
            output::progress(what);
        }
    };
    let deadline = Deadline::after(PATIENCE, end.clone());
    let (keyring, keys) = (app::open_keys(config)?, app::public_keys(config)?);
    tell("reading the manifest");
    let source = Source::find(config, &args.what, keys.clone()).await?;
    tell("checking the keyring's backup");
    let ring = Ring::open(config, &keyring, &keys).await?;
    let ring = ring.copy(source.manifest.keyring_generation, restore::unnamed(&args.scratch)?).await?;
    let owned = Owned::connect(&config.database, url, tracker, &deadline).await?;
    tell("reading the dump");
    let copy = source.copy(&args.scratch, identities, &deadline).await?;
    let ready = Target { config, url, owned }.check(&source, copy, &deadline).await?;
    let restored = restore::load(&ready, &ring, args.accept_lost, (&tell, &deadline)).await?;
    let records = app::open_at(config, url, tracker, end).await?;
    let restored = restore::tell_log((&records, config), &ring, restored, (&tell, &deadline)).await?;
    tell("verifying the log");
    let scope = Scope::Within(Range::EVERYTHING);
    let report = records.log().verify(scope, consent::digests, &deadline).await?;
    if report.breaks.is_empty() {
        ready.open(&deadline).await?;
    }
    tell("");
    Ok((restored, report))
}

fn show(restored: &Restored, report: &Report, global: &Global) -> anyhow::Result<()> {
    if global.json {
        let told = serde_json::json!({ "restored": restored, "log": report });
        output::line(&told.to_string())?;
    } else {
        for line in lines(restored, report) {
            output::line(&line)?;
        }
    }
    anyhow::ensure!(
        report.breaks.is_empty() || report.breaks.iter().any(|found| found.what != PUBLISHED),
        "the deployment that was lost is not: a daemon of it has published meanwhile. Stop all of its daemons, DROP SCHEMA sidekeep \
         CASCADE in the target, and restore again"
    );
    anyhow::ensure!(
        report.breaks.is_empty(),
        "the log is broken in {} places, and daemons are kept out of the restored database; `sidekeep verify --full` tells of \
         each, and GRANT USAGE ON SCHEMA sidekeep TO sidekeep_app lets them in all the same",
        report.breaks.len()
    );
    Ok(())
}

fn lines(restored: &Restored, report: &Report) -> Vec<String> {
    let mut lines = vec![
        format!("restored {}: {} rows, {} persons", restored.name, restored.rows, restored.persons),
        format!(
            "lost: whatever was committed after {}; the last that is known of the deployment is of {}",
            restored.lost_from, restored.lost_until
        ),
        format!(
            "erased again: {} persons; {} entries of erasures were written again",
            restored.erased_again, restored.entries_staged
        ),
        "not known: whether somebody withdrew a consent in that time; ask the applications before you rely on one".to_owned(),
        format!("open legal holds: {}; those that were released in that time are open again", restored.open_holds),
    ];
    if restored.lost_persons > 0 {
        lines.push(format!("lost: {} persons without a key, as you accepted", restored.lost_persons));
    }
    for gap in &restored.gaps {
        let lost = gap.lost_size.saturating_sub(gap.kept_size);
        lines.push(format!(
            "declared: stream {} has lost {lost} published entries, from position {} on",
            gap.stream, gap.kept_size
        ));
    }
    lines.push(format!(
        "the log: {}, {} entries, {} gaps declared, {} erased persons",
        report.verdict, report.entries, report.gaps, report.erased_subjects
    ));
    lines
}
