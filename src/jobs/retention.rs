//! The job `retention`: removes what `[retention]` says, kind by kind, and finds out whether it went. How a kind is removed is
//! said where its table is.
//!
//! A crash at any point leaves whole batches: each is one transaction with its entries and its counts, so whoever goes on with
//! the run finds the rest, and the counts are true.

mod guard;
pub(super) mod policies;

use chrono::{DateTime, Utc};

use super::Counts;
use super::claim;
use super::counting::Counting;
use crate::app::App;
use crate::error::{Error, Result, chain};
use crate::evidence::expiry;
use crate::records::retention::{Retired, Retiring};
use crate::store::Deadline;
use crate::subjects::retention as subjects;

/// Its name.
pub(super) const NAME: &str = "retention";

/// Objects of the archive, of which there are none to go mostly: they are counted where some were due.
const ARCHIVES: &str = "archives";

/// All kinds.
const KINDS: [&str; 6] = ["subjects", "conversations", "consents", "requests", "audit_months", ARCHIVES];

/// What is due, or was removed.
type Kinds = Vec<(&'static str, i64)>;

/// Removes what is due, or counts it.
///
/// # Errors
/// [`Error::Conflict`] where a clock is not to be believed, or something that was due did not go; the store's.
pub(super) async fn run(app: &App, deadline: &Deadline, dry_run: bool) -> Result<Counts> {
    policies::mirror(app.records.store(), &app.config.retention, deadline).await?;
    let at = guard::now(app, deadline).await?;
    let mut due = due(app, at, deadline).await?;
    if dry_run {
        for (_, number) in due.iter_mut().filter(|(kind, _)| *kind == ARCHIVES) {
            *number = expiry::foresee(&app.records, &app.config, at, deadline).await?;
        }
        return Ok(due.into_iter().collect());
    }
    let store = app.records.store();
    let kinds: Vec<&'static str> = due.iter().map(|(kind, _)| *kind).collect();
    let counting = Counting::begin(store, NAME, &kinds, deadline).await?;
    let removed = remove(app, deadline, &counting, (at, &due)).await;
    let expired = claim::expire(store, at, deadline).await;
    removed?;
    expired?;
    // A holder before this one may have removed all that was due of a kind.
    counting.counts(&KINDS, deadline).await
}

/// How much is due of each kind, the views' own definition.
async fn due(app: &App, at: DateTime<Utc>, deadline: &Deadline) -> Result<Kinds> {
    let records = &app.records;
    let evidence = subjects::due_evidence(records, at, deadline).await?;
    let months = records.log().months_due(at, deadline).await?.len();
    let mut due = vec![
        // First: what is removed of a person is entered in the log, which refers to the person again.
        ("subjects", subjects::due_people(records, at, deadline).await?),
        ("conversations", records.due_conversations(at, deadline).await?),
        ("consents", records.due_consents(at, deadline).await?.saturating_add(evidence)),
        ("requests", subjects::due_requests(records, at, deadline).await?),
        ("audit_months", i64::try_from(months).map_err(Error::internal)?),
    ];
    // After the months. Counted without the archive, which may be away: the others go all the same.
    let archives = expiry::due(records, at, true, deadline).await?;
    due.extend((archives > 0).then_some((ARCHIVES, archives)));
    Ok(due)
}

/// Removes kind by kind. What fails does not keep the others from going; the first failure is told at the end.
async fn remove(
    app: &App,
    deadline: &Deadline,
    counting: &Counting<'_>,
    (at, due): (DateTime<Utc>, &Kinds),
) -> Result<()> {
    let tally = counting.tally();
    let retiring = Retiring { run: counting.run(), at, deadline, tally: &tally };
    let mut failed = None;
    for (kind, due) in due {
        let result = match of_kind(app, &retiring, kind).await {
            Ok(retired) => gone(app, (kind, *due), (at, retired), deadline).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::error!(kind, run = counting.run(), error = %chain(&error), "retention");
            failed.get_or_insert(error);
            if deadline.has_passed() {
                break;
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn of_kind(app: &App, retiring: &Retiring<'_>, kind: &str) -> Result<Retired> {
    let records = &app.records;
    match kind {
        "subjects" => subjects::retire_people(records, &app.config, retiring).await,
        "conversations" => records.retire_conversations(retiring).await,
        "consents" => {
            let consents = records.retire_consents(retiring).await?;
            let evidence = subjects::retire_evidence(records, retiring).await?;
            Ok(Retired {
                removed: consents.removed.saturating_add(evidence.removed),
                busy: consents.busy.saturating_add(evidence.busy),
                stuck: consents.stuck.saturating_add(evidence.stuck),
            })
        }
        "requests" => subjects::retire_requests(records, retiring).await,
        ARCHIVES => expiry::retire(records, &app.config, retiring).await,
        _ => months(app, retiring).await,
    }
}

/// Makes sure that what was due went: that nothing is said to have gone while it is there.
async fn gone(
    app: &App,
    (kind, expected): (&'static str, i64),
    (at, retired): (DateTime<Utc>, Retired),
    deadline: &Deadline,
) -> Result<()> {
    let mut stuck = retired.stuck;
    if expected > 0 && retired.removed == 0 && retired.busy == 0 && stuck == 0 {
        stuck = match kind {
            // Those of months that could not be dropped are not due.
            ARCHIVES => expiry::due(&app.records, at, false, deadline).await?,
            _ => {
                let left = due(app, at, deadline).await?;
                left.iter().find(|(name, _)| *name == kind).map_or(0, |(_, left)| *left)
            }
        };
    }
    if stuck > 0 {
        return Err(Error::conflict(format!(
            "{kind}: {expected} were due, {} were removed, and {stuck} stayed though nothing held them; look for a trigger or a rule on their table",
            retired.removed
        )));
    }
    if retired.busy > 0 {
        let why = if kind == ARCHIVES { "they name who is held" } else { "somebody was at it" };
        tracing::info!(kind, busy = retired.busy, "left for the next run: {why}");
    }
    Ok(())
}

/// Drops the months of the log that are due, the oldest first.
async fn months(app: &App, retiring: &Retiring<'_>) -> Result<Retired> {
    let mut retired = Retired::default();
    let log = app.records.log();
    for month in log.months_due(retiring.at, retiring.deadline).await? {
        let by = retiring.by("audit_month", month.format("%Y-%m").to_string());
        let entries = log.drop_month(month, &by, retiring.tally).await?;
        tracing::info!(%month, entries, "a month of the log was dropped: its archive has it");
        retired.removed = retired.removed.saturating_add(1);
    }
    let kept = log.months_kept(retiring.at, retiring.deadline).await?;
    if kept > 0 {
        tracing::warn!(
            months = kept,
            "kept past retention.audit_logs: not archived (job archive), or not confirmed (sidekeep migrate --confirm-retention)"
        );
    }
    Ok(retired)
}
