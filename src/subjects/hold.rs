//! `subject.hold`, `.release`, `.holds`: legal holds (GDPR Art. 17(3)(e)). While one is open, nothing of the person's is deleted.
//!
//! Placing and releasing take the person's row alone, so that whoever deletes beside them is before or after, never between.
//! A released hold goes with the person.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{
    BoolExpressionMethods, ExpressionMethods, OptionalExtension, QueryDsl, Queryable, Selectable,
    SelectableHelper,
};
use diesel::sql_types::{Nullable, Timestamptz};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::impersonal;
use crate::audit::By;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::{Person, Place as Sealed, Subject};
use crate::records::{Records, Take, Taken};
pub use crate::records::{open_holds, unheld};
use crate::store::Connection;
use crate::store::schema::{legal_holds, subjects};
use crate::values::{Limit, Page, RecordId, ShortText, UserId, decode, encode};

const TABLE: &str = "legal_holds";
/// What the log calls it.
const KIND: &str = "hold";

/// A legal hold.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Hold {
    /// Its id.
    pub id: String,
    /// Who is held.
    pub user_id: String,
    /// Why it was placed.
    pub reason: String,
    /// When it was placed.
    pub placed_at: Timestamp,
    /// When it was released; null while it stands.
    pub released_at: Option<Timestamp>,
    /// Why it was released; null while it stands.
    pub release_reason: Option<String>,
}

/// Parameters of `subject.hold`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Who is to be held.
    pub user_id: UserId,
    /// Why, for those who look at it later; sealed.
    pub reason: ShortText,
    /// Its id: with it, the call may be repeated.
    pub id: Option<RecordId>,
}

/// Parameters of `subject.release`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The hold.
    pub id: RecordId,
    /// Why it may end, for those who look at it later; sealed.
    pub reason: ShortText,
}

/// Parameters of `subject.holds`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Whose; everybody's without it.
    pub user_id: Option<UserId>,
    /// How many holds at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

#[derive(Clone, Queryable, Selectable)]
#[diesel(table_name = legal_holds, check_for_backend(diesel::pg::Pg))]
struct Stored {
    id: String,
    subject_id: i64,
    reason_sealed: Vec<u8>,
    placed_at: DateTime<Utc>,
    released_at: Option<DateTime<Utc>>,
    release_reason_sealed: Option<Vec<u8>>,
}

impl Stored {
    fn open(self, subject: &Subject) -> Result<Hold> {
        let open = |column, sealed: &[u8]| subject.key.open_text(place(&self.id, column), sealed);
        Ok(Hold {
            user_id: subject.user_id.clone(),
            reason: open("reason_sealed", &self.reason_sealed)?,
            release_reason: self
                .release_reason_sealed
                .as_deref()
                .map(|sealed| open("release_reason_sealed", sealed))
                .transpose()?,
            placed_at: self.placed_at.into(),
            released_at: self.released_at.map(Timestamp::from),
            id: self.id,
        })
    }
}

fn place<'a>(id: &'a str, column: &'static str) -> Sealed<'a> {
    Sealed { table: TABLE, column, row: id }
}

/// Places a hold. With an id it may be repeated.
///
/// # Errors
/// [`Error::Conflict`] when the id stands for another hold.
pub async fn hold(records: &Records, by: &By, given: &Place) -> Result<Hold> {
    impersonal(&given.user_id, "id", given.id.as_ref().map(RecordId::as_str))?;
    let id = given.id.clone().unwrap_or_else(RecordId::generate);
    let (taken, person) = (given.id.as_ref().map(Taken::Hold), (&given.user_id, Take::Alone));
    records
        .write_taking(by, person, taken, async |tx: &mut Connection, subject: &Subject| {
            by.about(KIND, id.as_str());
            let reason = given.reason.as_str();
            let sealed = subject.key.seal(place(id.as_str(), "reason_sealed"), reason.as_bytes())?;
            let stored: Option<Stored> = diesel::insert_into(legal_holds::table)
                .values((
                    legal_holds::id.eq(id.as_str()),
                    legal_holds::subject_id.eq(subject.id),
                    legal_holds::reason_sealed.eq(sealed),
                ))
                .on_conflict_do_nothing()
                .returning(Stored::as_returning())
                .get_result(tx)
                .await
                .optional()?;
            if let Some(stored) = stored {
                return stored.open(subject);
            }
            let conflict = || Error::conflict("another hold has this id");
            let there = find(tx, &id).await?.filter(|there| there.subject_id == subject.id);
            let hold = there.ok_or_else(conflict)?.open(subject)?;
            if hold.reason == reason { Ok(hold) } else { Err(conflict()) }
        })
        .await
}

