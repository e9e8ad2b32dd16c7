//! `sidekeep subject`: the rights of a person, as calls on the running daemon, which enters each in the log.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::client::Answer;
use super::{Global, json, output, socket};

/// Do what a person may ask for
///
/// Each goes to the running daemon, which enters it in the log. What is printed is what the method of the same name answers.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    socket: socket::Socket,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Erase a person, and print the certificate
    ///
    /// There is no way back. The certificate holds no identifier: its salt, which is printed with it and kept nowhere else,
    /// shows whom it is about. Give --id and --salt to be able to repeat an erasure whose answer was lost.
    Erase(Erase),
    /// Print what is held about a person, in numbers
    Status {
        /// The person's user id
        user: String,
    },
}

#[derive(Debug, clap::Args)]
struct Erase {
    /// The person's user id
    user: String,
    /// Why: request, consent_withdrawn, objection, unlawful, retention or other
    #[arg(long)]
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
    /// The request of the person's that this answers
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Change nothing, and only count
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let (method, params) = match args.action {
        Action::Erase(erase) => ("subject.erase", erase.params()),
        Action::Status { user } => ("subject.status", Map::from_iter([("user_id".into(), user.into())])),
    };
    let params = RawValue::from_string(Value::Object(params).to_string())?;
    match args.socket.ask(global, method, &params)? {
        Answer::Error(refusal) => Err(socket::refused(&refusal)),
        Answer::Result(result) if output::is_terminal() && !global.json => {
            Ok(output::line(&json::indented(result.get()))?)
        }
        Answer::Result(result) => Ok(output::line(result.get())?),
    }
}

impl Erase {
    fn params(self) -> Map<String, Value> {
        let given = [
            ("user_id", Some(self.user)),
            ("reason", Some(self.reason)),
            ("note", self.note),
            ("id", self.id),
            ("salt", self.salt),
            ("request_id", self.request_id),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        given.chain(self.dry_run.then(|| ("dry_run".to_owned(), true.into()))).collect()
    }
}
