//! The persons that a writer has met lately, with open keys. One is used only while the batch's own statement finds the
//! row as it was.

use std::collections::HashMap;

use super::draft::{Draft, Known};
use super::stream::Referred;
use crate::error::{Error, Result};
use crate::keyring::{Keyring, Person};
use crate::store::{Deadline, Store};
use crate::values::UserId;

/// How many persons are remembered; then all are forgotten at once, which is simple and seldom.
const REMEMBERED: usize = 5_000;

/// The persons, by user id.
#[derive(Debug, Default)]
pub(super) struct People(HashMap<String, Known>);

impl People {
    /// Looks up everybody whom these entries name.
    ///
    /// # Errors
    /// The store's; those of a row that was changed.
    pub(super) async fn find(
        &mut self,
        store: &Store,
        keyring: &Keyring,
        drafts: &[&Draft],
        deadline: &Deadline,
    ) -> Result<()> {
        if self.0.len() > REMEMBERED {
            self.0.clear();
        }
        let mut unknown: Vec<&str> = drafts
            .iter()
            .flat_map(|draft| draft.people())
            .map(UserId::as_str)
            // A damaged row is read anew each time: it may have been mended.
            .filter(|person| self.0.get(*person).is_none_or(|known| known.key.is_none()))
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        if unknown.is_empty() {
            return Ok(());
        }
        let found = store
            .single(deadline, "audit.people", async |connection| Person::find(connection, &unknown).await)
            .await?;
        for person in found {
            let (id, wrapped_key) = (person.subject_id(), person.wrapped_key().to_vec());
            let user_id = person.user_id().unwrap_or_default().to_owned();
            let key = match keyring.open(person) {
                Ok(subject) => Some(subject.key),
                Err(Error::Tampered { .. }) if drafts.iter().any(|draft| draft.spares(&user_id)) => None,
                Err(error) => return Err(error),
            };
            self.0.insert(user_id, Known { id, key, wrapped_key });
        }
        Ok(())
    }

    /// Whether an entry names somebody who does not exist yet.
    pub(super) fn lacks<'a>(&self, mut drafts: impl Iterator<Item = &'a Draft>) -> bool {
        drafts.any(|draft| draft.named().any(|person| !self.0.contains_key(person.as_str())))
    }

    /// Creates whom these entries name and who does not exist yet, where they may create somebody; to be called after
    /// [`People::find`]. Answers who was erased and is refused for a while.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn create(
        &mut self,
        store: &Store,
        keyring: &Keyring,
        drafts: &[&Draft],
        deadline: &Deadline,
    ) -> Result<Vec<String>> {
        let creating = drafts.iter().filter(|draft| draft.creates).flat_map(|draft| draft.named());
        let unknown: Vec<&UserId> = creating.filter(|person| !self.0.contains_key(person.as_str())).collect();
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        let refused = keyring.create_allowed(store, deadline, &unknown).await?;
        self.find(store, keyring, drafts, deadline).await?;
        Ok(refused)
    }

    /// Everybody who is known.
    pub(super) fn known(&self) -> &HashMap<String, Known> {
        &self.0
    }

    /// Whom these entries refer to, as the statement compares them.
    pub(super) fn referred(&self, drafts: &[&Draft]) -> Vec<Referred<'_>> {
        let mut referred: Vec<Referred<'_>> = drafts
            .iter()
            .flat_map(|draft| draft.people())
            .filter_map(|person| self.0.get(person.as_str()))
            .map(|known| (known.id, known.wrapped_key.as_slice()))
            .collect();
        referred.sort_unstable_by_key(|(id, _)| *id);
        referred.dedup_by_key(|(id, _)| *id);
        referred
    }

    /// Whom these entries refer to, under whatever keys.
    pub(super) fn referred_ids(&self, drafts: &[&Draft]) -> Vec<i64> {
        self.referred(drafts).into_iter().map(|(id, _)| id).collect()
    }

    /// Forgets them: somebody is gone, or has another key.
    pub(super) fn forget(&mut self, drafts: &[&Draft]) {
        for person in drafts.iter().flat_map(|draft| draft.people()) {
            self.0.remove(person.as_str());
        }
    }
}
