//! `sidekeep subject …`: the rights of a person, each through the running daemon.

mod erase;
mod find;
mod holds;
mod restrict;

use clap::Subcommand;

use super::Global;
use super::exit::{Code, coded};

/// Do what the law lets a person ask for, or somebody ask about a person
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Erase(erase::Erase),
    Status(erase::Status),
    Hold(holds::Hold),
    Release(holds::Release),
    Holds(holds::List),
    Restrict(restrict::Restrict),
    Unrestrict(restrict::Unrestrict),
    Find(find::Args),
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    match args.command {
        Command::Erase(args) => erase::erase(&args, global),
        Command::Status(args) => erase::status(&args, global),
        Command::Hold(args) => holds::hold(&args, global),
        Command::Release(args) => holds::release(&args, global),
        Command::Holds(args) => holds::list(&args, global),
        Command::Restrict(args) => restrict::restrict(&args, global),
        Command::Unrestrict(args) => restrict::unrestrict(&args, global),
        Command::Find(args) => find::run(&args, global),
    }
}

/// The user id that was given, or the one on standard input where `-` was: an argument is seen by everybody on the host.
pub(super) fn user_id(given: &str) -> anyhow::Result<String> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let text = std::io::read_to_string(std::io::stdin().lock())
        .map_err(|error| coded(Code::Usage, format!("standard input: {error}")))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains('\n') {
        return Err(coded(Code::Usage, "standard input must be one line with one user id"));
    }
    Ok(line.to_owned())
}
