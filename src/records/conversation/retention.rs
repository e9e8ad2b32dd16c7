//! Conversations that are over: removed with their messages, so many at a time. One that is long goes in parts, the oldest
//! messages first, and the conversation itself with the last of them.

use std::collections::{BTreeMap, BTreeSet};

use diesel::QueryableByName;
use diesel::sql_types::{Array, Int8, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::audit::{By, Staged};
use crate::error::{Error, Result};
use crate::keyring::Subject;
use crate::records::Records;
use crate::records::retention::{Batch, Kind, Retired, Retiring};
use crate::store::{Connection, Deadline};
use crate::values::Json;

/// How many bytes of messages weigh as much as a row.
const BYTES: i64 = 4096;

const COUNT: &str = "SELECT count(*) AS number FROM sidekeep.expired_conversations WHERE expired_at <= $1";
const PERSONS: &str = "SELECT DISTINCT subject_id AS number FROM sidekeep.expired_conversations \
    WHERE expired_at <= $1 AND subject_id > $2 ORDER BY 1 LIMIT $3";
/// Conversations of these persons, until their messages are enough for a batch.
const DUE: &str = "SELECT w.id, w.subject_id FROM ( \
    SELECT d.*, sum(d.message_count + 1) OVER (ORDER BY d.expired_at, d.id) - d.message_count AS before FROM ( \
        SELECT * FROM sidekeep.expired_conversations WHERE subject_id = ANY($1) AND expired_at <= $2 LIMIT $3) d) w \
    WHERE w.before <= $3";
/// Those that nobody writes to, and that nobody has written to since they were found.
const TAKE: &str = "SELECT c.id, c.subject_id FROM sidekeep.conversations c JOIN sidekeep.retention_policies p \
    ON p.name = 'conversations' WHERE c.id = ANY($1) AND c.active_at <= $2 - make_interval(secs => p.keep_seconds) \
    FOR UPDATE OF c SKIP LOCKED";
const MESSAGES: &str = "WITH due AS (SELECT w.conversation_id, w.position FROM ( \
        SELECT m.conversation_id, m.position, row_number() OVER far AS place, \
            sum(1 + octet_length(m.message_sealed) / $3) OVER far AS weight FROM ( \
            SELECT * FROM sidekeep.conversation_messages WHERE conversation_id = ANY($1) \
            ORDER BY conversation_id, position LIMIT $2) m \
        WINDOW far AS (ORDER BY m.conversation_id, m.position)) w WHERE w.weight <= $2 OR w.place = 1), \
    gone AS (DELETE FROM sidekeep.conversation_messages m USING due \
        WHERE m.conversation_id = due.conversation_id AND m.position = due.position RETURNING m.conversation_id) \
    SELECT conversation_id AS id, count(*) AS number FROM gone GROUP BY conversation_id";
const CONVERSATIONS: &str = "WITH gone AS (DELETE FROM sidekeep.conversations c WHERE c.id = ANY($1) AND NOT EXISTS ( \
        SELECT FROM sidekeep.conversation_messages m WHERE m.conversation_id = c.id) RETURNING c.id, c.subject_id) \
    SELECT id, subject_id FROM gone ORDER BY id";

#[derive(QueryableByName)]
struct Due {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Int8)]
    subject_id: i64,
}

#[derive(QueryableByName)]
struct Gone {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Int8)]
    number: i64,
}

struct Conversations<'a>(&'a Records);

impl Records {
    /// How many conversations are due at a time.
    ///
    /// # Errors
    /// The store's.
    pub async fn due_conversations(
        &self,
        at: chrono::DateTime<chrono::Utc>,
        deadline: &Deadline,
    ) -> Result<i64> {
        self.due(COUNT, at, deadline).await
    }

    /// Removes the conversations that are due.
    ///
    /// # Errors
    /// The store's; what was removed before is committed, and counted.
    pub async fn retire_conversations(&self, retiring: &Retiring<'_>) -> Result<Retired> {
        self.retire(retiring, &Conversations(self)).await
    }
}

