//! An entry on its way into the log: checked, then sealed for the persons it names.

use std::collections::HashMap;

use serde::Serialize;

use super::entry::{Append, Entry, Labels, OWN_LABELS};
use crate::error::{Error, Result};
use crate::keyring::{DataKey, Deployment, Place};
use crate::values::{Json, RecordId, ResourceId, ShortText, Term, UserId};

/// The table that sealed parts are bound to, wherever the entry stands at the time.
const TABLE: &str = "audit_logs";
/// Stands for the actor's user id.
pub const ACTOR: &str = "@actor";
/// Stands for the subject's user id.
pub const SUBJECT: &str = "@subject";

/// A person who is known to the keyring, and the row that says so.
#[derive(Clone, Debug)]
pub struct Known {
    /// The number that stands for the person.
    pub id: i64,
    /// What seals for the person; nothing where it is gone with this entry, or damaged.
    pub key: Option<DataKey>,
    /// The row's wrapped key: while it is the same, so is the person.
    pub wrapped_key: Vec<u8>,
}

/// An entry that was checked, with the persons still under their user ids.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Who acted.
    pub actor: Option<UserId>,
    /// Whose data it was.
    pub subject: Option<UserId>,
    /// Whose user id what was looked for may be: somebody took one for the id of a record, and found nothing.
    pub mistaken: Option<UserId>,
    /// Whether the caller chose the id, so that it may be repeated.
    pub given_id: bool,
    /// Whether persons who do not exist yet are created.
    pub creates: bool,
    /// Whether it is sidekeep's own, and not an application's.
    pub own: bool,
    /// Whether it came in a list, so that what is wrong with it names its place there.
    pub listed: bool,
    /// Whether its subject may be one whose key opens no more: what would be sealed with that key is left out.
    pub keyless: bool,
    /// What is stored in the clear; its persons are not filled in yet.
    pub entry: Entry,
    client: Option<String>,
    metadata: Option<Json>,
    /// What the caller gave, to compare a repetition with; nothing where the id is the daemon's own, as nobody repeats it.
    pub given: Option<Box<Append>>,
}

/// What is sealed of the caller's surroundings.
#[derive(Serialize)]
struct Client<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_address: Option<&'a ShortText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a ShortText>,
}

impl Draft {
    /// Checks what one field alone does not tell. `own` are labels that only sidekeep writes.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the field.
    pub fn new(given: Append, own: Option<Labels>) -> Result<Self> {
        let actor = given.user_id.clone();
        let mut subject = given.subject_user_id.clone();
        if subject.is_none() && given.resource_type.as_ref().is_some_and(|kind| kind.as_str() == "user") {
            let person = given.resource_id.as_ref().map(|id| UserId::parse(id.as_str()));
            subject = person.transpose().map_err(|message| Error::invalid("resource_id", message))?;
        }
        refuse_in_the_clear(&given, own.as_ref(), [&actor, &subject])?;
        let resource_id = match given.resource_id.as_ref().map(ResourceId::as_str) {
            // What sidekeep writes itself may stand for the persons.
            Some(id) if id.starts_with('@') && own.is_none() => {
                return Err(Error::invalid(
                    "resource_id",
                    "must not begin with @, which stands for the persons of the entry",
                ));
            }
            Some(id) if subject.as_ref().is_some_and(|subject| subject.as_str() == id) => {
                Some(SUBJECT.to_owned())
            }
            Some(id) if actor.as_ref().is_some_and(|actor| actor.as_str() == id) => Some(ACTOR.to_owned()),
            other => other.map(str::to_owned),
        };
        let client = Client { ip_address: given.ip_address.as_ref(), user_agent: given.user_agent.as_ref() };
        let has_client = client.ip_address.is_some() || client.user_agent.is_some();
        let client =
            has_client.then(|| serde_json::to_string(&client).map_err(Error::internal)).transpose()?;
        let kept = given.id.is_some().then(|| Box::new(given.clone()));
        let id = given.id.unwrap_or_else(RecordId::generate);
        Ok(Self {
            own: own.is_some(),
            listed: false,
            keyless: false,
            entry: Entry {
                stream: 0,
                position: 0,
                recorded_at: chrono::DateTime::UNIX_EPOCH,
                format: super::entry::FORMAT,
                id: id.into_string(),
                actor_id: None,
                subject_id: None,
                action: given.action.into_string(),
                resource_type: given.resource_type.map(Term::into_string),
                resource_id,
                outcome: given.outcome.map(|outcome| outcome.as_str().to_owned()),
                occurred_at: given.occurred_at.map(crate::clock::Timestamp::utc),
                labels: merge(given.labels, own),
                client_sealed: None,
                metadata_sealed: None,
            },
            mistaken: None,
            given_id: kept.is_some(),
            creates: true,
            metadata: given.metadata,
            actor,
            subject,
            client,
            given: kept,
        })
    }

