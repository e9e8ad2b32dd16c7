//! Reading the log: one entry, pages by filter, and what comes next. Each first waits for what was staged before the call.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper,
};
use diesel::sql_types::Int8;
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::by::By;
use super::entry::Outcome;
pub use super::filter::in_order;
use super::filter::{Filter, filtered, possible};
use super::log::Log;
use super::open::{Opener, Shown};
use super::row::Stored;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::store::schema::{audit_logs, audit_streams};
use crate::values::{Json, Limit, Page, RecordId, ResourceId, Term, UserId, decode, encode, fit};

/// Parameters of methods that name one entry: by id, or by stream and position.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Its id.
    pub id: Option<RecordId>,
    /// Its stream.
    pub stream: Option<i32>,
    /// Its position in the stream.
    pub position: Option<i64>,
}

/// Parameters of `audit.query`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Who acted.
    pub user_id: Option<UserId>,
    /// Whose data it was.
    pub subject_user_id: Option<UserId>,
    /// What was done: exactly, or a beginning with `*` behind it.
    pub action: Option<Term>,
    /// What kind of thing it was done to.
    pub resource_type: Option<Term>,
    /// Which one.
    pub resource_id: Option<ResourceId>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Done at this time or later, as the callers say; where one does not say, when it was appended.
    pub from: Option<Timestamp>,
    /// Done before this time.
    pub to: Option<Timestamp>,
    /// Labels that it must have.
    pub labels: Option<BTreeMap<String, String>>,
    /// How many items at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// Parameters of `audit.tail`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Who acted.
    pub user_id: Option<UserId>,
    /// Whose data it was.
    pub subject_user_id: Option<UserId>,
    /// What was done: exactly, or a beginning with `*` behind it.
    pub action: Option<Term>,
    /// What kind of thing it was done to.
    pub resource_type: Option<Term>,
    /// Which one.
    pub resource_id: Option<ResourceId>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Done at this time or later, as the callers say; where one does not say, when it was appended.
    pub from: Option<Timestamp>,
    /// Done before this time.
    pub to: Option<Timestamp>,
    /// Labels that it must have.
    pub labels: Option<BTreeMap<String, String>>,
    /// By stream, the position that was seen last; from the beginning where it is not given.
    pub after: Option<BTreeMap<String, i64>>,
    /// How many items at most.
    #[serde(default)]
    pub limit: Limit,
    /// How long to wait for something new.
    pub wait: Option<crate::config::Period>,
}

/// What `audit.tail` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Tailed {
    /// Entries in the order of each stream.
    pub items: Vec<Shown>,
    /// What to send to go on.
    pub after: BTreeMap<String, i64>,
}

macro_rules! filter_of {
    ($($name:ident),+) => {$(
        impl $name {
            /// What it looks for.
            pub fn filter(&self) -> Filter {
                Filter {
                    user_id: self.user_id.clone(),
                    subject_user_id: self.subject_user_id.clone(),
                    action: self.action.clone(),
                    resource_type: self.resource_type.clone(),
                    resource_id: self.resource_id.clone(),
                    outcome: self.outcome,
                    from: self.from,
                    to: self.to,
                    labels: self.labels.clone(),
                }
            }
        }
    )+};
}
filter_of!(Query, Tail);

impl Query {
    /// What a cursor belongs to; the ends of a time may move from page to page.
    fn lists(&self) -> impl Serialize {
        let persons = (&self.user_id, &self.subject_user_id);
        let what = (&self.action, &self.resource_type, &self.resource_id, self.outcome, &self.labels);
        ("audit.query", persons, what)
    }
}

type Key = (DateTime<Utc>, i32, i64);

