//! `sidekeep openrpc`: the description of the interface, without a daemon.

use super::output;
use crate::rpc::discover;
use crate::rpc::methods::Methods;

/// Print the description of all methods, in the OpenRPC format
///
/// Every method with its parameters, result, errors and examples; the same as `rpc.discover` answers.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args) -> anyhow::Result<()> {
    Ok(output::line(&serde_json::to_string_pretty(&discover::document(&Methods::all()))?)?)
}
