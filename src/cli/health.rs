//! `sidekeep health`: is the running daemon well? For people and probes.

use serde_json::Value;

use super::client::Answer;
use super::{Global, json, output, socket};

/// Ask the running daemon whether it is well, and print each check
///
/// Exits with 1 when it is unavailable and with 2 when it is not reached.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only whether it answers at all; for a liveness probe, never depends on PostgreSQL
    #[arg(long, conflicts_with = "ready")]
    live: bool,
    /// Only whether it can do its work, if degraded; for a readiness probe
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    socket: socket::Socket,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let answer = args.socket.ask(global, "system.health", &socket::no_params())?;
    if args.live {
        return Ok(output::line(if global.json { r#"{"live":true}"# } else { "live" })?);
    }
    let result = match answer {
        Answer::Result(result) => result,
        Answer::Error(refusal) => return Err(refusal.into()),
    };
    let value: Value = serde_json::from_str(result.get())?;
    let status = value.get("status").and_then(Value::as_str).unwrap_or("unknown");
    if global.json {
        output::line(result.get())?;
    } else if args.ready {
        output::line(status)?;
    } else {
        output::line(&json::lines(&value))?;
    }
    match status {
        "ok" | "degraded" => Ok(()),
        other => anyhow::bail!("the daemon is {other}"),
    }
}
