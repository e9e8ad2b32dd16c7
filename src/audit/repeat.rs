//! A call that is sent again with the same id: the same answer when it says the same, else a conflict.

use std::collections::HashMap;

use super::draft::Draft;
use super::open::Opener;
use super::queue::Receipt;
use super::row::Stored;
use crate::error::{Error, Result};
use crate::keyring::Keyring;
use crate::store::{Deadline, Store};

/// Where these entries of a repeated call are, which were all found; each with what to begin with where it is at fault.
///
/// # Errors
/// [`Error::Conflict`] when one of the ids stands for another entry.
pub(super) async fn answer(
    store: &Store,
    keyring: &Keyring,
    drafts: &[(String, &Draft)],
    found: &HashMap<String, Stored>,
    deadline: &Deadline,
) -> Result<Vec<Receipt>> {
    let rows: Vec<Stored> =
        drafts.iter().filter_map(|(_, draft)| found.get(&draft.entry.id)).cloned().collect();
    let opener = Opener::of(store, keyring, &rows, deadline).await?;
    let mut receipts = Vec::with_capacity(drafts.len());
    for ((which, draft), row) in drafts.iter().zip(rows) {
        let shown = opener.open(row)?;
        // An id that the daemon made itself is in the log only with the very entry that it was made for.
        if draft.given.as_ref().is_some_and(|given| !shown.repeats(given)) {
            return Err(Error::conflict(format!("{which}another entry has this id")));
        }
        receipts.push(Receipt {
            id: shown.id,
            stream: shown.stream,
            position: shown.position,
            recorded_at: shown.recorded_at,
        });
    }
    Ok(receipts)
}
