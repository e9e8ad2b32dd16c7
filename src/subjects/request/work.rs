//! Opening, extending and closing a request, each in one transaction with its entry.

use diesel::dsl::sql;
use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel::sql_types::{Nullable, Timestamptz};
use diesel_async::RunQueryDsl;

use super::{Close, EXTENSION, Extend, KIND, OUTCOME, Open, Request, Stored, find, seal, time};
use crate::audit::By;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::{DataKey, Deployment, Person, Subject};
use crate::records::{Records, Take, Taken};
use crate::store::Connection;
use crate::store::schema::requests;
use crate::subjects::impersonal;
use crate::values::{RecordId, ShortText, Term};

/// Enters a request. With an id it may be repeated.
///
/// # Errors
/// [`Error::Conflict`] when the id stands for another request; [`Error::Invalid`] when it was received in the future.
pub async fn open(records: &Records, by: &By, given: &Open) -> Result<Request> {
    impersonal(&given.user_id, "id", given.id.as_ref().map(RecordId::as_str))?;
    impersonal(&given.user_id, "channel", given.channel.as_ref().map(Term::as_str))?;
    let id = given.id.clone().unwrap_or_else(RecordId::generate);
    let own = records.keyring().own()?;
    let (taken, person) = (given.id.as_ref().map(Taken::Request), (&given.user_id, Take::Share));
    records
        .write_taking(by, person, taken, async |tx: &mut Connection, subject: &Subject| {
            by.about(KIND, id.as_str());
            let received_at = time::received(given.received_at.map(Timestamp::utc), time::now(tx).await?)?;
            let stored: Option<Stored> = diesel::insert_into(requests::table)
                .values((
                    requests::id.eq(id.as_str()),
                    requests::subject_id.eq(subject.id),
                    requests::kind.eq(given.kind.as_str()),
                    requests::channel.eq(given.channel.as_ref().map(Term::as_str)),
                    requests::received_at.eq(received_at),
                    requests::due_at.eq(time::due(received_at, false)?),
                ))
                .on_conflict_do_nothing()
                .returning(Stored::as_returning())
                .get_result(tx)
                .await
                .optional()?;
            match stored {
                Some(stored) => stored.open(Some(subject), own),
                None => repeated(tx, subject, own, (given, &id)).await,
            }
        })
        .await
}

/// What stands under the id, when it is the same request; else a conflict.
async fn repeated(
    tx: &mut Connection,
    subject: &Subject,
    own: &Deployment,
    (given, id): (&Open, &RecordId),
) -> Result<Request> {
    let there = find(tx, id).await?.filter(|there| {
        there.subject_id == subject.id
            && there.kind == given.kind.as_str()
            && given.channel.as_ref().is_none_or(|channel| there.channel.as_deref() == Some(channel.as_str()))
            && given.received_at.is_none_or(|at| at.utc() == there.received_at)
    });
    there.ok_or_else(|| Error::conflict("another request has this id"))?.open(Some(subject), own)
}

/// Extends the time by two further months, within the first one. Repeated with the same reason it answers the same.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when it is closed, extended for another reason, or the first month has passed.
pub async fn extend(records: &Records, by: &By, given: &Extend) -> Result<Request> {
    change(records, by, &given.id, async |tx: &mut Connection, under: Under<'_>, stored: Stored| {
        if stored.extended_at.is_some() {
            let there = stored.open(under.subject, under.own)?;
            return under
                .same(there, |there| there.extension_reason.as_deref() == Some(given.reason.as_str()));
        }
        if stored.closed_at.is_some() {
            return Err(Error::conflict("this request is closed"));
        }
        if !time::can_extend(stored.received_at, time::now(tx).await?)? {
            return Err(Error::conflict("the first month has passed: the time cannot be extended any more"));
        }
        let stored: Stored = diesel::update(requests::table.find(given.id.as_str()))
            .set((
                requests::due_at.eq(time::due(stored.received_at, true)?),
                requests::extended_at.eq(sql::<Nullable<Timestamptz>>("clock_timestamp()")),
                requests::extension_reason_sealed.eq(seal(under.key(), &given.id, EXTENSION, &given.reason)?),
            ))
            .returning(Stored::as_returning())
            .get_result(tx)
            .await?;
        stored.open(under.subject, under.own)
    })
    .await
}

