//! Who looked at or changed one person's data, when, what and why: the accounting of disclosures (45 CFR §164.528).
//!
//! Made from the log alone. It is complete for calls that name the person; reads across people are in it as such.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::pg::Pg;
use diesel::prelude::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, Queryable, Selectable,
    SelectableHelper,
};
use diesel::sql_types::{Bool, Jsonb, Timestamptz};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::by::{ALSO, By, METHOD, PURPOSE, REQUEST_ID, UID};
use super::draft::{ACTOR, SUBJECT};
use super::entry::Labels;
use super::filter::{in_order, possible};
use super::log::Log;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::keyring::Person;
use crate::store::Connection;
use crate::store::schema::{audit_logs, subjects};
use crate::values::{Limit, Page, UserId, decode, encode};

/// Methods that may show many people's data at once: their entries name nobody unless the caller did.
/// As the index on them says it (`audit_logs_across`), which is used only for these very words.
pub const ACROSS: &str =
    "action IN ('audit.query', 'audit.tail', 'request.list', 'subject.find', 'subject.holds')";

/// Parameters of `subject.accesses`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Accesses {
    /// Whose data.
    pub user_id: UserId,
    /// At this time or later, as the callers say; where one does not say, when it was appended.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub to: Option<Timestamp>,
    /// How many items at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// One access to a person's data, or one act upon it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Access {
    /// The entry's id; `audit.get` shows all of it.
    pub id: String,
    /// When.
    pub when: Timestamp,
    /// For whom the application acted, as it said; null where it did not say, and once that person is erased.
    pub who: Option<String>,
    /// The service: the caller's user id on its host, as the kernel said; null in an application's own entry.
    pub uid: Option<u32>,
    /// What was done: a method of sidekeep's, or an action of the application's.
    pub what: String,
    /// What kind of thing it was done to.
    pub resource_type: Option<String>,
    /// Which one.
    pub resource_id: Option<String>,
    /// Why, as a code.
    pub purpose: Option<String>,
    /// The application's own id of the request.
    pub request_id: Option<String>,
    /// How it ended.
    pub outcome: Option<String>,
    /// True for a read across people, which may have shown this person's data among others'.
    pub across_people: bool,
}

/// What of an entry is needed.
#[derive(Queryable, Selectable)]
#[diesel(table_name = audit_logs, check_for_backend(diesel::pg::Pg))]
pub struct Touch {
    stream: i32,
    position: i64,
    recorded_at: DateTime<Utc>,
    id: String,
    actor_id: Option<i64>,
    subject_id: Option<i64>,
    action: String,
    resource_type: Option<String>,
    resource_id: Option<String>,
    outcome: Option<String>,
    occurred_at: Option<DateTime<Utc>>,
    labels: Option<serde_json::Value>,
}

type Rows<'a> = audit_logs::BoxedQuery<'a, Pg>;
type Key = (DateTime<Utc>, i32, i64);

impl Touch {
    fn key(&self) -> Key {
        (self.recorded_at, self.stream, self.position)
    }

    /// Who acted, as a subject id.
    pub fn actor_id(&self) -> Option<i64> {
        self.actor_id
    }

    /// The access, where `name` says under which name the actor is shown.
    pub fn shown(self, subject: &str, name: impl Fn(i64) -> Option<String>) -> Access {
        let labels = self.labels.as_ref().and_then(Labels::stored).unwrap_or_default();
        let label =
            |wanted: &str| labels.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value.to_owned());
        let who = self.actor_id.and_then(name);
        let resource_id = match self.resource_id.as_deref() {
            Some(ACTOR) => who.clone(),
            Some(SUBJECT) if self.subject_id.is_some() => Some(subject.to_owned()),
            _ => self.resource_id,
        };
        Access {
            id: self.id,
            when: self.occurred_at.unwrap_or(self.recorded_at).into(),
            who,
            uid: label(UID).and_then(|uid| uid.parse().ok()),
            what: self.action,
            resource_type: self.resource_type,
            resource_id,
            purpose: label(PURPOSE),
            request_id: label(REQUEST_ID),
            outcome: self.outcome,
            across_people: self.subject_id.is_none(),
        }
    }
}

