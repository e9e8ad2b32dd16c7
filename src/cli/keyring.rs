//! `sidekeep keyring`: the key-encryption key.

use std::path::PathBuf;

use anyhow::Context as _;

use super::exit::{Code, coded};
use super::output;
use crate::durable;
use crate::keyring::kek;

/// Make keys
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
    Generate {
        /// Write it to a new file, for the owner's eyes only; an existing file is never overwritten
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let Action::Generate { out } = args.action;
    let text = kek::generate()?;
    let Some(path) = out else { return Ok(output::bytes(text.as_bytes())?) };
    match durable::create_new(&path, text.as_bytes(), 0o600) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let message = "is there already, and overwriting a key loses what it sealed; choose another name";
            return Err(coded(Code::Usage, format!("{}: {message}", path.display())));
        }
        Err(error) => return Err(error).with_context(|| format!("{}: cannot be written", path.display())),
    }
    output::note(&format!(
        "{}: a new key-encryption key. Losing it loses everything that is sealed under it, and no backup of the \
         database holds it: put a copy where the database's backups are not.",
        path.display()
    ));
    Ok(())
}
