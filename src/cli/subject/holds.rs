//! `sidekeep subject hold`, `release`, `holds`.

use serde::Deserialize;

use super::super::{Global, output, socket};
use super::user_id;

/// Place a legal hold: while it stands, the person is not erased and nothing of theirs is deleted
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Hold {
    /// The person's user id; `-` reads it from standard input, where no other user of the host sees it
    #[arg(value_name = "USER")]
    user: String,
    /// Why, for those who look at it later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The hold's id: with it, the command may be repeated
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    socket: socket::Socket,
}

/// Release a legal hold
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Release {
    /// The hold's id
    #[arg(value_name = "ID")]
    id: String,
    /// Why it may end, for those who look at it later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    socket: socket::Socket,
}

/// List legal holds, standing and released, the one placed last first
///
/// Prints all of them, or with --json one page as `subject.holds` answers it.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct List {
    /// The person's user id, `-` to read it from standard input; without it everybody's
    #[arg(value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    page: socket::Page,
    #[command(flatten)]
    socket: socket::Socket,
}

#[derive(Deserialize)]
struct Shown {
    id: String,
    user_id: String,
    reason: String,
    placed_at: String,
    released_at: Option<String>,
}

impl Shown {
    fn line(&self) -> String {
        let Self { id, user_id, reason, placed_at, released_at } = self;
        let until = released_at.as_ref().map_or_else(|| "stands".to_owned(), |at| format!("released {at}"));
        format!("{id}  {user_id}  placed {placed_at}  {until}  {reason}")
    }
}

pub(in crate::cli) fn hold(args: &Hold, global: &Global) -> anyhow::Result<()> {
    let user = user_id(&args.user)?;
    let given = [("user_id", Some(&*user)), ("reason", Some(&*args.reason)), ("id", args.id.as_deref())];
    let params = socket::params(given);
    let result = args.socket.result(global, "subject.hold", &params)?;
    output::shown(global, &result, |hold: &Shown| hold.line())
}

pub(in crate::cli) fn release(args: &Release, global: &Global) -> anyhow::Result<()> {
    let params = socket::params([("id", Some(&args.id)), ("reason", Some(&args.reason))]);
    let result = args.socket.result(global, "subject.release", &params)?;
    output::shown(global, &result, |hold: &Shown| hold.line())
}

pub(in crate::cli) fn list(args: &List, global: &Global) -> anyhow::Result<()> {
    let user = args.user.as_deref().map(user_id).transpose()?;
    let params = socket::params([("user_id", user.as_deref())]);
    args.page.each(&args.socket, global, ("subject.holds", params), |hold: &Shown| hold.line())
}
