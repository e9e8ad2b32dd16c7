//! `sidekeep subject restrict`, `unrestrict`.

use serde::Deserialize;

use super::super::{Global, output, socket};
use super::user_id;

/// Restrict the processing of a person's data: they are stored, and not read or written
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Restrict {
    #[command(flatten)]
    given: Given,
}

/// End the restriction of a person's data
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Unrestrict {
    #[command(flatten)]
    given: Given,
}

#[derive(Debug, clap::Args)]
struct Given {
    /// The person's user id; `-` reads it from standard input, where no other user of the host sees it
    #[arg(value_name = "USER")]
    user: String,
    /// Why, for those who read the audit log later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The request that this answers
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    #[command(flatten)]
    socket: socket::Socket,
}

#[derive(Deserialize)]
struct Restricted {
    restricted: bool,
}

pub(in crate::cli) fn restrict(args: &Restrict, global: &Global) -> anyhow::Result<()> {
    run(&args.given, global, "subject.restrict")
}

pub(in crate::cli) fn unrestrict(args: &Unrestrict, global: &Global) -> anyhow::Result<()> {
    run(&args.given, global, "subject.unrestrict")
}

fn run(given: &Given, global: &Global, method: &str) -> anyhow::Result<()> {
    let user = user_id(&given.user)?;
    let params = socket::params([
        ("user_id", Some(&user)),
        ("reason", Some(&given.reason)),
        ("request_id", given.request.as_deref()),
    ]);
    let result = given.socket.result(global, method, &params)?;
    output::shown(global, &result, |now: &Restricted| {
        if now.restricted { "restricted".to_owned() } else { "not restricted".to_owned() }
    })
}
