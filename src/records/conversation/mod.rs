//! `conversation.*`: a conversation is a row, and each of its messages is one.

pub mod message;
mod read;
mod repeat;
mod retention;
mod search;

pub use read::{List, Messages, WithMessages};
pub use search::{Found, Search};

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{
    ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel::sql_types::Timestamptz;
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::message::Message;
use self::repeat::repeated;
use super::row::Row;
use super::{Change, Deleted, Records, Taken, expect_version, unheld};
use crate::audit::By;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::{Person, Subject};
use crate::store::Connection;
use crate::store::schema::{conversation_messages, conversations};
use crate::values::{Json, RecordId, ShortText, UserId};

const TABLE: &str = "conversations";
/// What the log calls it.
const KIND: &str = "conversation";

/// How many messages one INSERT carries: with five values each, well below PostgreSQL's 65,535 parameters.
const INSERT_ROWS: usize = 1000;

/// A conversation, without its messages.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Conversation {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
    /// Its title.
    pub title: Option<String>,
    /// Whatever the application adds.
    pub metadata: Option<Json>,
    /// Whether it was put aside.
    pub archived: bool,
    /// How many messages it has.
    pub message_count: i64,
    /// Counts the changes, from 1; messages are changes.
    pub version: i64,
    /// When it began.
    pub created_at: Timestamp,
    /// When its latest message was sent.
    pub last_message_at: Option<Timestamp>,
}

/// A conversation's messages, and how many there are now.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Appended {
    /// The conversation.
    pub id: String,
    /// How many messages it has now.
    pub message_count: i64,
    /// When its latest message was sent.
    pub last_message_at: Option<Timestamp>,
}

/// Parameters of `conversation.create`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// Whose it is.
    pub user_id: UserId,
    /// Its id: with it, the call may be repeated.
    pub id: Option<RecordId>,
    /// Its title.
    pub title: Option<ShortText>,
    /// Its first messages.
    #[serde(default, deserialize_with = "crate::values::or_default")]
    #[schemars(with = "Option<Vec<Message>>")]
    pub messages: Vec<Message>,
    /// Whatever the application adds.
    pub metadata: Option<Json>,
    /// When it began; now where it is not said.
    pub created_at: Option<Timestamp>,
}

/// Parameters of `conversation.append`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Append {
    /// The conversation.
    pub id: RecordId,
    /// The messages; one with an id that is there already is skipped.
    #[schemars(length(min = 1))]
    pub messages: Vec<Message>,
}

/// Parameters of methods that name a conversation and nothing else.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The conversation.
    pub id: RecordId,
}

/// Parameters of `conversation.update`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// The conversation.
    pub id: RecordId,
    /// A JSON Merge Patch (RFC 7396) on the conversation; messages are replaced as a whole.
    #[serde(deserialize_with = "crate::values::object")]
    pub changes: Changes,
    /// Refuse with `conflict` when the conversation has another version.
    pub expected_version: Option<i64>,
}

/// What may be changed of a conversation.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// The new title; null removes it.
    pub title: Change<ShortText>,
    /// Whether it is put aside.
    #[serde(deserialize_with = "super::stays")]
    #[schemars(with = "bool")]
    pub archived: Change<bool>,
    /// A patch on the metadata; null removes them.
    pub metadata: Change<Json>,
    /// All of the messages.
    #[serde(deserialize_with = "super::stays")]
    #[schemars(with = "Vec<Message>")]
    pub messages: Change<Vec<Message>>,
    /// When the latest message was sent; null when there is none.
    pub last_message_at: Change<Timestamp>,
}

/// A conversation's row.
#[derive(Clone, Queryable, Selectable)]
#[diesel(table_name = conversations, check_for_backend(diesel::pg::Pg))]
pub(super) struct Stored {
    pub(super) id: String,
    pub(super) subject_id: i64,
    title_sealed: Option<Vec<u8>>,
    metadata_sealed: Option<Vec<u8>>,
    archived: bool,
    message_count: i64,
    version: i64,
    created_at: DateTime<Utc>,
    last_message_at: Option<DateTime<Utc>>,
    pub(super) active_at: DateTime<Utc>,
}

