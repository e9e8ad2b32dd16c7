//! Reading conversations: one as a whole, its messages by page, a person's list.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper,
};
use diesel::sql_types::Int8;
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Conversation, Stored, message};
use crate::audit::By;
use crate::error::{Error, Result};
use crate::keyring::{Person, Subject};
use crate::records::Records;
use crate::store::Connection;
use crate::store::schema::{conversation_messages, conversations, subjects};
use crate::values::{Json, RecordId, UserId};
use crate::values::{Limit, Page, decode, encode, fit};

/// Parameters of `conversation.messages`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Messages {
    /// The conversation.
    pub id: RecordId,
    /// How many messages at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// Parameters of `conversation.list`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Whose.
    pub user_id: UserId,
    /// Only those put aside, or only the others.
    pub archived: Option<bool>,
    /// How many conversations at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// A conversation with all of its messages.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct WithMessages {
    /// The conversation.
    #[serde(flatten)]
    pub conversation: Conversation,
    /// Its messages as they were sent, each with its `position` and `created_at`.
    pub messages: Vec<Json>,
}

impl Records {
    /// A conversation with all of its messages, from one snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::TooLarge`] when the messages do not fit into one answer.
    pub async fn conversation(&self, by: &By, id: &RecordId) -> Result<WithMessages> {
        let max = self.answer_bytes();
        let (subject, stored, messages) = self
            .store
            .snapshot(&by.deadline, "conversation.get", async |connection| {
                let (subject, stored) = self.find(by, connection, id).await?;
                let rows = conversation_messages::table
                    .filter(conversation_messages::conversation_id.eq(id.as_str()));
                let bytes: i64 = rows
                    .select(sql::<Int8>("coalesce(sum(octet_length(message_sealed)), 0)::bigint"))
                    .first(connection)
                    .await?;
                if u64::try_from(bytes).unwrap_or(u64::MAX) > max {
                    return Err(Error::too_large_but("the conversation", max, "use conversation.messages"));
                }
                let messages: Vec<message::Stored> = rows
                    .order(conversation_messages::position)
                    .select(message::Stored::as_select())
                    .load(connection)
                    .await?;
                Ok((subject, stored, messages))
            })
            .await?;
        let messages = messages.iter().map(|message| message.shown(&subject)).collect::<Result<_>>()?;
        Ok(WithMessages { conversation: stored.open(&subject)?, messages })
    }

    /// A page of a conversation's messages, the oldest first.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Invalid`] for a cursor that is none.
    pub async fn messages(&self, by: &By, page: &Messages) -> Result<Page<Json>> {
        let of = ("conversation.messages", &page.id);
        let from: i64 = decode(&of, page.cursor.as_deref())?.unwrap_or(0);
        let (subject, more, messages) = self
            .store
            .snapshot(&by.deadline, "conversation.messages", async |connection| {
                let (subject, _) = self.find(by, connection, &page.id).await?;
                let rows = conversation_messages::table
                    .filter(conversation_messages::conversation_id.eq(page.id.as_str()))
                    .filter(conversation_messages::position.ge(from))
                    .order(conversation_messages::position);
                let sizes: Vec<i64> = rows
                    .select(sql::<Int8>("octet_length(message_sealed)::bigint"))
                    .limit(page.limit.and_one())
                    .load(connection)
                    .await?;
                let taken = fit(&sizes, page.limit, self.answer_bytes());
                let limit = i64::try_from(taken).map_err(Error::internal)?;
                let messages: Vec<message::Stored> =
                    rows.select(message::Stored::as_select()).limit(limit).load(connection).await?;
                Ok((subject, sizes.len() > taken, messages))
            })
            .await?;
        let next = messages.last().filter(|_| more).map(|last| last.position.saturating_add(1));
        let items = messages.iter().map(|message| message.shown(&subject)).collect::<Result<_>>()?;
        Ok(Page { items, next_cursor: next.map(|next| encode(&of, &next)).transpose()? })
    }

    /// A page of a person's conversations, the latest message first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cursor that is none.
    pub async fn conversations(&self, by: &By, list: &List) -> Result<Page<Conversation>> {
        let of = ("conversation.list", &list.user_id, list.archived);
        let after: Option<(DateTime<Utc>, String)> = decode(&of, list.cursor.as_deref())?;
        let found = self
            .store
            .snapshot(&by.deadline, "conversation.list", async |connection| {
                let Some(subject) = self.reader(by, connection, &list.user_id).await? else {
                    return Ok(None);
                };
                let (more, stored) =
                    self.conversation_page(connection, &subject, list, after.as_ref()).await?;
                Ok(Some((subject, more, stored)))
            })
            .await?;
        let Some((subject, more, stored)) = found else { return Ok(Page::empty()) };
        let last = stored.last().filter(|_| more).map(|last| (last.active_at, last.id.clone()));
        let next_cursor = last.map(|key| encode(&of, &key)).transpose()?;
        let items = stored.into_iter().map(|stored| stored.open(&subject)).collect::<Result<_>>()?;
        Ok(Page { items, next_cursor })
    }

    async fn conversation_page(
        &self,
        connection: &mut Connection,
        subject: &Subject,
        list: &List,
        after: Option<&(DateTime<Utc>, String)>,
    ) -> Result<(bool, Vec<Stored>)> {
        let rows = || {
            let mut rows = conversations::table
                .filter(conversations::subject_id.eq(subject.id))
                .order((conversations::active_at.desc(), conversations::id.desc()))
                .into_boxed();
            if let Some(archived) = list.archived {
                rows = rows.filter(conversations::archived.eq(archived));
            }
            if let Some((active_at, id)) = after {
                rows = rows.filter(
                    conversations::active_at
                        .lt(*active_at)
                        .or(conversations::active_at.eq(*active_at).and(conversations::id.lt(id))),
                );
            }
            rows
        };
        let size = sql::<Int8>("coalesce(octet_length(metadata_sealed), 0)::bigint");
        let sizes: Vec<i64> = rows().select(size).limit(list.limit.and_one()).load(connection).await?;
        let taken = fit(&sizes, list.limit, self.answer_bytes());
        let limit = i64::try_from(taken).map_err(Error::internal)?;
        let stored = rows().select(Stored::as_select()).limit(limit).load(connection).await?;
        Ok((sizes.len() > taken, stored))
    }

    /// A conversation and whose it is, in one statement.
    pub(super) async fn find(
        &self,
        by: &By,
        connection: &mut Connection,
        id: &RecordId,
    ) -> Result<(Subject, Stored)> {
        let row = conversations::table
            .inner_join(subjects::table)
            .filter(conversations::id.eq(id.as_str()))
            .select((Person::as_select(), Stored::as_select()));
        let found: Option<(Person, Stored)> = row.first(connection).await.optional()?;
        by.about(super::KIND, id.as_str());
        let (person, stored) = found.ok_or(Error::NotFound { what: "conversation" })?;
        Ok((self.unrestricted(by, person)?, stored))
    }
}