    /// About how many bytes it keeps in memory while it waits.
    pub fn weight(&self) -> usize {
        let metadata = self.metadata.as_ref().map_or(0, |metadata| metadata.as_str().len());
        1024_usize.saturating_add(metadata.saturating_mul(2))
    }

    /// Leaves out address and program, which there is nobody to seal for.
    pub(super) fn forget_client(&mut self) {
        self.client = None;
    }

    /// The persons it names, who exist once it is in the log, if it may create them.
    pub fn named(&self) -> impl Iterator<Item = &UserId> {
        [self.actor.as_ref(), self.subject.as_ref()].into_iter().flatten()
    }

    /// The persons whom it is about, if they exist.
    pub fn people(&self) -> impl Iterator<Item = &UserId> {
        self.named().chain(self.mistaken.as_ref())
    }

    /// Fills in the persons and seals what is theirs, anew each time: address and program with the actor's key, metadata with the
    /// subject's, each with the other's where there is only one, and with the deployment's where there is none. What has only a
    /// key that is gone to be sealed with is left out.
    ///
    /// # Errors
    /// [`Error::Tampered`] where the key of a person is damaged whom the entry cannot do without; the system's randomness failed.
    pub fn seal(&mut self, known: &HashMap<String, Known>, own: &Deployment) -> Result<()> {
        let find = |person: &Option<UserId>| person.as_ref().and_then(|person| known.get(person.as_str()));
        self.refuse_damaged(known)?;
        let mistaken = find(&self.mistaken);
        let (actor, subject) = (find(&self.actor), find(&self.subject).or(mistaken));
        let key = |first: Option<&Known>, second: Option<&Known>, column, text: Option<&str>| {
            let place = Place { table: TABLE, column, row: &self.entry.id };
            let key = first.or(second).map_or(Some(&own.key), |known| known.key.as_ref());
            key.zip(text).map(|(key, text)| key.seal(place, text.as_bytes())).transpose()
        };
        let client = key(actor, subject, "client_sealed", self.client.as_deref())?;
        let metadata = key(subject, actor, "metadata_sealed", self.metadata.as_ref().map(Json::as_str))?;
        let ids = (actor.map(|known| known.id), subject.map(|known| known.id));
        (self.entry.actor_id, self.entry.subject_id) = ids;
        (self.entry.client_sealed, self.entry.metadata_sealed) = (client, metadata);
        if mistaken.is_some()
            && self.entry.resource_id.as_deref() == self.mistaken.as_ref().map(UserId::as_str)
        {
            self.entry.resource_id = Some(SUBJECT.to_owned());
        }
        Ok(())
    }

    /// Whether it can do without this person's key.
    pub(super) fn spares(&self, user_id: &str) -> bool {
        self.keyless && self.subject.as_ref().is_some_and(|subject| subject.as_str() == user_id)
    }

    fn refuse_damaged(&self, known: &HashMap<String, Known>) -> Result<()> {
        let damaged = |person: &UserId| known.get(person.as_str()).is_some_and(|known| known.key.is_none());
        if self.people().any(|person| damaged(person) && !self.spares(person.as_str())) {
            return Err(Error::Tampered { at: "subjects.wrapped_key".into() });
        }
        Ok(())
    }
}

/// Refuses what would name one of an entry's persons in the clear.
fn refuse_in_the_clear(given: &Append, own: Option<&Labels>, persons: [&Option<UserId>; 2]) -> Result<()> {
    let is_person = |text: &str| persons.into_iter().flatten().any(|person| person.as_str() == text);
    let identifies = |field: &str| {
        Error::invalid(field, "is a person's user id, which must not stand in the log in the clear")
    };
    if is_person(given.action.as_str()) {
        return Err(identifies("action"));
    }
    // What sidekeep writes there itself is a word of its own, whatever somebody is called.
    if own.is_none() && given.resource_type.as_ref().is_some_and(|kind| is_person(kind.as_str())) {
        return Err(identifies("resource_type"));
    }
    if given.id.as_ref().is_some_and(|id| is_person(id.as_str())) {
        return Err(identifies("id"));
    }
    if given.labels.iter().flat_map(Labels::iter).any(|(key, value)| is_person(key) || is_person(value)) {
        return Err(identifies("labels"));
    }
    // Of sidekeep's own labels these are the caller's words.
    let said = |(key, value): &(&str, &str)| !key.starts_with(OWN_LABELS) && is_person(value);
    if let Some((key, _)) = own.into_iter().flat_map(Labels::iter).find(said) {
        return Err(identifies(&format!("context.{key}")));
    }
    Ok(())
}

fn merge(given: Option<Labels>, own: Option<Labels>) -> Option<Labels> {
    let labels = match (given, own) {
        (Some(given), Some(own)) => given.with(own),
        (given, own) => given.or(own)?,
    };
    (!labels.is_empty()).then_some(labels)
}
