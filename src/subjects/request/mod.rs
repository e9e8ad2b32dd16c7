//! `request.*`: the register of what people have asked for, with the one month that there is to answer (GDPR Art. 12(3)).
//!
//! A request outlives its person: then it says what was done, and nobody says for whom. What is written freely is sealed with
//! the person's key; what is written after the erasure, with the deployment's.

mod list;
mod time;
mod work;

pub use list::{List, OpenRequests, Pressing, list};
pub use work::{close, extend, open};

use chrono::{DateTime, Utc};
use diesel::prelude::{
    ExpressionMethods, OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::{self, Timestamp};
use crate::error::{Error, Result};
use crate::keyring::{DataKey, Deployment, Place, Subject};
use crate::store::Connection;
use crate::store::schema::requests;
use crate::values::{RecordId, ShortText, Term, UserId};

const TABLE: &str = "requests";
/// What the log calls it.
const KIND: &str = "request";
const EXTENSION: &str = "extension_reason_sealed";
const OUTCOME: &str = "outcome_reason_sealed";

/// How many results one request holds.
const RESULTS: usize = 100;

/// Which right a person makes use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// GDPR Art. 15.
    Access,
    /// Art. 20.
    Portability,
    /// Art. 17.
    Erasure,
    /// Art. 16.
    Rectification,
    /// Art. 18.
    Restriction,
    /// Art. 21.
    Objection,
}

impl Right {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Access, "access"),
        (Self::Portability, "portability"),
        (Self::Erasure, "erasure"),
        (Self::Rectification, "rectification"),
        (Self::Restriction, "restriction"),
        (Self::Objection, "objection"),
    ];

    fn stored(text: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|(_, name)| *name == text);
        found.map(|(right, _)| *right).ok_or_else(|| Error::Tampered { at: "requests.kind".into() })
    }

    fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(right, _)| *right == self).map_or("", |(_, name)| name)
    }
}

/// Whether there is something left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "RequestState")]
pub enum State {
    /// There is.
    Open,
    /// There is not.
    Closed,
}

/// A request of a person.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Request {
    /// Its id.
    pub id: String,
    /// Whose it is; null once the person is erased.
    pub user_id: Option<String>,
    /// Which right.
    pub kind: Right,
    /// How it came, as a code.
    pub channel: Option<String>,
    /// Whether there is something left to do.
    pub state: State,
    /// When it was received.
    pub received_at: Timestamp,
    /// Until when it must be answered.
    pub due_at: Timestamp,
    /// Whether it is open, and that time has passed.
    pub overdue: bool,
    /// When the time was extended.
    pub extended_at: Option<Timestamp>,
    /// Why; null once the person is erased.
    pub extension_reason: Option<String>,
    /// When it was closed.
    pub closed_at: Option<Timestamp>,
    /// How it ended, as a code.
    pub outcome: Option<String>,
    /// Why it ended so; null once the person is erased, unless it was closed later.
    pub reason: Option<String>,
    /// What was done for it, in the order of time.
    pub results: Vec<Attached>,
}

/// What was done for a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attached {
    /// The method that did it.
    pub method: String,
    /// When.
    pub at: Timestamp,
    /// What came of it, as the id of a certificate.
    pub id: Option<String>,
}

/// What a method has done for a request.
#[derive(Clone, Copy, Debug)]
pub struct Done<'a> {
    /// The method.
    pub method: &'static str,
    /// The id of what came of it, which must say nothing of the person.
    pub id: Option<&'a str>,
}

/// Parameters of `request.open`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// Whose request it is.
    pub user_id: UserId,
    /// Which right.
    pub kind: Right,
    /// When it was received; now where it is not said. The time to answer runs from here.
    pub received_at: Option<Timestamp>,
    /// How it came, as a code: it stays in the clear.
    pub channel: Option<Term>,
    /// Its id: with it, the call may be repeated.
    pub id: Option<RecordId>,
}

/// Parameters of `request.extend`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Extend {
    /// The request.
    pub id: RecordId,
    /// Why more time is needed, as the person is told; sealed.
    pub reason: ShortText,
}

/// Parameters of `request.close`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Close {
    /// The request.
    pub id: RecordId,
    /// How it ended, as a code such as "done" or "refused": it stays in the clear.
    pub outcome: Term,
    /// Why it ended so; sealed. After an erasure it is no longer under the person's key: say nothing of the person then.
    pub reason: Option<ShortText>,
}

