//! `sidekeep migrate`: the only command, besides `dev` and `setup`, that changes the schema.

use super::exit::{Code, coded};
use super::serve::runtime;
use super::{Global, output};
use crate::config;
use crate::config::Database;
use crate::store::migrations::{self, Schema};
use tokio_util::task::TaskTracker;

/// Bring the database's schema up to date
///
/// It connects as the owner of the tables (database.migrate_url_file), since the daemon's own role may not change them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Change nothing; exit with 1 when there is something to do
    #[arg(long)]
    check: bool,

    /// Confirm how long the audit log is kept (retention.audit_logs), and that PostgreSQL's clock is right
    ///
    /// Without it no month of the log is dropped before seven years, whatever the configuration says. Once confirmed, the
    /// daemon may drop a month that old; to keep the log longer needs no confirmation.
    #[arg(long, conflicts_with = "check")]
    confirm_retention: bool,
}

/// Applies what is missing, and answers the versions applied.
pub(super) fn migrate(database: &Database, url: &str) -> anyhow::Result<Vec<String>> {
    let tracker = TaskTracker::new();
    Ok(runtime()?.block_on(migrations::apply(database, url, &tracker))?)
}

pub(super) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let loaded = config::load(global.config.as_deref()).map_err(|problem| coded(Code::Config, problem))?;
    let url = config::migrate_url(&loaded.config).map_err(|problem| coded(Code::Config, problem))?;
    let database = &loaded.config.database;
    let (names, done) = if args.check {
        let tracker = TaskTracker::new();
        let schema = runtime()?.block_on(migrations::check(database, &url, &tracker))?;
        match schema {
            Schema::Fits => (Vec::new(), "pending"),
            Schema::Older { pending } => (pending, "pending"),
            Schema::Newer { .. } | Schema::Shut => {
                anyhow::bail!("{}", schema.advice().unwrap_or_default())
            }
        }
    } else {
        let applied = migrate(database, &url)?;
        let tracker = TaskTracker::new();
        let schema = runtime()?.block_on(migrations::check(database, &url, &tracker))?;
        anyhow::ensure!(schema != Schema::Shut, "{}", schema.advice().unwrap_or_default());
        (applied, "applied")
    };
    let confirmed = args.confirm_retention.then_some(loaded.config.retention.audit_logs);
    if let Some(period) = confirmed {
        let tracker = TaskTracker::new();
        runtime()?.block_on(migrations::confirm_retention(database, &url, &tracker, period))?;
    }
    if global.json {
        let confirmed = confirmed.map(|period| period.to_string());
        output::line(&serde_json::json!({ done: names, "retention_confirmed": confirmed }).to_string())?;
    } else if names.is_empty() {
        output::line("the schema is up to date")?;
    } else {
        names.iter().try_for_each(|name| output::line(&format!("{done}: {name}")))?;
    }
    if let Some(period) = confirmed.filter(|_| !global.json) {
        output::line(&format!("confirmed: a month of the audit log may go {period} after its end"))?;
    }
    if args.check && !names.is_empty() {
        anyhow::bail!("{} migrations are pending; run: sidekeep migrate", names.len());
    }
    Ok(())
}
