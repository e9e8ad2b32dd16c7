//! The command `sidekeep`: parse the command line, run the command, turn its error into an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use sidekeep::cli::{self, Cli};

fn main() -> ExitCode {
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = cli::exit_code(&error);
            if code != 0 {
                // Where standard error is closed there is nobody left to tell.
                drop(writeln!(std::io::stderr(), "sidekeep: {}", cli::message(&error)));
            }
            ExitCode::from(code)
        }
    }
}
