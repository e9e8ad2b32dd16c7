//! The command `sidekeep`: parse the command line, run the command, turn its error into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use sidekeep::cli::{self, Cli};

/// A fifth of the daemon's work for an entry was glibc's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let done = Cli::try_parse().map_or_else(|refused| cli::refuse(&refused), cli::run);
    ExitCode::from(done)
}
