//! `sidekeep completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, output};

/// Print the completions for a shell
///
/// To be stored where that shell looks for them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sidekeep", &mut text);
    Ok(output::bytes(&text)?)
}
