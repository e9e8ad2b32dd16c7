//! The register as a list, and how many requests press.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::prelude::{BoolExpressionMethods, ExpressionMethods, JoinOnDsl, QueryDsl, SelectableHelper};
use diesel::sql_types::Int8;
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Request, State, Stored};
use crate::audit::By;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::keyring::Person;
use crate::records::Records;
use crate::store::schema::{requests, subjects};
use crate::store::{Deadline, Store};
use crate::values::{Limit, Page, UserId, decode, encode, fit};

/// Parameters of `request.list`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Only this person's.
    pub user_id: Option<UserId>,
    /// Only those that must be answered before then.
    pub due_before: Option<Timestamp>,
    /// Only those that are open, or closed.
    pub state: Option<State>,
    /// How many requests at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// A page of the register, the request received last first.
///
/// # Errors
/// [`crate::error::Error::Invalid`] for a cursor that is none.
pub async fn list(records: &Records, by: &By, list: &List, max_bytes: u64) -> Result<Page<Request>> {
    // The end of a time may move from page to page.
    let of = ("request.list", &list.user_id, list.state);
    let after: Option<(DateTime<Utc>, String)> = decode(&of, list.cursor.as_deref())?;
    let mut found: Vec<(Option<Person>, Stored)> = records
        .store()
        .single(&by.deadline, "request.list", async |connection| {
            let mut rows = requests::table
                .left_join(subjects::table.on(subjects::subject_id.eq(requests::subject_id)))
                .order((requests::received_at.desc(), requests::id.desc()))
                .limit(list.limit.and_one())
                .into_boxed();
            if let Some(user_id) = &list.user_id {
                rows = rows.filter(subjects::user_id.eq(user_id.as_str()));
            }
            if let Some(before) = list.due_before {
                rows = rows.filter(requests::due_at.lt(before.utc()));
            }
            rows = match list.state {
                None => rows,
                Some(State::Open) => rows.filter(requests::closed_at.is_null()),
                Some(State::Closed) => rows.filter(requests::closed_at.is_not_null()),
            };
            if let Some((received_at, id)) = &after {
                let earlier = requests::received_at
                    .lt(*received_at)
                    .or(requests::received_at.eq(*received_at).and(requests::id.lt(id)));
                rows = rows.filter(earlier);
            }
            let columns = (Option::<Person>::as_select(), Stored::as_select());
            Ok(rows.select(columns).load(connection).await?)
        })
        .await?;
    let sizes: Vec<i64> = found.iter().map(|(_, stored)| size(stored)).collect();
    let taken = fit(&sizes, list.limit, max_bytes);
    let more = found.len() > taken;
    found.truncate(taken);
    let last = found.last().filter(|_| more).map(|(_, last)| (last.received_at, last.id.clone()));
    let own = records.keyring().own()?;
    if let Some(user_id) = &list.user_id {
        records.names(by, user_id).await?;
    }
    let mut items = Vec::with_capacity(found.len());
    for (person, stored) in found {
        let subject = person.map(|person| records.keyring().open(person)).transpose()?;
        items.push(stored.open(subject.as_ref(), own)?);
    }
    Ok(Page { items, next_cursor: last.map(|key| encode(&of, &key)).transpose()? })
}

/// The bytes of a request that are not bounded otherwise.
fn size(stored: &Stored) -> i64 {
    i64::try_from(stored.results.to_string().len()).unwrap_or(i64::MAX)
}

/// How many open requests press.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema, QueryableByName)]
pub struct OpenRequests {
    /// How many are open.
    #[diesel(sql_type = Int8)]
    pub open: i64,
    /// How many of them are due within seven days.
    #[diesel(sql_type = Int8)]
    pub due_soon: i64,
    /// How many of them should have been answered.
    #[diesel(sql_type = Int8)]
    pub overdue: i64,
}

/// Read from the index of what is open alone.
const COUNT: &str = "SELECT count(*) AS open, \
    count(*) FILTER (WHERE due_at >= now() AND due_at < now() + interval '7 days') AS due_soon, \
    count(*) FILTER (WHERE due_at < now()) AS overdue FROM sidekeep.requests WHERE closed_at IS NULL";

/// How often the register is looked at: a time passes without a call.
const LOOK: Duration = Duration::from_secs(30);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many requests pressed when last looked, so that status and figures ask nobody.
#[derive(Debug, Default)]
pub struct Pressing {
    seen: Mutex<Option<OpenRequests>>,
    changed: Notify,
}

impl Pressing {
    /// What was last seen; nothing before the first look, and while PostgreSQL is away.
    pub fn seen(&self) -> Option<OpenRequests> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a look, because a request was opened, extended or closed.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// Looks again and again until the end of the daemon.
    pub async fn observe(&self, store: &Store, end: &CancellationToken) {
        while !end.is_cancelled() {
            let deadline = Deadline::after(PATIENCE, end.clone());
            let counts = store
                .single(&deadline, "request.counts", async |connection| {
                    Ok(diesel::sql_query(COUNT).get_result::<OpenRequests>(connection).await?)
                })
                .await;
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = counts.ok();
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.changed.notified() => {}
                () = end.cancelled() => {}
            }
        }
    }
}
