//! A call that is sent again with the same id: the same answer when it says the same, else a conflict.

use std::collections::HashMap;

use super::draft::Draft;
use super::open::Opener;
use super::queue::Receipt;
use super::row::Stored;
use crate::error::{Error, Result};
use crate::keyring::Keyring;
use crate::store::{Deadline, Store};

/// Where the entries of a repeated call are.
///
/// # Errors
/// [`Error::Conflict`] when one of the ids stands for another entry, or when only some are there.
pub(super) async fn answer(
    store: &Store,
    keyring: &Keyring,
    drafts: &[Draft],
    found: &HashMap<String, Stored>,
    deadline: &Deadline,
) -> Result<Vec<Receipt>> {
    let many = drafts.len() > 1;
    let there: Vec<(usize, &Draft, &Stored)> = drafts
        .iter()
        .enumerate()
        .filter_map(|(index, draft)| Some((index, draft, found.get(&draft.entry.id)?)))
        .collect();
    let rows: Vec<Stored> = there.iter().map(|(.., row)| (*row).clone()).collect();
    let opener = Opener::of(store, keyring, &rows, deadline).await?;
    let mut receipts = Vec::with_capacity(drafts.len());
    for (index, draft, row) in &there {
        let shown = opener.open((*row).clone())?;
        // An id that the daemon made itself is in the log only with the very entry that it was made for.
        if draft.given.as_ref().is_some_and(|given| !shown.repeats(given)) {
            return Err(Error::conflict(match many {
                true => format!("entries[{index}].id: another entry has this id; nothing was appended"),
                false => "another entry has this id".to_owned(),
            }));
        }
        receipts.push(Receipt {
            id: shown.id,
            stream: shown.stream,
            position: shown.position,
            recorded_at: shown.recorded_at,
        });
    }
    match there.first() {
        Some((index, ..)) if there.len() < drafts.len() => Err(Error::conflict(format!(
            "entries[{index}].id is in the log already, and others of these are not: nothing was appended; send without it what is new"
        ))),
        _ => Ok(receipts),
    }
}