#[derive(Insertable)]
#[diesel(table_name = conversations, treat_none_as_default_value = false)]
struct New<'a> {
    id: &'a str,
    subject_id: i64,
    title_sealed: Option<Vec<u8>>,
    metadata_sealed: Option<Vec<u8>>,
    message_count: i64,
    created_at: DateTime<Utc>,
    last_message_at: Option<DateTime<Utc>>,
}

impl Stored {
    pub(super) fn open(self, subject: &Subject) -> Result<Conversation> {
        let row = Row::new(subject, TABLE, &self.id);
        Ok(Conversation {
            user_id: subject.user_id.clone(),
            title: row.open_some("title_sealed", self.title_sealed.as_deref())?,
            metadata: row.open_some_json("metadata_sealed", self.metadata_sealed.as_deref())?,
            id: self.id,
            archived: self.archived,
            message_count: self.message_count,
            version: self.version,
            created_at: self.created_at.into(),
            last_message_at: self.last_message_at.map(Timestamp::from),
        })
    }
}

impl Records {
    /// Creates a conversation. With an id it may be repeated.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the id stands for another conversation.
    pub async fn create_conversation(&self, by: &By, create: Create) -> Result<Conversation> {
        self.check_size("metadata", create.metadata.as_ref())?;
        self.check_messages(&create.messages)?;
        let id = create.id.clone().unwrap_or_else(RecordId::generate);
        let taken = create.id.as_ref().map(Taken::Conversation);
        self.write(by, &create.user_id, taken, async |tx, subject| {
            by.about(KIND, id.as_str());
            subject.unrestricted()?;
            let now = now(tx).await?;
            let messages = number(tx, subject, (id.as_str(), 0), &create.messages, now).await?;
            let row = Row::new(subject, TABLE, id.as_str());
            let new = New {
                id: id.as_str(),
                subject_id: subject.id,
                title_sealed: row.seal_some("title_sealed", create.title.as_ref().map(ShortText::as_str))?,
                metadata_sealed: row
                    .seal_some("metadata_sealed", create.metadata.as_ref().map(Json::as_str))?,
                message_count: count(messages.len())?,
                created_at: create.created_at.map_or(now, Timestamp::utc),
                last_message_at: messages.iter().map(|message| message.created_at).max(),
            };
            let stored: Option<Stored> = diesel::insert_into(conversations::table)
                .values(new)
                .on_conflict_do_nothing()
                .returning(Stored::as_returning())
                .get_result(tx)
                .await
                .optional()?;
            match stored {
                None => repeated(tx, subject, &create, &id).await,
                Some(stored) => {
                    insert(tx, &messages).await?;
                    stored.open(subject)
                }
            }
        })
        .await
    }

    /// Appends messages; what it costs does not grow with the conversation.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Conflict`] when a message's id stands for another message.
    pub async fn append_messages(&self, by: &By, append: Append) -> Result<Appended> {
        self.check_messages(&append.messages)?;
        if append.messages.is_empty() {
            return Err(Error::invalid("messages", "must not be empty"));
        }
        self.change(by, &append.id, async |tx: &mut Connection, subject: &Subject, stored: Stored| {
            let now = now(tx).await?;
            let new = number(tx, subject, (&stored.id, stored.message_count), &append.messages, now).await?;
            let mut appended = Appended {
                message_count: stored.message_count.saturating_add(count(new.len())?),
                last_message_at: stored.last_message_at.map(Timestamp::from),
                id: stored.id,
            };
            if let Some(latest) = new.iter().map(|message| Timestamp::from(message.created_at)).max() {
                appended.last_message_at = appended.last_message_at.max(Some(latest));
                insert(tx, &new).await?;
                diesel::update(conversations::table.find(&appended.id))
                    .set((
                        conversations::message_count.eq(appended.message_count),
                        conversations::last_message_at.eq(appended.last_message_at.map(Timestamp::utc)),
                        conversations::version.eq(conversations::version + 1),
                    ))
                    .execute(tx)
                    .await?;
            }
            Ok(appended)
        })
        .await
    }

