//! `sidekeep request …`: the register of what people have asked for, through the running daemon.

use clap::{Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Global, output, socket, subject};

/// Keep the register of what people have asked for, with the month that there is to answer
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Open(Open),
    List(List),
    Extend(Extend),
    Close(Close),
}

/// Enter what a person asks for; it is due one calendar month after it was received
#[derive(Debug, clap::Args)]
struct Open {
    /// The person's user id; `-` reads it from standard input, where no other user of the host sees it
    #[arg(value_name = "USER")]
    user: String,
    /// Which right
    #[arg(long, value_enum)]
    kind: Kind,
    /// When it was received (RFC 3339); now without it
    #[arg(long, value_name = "TIME")]
    received_at: Option<String>,
    /// How it came, as a code: it stays in the clear
    #[arg(long, value_name = "CODE")]
    channel: Option<String>,
    /// The request's id: with it, the command may be repeated
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    socket: socket::Socket,
}

/// List requests, the one received last first
///
/// Prints all of them, or with --json one page as `request.list` answers it.
#[derive(Debug, clap::Args)]
struct List {
    /// Only those that must be answered before then (RFC 3339)
    #[arg(long, value_name = "TIME")]
    due_before: Option<String>,
    /// Only those that are open, or closed
    #[arg(long, value_enum)]
    state: Option<State>,
    #[command(flatten)]
    page: socket::Page,
    #[command(flatten)]
    socket: socket::Socket,
}

/// Extend the time to answer by two further months, within the first one
#[derive(Debug, clap::Args)]
struct Extend {
    /// The request's id
    #[arg(value_name = "ID")]
    id: String,
    /// Why more time is needed, as the person is told
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    socket: socket::Socket,
}

/// Close a request
#[derive(Debug, clap::Args)]
struct Close {
    /// The request's id
    #[arg(value_name = "ID")]
    id: String,
    /// How it ended, as a code such as done or refused: it stays in the clear
    #[arg(long, value_name = "CODE")]
    outcome: String,
    /// Why it ended so
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    socket: socket::Socket,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Access,
    Portability,
    Erasure,
    Rectification,
    Restriction,
    Objection,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    Open,
    Closed,
}

#[derive(Deserialize)]
struct Shown {
    id: String,
    user_id: Option<String>,
    kind: String,
    due_at: String,
    overdue: bool,
    closed_at: Option<String>,
    outcome: Option<String>,
}

impl Shown {
    fn line(&self) -> String {
        let whose = self.user_id.as_deref().unwrap_or("(erased)");
        let (id, kind) = (&self.id, &self.kind);
        let how = match (&self.closed_at, &self.outcome) {
            (Some(at), Some(outcome)) => format!("closed {at}  {outcome}"),
            _ if self.overdue => format!("OVERDUE since {}", self.due_at),
            _ => format!("due {}", self.due_at),
        };
        format!("{id}  {whose}  {kind}  {how}")
    }
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    match args.command {
        Command::Open(args) => open(&args, global),
        Command::List(args) => list(&args, global),
        Command::Extend(args) => {
            let params = socket::params([("id", Some(&args.id)), ("reason", Some(&args.reason))]);
            one(&args.socket, global, "request.extend", &params)
        }
        Command::Close(args) => {
            let given = [
                ("id", Some(&*args.id)),
                ("outcome", Some(&*args.outcome)),
                ("reason", args.reason.as_deref()),
            ];
            let params = socket::params(given);
            one(&args.socket, global, "request.close", &params)
        }
    }
}

fn open(args: &Open, global: &Global) -> anyhow::Result<()> {
    let (user, kind) = (subject::user_id(&args.user)?, name(args.kind));
    let params = socket::params([
        ("user_id", Some(&user)),
        ("kind", Some(&kind)),
        ("received_at", args.received_at.as_deref()),
        ("channel", args.channel.as_deref()),
        ("id", args.id.as_deref()),
    ]);
    one(&args.socket, global, "request.open", &params)
}

fn list(args: &List, global: &Global) -> anyhow::Result<()> {
    let state = args.state.map(name);
    let params = socket::params([("due_before", args.due_before.as_deref()), ("state", state.as_deref())]);
    args.page.each(&args.socket, global, ("request.list", params), |request: &Shown| request.line())
}

fn one(
    socket: &socket::Socket,
    global: &Global,
    method: &str,
    params: &Map<String, Value>,
) -> anyhow::Result<()> {
    let result = socket.result(global, method, params)?;
    output::shown(global, &result, |request: &Shown| request.line())
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
