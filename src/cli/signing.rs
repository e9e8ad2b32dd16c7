//! `sidekeep signing`: the key that signs checkpoints of the audit log.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::exit::{Code, coded};
use super::{Global, output};
use crate::audit::document::verify;
use crate::audit::note::VerifierKey;
use crate::config;
use crate::durable;
use crate::keyring::SigningKey;

/// Make the key that signs checkpoints, or print its public half
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a signing key (Ed25519)
    ///
    /// Only the daemons that sign need it. Name it first in signing.key_files; a key that has signed before stays there
    /// behind it, so that old checkpoints still verify.
    Generate {
        /// Write it to a new file, for the owner's eyes only; an existing file is never overwritten
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print the public keys of signing.key_files, the one that signs first
    ///
    /// In the form of C2SP signed notes. Give them to whoever is to check the log without trusting its keepers, and keep them: the
    /// public key of one that is lost belongs in signing.lost_keys.
    PublicKey {
        /// Print the key that has signed this document instead: a certificate, a manifest of keyring.backup or of a dump. Whether it
        /// was yours is for you to know
        #[arg(long, value_name = "FILE")]
        of: Option<PathBuf>,
    },
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    match args.action {
        Action::Generate { out: None } => Ok(output::bytes(SigningKey::generate()?.as_bytes())?),
        Action::Generate { out: Some(path) } => {
            match durable::create_new(&path, SigningKey::generate()?.as_bytes(), 0o600) {
                Ok(()) => {
                    output::note(&format!(
                        "{}: a new signing key. Name it first in signing.key_files.",
                        path.display()
                    ));
                    if global.json {
                        output::line(&serde_json::json!({ "file": path }).to_string())?;
                    }
                    Ok(())
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(coded(
                    Code::Usage,
                    format!("{}: is there already; choose another name", path.display()),
                )),
                Err(error) => Err(error).with_context(|| format!("{}: cannot be written", path.display())),
            }
        }
        Action::PublicKey { of: None } => public_keys(global),
        Action::PublicKey { of: Some(path) } => public_key_of(&path, global),
    }
}

fn public_key_of(path: &Path, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let key = verify(&document).with_context(|| path.display().to_string())?;
    show(&[VerifierKey::new(loaded.config.deployment.name.as_str(), &key).encode()], global)
}

fn public_keys(global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let files = &loaded.config.signing.key_files;
    if files.is_empty() {
        anyhow::bail!(
            "signing.key_files is empty; make a key with `sidekeep signing generate --out FILE` and name it there"
        );
    }
    let mut keys = Vec::with_capacity(files.len());
    for file in files {
        let text = config::secret(file).map_err(|problem| coded(Code::Config, problem))?;
        let key = SigningKey::parse(PathBuf::from(file.to_string()), &text)
            .map_err(|problem| coded(Code::Config, problem))?;
        keys.push(VerifierKey::new(loaded.config.deployment.name.as_str(), key.public()).encode());
    }
    show(&keys, global)
}

fn show(keys: &[String], global: &Global) -> anyhow::Result<()> {
    let json = || serde_json::json!({ "keys": keys }).to_string();
    Ok(output::line(&if global.json { json() } else { keys.join("\n") })?)
}
