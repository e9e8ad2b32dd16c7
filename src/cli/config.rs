//! `sidekeep config`: is it right, and what is in force?

use super::exit::{Code, coded};
use super::{Global, output};
use crate::app;
use crate::config::{self, Loaded, Setting};
use crate::rpc::access::{Policy, PolicyError};
use crate::rpc::listener;
use crate::rpc::methods::Methods;

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
    ///
    /// What this host lacks of it (key files, users, groups) is told too, but is no mistake here: the configuration may
    /// be another host's.
    Check,
    /// Print every key as it is in force, defaults too
    Show,
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let sources: Vec<_> = loaded.sources.iter().map(|source| source.display().to_string()).collect();
    let text = match (args.action, global.json) {
        (Action::Check, json) => {
            let lacking = lacking(&loaded)?;
            lacking.iter().for_each(|lack| output::note(&format!("not on this host: {lack}")));
            if json {
                serde_json::json!({ "ok": true, "sources": sources, "lacking": lacking }).to_string()
            } else {
                format!("the configuration is right: {}", sources.join(", "))
            }
        }
        (Action::Show, true) => serde_json::to_string(&loaded.config)?,
        (Action::Show, false) => loaded.settings().iter().map(shown).collect::<Vec<_>>().join("\n"),
    };
    Ok(output::line(&text)?)
}

/// What `serve` would miss on this host, each with the place that asks for it.
fn lacking(loaded: &Loaded) -> anyhow::Result<Vec<String>> {
    let config = &loaded.config;
    let methods = Methods::all();
    let names: Vec<&str> = methods.names().collect();
    let policy = match Policy::new(&config.access, &names) {
        Err(error @ PolicyError::NoMethod { .. }) => {
            return Err(coded(Code::Config, loaded.located(&error.to_string())));
        }
        other => other.err().map(|error| error.to_string()),
    };
    let found = [
        policy,
        listener::check_group(&config.socket).err().map(|error| error.to_string()),
        app::open_keys(config).err().map(|error| error.to_string()),
        app::public_keys(config).err().map(|error| error.to_string()),
    ];
    Ok(found.into_iter().flatten().map(|lack| loaded.located(&lack)).collect())
}

/// A line of TOML that says where the value is from.
fn shown(setting: &Setting) -> String {
    let Setting { key, value, origin } = setting;
    match value {
        Some(value) => format!("{key} = {value}  # {origin}"),
        None => format!("# {key} is not set"),
    }
}