    /// Applies a merge patch to a conversation.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Conflict`] when the version is not the expected one.
    pub async fn update_conversation(&self, by: &By, update: Update) -> Result<Conversation> {
        if let Change::Set(messages) = &update.changes.messages {
            self.check_messages(messages)?;
        }
        self.change(by, &update.id, async |tx: &mut Connection, subject: &Subject, stored: Stored| {
            if matches!(update.changes.messages, Change::Set(_)) {
                unheld(tx, subject.id).await?;
            }
            expect_version(update.expected_version, stored.version)?;
            let mut conversation = stored.open(subject)?;
            self.patch_conversation(&mut conversation, &update.changes)?;
            if let Some(messages) = update.changes.messages.clone().set() {
                let rows = conversation_messages::table
                    .filter(conversation_messages::conversation_id.eq(&conversation.id));
                diesel::delete(rows).execute(tx).await?;
                let now = now(tx).await?;
                let new = number(tx, subject, (&conversation.id, 0), &messages, now).await?;
                insert(tx, &new).await?;
                conversation.message_count = count(new.len())?;
                if update.changes.last_message_at == Change::Keep {
                    conversation.last_message_at =
                        new.iter().map(|message| Timestamp::from(message.created_at)).max();
                }
            }
            save(tx, subject, &conversation).await
        })
        .await
    }

    fn patch_conversation(&self, conversation: &mut Conversation, changes: &Changes) -> Result<()> {
        match &changes.title {
            Change::Keep => {}
            Change::Remove => conversation.title = None,
            Change::Set(title) => conversation.title = Some(title.as_str().to_owned()),
        }
        if let Some(archived) = changes.archived.clone().set() {
            conversation.archived = archived;
        }
        match changes.last_message_at {
            Change::Keep => {}
            Change::Remove => conversation.last_message_at = None,
            Change::Set(at) => conversation.last_message_at = Some(at),
        }
        conversation.metadata =
            self.patch_metadata(conversation.metadata.take(), changes.metadata.clone())?;
        Ok(())
    }

    /// Deletes a conversation with its messages.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_conversation(&self, by: &By, id: &RecordId) -> Result<Deleted> {
        let deleted = self
            .change(by, id, async |tx: &mut Connection, subject: &Subject, stored: Stored| {
                unheld(tx, subject.id).await?;
                diesel::delete(conversations::table.find(&stored.id)).execute(tx).await?;
                Ok(Deleted { deleted: true })
            })
            .await;
        match deleted {
            Err(Error::NotFound { .. }) => Ok(Deleted { deleted: false }),
            deleted => deleted,
        }
    }

    /// Changes a conversation in one transaction that takes the person's row first, then the conversation's.
    async fn change<T, F>(&self, by: &By, id: &RecordId, body: F) -> Result<T>
    where
        F: for<'c> ChangeBody<'c, T> + Send + Sync,
        T: Send,
    {
        let missing = || Error::NotFound { what: "conversation" };
        let changed = self
            .entered(by, async || {
                self.store
                    .transact(&by.deadline, by.method, async |tx| {
                        let row = conversations::table.find(id.as_str());
                        let subject_id: Option<i64> =
                            row.select(conversations::subject_id).first(tx).await.optional()?;
                        let person = Person::share_by_id(tx, subject_id.ok_or_else(missing)?).await?;
                        by.about(KIND, id.as_str());
                        let subject = self.unrestricted(by, person.ok_or_else(missing)?)?;
                        let row = row.filter(conversations::subject_id.eq(subject.id));
                        let stored: Option<Stored> =
                            row.select(Stored::as_select()).for_update().first(tx).await.optional()?;
                        let output = body(tx, &subject, stored.ok_or_else(missing)?).await?;
                        Ok(Some((output, self.log.stage(tx, by, &subject).await?)))
                    })
                    .await
            })
            .await?;
        changed.ok_or_else(missing)
    }

    fn check_messages(&self, messages: &[Message]) -> Result<()> {
        messages.iter().try_for_each(|message| self.check_size("message", Some(message.sent())))
    }
}

