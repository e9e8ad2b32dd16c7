//! `sidekeep openrpc`: the description of the interface, without a daemon.

use super::output;
use crate::shims::rpc::discover;

/// Prints the OpenRPC document: every method with its parameters, result, errors and examples. The same as `rpc.discover`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args) -> anyhow::Result<()> {
    Ok(output::line(&serde_json::to_string_pretty(&discover::document())?)?)
}
