//! What a filter selects: its persons as the keyring has them, and the rows of the log.

use diesel::dsl::sql;
use diesel::pg::Pg;
use diesel::prelude::{BoolExpressionMethods, ExpressionMethods, QueryDsl, TextExpressionMethods};
use diesel::sql_types::{Bool, Int8, Jsonb};

use super::Filter;
use crate::audit::draft::{ACTOR, SUBJECT};
use crate::audit::entry::Labels;
use crate::error::Result;
use crate::keyring::Person;
use crate::store::Connection;
use crate::store::schema::audit_logs;
use crate::values::{ResourceId, UserId};

type Rows<'a> = audit_logs::BoxedQuery<'a, Pg>;

/// The persons of a filter as they are in the keyring; nothing where one of them is unknown.
pub(super) struct Persons {
    pub(super) actor: Option<i64>,
    pub(super) subject: Option<i64>,
    pub(super) resource: Option<i64>,
}

/// The bytes of an entry that are not bounded otherwise.
pub(super) fn size() -> diesel::expression::SqlLiteral<Int8> {
    sql::<Int8>(
        "(coalesce(octet_length(metadata_sealed), 0) + coalesce(octet_length(client_sealed), 0))::bigint",
    )
}

/// Looks the persons of a filter up; nothing where one of them is unknown, and so nothing can match.
pub(super) async fn persons(connection: &mut Connection, filter: &Filter) -> Result<Option<Persons>> {
    let mut names: Vec<&str> =
        [&filter.user_id, &filter.subject_user_id].into_iter().flatten().map(UserId::as_str).collect();
    names.extend(filter.resource_id.as_ref().map(ResourceId::as_str));
    let found = if names.is_empty() { Vec::new() } else { Person::find(connection, &names).await? };
    let find = |name: Option<&str>| {
        let name = name?;
        found.iter().find(|person| person.user_id() == Some(name)).map(Person::subject_id)
    };
    let actor = find(filter.user_id.as_ref().map(UserId::as_str));
    let subject = find(filter.subject_user_id.as_ref().map(UserId::as_str));
    if (filter.user_id.is_some() && actor.is_none())
        || (filter.subject_user_id.is_some() && subject.is_none())
    {
        return Ok(None);
    }
    Ok(Some(Persons { actor, subject, resource: find(filter.resource_id.as_ref().map(ResourceId::as_str)) }))
}

pub(super) fn filtered<'a>(filter: &'a Filter, persons: &Persons) -> Rows<'a> {
    let mut rows = audit_logs::table.into_boxed();
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
        let labels = serde_json::to_value(Labels::of(labels.clone())).unwrap_or_default();
        rows = rows.filter(sql::<Bool>("labels @> ").bind::<Jsonb, _>(labels));
    }
    rows
}

/// The beginning of an action as LIKE takes it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}