/// The statements of a change to a conversation whose row is locked.
trait ChangeBody<'c, T>:
    AsyncFn(&'c mut Connection, &'c Subject, Stored) -> Result<T>
    + Fn(&'c mut Connection, &'c Subject, Stored) -> <Self as ChangeBody<'c, T>>::Running
{
    type Running: Future<Output = Result<T>> + Send;
}

impl<'c, T, F, R> ChangeBody<'c, T> for F
where
    F: AsyncFn(&'c mut Connection, &'c Subject, Stored) -> Result<T>
        + Fn(&'c mut Connection, &'c Subject, Stored) -> R,
    R: Future<Output = Result<T>> + Send,
{
    type Running = R;
}

fn count(messages: usize) -> Result<i64> {
    i64::try_from(messages).map_err(Error::internal)
}

async fn now(tx: &mut Connection) -> Result<DateTime<Utc>> {
    Ok(diesel::select(sql::<Timestamptz>("clock_timestamp()")).get_result(tx).await?)
}

/// Seals the messages that are not in the conversation yet, one position after another from `first`.
///
/// # Errors
/// [`Error::Conflict`] when an id stands for another message, there or among these.
async fn number(
    tx: &mut Connection,
    subject: &Subject,
    (conversation_id, first): (&str, i64),
    messages: &[Message],
    now: DateTime<Utc>,
) -> Result<Vec<message::New>> {
    let ids: Vec<&str> =
        messages.iter().filter_map(|message| message.id.as_ref().map(RecordId::as_str)).collect();
    let mut known: std::collections::HashMap<String, Json> = std::collections::HashMap::new();
    if first > 0 && !ids.is_empty() {
        let there: Vec<message::Stored> = conversation_messages::table
            .filter(conversation_messages::conversation_id.eq(conversation_id))
            .filter(conversation_messages::message_id.eq_any(&ids))
            .select(message::Stored::as_select())
            .load(tx)
            .await?;
        for stored in there {
            let sent = stored.sent(subject)?;
            known.extend(stored.message_id.map(|id| (id, sent)));
        }
    }
    let mut new = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        if let Some(id) = &message.id {
            match known.get(id.as_str()) {
                Some(there) if there.same(message.sent()) => continue,
                Some(_) => {
                    return Err(Error::conflict(format!("messages[{index}]: another message has this id")));
                }
                None => known.insert(id.as_str().to_owned(), message.sent().clone()),
            };
        }
        let position = first.saturating_add(count(new.len())?);
        new.push(message::New::seal(subject, conversation_id, position, message, now)?);
    }
    Ok(new)
}

async fn insert(tx: &mut Connection, messages: &[message::New]) -> Result<()> {
    for chunk in messages.chunks(INSERT_ROWS) {
        diesel::insert_into(conversation_messages::table).values(chunk).execute(tx).await?;
    }
    Ok(())
}

async fn save(tx: &mut Connection, subject: &Subject, conversation: &Conversation) -> Result<Conversation> {
    let row = Row::new(subject, TABLE, &conversation.id);
    let stored: Stored = diesel::update(conversations::table.find(&conversation.id))
        .set((
            conversations::title_sealed.eq(row.seal_some("title_sealed", conversation.title.as_deref())?),
            conversations::metadata_sealed
                .eq(row.seal_some("metadata_sealed", conversation.metadata.as_ref().map(Json::as_str))?),
            conversations::archived.eq(conversation.archived),
            conversations::message_count.eq(conversation.message_count),
            conversations::last_message_at.eq(conversation.last_message_at.map(Timestamp::utc)),
            conversations::version.eq(conversations::version + 1),
        ))
        .returning(Stored::as_returning())
        .get_result(tx)
        .await?;
    stored.open(subject)
}