#[derive(Clone, Queryable, Selectable)]
#[diesel(table_name = requests, check_for_backend(diesel::pg::Pg))]
struct Stored {
    id: String,
    subject_id: i64,
    kind: String,
    channel: Option<String>,
    received_at: DateTime<Utc>,
    due_at: DateTime<Utc>,
    extended_at: Option<DateTime<Utc>>,
    extension_reason_sealed: Option<Vec<u8>>,
    closed_at: Option<DateTime<Utc>>,
    outcome: Option<String>,
    outcome_reason_sealed: Option<Vec<u8>>,
    results: serde_json::Value,
}

impl Stored {
    /// As callers see it; nobody is its person after an erasure.
    fn open(self, subject: Option<&Subject>, own: &Deployment) -> Result<Request> {
        let text = |column, sealed: Option<&[u8]>| {
            let Some(sealed) = sealed else { return Ok(None) };
            let place = place(&self.id, column);
            match subject {
                Some(subject) => subject.key.open_text(place, sealed).map(Some),
                // What the person's key has sealed, nothing opens any more.
                None => Ok(own.key.open_text(place, sealed).ok()),
            }
        };
        Ok(Request {
            user_id: subject.map(|subject| subject.user_id.clone()),
            kind: Right::stored(&self.kind)?,
            channel: self.channel,
            state: if self.closed_at.is_some() { State::Closed } else { State::Open },
            received_at: self.received_at.into(),
            due_at: self.due_at.into(),
            overdue: self.closed_at.is_none() && self.due_at < clock::now().utc(),
            extended_at: self.extended_at.map(Timestamp::from),
            extension_reason: text(EXTENSION, self.extension_reason_sealed.as_deref())?,
            closed_at: self.closed_at.map(Timestamp::from),
            outcome: self.outcome,
            reason: text(OUTCOME, self.outcome_reason_sealed.as_deref())?,
            results: results(self.results)?,
            id: self.id,
        })
    }
}

fn place<'a>(id: &'a str, column: &'static str) -> Place<'a> {
    Place { table: TABLE, column, row: id }
}

fn seal(key: &DataKey, id: &RecordId, column: &'static str, text: &ShortText) -> Result<Vec<u8>> {
    key.seal(place(id.as_str(), column), text.as_str().as_bytes())
}

fn results(stored: serde_json::Value) -> Result<Vec<Attached>> {
    serde_json::from_value(stored).map_err(|_| Error::Tampered { at: "requests.results".into() })
}

async fn find(tx: &mut Connection, id: &RecordId) -> Result<Option<Stored>> {
    Ok(requests::table.find(id.as_str()).select(Stored::as_select()).first(tx).await.optional()?)
}

/// Notes, in the transaction of what was done, that it was done for this request of this person. The transaction has the
/// person's row.
///
/// # Errors
/// [`Error::NotFound`] where there is no such request; [`Error::Conflict`] where it is another person's, or closed;
/// [`Error::TooLarge`] where it has too many results.
pub async fn attach(tx: &mut Connection, id: &RecordId, subject_id: i64, done: Done<'_>) -> Result<()> {
    let row = requests::table.find(id.as_str()).select(Stored::as_select()).for_update();
    let stored: Option<Stored> = row.first(tx).await.optional()?;
    let stored = stored.ok_or(Error::NotFound { what: KIND })?;
    if stored.subject_id != subject_id {
        return Err(Error::conflict("request_id: this request is another person's"));
    }
    if stored.closed_at.is_some() {
        return Err(Error::conflict("request_id: this request is closed"));
    }
    let mut results = results(stored.results)?;
    if results.len() >= RESULTS {
        let max = u64::try_from(RESULTS).map_err(Error::internal)?;
        return Err(Error::too_large("the number of results of this request", max));
    }
    let at = time::now(tx).await?.into();
    results.push(Attached { method: done.method.to_owned(), at, id: done.id.map(str::to_owned) });
    let results = serde_json::to_value(results).map_err(Error::internal)?;
    diesel::update(requests::table.find(id.as_str())).set(requests::results.eq(results)).execute(tx).await?;
    Ok(())
}