/// Closes a request. Repeated with the same outcome and reason it answers the same.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when it was closed otherwise.
pub async fn close(records: &Records, by: &By, given: &Close) -> Result<Request> {
    change(records, by, &given.id, async |tx: &mut Connection, under: Under<'_>, stored: Stored| {
        if let Some(subject) = under.subject {
            let user_id = crate::values::UserId::parse(subject.user_id.as_str()).map_err(Error::internal)?;
            impersonal(&user_id, "outcome", Some(given.outcome.as_str()))?;
        }
        if stored.closed_at.is_some() {
            let there = stored.open(under.subject, under.own)?;
            return under.same(there, |there| {
                let reason = given.reason.as_ref().map(ShortText::as_str);
                there.outcome.as_deref() == Some(given.outcome.as_str())
                    && reason.is_none_or(|reason| there.reason.as_deref() == Some(reason))
            });
        }
        let reason = given.reason.as_ref();
        let sealed = reason.map(|reason| seal(under.key(), &given.id, OUTCOME, reason)).transpose()?;
        let stored: Stored = diesel::update(requests::table.find(given.id.as_str()))
            .set((
                requests::closed_at.eq(sql::<Nullable<Timestamptz>>("clock_timestamp()")),
                requests::outcome.eq(given.outcome.as_str()),
                requests::outcome_reason_sealed.eq(sealed),
            ))
            .returning(Stored::as_returning())
            .get_result(tx)
            .await?;
        stored.open(under.subject, under.own)
    })
    .await
}

/// Whose request it is, if anybody's any more, and the keys.
#[derive(Clone, Copy)]
struct Under<'a> {
    subject: Option<&'a Subject>,
    own: &'a Deployment,
}

impl Under<'_> {
    /// What seals a reason that is given now.
    fn key(&self) -> &DataKey {
        self.subject.map_or(&self.own.key, |subject| &subject.key)
    }

    /// A repeated call answers what there is.
    fn same(&self, there: Request, same: impl Fn(&Request) -> bool) -> Result<Request> {
        if same(&there) {
            return Ok(there);
        }
        Err(Error::conflict("this was done to the request already, with another reason or outcome"))
    }
}

/// The statements of a change to a request whose row is locked.
trait Body<'c, 'u>:
    AsyncFn(&'c mut Connection, Under<'u>, Stored) -> Result<Request>
    + Fn(&'c mut Connection, Under<'u>, Stored) -> <Self as Body<'c, 'u>>::Running
{
    type Running: Future<Output = Result<Request>> + Send;
}

impl<'c, 'u, F, R> Body<'c, 'u> for F
where
    F: AsyncFn(&'c mut Connection, Under<'u>, Stored) -> Result<Request>
        + Fn(&'c mut Connection, Under<'u>, Stored) -> R,
    R: Future<Output = Result<Request>> + Send,
{
    type Running = R;
}

/// Changes a request in one transaction that takes the person's row first, where there is one, then the request's.
async fn change<F>(records: &Records, by: &By, id: &RecordId, body: F) -> Result<Request>
where
    F: for<'c, 'u> Body<'c, 'u> + Send + Sync,
{
    let missing = || Error::NotFound { what: KIND };
    let own = records.keyring().own()?;
    let changed = records
        .entered(by, async || {
            records
                .store()
                .transact(&by.deadline, by.method, async |tx| {
                    by.about(KIND, id.as_str());
                    let found = find(tx, id).await?.ok_or_else(missing)?;
                    let person = Person::share_by_id(tx, found.subject_id).await?;
                    let subject = person.map(|person| records.keyring().open(person)).transpose()?;
                    if let Some(subject) = &subject {
                        by.concerns(&subject.user_id);
                    }
                    let row = requests::table.find(id.as_str()).select(Stored::as_select()).for_update();
                    let stored: Option<Stored> = row.first(tx).await.optional()?;
                    let under = Under { subject: subject.as_ref(), own };
                    let output = body(tx, under, stored.ok_or_else(missing)?).await?;
                    Ok(Some((output, records.log().stage_about(tx, by, subject.as_ref()).await?)))
                })
                .await
        })
        .await?;
    changed.ok_or_else(missing)
}