/// Releases a hold, once. Repeated with the same reason it answers the same.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when it was released for another reason.
pub async fn release(records: &Records, by: &By, given: &Release) -> Result<Hold> {
    let missing = || Error::NotFound { what: "hold" };
    let released = records
        .entered(by, async || {
            records
                .store()
                .transact(&by.deadline, by.method, async |tx| {
                    let stored = find(tx, &given.id).await?.ok_or_else(missing)?;
                    let person = Person::lock_by_id(tx, stored.subject_id).await?.ok_or_else(missing)?;
                    let subject = records.keyring().open(person)?;
                    by.concerns(&subject.user_id);
                    by.about(KIND, given.id.as_str());
                    let hold = end(tx, &subject, given).await?.ok_or_else(missing)?;
                    Ok(Some((hold, records.log().stage(tx, by, &subject).await?)))
                })
                .await
        })
        .await?;
    released.ok_or_else(missing)
}

/// Ends a hold whose person's row is taken.
async fn end(tx: &mut Connection, subject: &Subject, given: &Release) -> Result<Option<Hold>> {
    // Read anew: before the person's row was taken, somebody may have released it.
    let Some(stored) = find(tx, &given.id).await? else { return Ok(None) };
    if stored.released_at.is_some() {
        let hold = stored.open(subject)?;
        return if hold.release_reason.as_deref() == Some(given.reason.as_str()) {
            Ok(Some(hold))
        } else {
            Err(Error::conflict("this hold was released already, for another reason"))
        };
    }
    let place = place(given.id.as_str(), "release_reason_sealed");
    let sealed = subject.key.seal(place, given.reason.as_str().as_bytes())?;
    let stored: Stored = diesel::update(legal_holds::table.find(given.id.as_str()))
        .set((
            legal_holds::released_at.eq(sql::<Nullable<Timestamptz>>("clock_timestamp()")),
            legal_holds::release_reason_sealed.eq(sealed),
        ))
        .returning(Stored::as_returning())
        .get_result(tx)
        .await?;
    stored.open(subject).map(Some)
}

async fn find(tx: &mut Connection, id: &RecordId) -> Result<Option<Stored>> {
    Ok(legal_holds::table.find(id.as_str()).select(Stored::as_select()).first(tx).await.optional()?)
}

/// A page of holds, open and released, of one person or of all, the one placed last first.
///
/// # Errors
/// [`Error::Invalid`] for a cursor that is none.
pub async fn holds(records: &Records, by: &By, list: &List) -> Result<Page<Hold>> {
    let of = ("subject.holds", &list.user_id);
    let after: Option<(DateTime<Utc>, String)> = decode(&of, list.cursor.as_deref())?;
    let mut found: Vec<(Person, Stored)> = records
        .store()
        .single(&by.deadline, "subject.holds", async |connection| {
            let mut rows = legal_holds::table
                .inner_join(subjects::table)
                .order((legal_holds::placed_at.desc(), legal_holds::id.desc()))
                .limit(list.limit.and_one())
                .into_boxed();
            if let Some(user_id) = &list.user_id {
                rows = rows.filter(subjects::user_id.eq(user_id.as_str()));
            }
            if let Some((placed_at, id)) = &after {
                let earlier = legal_holds::placed_at
                    .lt(*placed_at)
                    .or(legal_holds::placed_at.eq(*placed_at).and(legal_holds::id.lt(id)));
                rows = rows.filter(earlier);
            }
            Ok(rows.select((Person::as_select(), Stored::as_select())).load(connection).await?)
        })
        .await?;
    let more = found.len() > list.limit.items();
    found.truncate(list.limit.items());
    let last = found.last().filter(|_| more).map(|(_, last)| (last.placed_at, last.id.clone()));
    if let Some(user_id) = &list.user_id {
        records.names(by, user_id).await?;
    }
    let mut items = Vec::with_capacity(found.len());
    for (person, stored) in found {
        let subject = records.keyring().open(person)?;
        items.push(stored.open(&subject)?);
    }
    Ok(Page { items, next_cursor: last.map(|key| encode(&of, &key)).transpose()? })
}
