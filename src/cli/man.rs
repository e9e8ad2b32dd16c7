//! `sidekeep man`: the manual pages, made from the command line's own description.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::{Cli, output};
use crate::durable;

/// Print the manual page sidekeep(1), or write the pages of all commands
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write all pages into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(folder) = args.out else { return Ok(output::bytes(&page(&command)?)?) };
    durable::create_directory(&folder, 0o755)
        .with_context(|| format!("{}: cannot be made", folder.display()))?;
    write_all(&command, &folder)
}

fn write_all(command: &clap::Command, folder: &Path) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let path = folder.join(format!("{name}.1"));
    durable::write(&path, &page(command)?, 0o644)
        .with_context(|| format!("{}: cannot be written", path.display()))?;
    command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
        .try_for_each(|below| write_all(below, folder))
}

fn page(command: &clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .source(concat!("sidekeep ", env!("CARGO_PKG_VERSION")))
        .manual("sidekeep")
        .render(&mut text)?;
    Ok(text)
}
