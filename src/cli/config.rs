//! `sidekeep config`: is it right, and what is in force?

use super::exit::{Code, coded};
use super::{Global, output};
use crate::config::{self, Setting};

/// Check or show the configuration
///
/// Needs neither the daemon nor PostgreSQL.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Clone, Copy, Debug, clap::Subcommand)]
enum Action {
    /// Say whether the configuration is right, and if not where and why; exits with 78 then
    Check,
    /// Print every key as it is in force, defaults too
    Show,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let sources: Vec<_> = loaded.sources.iter().map(|source| source.display().to_string()).collect();
    let text = match (args.action, global.json) {
        (Action::Check, true) => serde_json::json!({ "ok": true, "sources": sources }).to_string(),
        (Action::Check, false) => format!("the configuration is right: {}", sources.join(", ")),
        (Action::Show, true) => serde_json::to_string(&loaded.config)?,
        (Action::Show, false) => loaded.settings().iter().map(shown).collect::<Vec<_>>().join("\n"),
    };
    Ok(output::line(&text)?)
}

/// A line of TOML that says where the value is from.
fn shown(setting: &Setting) -> String {
    let Setting { key, value, origin } = setting;
    match value {
        Some(value) => format!("{key} = {value}  # {origin}"),
        None => format!("# {key} is not set"),
    }
}
