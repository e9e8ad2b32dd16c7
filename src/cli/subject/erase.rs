//! `sidekeep subject erase`, `status`.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::super::{Global, json, output, socket};
use super::user_id;

/// Erase a person, and print the certificate
///
/// There is no way back. The certificate holds no identifier: its salt, which is printed with it and kept nowhere else,
/// shows whom it is about. Give --id and --salt to be able to repeat an erasure whose answer was lost.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Erase {
    /// The person's user id; `-` reads it from standard input, where no other user of the host sees it
    #[arg(value_name = "USER")]
    user: String,
    /// Why: request, consent_withdrawn, objection, unlawful, retention or other
    #[arg(long, value_parser = ["request", "consent_withdrawn", "objection", "unlawful", "retention", "other"], hide_possible_values = true)]
    reason: String,
    /// What to remember of it; it must not name the person
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// The certificate's id
    #[arg(long)]
    id: Option<String>,
    /// 32 random bytes in base64, as `openssl rand -base64 32` prints them
    #[arg(long, value_name = "BASE64")]
    salt: Option<String>,
    /// The request that this answers
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// Change nothing, and only count
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    socket: socket::Socket,
}

/// Print what is held about a person, in numbers
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Status {
    /// The person's user id; `-` reads it from standard input, where no other user of the host sees it
    #[arg(value_name = "USER")]
    user: String,
    #[command(flatten)]
    socket: socket::Socket,
}

pub(in crate::cli) fn erase(args: &Erase, global: &Global) -> anyhow::Result<()> {
    let user = user_id(&args.user)?;
    let given = [
        ("user_id", Some(&user)),
        ("reason", Some(&args.reason)),
        ("note", args.note.as_ref()),
        ("id", args.id.as_ref()),
        ("salt", args.salt.as_ref()),
        ("request_id", args.request.as_ref()),
    ];
    let given = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.as_str().into())));
    let params: Map<String, Value> =
        given.chain(args.dry_run.then(|| ("dry_run".to_owned(), true.into()))).collect();
    print(global, &args.socket.result(global, "subject.erase", &params)?)
}

pub(in crate::cli) fn status(args: &Status, global: &Global) -> anyhow::Result<()> {
    let user = user_id(&args.user)?;
    let params = socket::params([("user_id", Some(&*user))]);
    print(global, &args.socket.result(global, "subject.status", &params)?)
}

/// A document that is kept: on a terminal it is indented, else as it came.
fn print(global: &Global, result: &RawValue) -> anyhow::Result<()> {
    if output::is_terminal() && !global.json {
        return Ok(output::line(&json::indented(result.get()))?);
    }
    Ok(output::line(result.get())?)
}
