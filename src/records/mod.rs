//! The records that applications keep: every personal datum sealed with its person's key.
//!
//! A write is one transaction that takes the person's row first; a read is one snapshot that holds the person's row too.

pub mod consent;
pub mod conversation;
pub mod find;
mod held;
pub mod preferences;
pub mod profile;
pub mod retention;
mod row;

pub use held::{open_holds, unheld};

use std::sync::Arc;

use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::audit::{By, Log, SUBJECT, Staged, UnknownActor};
use crate::config::Limits;
use crate::error::{Error, Result};
use crate::keyring::{Keyring, Person, Subject, Whole};
use crate::store::schema::{consent_records, conversations, legal_holds, requests, subjects};
use crate::store::{Connection, Store};
use crate::values::{Json, RecordId, UserId};

/// How often a write is begun anew because its person was created or erased meanwhile.
const TRIES: usize = 4;

/// The records of one deployment.
#[derive(Debug)]
pub struct Records {
    store: Arc<Store>,
    keyring: Arc<Keyring>,
    log: Arc<Log>,
    limits: Limits,
}

/// The statements of a write about one person.
pub(crate) trait Write<'c, T, P: 'c = Subject>:
    AsyncFn(&'c mut Connection, &'c P) -> Result<T>
    + Fn(&'c mut Connection, &'c P) -> <Self as Write<'c, T, P>>::Running
{
    type Running: Future<Output = Result<T>> + Send;
}

impl<'c, T, P: 'c, F, R> Write<'c, T, P> for F
where
    F: AsyncFn(&'c mut Connection, &'c P) -> Result<T> + Fn(&'c mut Connection, &'c P) -> R,
    R: Future<Output = Result<T>> + Send,
{
    type Running = R;
}

