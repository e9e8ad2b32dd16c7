//! The job that dumps the database: what it counts, and how far it is.

use serde_json::{Value, json};

use super::Counts;
use crate::app::App;
use crate::backup::run;
use crate::error::Result;
use crate::store::Deadline;

/// Its name.
pub(super) const NAME: &str = "backup";

/// Dumps.
///
/// # Errors
/// As [`run::run`].
pub(super) async fn run(app: &App, deadline: &Deadline) -> Result<Counts> {
    let done = run::run(&app.records, &app.config, &app.dumping, deadline).await?;
    let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    Ok(Counts::from([
        ("bytes", i64::try_from(done.bytes).unwrap_or(i64::MAX)),
        ("rows", done.rows),
        ("kept", number(done.kept)),
        ("pruned", number(done.pruned)),
    ]))
}

/// How much of the run in this daemon its destination has taken.
pub(super) fn progress(app: &App) -> Value {
    json!({ "bytes": app.dumping.bytes() })
}