impl Log {
    /// One entry.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn get(&self, by: &By, which: &Which) -> Result<Shown> {
        self.drained(&by.deadline).await?;
        let given = match &which.id {
            Some(id) => serde_json::json!({ "filter": { "id": id.as_str() } }),
            None => serde_json::json!({ "filter": { "stream": which.stream, "position": which.position } }),
        };
        Json::trusted(given.to_string()).into_iter().for_each(|given| by.looks_for(given));
        which.id.iter().for_each(|id| by.seeks(id.as_str()));
        let stored = self.find(by, which).await?;
        by.about("entry", stored.id.as_str());
        stored.clone().verified()?;
        let opener =
            Opener::of(&self.store, &self.keyring, std::slice::from_ref(&stored), &by.deadline).await?;
        let shown = opener.open(stored)?;
        let concerned = shown.subject_user_id.as_ref().or(shown.user_id.as_ref());
        concerned.into_iter().for_each(|person| by.concerns(person));
        Ok(shown)
    }

    /// The row of one entry.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Invalid`] where it is not said which.
    pub(super) async fn find(&self, by: &By, which: &Which) -> Result<Stored> {
        let rows = || possible().select(Stored::as_select());
        let found = self
            .store
            .single(&by.deadline, "audit.get", async |connection| {
                let row = match (&which.id, which.stream, which.position) {
                    // An id is unique within a month; of two the later is meant.
                    (Some(id), None, None) => {
                        rows().filter(audit_logs::id.eq(id.as_str())).order(audit_logs::recorded_at.desc())
                    }
                    (None, Some(stream), Some(position)) => {
                        rows().filter(audit_logs::stream.eq(stream)).filter(audit_logs::position.eq(position))
                    }
                    (None, ..) => {
                        return Err(Error::invalid("id", "is missing; give id, or stream and position"));
                    }
                    _ => return Err(Error::invalid("id", "must stand alone, without stream and position")),
                };
                let stored: Option<Stored> = row.first(connection).await.optional()?;
                Ok(stored)
            })
            .await?;
        match (found, which.stream, which.position) {
            (Some(found), ..) => Ok(found),
            (None, Some(stream), Some(position)) => {
                Err(self.archived(stream, position, &by.deadline).await?)
            }
            _ => Err(Error::NotFound { what: "entry" }),
        }
    }

    /// A page of entries, the newest first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cursor that is none.
    pub async fn query(&self, by: &By, query: &Query, max_bytes: u64) -> Result<Page<Shown>> {
        let of = query.lists();
        let before: Option<Key> = decode(&of, query.cursor.as_deref())?;
        self.drained(&by.deadline).await?;
        let filter = query.filter();
        let found = self
            .store
            .snapshot(&by.deadline, "audit.query", async |connection| {
                let persons = filter.persons(connection, by).await?;
                if !persons.known {
                    return Ok((false, Vec::new()));
                }
                let rows = || {
                    let mut rows = filtered(&filter, &persons).order((
                        audit_logs::recorded_at.desc(),
                        audit_logs::stream.desc(),
                        audit_logs::position.desc(),
                    ));
                    if let Some((at, stream, position)) = before {
                        rows = rows.filter(audit_logs::recorded_at.le(at)).filter(
                            audit_logs::recorded_at.lt(at).or(audit_logs::stream
                                .lt(stream)
                                .or(audit_logs::stream.eq(stream).and(audit_logs::position.lt(position)))),
                        );
                    }
                    rows
                };
                let sizes: Vec<i64> =
                    rows().select(size()).limit(query.limit.and_one()).load(connection).await?;
                let taken = fit(&sizes, query.limit, max_bytes);
                let limit = i64::try_from(taken).map_err(Error::internal)?;
                let stored: Vec<Stored> =
                    rows().select(Stored::as_select()).limit(limit).load(connection).await?;
                Ok((sizes.len() > taken, stored))
            })
            .await?;
        let (more, stored) = found;
        let last = stored.last().filter(|_| more).map(|last| (last.recorded_at, last.stream, last.position));
        let items = self.open_all(by, stored).await?;
        Ok(Page { items, next_cursor: last.map(|key| encode(&of, &key)).transpose()? })
    }

    async fn open_all(&self, by: &By, stored: Vec<Stored>) -> Result<Vec<Shown>> {
        let opener = Opener::of(&self.store, &self.keyring, &stored, &by.deadline).await?;
        stored.into_iter().map(|stored| opener.open(stored)).collect()
    }

    /// Finds out whom a tail concerns, so that it can be entered before it begins.
    ///
    /// # Errors
    /// The store's.
    pub async fn begin_tail(&self, by: &By, tail: &Tail) -> Result<()> {
        let filter = tail.filter();
        let _place = self.looks.place(&by.deadline).await?;
        self.store
            .single(&by.deadline, "audit.tail.begin", async |connection| {
                filter.persons(connection, by).await.map(drop)
            })
            .await
    }

    /// What comes next in each stream; waits a while where there is nothing. The entries of tails alone are nothing, or
    /// those who follow the log would wake one another for ever: they come with what is next.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no stream.
    pub async fn tail(&self, by: &By, tail: &Tail, max_bytes: u64) -> Result<Tailed> {
        let mut after = BTreeMap::new();
        for (stream, position) in tail.after.iter().flatten() {
            let stream: i32 = stream
                .parse()
                .map_err(|_| Error::invalid("after", "must be an object of stream to position"))?;
            after.insert(stream, *position);
        }
        let place = self.looks.place(&by.deadline).await?;
        self.drained(&by.deadline).await?;
        drop(place);
        let wait = by.deadline.within(tail.wait.map_or(Duration::ZERO, crate::config::Period::duration));
        let mut pause = Duration::from_millis(10);
        let mut seen = None;
        loop {
            // From before the look: what comes during it is looked at again.
            let sizes = self.looks.sizes(&self.store, &by.deadline).await?;
            let before = after.clone();
            let mut items = Vec::new();
            if seen.as_ref() != Some(&sizes) {
                let _place = self.looks.place(&by.deadline).await?;
                items = self.next(by, tail, &mut after, max_bytes).await?;
                seen = Some(sizes);
            }
            let asked_for = tail.action.is_some() || items.len() >= tail.limit.items();
            if !asked_for && items.iter().all(Stored::is_of_tail) && !items.is_empty() {
                after = before;
                items.clear();
            }
            if !items.is_empty() || wait.left() <= pause {
                let after =
                    after.into_iter().map(|(stream, position)| (stream.to_string(), position)).collect();
                return Ok(Tailed { items: self.open_all(by, items).await?, after });
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(Duration::from_millis(200));
        }
    }

    /// Moves on in each stream, over what does not match as well, as far as one answer goes.
    async fn next(
        &self,
        by: &By,
        tail: &Tail,
        after: &mut BTreeMap<i32, i64>,
        max_bytes: u64,
    ) -> Result<Vec<Stored>> {
        let filter = tail.filter();
        let seen = after.clone();
        let (items, ends) = self
            .store
            .snapshot(&by.deadline, "audit.tail", async |connection| {
                let sizes: Vec<(i32, i64)> = audit_streams::table
                    .select((audit_streams::stream, audit_streams::size))
                    .order(audit_streams::stream)
                    .load(connection)
                    .await?;
                let persons = filter.persons(connection, by).await?;
                if !persons.known {
                    return Ok((Vec::new(), sizes));
                }
                let mut items: Vec<Stored> = Vec::new();
                let mut ends = Vec::with_capacity(sizes.len());
                let mut bytes = 0_u64;
                for (stream, size) in sizes {
                    let from = seen.get(&stream).copied().unwrap_or(-1);
                    let room = tail.limit.items().saturating_sub(items.len());
                    if room == 0 || bytes > max_bytes {
                        ends.push((stream, from.saturating_add(1)));
                        continue;
                    }
                    let rows = || {
                        filtered(&filter, &persons)
                            .filter(audit_logs::stream.eq(stream))
                            .filter(audit_logs::position.gt(from))
                            .filter(audit_logs::position.lt(size))
                            .order(audit_logs::position.asc())
                    };
                    let limit = i64::try_from(room).map_err(Error::internal)?;
                    let sizes: Vec<i64> =
                        rows().select(self::size()).limit(limit.saturating_add(1)).load(connection).await?;
                    let taken = fit(&sizes, tail.limit, max_bytes.saturating_sub(bytes)).min(room);
                    bytes =
                        bytes.saturating_add(crate::values::total(sizes.get(..taken).unwrap_or_default()));
                    let limit = i64::try_from(taken).map_err(Error::internal)?;
                    let stored: Vec<Stored> =
                        rows().select(Stored::as_select()).limit(limit).load(connection).await?;
                    let more = sizes.len() > taken;
                    let end =
                        stored.last().filter(|_| more).map_or(size, |last| last.position.saturating_add(1));
                    ends.push((stream, end));
                    items.extend(stored);
                }
                Ok((items, ends))
            })
            .await?;
        for (stream, end) in ends {
            after.insert(stream, end.saturating_sub(1));
        }
        Ok(items)
    }
}

/// The bytes of an entry that are not bounded otherwise.
fn size() -> diesel::expression::SqlLiteral<Int8> {
    sql::<Int8>(
        "(coalesce(octet_length(metadata_sealed), 0) + coalesce(octet_length(client_sealed), 0))::bigint",
    )
}