/// An id that the caller chose, and what it must not be taken by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Taken<'a> {
    Consent(&'a RecordId),
    Conversation(&'a RecordId),
    Hold(&'a RecordId),
    Request(&'a RecordId),
}

/// How a change takes the person's row.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Take {
    /// Beside other changes, so that the person stays as found.
    Share,
    /// Alone: every change before has ended, every later one sees what this one leaves.
    Alone,
}

impl Take {
    async fn of(self, tx: &mut Connection, user_id: &UserId) -> Result<Option<Person>> {
        match self {
            Self::Share => Person::share(tx, user_id).await,
            Self::Alone => Person::lock(tx, user_id).await,
        }
    }
}

impl Records {
    /// The records in this store, under these keys, each change with its entry in this log.
    pub fn new(store: Arc<Store>, keyring: Arc<Keyring>, log: Arc<Log>, limits: Limits) -> Self {
        Self { store, keyring, log, limits }
    }

    /// The log that changes are entered in.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The store they are in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The keys they are under.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Writes about a person, who is created where nobody has this user id yet; unless `taken` refuses first, since a
    /// refusal creates nobody.
    async fn write<T, F>(&self, by: &By, user_id: &UserId, taken: Option<Taken<'_>>, body: F) -> Result<T>
    where
        F: for<'c> Write<'c, T> + Send + Sync,
        T: Send,
    {
        self.write_taking(by, (user_id, Take::Share), taken, body).await
    }

    /// As [`Records::write`], with the person's row taken this way.
    pub(crate) async fn write_taking<T, F>(
        &self,
        by: &By,
        (user_id, take): (&UserId, Take),
        taken: Option<Taken<'_>>,
        body: F,
    ) -> Result<T>
    where
        F: for<'c> Write<'c, T> + Send + Sync,
        T: Send,
    {
        for _ in 0..TRIES {
            if let Some(output) = self.write_known_taking(by, (user_id, take), &body).await? {
                return Ok(output);
            }
            if let Some(taken) = taken
                && self.is_taken(by, taken).await?
            {
                // The same call, sent twice at once, may have created the person and the record since.
                let output = self.write_known_taking(by, (user_id, take), &body).await?;
                return output.ok_or_else(|| Error::conflict("another record has this id"));
            }
            self.keyring.create(&self.store, &by.deadline, &[user_id]).await?;
        }
        Err(Error::unavailable("the person is created and erased again and again"))
    }

    /// Whether a record has this id. An unknown person has none yet: it would be somebody else's.
    async fn is_taken(&self, by: &By, taken: Taken<'_>) -> Result<bool> {
        let found: i64 = self
            .store
            .single(&by.deadline, "records.taken", async |connection| {
                Ok(match taken {
                    Taken::Consent(id) => {
                        consent_records::table.find(id.as_str()).count().get_result(connection).await?
                    }
                    Taken::Conversation(id) => {
                        conversations::table.find(id.as_str()).count().get_result(connection).await?
                    }
                    Taken::Hold(id) => {
                        legal_holds::table.find(id.as_str()).count().get_result(connection).await?
                    }
                    Taken::Request(id) => {
                        requests::table.find(id.as_str()).count().get_result(connection).await?
                    }
                })
            })
            .await?;
        Ok(found > 0)
    }

    /// Writes about a person, or answers nothing where nobody has this user id.
    async fn write_known<T, F>(&self, by: &By, user_id: &UserId, body: &F) -> Result<Option<T>>
    where
        F: for<'c> Write<'c, T> + Send + Sync,
        T: Send,
    {
        self.write_known_taking(by, (user_id, Take::Share), body).await
    }

    /// As [`Records::write_known`], with the person's row taken this way.
    pub(crate) async fn write_known_taking<T, F>(
        &self,
        by: &By,
        (user_id, take): (&UserId, Take),
        body: &F,
    ) -> Result<Option<T>>
    where
        F: for<'c> Write<'c, T> + Send + Sync,
        T: Send,
    {
        self.entered(by, async || {
            self.store
                .transact(&by.deadline, by.method, async |tx| {
                    let Some(person) = take.of(tx, user_id).await? else { return Ok(None) };
                    let subject = self.keyring.open(person)?;
                    by.concerns(&subject.user_id);
                    let output = body(tx, &subject).await?;
                    Ok(Some((output, self.log.stage(tx, by, &subject).await?)))
                })
                .await
        })
        .await
    }

    /// As [`Records::write_known_taking`], for a change that needs the person's row alone: it is done without the key where that
    /// is damaged.
    pub(crate) async fn write_keyless<T, F>(
        &self,
        by: &By,
        (user_id, take): (&UserId, Take),
        body: &F,
    ) -> Result<Option<T>>
    where
        F: for<'c> Write<'c, T, Whole> + Send + Sync,
        T: Send,
    {
        self.entered(by, async || {
            self.store
                .transact(&by.deadline, by.method, async |tx| {
                    let Some(person) = take.of(tx, user_id).await? else { return Ok(None) };
                    let person = self.keyring.open_or_damaged(tx, person).await?;
                    by.concerns_whole(&person);
                    let output = body(tx, &person).await?;
                    Ok(Some((output, self.log.stage_keyless(tx, by, &person).await?)))
                })
                .await
        })
        .await
    }

    /// Runs a change that stages its entry, and hands the entry over once it is committed. Begins anew where the actor has
    /// first to be created.
    pub(crate) async fn entered<T, F, R>(&self, by: &By, change: F) -> Result<Option<T>>
    where
        F: Fn() -> R,
        R: Future<Output = Result<Option<(T, Staged)>>> + Send,
    {
        for _ in 0..TRIES {
            match change().await {
                Ok(None) => return Ok(None),
                Ok(Some((output, staged))) => {
                    self.log.hand_over(by, staged);
                    return Ok(Some(output));
                }
                // Nothing was committed: a change without its entry cannot exist.
                Err(Error::Internal(cause)) => match cause.downcast::<UnknownActor>() {
                    Ok(actor) => self.keyring.create(&self.store, &by.deadline, &[&actor.0]).await?,
                    Err(cause) => return Err(Error::Internal(cause)),
                },
                Err(error) => return Err(error),
            }
        }
        Err(Error::unavailable("the actor is created and erased again and again"))
    }

    /// A person who is read about, unrestricted; nothing where nobody has this user id.
    async fn reader(
        &self,
        by: &By,
        connection: &mut Connection,
        user_id: &UserId,
    ) -> Result<Option<Subject>> {
        let row = subjects::table.filter(subjects::user_id.eq(user_id.as_str())).select(Person::as_select());
        let Some(person) = row.first(connection).await.optional()? else { return Ok(None) };
        self.unrestricted(by, person).map(Some)
    }

    /// What a read answers that has found no record of a person: it concerns whoever is known all the same.
    async fn absent<T>(&self, by: &By, user_id: &UserId, what: &'static str) -> Result<T> {
        let person = self.store.single(&by.deadline, "subjects.find", async |connection| {
            self.reader(by, connection, user_id).await
        });
        if person.await?.is_some() {
            by.about(what, SUBJECT);
        }
        Err(Error::NotFound { what })
    }

    /// Notes that a call names this person, though it found nothing of theirs.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn names(&self, by: &By, user_id: &UserId) -> Result<()> {
        let known = self.store.single(&by.deadline, "subjects.find", async |connection| {
            let row = subjects::table.filter(subjects::user_id.eq(user_id.as_str())).count();
            Ok(row.get_result::<i64>(connection).await?)
        });
        if known.await? > 0 {
            by.concerns(user_id.as_str());
        }
        Ok(())
    }

    /// Opens a person's key, and notes whom the call concerns.
    fn unrestricted(&self, by: &By, person: Person) -> Result<Subject> {
        let subject = self.keyring.open(person)?;
        by.concerns(&subject.user_id);
        subject.unrestricted()?;
        Ok(subject)
    }

    fn check_size(&self, what: &str, json: Option<&Json>) -> Result<()> {
        let max = self.limits.max_record_bytes.bytes();
        match json {
            Some(json) if u64::try_from(json.as_str().len()).unwrap_or(u64::MAX) > max => {
                Err(Error::too_large(what, max))
            }
            _ => Ok(()),
        }
    }

    fn answer_bytes(&self) -> u64 {
        self.limits.max_answer_bytes.bytes()
    }
}

impl Subject {
    /// # Errors
    /// [`Error::Restricted`] where the person's data may only be stored.
    fn unrestricted(&self) -> Result<()> {
        if self.restricted { Err(Error::Restricted) } else { Ok(()) }
    }
}

impl Whole {
    /// # Errors
    /// As [`Subject::unrestricted`].
    fn unrestricted(&self) -> Result<()> {
        if self.is_restricted() { Err(Error::Restricted) } else { Ok(()) }
    }
}

/// What a JSON Merge Patch says of one member that has a type of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Change<T> {
    /// It is not named.
    #[default]
    Keep,
    /// `null`: take it out.
    Remove,
    /// The new value.
    Set(T),
}

impl<T> Change<T> {
    /// The new value, if there is one.
    fn set(self) -> Option<T> {
        match self {
            Self::Set(value) => Some(value),
            Self::Keep | Self::Remove => None,
        }
    }
}

/// Reads the new value of a member that cannot be taken out; whether there is such a record does not matter to that.
fn stays<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Change<T>, D::Error> {
    match Change::deserialize(deserializer)? {
        Change::Remove => Err(serde::de::Error::custom("cannot be removed")),
        change => Ok(change),
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Remove, Self::Set))
    }
}

impl<T: JsonSchema> JsonSchema for Change<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Option::<T>::schema_name()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Option::<T>::json_schema(generator)
    }
}

/// Whether there was something to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Deleted {
    /// False when there was nothing.
    pub deleted: bool,
}

/// Compares the version that the caller expects with the one that stands.
fn expect_version(expected: Option<i64>, current: i64) -> Result<()> {
    match expected {
        Some(expected) if expected != current => Err(Error::Conflict {
            message: format!("expected_version is {expected}, and the version is {current}"),
            current_version: Some(current),
        }),
        _ => Ok(()),
    }
}
