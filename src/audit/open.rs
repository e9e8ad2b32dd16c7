//! Entries as a caller sees them: persons under their user ids, sealed parts opened, the erased without either.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draft::{ACTOR, SUBJECT};
use super::entry::{Append, Entry, Labels};
use super::row::Stored;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::{DataKey, Keyring, Person, Place, Subject};
use crate::store::{Deadline, Store};
use crate::values::{Json, ResourceId, ShortText, Term, UserId};

/// An entry of the log.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Its stream.
    pub stream: i32,
    /// Its position in the stream, from 0.
    pub position: i64,
    /// When it was appended, by PostgreSQL's clock.
    pub recorded_at: Timestamp,
    /// What was done.
    pub action: String,
    /// Who did it; null where nobody is named, and once the person is erased.
    pub user_id: Option<String>,
    /// Whose data it was.
    pub subject_user_id: Option<String>,
    /// What kind of thing it was done to.
    pub resource_type: Option<String>,
    /// Which one.
    pub resource_id: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
    /// When it was done, as the caller said, or a command that worked without a daemon.
    pub occurred_at: Option<Timestamp>,
    /// The address it was done from.
    pub ip_address: Option<String>,
    /// The program it was done with.
    pub user_agent: Option<String>,
    /// Words to filter by.
    pub labels: Option<Labels>,
    /// Whatever the application added.
    pub metadata: Option<Json>,
    /// The leaf of its stream's Merkle tree, in hexadecimal.
    pub leaf_hash: String,
    /// Of "actor" and "subject", those who are erased.
    pub erased: Vec<&'static str>,
    /// True once the actor is erased; not there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anonymized: Option<bool>,
}

#[derive(Deserialize)]
struct Client {
    ip_address: Option<String>,
    user_agent: Option<String>,
}

/// The persons of some entries, as they are in the keyring now.
#[derive(Debug)]
pub(super) struct Opener<'a> {
    people: HashMap<i64, Subject>,
    own: &'a DataKey,
}

impl<'a> Opener<'a> {
    /// Reads the persons of these entries.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn of(
        store: &Store,
        keyring: &'a Keyring,
        rows: &[Stored],
        deadline: &Deadline,
    ) -> Result<Self> {
        let mut ids: Vec<i64> =
            rows.iter().flat_map(|row| [row.actor_id, row.subject_id]).flatten().collect();
        ids.sort_unstable();
        ids.dedup();
        let own = &keyring.own()?.key;
        if ids.is_empty() {
            return Ok(Self { people: HashMap::new(), own });
        }
        let found = store
            .single(deadline, "audit.persons", async |connection| Person::find_by_id(connection, &ids).await)
            .await?;
        let mut people = HashMap::with_capacity(found.len());
        for person in found {
            people.insert(person.subject_id(), keyring.open(person)?);
        }
        Ok(Self { people, own })
    }

    /// The entry as it is shown. What nobody's key opens any more is null.
    ///
    /// # Errors
    /// [`Error::Tampered`] where sealed bytes of a living person do not open.
    pub(super) fn open(&self, row: Stored) -> Result<Shown> {
        let at = format!("audit_logs, stream {} position {}", row.stream, row.position);
        let (entry, leaf) = row.entry().ok_or_else(|| Error::Tampered { at: at.clone() })?;
        let find = |id: Option<i64>| id.and_then(|id| self.people.get(&id));
        let (actor, subject) = (find(entry.actor_id), find(entry.subject_id));
        let gone = |id: Option<i64>, person: Option<&Subject>| id.is_some() && person.is_none();
        let (actor_gone, subject_gone) = (gone(entry.actor_id, actor), gone(entry.subject_id, subject));
        let mut erased = Vec::new();
        erased.extend(actor_gone.then_some("actor"));
        erased.extend(subject_gone.then_some("subject"));
        let key =
            |first: (Option<i64>, Option<&'_ Subject>), second: (Option<i64>, Option<&'_ Subject>)| match (
                first, second,
            ) {
                ((Some(_), person), _) | ((None, _), (Some(_), person)) => {
                    person.map(|person| person.key.clone())
                }
                _ => Some(self.own.clone()),
            };
        let client = self.part(
            &entry,
            "client_sealed",
            entry.client_sealed.as_deref(),
            key((entry.actor_id, actor), (entry.subject_id, subject)),
        )?;
        let metadata = self.part(
            &entry,
            "metadata_sealed",
            entry.metadata_sealed.as_deref(),
            key((entry.subject_id, subject), (entry.actor_id, actor)),
        )?;
        let client: Option<Client> = client
            .map(|text| serde_json::from_str(&text).map_err(|_| Error::Tampered { at: at.clone() }))
            .transpose()?;
        let (ip_address, user_agent) =
            client.map_or((None, None), |client| (client.ip_address, client.user_agent));
        let named = |person: Option<&Subject>| person.map(|person| person.user_id.clone());
        let resource_id = match entry.resource_id.as_deref() {
            Some(ACTOR) => named(actor),
            Some(SUBJECT) => named(subject),
            _ => entry.resource_id,
        };
        Ok(Shown {
            id: entry.id,
            stream: entry.stream,
            position: entry.position,
            recorded_at: entry.recorded_at.into(),
            action: entry.action,
            user_id: named(actor),
            subject_user_id: named(subject),
            resource_type: entry.resource_type,
            resource_id,
            outcome: entry.outcome,
            occurred_at: entry.occurred_at.map(Timestamp::from),
            ip_address,
            user_agent,
            labels: entry.labels,
            metadata: metadata.and_then(Json::trusted),
            leaf_hash: leaf.hex(),
            erased,
            anonymized: actor_gone.then_some(true),
        })
    }

    fn part(
        &self,
        entry: &Entry,
        column: &'static str,
        sealed: Option<&[u8]>,
        key: Option<DataKey>,
    ) -> Result<Option<String>> {
        let (Some(sealed), Some(key)) = (sealed, key) else { return Ok(None) };
        key.open_text(Place { table: "audit_logs", column, row: &entry.id }, sealed).map(Some)
    }
}

impl Shown {
    /// Whether each parameter that was given equals what is stored.
    pub fn repeats(&self, given: &Append) -> bool {
        fn same(given: Option<&str>, stored: Option<&str>) -> bool {
            given.is_none_or(|given| stored == Some(given))
        }
        let labels = given.labels.as_ref().is_none_or(|given| {
            given.iter().eq(self
                .labels
                .iter()
                .flat_map(Labels::iter)
                .filter(|(key, _)| !key.starts_with(super::entry::OWN_LABELS)))
        });
        self.action == given.action.as_str()
            && same(given.user_id.as_ref().map(UserId::as_str), self.user_id.as_deref())
            && same(given.subject_user_id.as_ref().map(UserId::as_str), self.subject_user_id.as_deref())
            && same(given.resource_type.as_ref().map(Term::as_str), self.resource_type.as_deref())
            && same(given.resource_id.as_ref().map(ResourceId::as_str), self.resource_id.as_deref())
            && same(given.outcome.map(super::entry::Outcome::as_str), self.outcome.as_deref())
            && given.occurred_at.is_none_or(|at| self.occurred_at == Some(at))
            && same(given.ip_address.as_ref().map(ShortText::as_str), self.ip_address.as_deref())
            && same(given.user_agent.as_ref().map(ShortText::as_str), self.user_agent.as_deref())
            && labels
            && given
                .metadata
                .as_ref()
                .is_none_or(|given| self.metadata.as_ref().is_some_and(|stored| given.same(stored)))
    }
}
