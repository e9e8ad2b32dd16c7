//! The command line: one file per command. What a command prints is its result; an error is one line with what to do.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod backup;
mod call;
mod certificate;
mod client;
mod completions;
mod config;
mod data_map;
mod dev;
mod doctor;
mod exit;
mod export;
mod failure;
mod health;
mod json;
mod keyring;
mod man;
mod migrate;
mod openrpc;
mod output;
mod recover;
mod request;
mod restore;
mod serve;
mod setup;
mod signing;
mod socket;
mod status;
mod subject;
mod verify;
mod verify_archive;

/// Keeps the records that privacy and security law asks for, beside an application.
#[derive(Debug, Parser)]
#[command(name = "sidekeep", version, after_long_help = EXIT_CODES)]
#[command(disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, or the daemon answered with an error; 2 wrong usage, or the \
daemon was not reached; 75 a living daemon owns the socket; 78 the configuration is wrong.";

/// What every command takes.
#[derive(Debug, clap::Args)]
struct Global {
    /// The configuration; without it $SIDEKEEP_CONFIG, then /etc/sidekeep/sidekeep.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print machine-readable output; an error too is one object, `{"error": {"message": ...}}`
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Setup(setup::Args),
    Dev(dev::Args),
    Migrate(migrate::Args),
    Call(call::Args),
    Health(health::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Subject(subject::Args),
    Request(request::Args),
    Config(config::Args),
    Keyring(keyring::Args),
    Signing(signing::Args),
    Certificate(certificate::Args),
    DataMap(data_map::Args),
    Verify(verify::Args),
    Export(export::Args),
    Backup(backup::Args),
    Recover(recover::Args),
    Restore(restore::Args),
    Openrpc(openrpc::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the command, and tells its error. Answers how to end.
pub fn run(cli: Cli) -> u8 {
    let Cli { global, command } = cli;
    dispatch(command, &global).map_or_else(|error| failure::tell(&error, global.json), |()| 0)
}

/// Tells why a command line is none, or the help that it asks for. Answers how to end.
pub fn refuse(refused: &clap::Error) -> u8 {
    // What could not be read may ask for JSON all the same.
    let mut arguments = std::env::args_os().skip(1).take_while(|argument| argument != "--");
    failure::misused(refused, arguments.any(|argument| argument == "--json"))
}

fn dispatch(command: Command, global: &Global) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(args, global),
        Command::Setup(args) => setup::run(args, global),
        Command::Dev(args) => dev::run(args),
        Command::Migrate(args) => migrate::run(args, global),
        Command::Call(args) => call::run(args, global),
        Command::Health(args) => health::run(args, global),
        Command::Status(args) => status::run(args, global),
        Command::Doctor(args) => doctor::run(args, global),
        Command::Subject(args) => subject::run(args, global),
        Command::Request(args) => request::run(args, global),
        Command::Config(args) => config::run(args, global),
        Command::Keyring(args) => keyring::run(args, global),
        Command::Signing(args) => signing::run(args, global),
        Command::Certificate(args) => certificate::run(args, global),
        Command::DataMap(args) => data_map::run(args, global),
        Command::Verify(args) => verify::run(args, global),
        Command::Export(args) => export::run(&args, global),
        Command::Backup(args) => backup::run(args, global),
        Command::Recover(args) => recover::run(args, global),
        Command::Restore(args) => restore::run(args, global),
        Command::Openrpc(args) => openrpc::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}
