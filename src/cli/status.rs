//! `sidekeep status`: what the running daemon is doing.

use super::client::Answer;
use super::{Global, json, output, socket};

/// Ask the running daemon what it is doing: version, uptime, queues, connections
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: socket::Socket,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    match args.socket.ask(global, "system.status", &socket::no_params())? {
        Answer::Error(refusal) => Err(refusal.into()),
        Answer::Result(result) if global.json => Ok(output::line(result.get())?),
        Answer::Result(result) => Ok(output::line(&json::lines(&serde_json::from_str(result.get())?))?),
    }
}
