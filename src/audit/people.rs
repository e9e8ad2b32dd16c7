//! The persons that a writer has met lately, with open keys. One is used only while the batch's own statement finds the
//! row as it was.

use std::collections::HashMap;
use std::sync::Arc;

use super::draft::{Draft, Known};
use super::stream::Referred;
use crate::error::Result;
use crate::keyring::{Keyring, Person};
use crate::store::{Deadline, Store};
use crate::values::UserId;

/// How many persons are remembered; then all are forgotten at once, which is simple and seldom.
const REMEMBERED: usize = 5_000;

/// The persons, by user id.
#[derive(Debug, Default)]
pub(super) struct People(HashMap<String, Known>);

impl People {
    /// Makes sure that everybody these entries name is known; who does not exist yet is created. Answers who was erased and is
    /// refused for a while.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn meet(
        &mut self,
        store: &Store,
        keyring: &Keyring,
        drafts: &[&Draft],
        deadline: &Deadline,
    ) -> Result<Vec<String>> {
        let mut refused = Vec::new();
        if self.0.len() > REMEMBERED {
            self.0.clear();
        }
        for create in [true, false] {
            let mut unknown: Vec<&UserId> = drafts.iter().flat_map(|draft| draft.people()).collect();
            unknown.retain(|person| !self.0.contains_key(person.as_str()));
            unknown.sort_unstable();
            unknown.dedup();
            if unknown.is_empty() {
                break;
            }
            let user_ids: Vec<&str> = unknown.iter().map(|person| person.as_str()).collect();
            let found = store
                .single(deadline, "audit.people", async |connection| {
                    Person::find(connection, &user_ids).await
                })
                .await?;
            for person in found {
                let wrapped_key = person.wrapped_key().to_vec();
                let subject = Arc::new(keyring.open(person)?);
                self.0.insert(subject.user_id.clone(), Known { subject, wrapped_key });
            }
            let creating = drafts.iter().filter(|draft| draft.creates).flat_map(|draft| draft.people());
            unknown = creating.filter(|person| !self.0.contains_key(person.as_str())).collect();
            if create && !unknown.is_empty() {
                refused = keyring.create_allowed(store, deadline, &unknown).await?;
            }
        }
        Ok(refused)
    }

    /// Everybody who is known.
    pub(super) fn known(&self) -> &HashMap<String, Known> {
        &self.0
    }

    /// Whom these entries refer to, as the statement compares them.
    pub(super) fn referred(&self, drafts: &[&Draft]) -> Vec<Referred> {
        let mut referred: Vec<Referred> = drafts
            .iter()
            .flat_map(|draft| draft.people())
            .filter_map(|person| self.0.get(person.as_str()))
            .map(|known| (known.subject.id, known.wrapped_key.clone()))
            .collect();
        referred.sort_unstable();
        referred.dedup();
        referred
    }

    /// Forgets them: somebody is gone, or has another key.
    pub(super) fn forget(&mut self, drafts: &[&Draft]) {
        for person in drafts.iter().flat_map(|draft| draft.people()) {
            self.0.remove(person.as_str());
        }
    }
}
