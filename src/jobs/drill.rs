//! The job that tries the newest dump out.

use super::Counts;
use crate::app::App;
use crate::backup::drill;
use crate::error::Result;
use crate::store::Deadline;

/// Restores, counts, verifies.
///
/// # Errors
/// As [`drill::run`].
pub(super) async fn run(app: &App, deadline: &Deadline) -> Result<Counts> {
    let done = drill::run(&app.records, &app.config, deadline).await?;
    Ok(Counts::from([("rows", done.rows), ("entries", done.entries)]))
}
