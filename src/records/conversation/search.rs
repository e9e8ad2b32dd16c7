//! Searching one person's messages: each is opened, nothing about their words is ever stored.

use chrono::{DateTime, Utc};
use diesel::prelude::{BoolExpressionMethods, ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message;
use crate::audit::By;
use crate::error::{Error, Result};
use crate::keyring::Subject;
use crate::records::Records;
use crate::store::Connection;
use crate::store::schema::{conversation_messages, conversations};
use crate::values::Limit;
use crate::values::{Json, ShortText, UserId};

/// How many messages are opened between two looks at the clock.
const CHUNK: i64 = 500;

/// Parameters of `conversation.search`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Whose messages.
    pub user_id: UserId,
    /// The words that a message must hold, all of them, upper or lower case.
    pub query: ShortText,
    /// How many messages at most.
    #[serde(default)]
    pub limit: Limit,
}

/// What was found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Found {
    /// Of the latest conversations and messages first.
    pub items: Vec<Hit>,
}

/// A message that was found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Hit {
    /// In which conversation.
    pub conversation_id: String,
    /// At which position.
    pub position: i64,
    /// The message, as `conversation.messages` shows it.
    pub message: Json,
}

/// Where the search has come to: a conversation, and the position before which to go on.
type Place = Option<(DateTime<Utc>, String, i64)>;

impl Records {
    /// The person's messages that hold all words, from one snapshot.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when what is found does not fit into one answer.
    pub async fn search(&self, by: &By, search: &Search) -> Result<Found> {
        let words: Vec<String> =
            search.query.as_str().split_whitespace().map(caseless::default_case_fold_str).collect();
        if words.is_empty() {
            return Err(Error::invalid("query", "must hold a word"));
        }
        self.store
            .snapshot(&by.deadline, "conversation.search", async |connection| {
                let Some(subject) = self.reader(by, connection, &search.user_id).await? else {
                    return Ok(Found { items: Vec::new() });
                };
                self.hits(connection, &subject, &words, search.limit).await
            })
            .await
    }

    async fn hits(
        &self,
        connection: &mut Connection,
        subject: &Subject,
        words: &[String],
        limit: Limit,
    ) -> Result<Found> {
        let max = self.answer_bytes();
        let (mut items, mut bytes, mut place) = (Vec::new(), 0_u64, Place::None);
        loop {
            let chunk = chunk(connection, subject, place.as_ref()).await?;
            let Some(last) = chunk.last() else { return Ok(Found { items }) };
            place = Some((last.0, last.1.conversation_id.clone(), last.1.position));
            for (_, stored) in &chunk {
                if !holds(&stored.sent(subject)?, words) {
                    continue;
                }
                let message = stored.shown(subject)?;
                bytes = bytes.saturating_add(u64::try_from(message.as_str().len()).unwrap_or(u64::MAX));
                if bytes > max {
                    return Err(Error::too_large_but(
                        "the answer",
                        max,
                        "search for more words, or with a limit",
                    ));
                }
                let conversation_id = stored.conversation_id.clone();
                items.push(Hit { conversation_id, position: stored.position, message });
                if items.len() >= limit.items() {
                    return Ok(Found { items });
                }
            }
        }
    }
}

fn holds(sent: &Json, words: &[String]) -> bool {
    let text = caseless::default_case_fold_str(&message::text(sent));
    words.iter().all(|word| text.contains(word))
}

/// The next messages of the person, of the conversation that was active last first, the newest first in each.
async fn chunk(
    connection: &mut Connection,
    subject: &Subject,
    place: Option<&(DateTime<Utc>, String, i64)>,
) -> Result<Vec<(DateTime<Utc>, message::Stored)>> {
    let mut rows = conversation_messages::table
        .inner_join(conversations::table)
        .filter(conversations::subject_id.eq(subject.id))
        .order((
            conversations::active_at.desc(),
            conversations::id.desc(),
            conversation_messages::position.desc(),
        ))
        .into_boxed();
    if let Some((active_at, id, position)) = place {
        rows = rows.filter(
            conversations::active_at.lt(*active_at).or(conversations::active_at.eq(*active_at).and(
                conversations::id
                    .lt(id)
                    .or(conversations::id.eq(id).and(conversation_messages::position.lt(*position))),
            )),
        );
    }
    let columns = (conversations::active_at, message::Stored::as_select());
    Ok(rows.select(columns).limit(CHUNK).load(connection).await?)
}
