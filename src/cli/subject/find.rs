//! `sidekeep subject find`.

use serde::Deserialize;

use super::super::{Global, output, socket};
use super::user_id;

/// Find whose profile has an e-mail address or a name; prints a user id a line
///
/// Exits with 0 also where nobody has it.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    socket: socket::Socket,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct By {
    /// The e-mail address, in upper or lower case; `-` reads it from standard input
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// The name, exactly; `-` reads it from standard input
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
}

#[derive(Deserialize)]
struct Found {
    items: Vec<String>,
}

pub(in crate::cli) fn run(args: &Args, global: &Global) -> anyhow::Result<()> {
    let email = args.by.email.as_deref().map(user_id).transpose()?;
    let username = args.by.username.as_deref().map(user_id).transpose()?;
    let params = socket::params([("email", email.as_deref()), ("username", username.as_deref())]);
    let result = args.socket.result(global, "subject.find", &params)?;
    if global.json {
        return Ok(output::line(result.get())?);
    }
    let found: Found = serde_json::from_str(result.get())?;
    found.items.iter().try_for_each(|user_id| Ok(output::line(user_id)?))
}
