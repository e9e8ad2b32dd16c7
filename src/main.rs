//! The command `sidekeep`: parse the command line, run the command, turn its error into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use sidekeep::cli::{self, Cli};

fn main() -> ExitCode {
    let done = Cli::try_parse().map_or_else(|refused| cli::refuse(&refused), cli::run);
    ExitCode::from(done)
}