impl Log {
    /// A page of accesses to a person's data, the newest first; empty where nobody has this user id.
    ///
    /// # Errors
    /// [`crate::error::Error::Invalid`] for a cursor that is none.
    pub async fn accesses(&self, by: &By, asked: &Accesses) -> Result<Page<Access>> {
        in_order(asked.from, asked.to)?;
        // The ends of a time may move from page to page.
        let of = ("subject.accesses", &asked.user_id);
        let before: Option<Key> = decode(&of, asked.cursor.as_deref())?;
        self.drained(&by.deadline).await?;
        let found = self
            .store
            .snapshot(&by.deadline, "subject.accesses", async |connection| {
                let row = subjects::table
                    .filter(subjects::user_id.eq(asked.user_id.as_str()))
                    .select((Person::as_select(), subjects::created_at));
                let found: Option<(Person, DateTime<Utc>)> = row.first(connection).await.optional()?;
                let Some((person, since)) = found else { return Ok(None) };
                let both = [naming(person.subject_id()), across(person.subject_id(), since)];
                let mut touches: Vec<Touch> = Vec::new();
                for rows in both {
                    let rows = within(rows, asked, before).order((
                        audit_logs::recorded_at.desc(),
                        audit_logs::stream.desc(),
                        audit_logs::position.desc(),
                    ));
                    let rows = rows.select(Touch::as_select()).limit(asked.limit.and_one());
                    touches.extend(rows.load(connection).await?);
                }
                touches.sort_unstable_by_key(|touch| std::cmp::Reverse(touch.key()));
                let more = touches.len() > asked.limit.items();
                touches.truncate(asked.limit.items());
                let actors = actors(connection, &touches).await?;
                Ok(Some((touches, more, actors)))
            })
            .await?;
        let Some((touches, more, actors)) = found else { return Ok(Page::empty()) };
        by.concerns(asked.user_id.as_str());
        let last = touches.last().filter(|_| more).map(Touch::key);
        let name = |id: i64| {
            let actor = actors.iter().find(|person| person.subject_id() == id)?;
            actor.user_id().map(str::to_owned)
        };
        let items = touches.into_iter().map(|touch| touch.shown(asked.user_id.as_str(), name)).collect();
        Ok(Page { items, next_cursor: last.map(|key| encode(&of, &key)).transpose()? })
    }
}

/// Entries whose subject is the person.
pub fn naming<'a>(subject_id: i64) -> Rows<'a> {
    possible().filter(audit_logs::subject_id.eq(subject_id))
}

/// Reads of sidekeep's own, since the person is known, that named nobody, or this person beside another.
pub fn across<'a>(subject_id: i64, since: DateTime<Utc>) -> Rows<'a> {
    let also = serde_json::json!({ ALSO: subject_id.to_string() });
    let also = sql::<Bool>("labels @> ").bind::<Jsonb, _>(also);
    possible()
        .filter(sql::<Bool>(ACROSS))
        .filter(audit_logs::recorded_at.ge(since))
        .filter(audit_logs::subject_id.is_null().or(also))
        // What an application appends under such a name is its own affair.
        .filter(sql::<Bool>(&format!("labels ->> '{METHOD}' = action")))
}

fn within<'a>(mut rows: Rows<'a>, asked: &Accesses, before: Option<Key>) -> Rows<'a> {
    const AT: &str = "coalesce(occurred_at, recorded_at)";
    if let Some(from) = asked.from {
        rows = rows.filter(sql::<Bool>(&format!("{AT} >= ")).bind::<Timestamptz, _>(from.utc()));
    }
    if let Some(to) = asked.to {
        rows = rows.filter(sql::<Bool>(&format!("{AT} < ")).bind::<Timestamptz, _>(to.utc()));
    }
    if let Some((at, stream, position)) = before {
        let same = audit_logs::stream
            .lt(stream)
            .or(audit_logs::stream.eq(stream).and(audit_logs::position.lt(position)));
        rows = rows.filter(audit_logs::recorded_at.le(at)).filter(audit_logs::recorded_at.lt(at).or(same));
    }
    rows
}

/// Those who acted and are not erased.
///
/// # Errors
/// The database's.
pub async fn actors(connection: &mut Connection, touches: &[Touch]) -> Result<Vec<Person>> {
    let mut ids: Vec<i64> = touches.iter().filter_map(Touch::actor_id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() { Ok(Vec::new()) } else { Person::find_by_id(connection, &ids).await }
}