impl Kind for Conversations<'_> {
    fn name(&self) -> &'static str {
        "conversations"
    }

    fn persons(&self) -> &'static str {
        PERSONS
    }

    fn batch<'c>(
        &'c self,
        tx: &'c mut Connection,
        retiring: &'c Retiring<'_>,
        persons: &'c [i64],
        rows: i64,
    ) -> BoxFuture<'c, Result<Batch>> {
        async move {
            let subjects = self.0.free(tx, persons).await?;
            let free: Vec<i64> = subjects.iter().map(|subject| subject.id).collect();
            let missed = persons.iter().filter(|person| !free.contains(person)).count();
            let missed = i64::try_from(missed).unwrap_or(i64::MAX);
            let due = diesel::sql_query(DUE).bind::<Array<Int8>, _>(&free);
            let due: Vec<Due> =
                due.bind::<Timestamptz, _>(retiring.at).bind::<Int8, _>(rows).load(tx).await?;
            let ids: Vec<&str> = due.iter().map(|due| due.id.as_str()).collect();
            let taken = diesel::sql_query(TAKE).bind::<Array<Text>, _>(&ids);
            let taken: Vec<Due> = taken.bind::<Timestamptz, _>(retiring.at).load(tx).await?;
            let ids: Vec<&str> = taken.iter().map(|taken| taken.id.as_str()).collect();
            let messages = diesel::sql_query(MESSAGES).bind::<Array<Text>, _>(&ids);
            let messages: Vec<Gone> = messages.bind::<Int8, _>(rows).bind::<Int8, _>(BYTES).load(tx).await?;
            let gone: Vec<Due> =
                diesel::sql_query(CONVERSATIONS).bind::<Array<Text>, _>(&ids).load(tx).await?;
            let mut batch = Batch {
                removed: i64::try_from(gone.len()).map_err(Error::internal)?,
                busy: missed.saturating_add(difference(due.len(), taken.len())),
                more: !(messages.is_empty() && gone.is_empty()),
                ..Batch::default()
            };
            // Where nothing went, everything was there to be removed.
            batch.stuck = if batch.more { 0 } else { difference(taken.len(), 0) };
            for subject in &subjects {
                batch.entries.extend(self.enter(tx, retiring, subject, (&taken, &messages, &gone)).await?);
            }
            Ok(batch)
        }
        .boxed()
    }
}

impl Conversations<'_> {
    /// One entry for each person: which conversations, and how many messages.
    async fn enter(
        &self,
        tx: &mut Connection,
        retiring: &Retiring<'_>,
        subject: &Subject,
        (taken, messages, gone): (&[Due], &[Gone], &[Due]),
    ) -> Result<Option<(By, Staged)>> {
        let theirs: BTreeSet<&str> =
            taken.iter().filter(|due| due.subject_id == subject.id).map(|due| due.id.as_str()).collect();
        let messages: BTreeMap<&str, i64> = messages
            .iter()
            .filter(|gone| theirs.contains(gone.id.as_str()))
            .map(|gone| (gone.id.as_str(), gone.number))
            .collect();
        let gone: Vec<&str> =
            gone.iter().filter(|due| due.subject_id == subject.id).map(|due| due.id.as_str()).collect();
        let Some(first) = gone.iter().chain(messages.keys()).next() else { return Ok(None) };
        let by = retiring.by("conversation", *first);
        by.tells("conversations", gone.len());
        by.tells("messages", messages.values().fold(0_i64, |sum, number| sum.saturating_add(*number)));
        let told = serde_json::json!({ "conversations": gone, "messages": messages });
        by.tell(Json::trusted(told.to_string()).ok_or_else(|| Error::internal("no JSON"))?);
        let staged = self.0.log().stage(tx, &by, subject).await?;
        Ok(Some((by, staged)))
    }
}

fn difference(more: usize, less: usize) -> i64 {
    i64::try_from(more.saturating_sub(less)).unwrap_or(i64::MAX)
}
