//! `subject.restrict`, `.unrestrict`: from then on, a person's data are stored, and nothing else (GDPR Art. 18).
//!
//! The reason is in the entry of the log, under the person's key; here is only since when.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel::sql_types::{Nullable, Timestamptz};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::{Done, attach};
use crate::audit::{By, SUBJECT};
use crate::error::{Error, Result};
use crate::keyring::{Subject, Whole};
use crate::records::{Records, Take};
use crate::store::Connection;
use crate::store::schema::subjects;
use crate::values::{Json, RecordId, ShortText, UserId};

/// Parameters of `subject.restrict` and `subject.unrestrict`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restrict {
    /// The person.
    pub user_id: UserId,
    /// Why, for those who read the log later; sealed.
    pub reason: ShortText,
    /// The request of the person's that this answers; what was done is noted there.
    pub request_id: Option<RecordId>,
}

/// Whether a person's data may only be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Restricted {
    /// Whether they may.
    pub restricted: bool,
}

/// Restricts the processing of a person's data. On return every later read and write of records is refused.
///
/// # Errors
/// [`Error::NotFound`] or [`Error::Conflict`] about the request.
pub async fn restrict(records: &Records, by: &By, given: &Restrict) -> Result<Restricted> {
    let person = (&given.user_id, Take::Alone);
    // A person whose key is damaged can be restricted all the same; only the reason has no key to be kept under.
    let known = records
        .write_keyless(by, person, &async |tx: &mut Connection, person: &Whole| {
            set(tx, by, (person.subject_id(), person.is_restricted()), (given, true)).await
        })
        .await?;
    if let Some(known) = known {
        return Ok(known);
    }
    records
        .write_taking(by, person, None, async |tx: &mut Connection, subject: &Subject| {
            set(tx, by, (subject.id, subject.restricted), (given, true)).await
        })
        .await
}

/// Ends the restriction.
///
/// # Errors
/// [`Error::NotFound`] where nobody has this user id, or about the request; [`Error::Conflict`] about the request.
pub async fn unrestrict(records: &Records, by: &By, given: &Restrict) -> Result<Restricted> {
    let person = (&given.user_id, Take::Alone);
    let ended = records
        .write_known_taking(by, person, &async |tx: &mut Connection, subject: &Subject| {
            set(tx, by, (subject.id, subject.restricted), (given, false)).await
        })
        .await?;
    ended.ok_or(Error::NotFound { what: "subject" })
}

async fn set(
    tx: &mut Connection,
    by: &By,
    (subject_id, is_restricted): (i64, bool),
    (given, restricted): (&Restrict, bool),
) -> Result<Restricted> {
    by.about("subject", SUBJECT);
    by.tell(reason(&given.reason)?);
    if is_restricted != restricted {
        let row = diesel::update(subjects::table.find(subject_id));
        if restricted {
            let now = sql::<Nullable<Timestamptz>>("clock_timestamp()");
            row.set(subjects::restricted_at.eq(now)).execute(tx).await?;
        } else {
            row.set(subjects::restricted_at.eq(None::<DateTime<Utc>>)).execute(tx).await?;
        }
    }
    if let Some(request_id) = &given.request_id {
        attach(tx, request_id, subject_id, Done { method: by.method, id: None }).await?;
    }
    Ok(Restricted { restricted })
}

fn reason(reason: &ShortText) -> Result<Json> {
    let text = serde_json::json!({ "reason": reason.as_str() }).to_string();
    Json::parse(&text).map_err(Error::internal)
}
