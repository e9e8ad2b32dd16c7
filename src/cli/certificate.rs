//! `sidekeep certificate`: whether a certificate is what it says, checked without a daemon, a database or a configuration.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize as _;
use serde_json::Value;

use super::exit::{Code, coded};
use super::subject::user_id;
use super::{Global, output};
use crate::audit::document;
use crate::audit::note::VerifierKey;
use crate::subjects::certificate::{Body, FORMAT, Salt};
use crate::values::{Json, UserId};

/// Check the certificate of an erasure
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Check a certificate, without a daemon
    ///
    /// Exits with 1 where it was changed, where another key than those of --key has signed it, or where it is about somebody
    /// else than --user. Without --key it tells only that whoever holds the key in it has signed it.
    Verify {
        /// What `subject.erase` answered, or `-` for standard input
        file: PathBuf,
        /// The public keys that may have signed, one a line, as `sidekeep signing public-key` prints them
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// Check that it is about this user id, by the salt; `-` reads it from standard input
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// The salt, where the file does not hold it
        #[arg(long, value_name = "BASE64", requires = "user")]
        salt: Option<String>,
    },
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let Action::Verify { file, key, user, salt } = args.action;
    let text = read(&file)?;
    let certificate: Value = serde_json::from_str(&text)
        .map_err(|error| coded(Code::Usage, format!("{}: is no JSON: {error}", file.display())))?;
    // A member that is there twice is read by some as the first and by others as the second (RFC 8259 §4).
    Json::parse(&text).map_err(|fault| anyhow::anyhow!("broken: {fault}"))?;
    let public = document::verify(&certificate).context("broken")?;
    let body = certificate.get("body").map(Body::deserialize);
    let body = body.and_then(Result::ok).context("broken: the body is not that of a certificate")?;
    anyhow::ensure!(body.format == FORMAT, "broken: {} is not the format of a certificate", body.format);
    let trusted = key.as_deref().map(|key| trusted(key, &body.deployment, &public)).transpose()?.is_some();
    let user = user.as_deref().map(user_id).transpose()?;
    if let Some(user) = &user {
        about(&certificate, &body, user, salt.as_deref())?;
    }
    show(&body, (trusted, user.is_some()), global)
}

/// Makes sure that one of these keys has signed.
fn trusted(file: &Path, deployment: &str, public: &[u8]) -> anyhow::Result<()> {
    let keys: Vec<VerifierKey> = read(file)?.lines().filter_map(VerifierKey::decode).collect();
    if keys.is_empty() {
        return Err(coded(
            Code::Usage,
            format!("{}: holds no public key of `sidekeep signing public-key`", file.display()),
        ));
    }
    anyhow::ensure!(
        keys.contains(&VerifierKey::new(deployment, public)),
        "broken: none of these keys of {deployment} has signed it"
    );
    Ok(())
}

/// Makes sure that it is about this person.
fn about(certificate: &Value, body: &Body, user: &str, salt: Option<&str>) -> anyhow::Result<()> {
    let user = UserId::parse(user).map_err(|message| coded(Code::Usage, format!("--user {message}")))?;
    let salt = salt.or_else(|| certificate.get("salt").and_then(Value::as_str));
    let salt = salt.ok_or_else(|| coded(Code::Usage, "the file holds no salt; give it with --salt"))?;
    let salt = Salt::parse(salt).context("broken: the salt is not 32 bytes in base64")?;
    anyhow::ensure!(
        salt.commitment(&user) == body.commitment,
        "broken: under this salt it is not about this user id"
    );
    Ok(())
}

fn show(body: &Body, (trusted, about): (bool, bool), global: &Global) -> anyhow::Result<()> {
    if global.json {
        let answer = serde_json::json!({ "verdict": "intact", "key_checked": trusted, "user_checked": about, "body": body });
        return Ok(output::line(&answer.to_string())?);
    }
    let by = if trusted { "one of the given keys" } else { "the key in it, which --key would check" };
    let whom = if about { "; it is about this user id" } else { "" };
    Ok(output::line(&format!(
        "intact: {} erased somebody at {}, signed by {by}{whom}",
        body.deployment, body.erased_at
    ))?)
}

fn read(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        return std::io::read_to_string(std::io::stdin()).context("standard input");
    }
    std::fs::read_to_string(path).map_err(|error| coded(Code::Usage, format!("{}: {error}", path.display())))
}
