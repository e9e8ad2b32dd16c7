//! What is looked for in the log: as a condition, and as the access entry tells it.

use std::collections::BTreeMap;

use diesel::dsl::sql;
use diesel::pg::Pg;
use diesel::prelude::{BoolExpressionMethods, ExpressionMethods, QueryDsl, TextExpressionMethods};
use diesel::sql_types::{Bool, Jsonb};
use serde_json::{Map, Value, json};

use super::by::By;
use super::draft::{ACTOR, SUBJECT};
use super::entry::{Labels, Outcome};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::Person;
use crate::store::Connection;
use crate::store::schema::audit_logs;
use crate::values::{Json, ResourceId, Term, UserId};

/// What to look for; everything that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
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
}

type Rows<'a> = audit_logs::BoxedQuery<'a, Pg>;

/// Stands for a person who does not exist: whoever asks does not create one, and the entry names nobody.
const UNKNOWN: &str = "@unknown";

/// The persons of a filter as they are in the keyring.
#[derive(Debug)]
pub(super) struct Persons {
    actor: Option<i64>,
    subject: Option<i64>,
    resource: Option<i64>,
    /// Whether anything can match: nobody who is unknown has done anything.
    pub(super) known: bool,
}

/// Refuses a span of time that ends before it begins: nothing is in it, which would look like an answer.
///
/// # Errors
/// [`Error::Invalid`].
pub fn in_order(from: Option<Timestamp>, to: Option<Timestamp>) -> Result<()> {
    match from.zip(to) {
        Some((from, to)) if to.utc() < from.utc() => Err(Error::invalid("to", "must not be before from")),
        _ => Ok(()),
    }
}

impl Filter {
    /// Looks its persons up, and notes for the access entry what is looked for and whom it concerns.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the times are the wrong way round; the database's.
    pub(super) async fn persons(&self, connection: &mut Connection, by: &By) -> Result<Persons> {
        in_order(self.from, self.to)?;
        let (actor, subject) =
            (self.user_id.as_ref().map(UserId::as_str), self.subject_user_id.as_ref().map(UserId::as_str));
        let resource = self.resource_id.as_ref().map(ResourceId::as_str);
        let names: Vec<&str> = [actor, subject, resource].into_iter().flatten().collect();
        let found = if names.is_empty() { Vec::new() } else { Person::find(connection, &names).await? };
        let find = |name: Option<&str>| {
            let name = name?;
            found.iter().find(|person| person.user_id() == Some(name)).map(Person::subject_id)
        };
        let persons = Persons {
            known: (actor.is_none() || find(actor).is_some())
                && (subject.is_none() || find(subject).is_some()),
            actor: find(actor),
            subject: find(subject),
            resource: find(resource),
        };
        let concerned = [subject, actor, resource].into_iter().find(|name| find(*name).is_some());
        concerned.flatten().into_iter().for_each(|person| by.concerns(person));
        // An entry has one subject; a second person must find it in the accounting all the same.
        let also = [subject, actor, resource].into_iter().filter_map(find);
        let first = concerned.flatten().and_then(|person| find(Some(person)));
        also.filter(|number| Some(*number) != first).take(1).for_each(|number| by.names_also(number));
        Json::trusted(self.told(&persons).to_string()).into_iter().for_each(|told| by.looks_for(told));
        Ok(persons)
    }

    /// What is looked for, with numbers for persons.
    fn told(&self, persons: &Persons) -> Value {
        let number = |number: Option<i64>| number.map_or_else(|| json!(UNKNOWN), |number| json!(number));
        let is_user = self.resource_type.as_ref().is_some_and(|kind| kind.as_str() == "user");
        let resource = |id: &ResourceId| match persons.resource {
            None if !is_user => json!(id.as_str()),
            person => number(person),
        };
        let members = [
            ("user_id", self.user_id.as_ref().map(|_| number(persons.actor))),
            ("subject_user_id", self.subject_user_id.as_ref().map(|_| number(persons.subject))),
            ("action", self.action.as_ref().map(|action| json!(action.as_str()))),
            ("resource_type", self.resource_type.as_ref().map(|kind| json!(kind.as_str()))),
            ("resource_id", self.resource_id.as_ref().map(resource)),
            ("outcome", self.outcome.map(|outcome| json!(outcome.as_str()))),
            ("from", self.from.map(|at| json!(at.to_string()))),
            ("to", self.to.map(|at| json!(at.to_string()))),
            ("labels", self.labels.as_ref().map(|labels| json!(labels))),
        ];
        let given = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        json!({ "filter": given.collect::<Map<_, _>>() })
    }
}

/// The entries that there can be: streams and positions count from 0, and what was planted below is none. The database does
/// not refuse it, for what a check costs each entry; the verification tells it.
pub(super) fn possible<'a>() -> Rows<'a> {
    audit_logs::table.filter(audit_logs::stream.ge(0)).filter(audit_logs::position.ge(0)).into_boxed()
}

/// The entries that match.
pub(super) fn filtered<'a>(filter: &'a Filter, persons: &Persons) -> Rows<'a> {
    let mut rows = possible();
    if let Some(actor) = persons.actor {
        rows = rows.filter(audit_logs::actor_id.eq(actor));
    }
    if let Some(subject) = persons.subject {
        rows = rows.filter(audit_logs::subject_id.eq(subject));
    }
    if let Some(action) = &filter.action {
        rows = match action.as_str().strip_suffix('*') {
            Some(beginning) => rows.filter(audit_logs::action.like(format!("{}%", escape(beginning)))),
            None => rows.filter(audit_logs::action.eq(action.as_str())),
        };
    }
    if let Some(kind) = &filter.resource_type {
        rows = rows.filter(audit_logs::resource_type.eq(kind.as_str()));
    }
    if let Some(id) = &filter.resource_id {
        let id = audit_logs::resource_id.eq(id.as_str());
        rows = match persons.resource {
            None => rows.filter(id),
            Some(person) => rows.filter(
                id.or(audit_logs::resource_id.eq(ACTOR).and(audit_logs::actor_id.eq(person)))
                    .or(audit_logs::resource_id.eq(SUBJECT).and(audit_logs::subject_id.eq(person))),
            ),
        };
    }
    if let Some(outcome) = filter.outcome {
        rows = rows.filter(audit_logs::outcome.eq(outcome.as_str()));
    }
    if let Some(from) = filter.from {
        rows = rows.filter(
            sql::<Bool>("coalesce(occurred_at, recorded_at) >= ")
                .bind::<diesel::sql_types::Timestamptz, _>(from.utc()),
        );
    }
    if let Some(to) = filter.to {
        rows = rows.filter(
            sql::<Bool>("coalesce(occurred_at, recorded_at) < ")
                .bind::<diesel::sql_types::Timestamptz, _>(to.utc()),
        );
    }
    if let Some(labels) = filter.labels.as_ref().filter(|labels| !labels.is_empty()) {
        if labels.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
            // No label has it, and PostgreSQL's JSON cannot.
            return rows.filter(sql::<Bool>("false"));
        }
        let labels = serde_json::to_value(Labels::of(labels.clone())).unwrap_or_default();
        rows = rows.filter(sql::<Bool>("labels @> ").bind::<Jsonb, _>(labels));
    }
    rows
}

/// The beginning of an action as LIKE takes it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}
