//! `consent.*`: consents and withdrawals, append-only, as they stood at any time.

mod retention;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{
    BoolExpressionMethods, ExpressionMethods, Insertable, JoinOnDsl, OptionalExtension,
    PgSortExpressionMethods, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel::sql_types::{Int8, Timestamptz};
use diesel_async::RunQueryDsl;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::row::Row;
use super::{Records, Taken};
use crate::audit::By;
use crate::audit::merkle::Hash;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::{Person, Subject};
use crate::store::schema::{consent_records, subjects};
use crate::store::{AnyTime, AnyTimeOrNone, Connection};
use crate::values::{Json, RecordId, Sha256Hex, ShortText, Term, UserId};
use crate::values::{Limit, Page, decode, encode, fit, total};

const TABLE: &str = "consent_records";

/// A consent, or its withdrawal.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Consent {
    /// The record's id.
    pub id: String,
    /// The person.
    pub user_id: String,
    /// What is consented to.
    pub consent_type: String,
    /// Given, or withdrawn.
    pub granted: bool,
    /// When the person decided.
    pub given_at: Timestamp,
    /// When the consent ends by itself.
    pub expires_at: Option<Timestamp>,
    /// Which text was shown.
    pub policy_version: Option<String>,
    /// The SHA-256 of that text, in hexadecimal.
    pub policy_sha256: Option<String>,
    /// Legal basis.
    pub legal_basis: Option<String>,
    /// How it was given.
    pub method: Option<String>,
    /// The language of the text.
    pub language: Option<String>,
    /// The address it was given from.
    pub ip_address: Option<String>,
    /// The program it was given with.
    pub user_agent: Option<String>,
    /// Whatever the application adds.
    pub metadata: Option<Json>,
    /// When it was recorded.
    pub recorded_at: Timestamp,
}

/// Parameters of `consent.record`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The person.
    pub user_id: UserId,
    /// What is consented to.
    pub consent_type: Term,
    /// True when it is given, false when it is withdrawn.
    pub granted: bool,
    /// The record's id: with it, the call may be repeated.
    pub id: Option<RecordId>,
    /// When the person decided; now where it is not said.
    pub given_at: Option<Timestamp>,
    /// When the consent ends by itself.
    pub expires_at: Option<Timestamp>,
    /// Which text was shown.
    pub policy_version: Option<Term>,
    /// The SHA-256 of that text, in hexadecimal.
    pub policy_sha256: Option<Sha256Hex>,
    /// Legal basis.
    pub legal_basis: Option<Term>,
    /// How it was given.
    pub method: Option<Term>,
    /// The language of the text.
    pub language: Option<Term>,
    /// The address it was given from.
    pub ip_address: Option<ShortText>,
    /// The program it was given with.
    pub user_agent: Option<ShortText>,
    /// Whatever the application adds.
    pub metadata: Option<Json>,
}

/// Parameters of `consent.check`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The person.
    pub user_id: UserId,
    /// What is consented to.
    pub consent_type: Term,
    /// The time in question; now where it is not said.
    pub at: Option<Timestamp>,
}

/// Whether there is a consent, and the record that says so.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Checked {
    /// False when none was given, and when it was withdrawn, has expired or was not yet given.
    pub granted: bool,
    /// The latest record at that time, even if it is a withdrawal.
    pub consent: Option<Consent>,
}

/// The latest record of each type.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Current {
    /// By consent type.
    pub items: Vec<Consent>,
}

/// Parameters of `consent.history`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// The person.
    pub user_id: UserId,
    /// Only this type.
    pub consent_type: Option<Term>,
    /// How many items at most.
    #[serde(default)]
    pub limit: Limit,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

#[derive(Clone, Queryable, Selectable)]
#[diesel(table_name = consent_records, check_for_backend(diesel::pg::Pg))]
struct Stored {
    id: String,
    subject_id: i64,
    number: i64,
    consent_type: String,
    granted: bool,
    #[diesel(deserialize_as = AnyTime)]
    given_at: DateTime<Utc>,
    #[diesel(deserialize_as = AnyTimeOrNone)]
    expires_at: Option<DateTime<Utc>>,
    policy_version: Option<String>,
    policy_sha256: Option<String>,
    legal_basis: Option<String>,
    method: Option<String>,
    language: Option<String>,
    ip_address_sealed: Option<Vec<u8>>,
    user_agent_sealed: Option<Vec<u8>>,
    metadata_sealed: Option<Vec<u8>>,
    #[diesel(deserialize_as = AnyTime)]
    recorded_at: DateTime<Utc>,
}

#[derive(Insertable)]
#[diesel(table_name = consent_records, treat_none_as_default_value = false)]
struct New<'a> {
    id: &'a str,
    subject_id: i64,
    consent_type: &'a str,
    granted: bool,
    given_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    policy_version: Option<&'a str>,
    policy_sha256: Option<&'a str>,
    legal_basis: Option<&'a str>,
    method: Option<&'a str>,
    language: Option<&'a str>,
    ip_address_sealed: Option<Vec<u8>>,
    user_agent_sealed: Option<Vec<u8>>,
    metadata_sealed: Option<Vec<u8>>,
}

impl Stored {
    /// The SHA-256 of the row, which the entry that tells of it carries: over a JSON object of its columns in order, with
    /// digests of what is sealed, so that verification needs no key.
    fn digest(&self) -> String {
        let sha256 = |sealed: &Option<Vec<u8>>| sealed.as_ref().map(|sealed| Hash::of(&[sealed]).hex());
        let row = serde_json::json!({
            "consent_type": self.consent_type,
            "expires_at": self.expires_at.map(Timestamp::from),
            "given_at": Timestamp::from(self.given_at),
            "granted": self.granted,
            "id": self.id,
            "ip_address_sealed_sha256": sha256(&self.ip_address_sealed),
            "language": self.language,
            "legal_basis": self.legal_basis,
            "metadata_sealed_sha256": sha256(&self.metadata_sealed),
            "method": self.method,
            "policy_sha256": self.policy_sha256,
            "policy_version": self.policy_version,
            "recorded_at": Timestamp::from(self.recorded_at),
            "subject_id": self.subject_id,
            "user_agent_sealed_sha256": sha256(&self.user_agent_sealed),
        });
        // serde_json keeps the members of a value in the order of their keys.
        Hash::of(&[row.to_string().as_bytes()]).hex()
    }

    fn open(self, subject: &Subject) -> Result<Consent> {
        let row = Row::new(subject, TABLE, &self.id);
        Ok(Consent {
            user_id: subject.user_id.clone(),
            ip_address: row.open_some("ip_address_sealed", self.ip_address_sealed.as_deref())?,
            user_agent: row.open_some("user_agent_sealed", self.user_agent_sealed.as_deref())?,
            metadata: row.open_some_json("metadata_sealed", self.metadata_sealed.as_deref())?,
            id: self.id,
            consent_type: self.consent_type,
            granted: self.granted,
            given_at: self.given_at.into(),
            expires_at: self.expires_at.map(Timestamp::from),
            policy_version: self.policy_version,
            policy_sha256: self.policy_sha256,
            legal_basis: self.legal_basis,
            method: self.method,
            language: self.language,
            recorded_at: self.recorded_at.into(),
        })
    }
}

impl Record {
    fn seal<'a>(&'a self, subject: &Subject, id: &'a RecordId, given_at: DateTime<Utc>) -> Result<New<'a>> {
        let row = Row::new(subject, TABLE, id.as_str());
        Ok(New {
            id: id.as_str(),
            subject_id: subject.id,
            consent_type: self.consent_type.as_str(),
            granted: self.granted,
            given_at,
            expires_at: self.expires_at.map(Timestamp::utc),
            policy_version: self.policy_version.as_ref().map(Term::as_str),
            policy_sha256: self.policy_sha256.as_ref().map(Sha256Hex::as_str),
            legal_basis: self.legal_basis.as_ref().map(Term::as_str),
            method: self.method.as_ref().map(Term::as_str),
            language: self.language.as_ref().map(Term::as_str),
            ip_address_sealed: row
                .seal_some("ip_address_sealed", self.ip_address.as_ref().map(ShortText::as_str))?,
            user_agent_sealed: row
                .seal_some("user_agent_sealed", self.user_agent.as_ref().map(ShortText::as_str))?,
            metadata_sealed: row.seal_some("metadata_sealed", self.metadata.as_ref().map(Json::as_str))?,
        })
    }

    /// Whether each parameter that was given equals what is stored.
    fn repeats(&self, stored: &Consent) -> bool {
        fn same<T: PartialEq<U> + ?Sized, U: ?Sized>(given: Option<&T>, stored: Option<&U>) -> bool {
            given.is_none_or(|given| stored.is_some_and(|stored| *given == *stored))
        }
        self.consent_type.as_str() == stored.consent_type
            && self.granted == stored.granted
            && same(self.given_at.as_ref(), Some(&stored.given_at))
            && same(self.expires_at.as_ref(), stored.expires_at.as_ref())
            && same(self.policy_version.as_ref().map(Term::as_str), stored.policy_version.as_deref())
            && same(self.policy_sha256.as_ref().map(Sha256Hex::as_str), stored.policy_sha256.as_deref())
            && same(self.legal_basis.as_ref().map(Term::as_str), stored.legal_basis.as_deref())
            && same(self.method.as_ref().map(Term::as_str), stored.method.as_deref())
            && same(self.language.as_ref().map(Term::as_str), stored.language.as_deref())
            && same(self.ip_address.as_ref().map(ShortText::as_str), stored.ip_address.as_deref())
            && same(self.user_agent.as_ref().map(ShortText::as_str), stored.user_agent.as_deref())
            && self
                .metadata
                .as_ref()
                .is_none_or(|given| stored.metadata.as_ref().is_some_and(|s| given.same(s)))
    }
}

/// The SHA-256 of the rows of these consents, of those that are there, as the log has it of each when it was recorded.
pub fn digests<'a>(
    connection: &'a mut Connection,
    ids: &'a [String],
) -> BoxFuture<'a, Result<HashMap<String, String>>> {
    Box::pin(async move {
        let rows = consent_records::table.filter(consent_records::id.eq_any(ids)).select(Stored::as_select());
        let rows: Vec<Stored> = rows.load(connection).await?;
        Ok(rows.into_iter().map(|row| (row.id.clone(), row.digest())).collect())
    })
}

impl Record {
    /// What stands in the clear outlives the person, as evidence or in the log: it must not be the user id.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the field.
    fn unidentified(&self) -> Result<()> {
        let terms = [
            ("consent_type", Some(self.consent_type.as_str())),
            ("id", self.id.as_ref().map(RecordId::as_str)),
            ("policy_version", self.policy_version.as_ref().map(Term::as_str)),
            ("legal_basis", self.legal_basis.as_ref().map(Term::as_str)),
            ("method", self.method.as_ref().map(Term::as_str)),
            ("language", self.language.as_ref().map(Term::as_str)),
        ];
        match terms.into_iter().find(|(_, text)| *text == Some(self.user_id.as_str())) {
            Some((field, _)) => {
                Err(Error::invalid(field, "is the person's user id, which must not stand in the clear"))
            }
            None => Ok(()),
        }
    }
}

impl Records {
    /// Records a consent or a withdrawal. With an id it may be repeated.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the id stands for another record.
    pub async fn record_consent(&self, by: &By, record: Record) -> Result<Consent> {
        self.check_size("metadata", record.metadata.as_ref())?;
        record.unidentified()?;
        // Its entry would name the person in the place of the row, and verification find no such row.
        if record.id.as_ref().zip(by.actor.as_ref()).is_some_and(|(id, actor)| id.as_str() == actor.as_str())
        {
            let why = "is the user id of whoever acts, which must not stand in the clear";
            return Err(Error::invalid("id", why));
        }
        let id = record.id.clone().unwrap_or_else(RecordId::generate);
        let taken = record.id.as_ref().map(Taken::Consent);
        self.write(by, &record.user_id, taken, async |tx, subject| {
            if record.granted {
                subject.unrestricted()?;
            }
            let given_at = match record.given_at {
                Some(given_at) => given_at.utc(),
                None => diesel::select(sql::<Timestamptz>("clock_timestamp()")).get_result(tx).await?,
            };
            let stored: Option<Stored> = diesel::insert_into(consent_records::table)
                .values(record.seal(subject, &id, given_at)?)
                .on_conflict_do_nothing()
                .returning(Stored::as_returning())
                .get_result(tx)
                .await
                .optional()?;
            by.about("consent", id.as_str());
            let stored = match stored {
                Some(stored) => stored,
                None => repeated(tx, subject, &record, &id).await?,
            };
            by.stored(stored.digest());
            stored.open(subject)
        })
        .await
    }

    /// The state of a consent at a time, in one statement.
    ///
    /// # Errors
    /// The store's.
    pub async fn check_consent(&self, by: &By, check: &Check) -> Result<Checked> {
        let found: Option<(Person, Option<Stored>, DateTime<Utc>)> = self
            .store
            .single(&by.deadline, "consent.check", async |connection| {
                let at = sql::<Timestamptz>("coalesce(")
                    .bind::<diesel::sql_types::Nullable<Timestamptz>, _>(check.at.map(Timestamp::utc))
                    .sql(", statement_timestamp())");
                let row = subjects::table
                    .left_join(
                        consent_records::table.on(consent_records::subject_id
                            .eq(subjects::subject_id)
                            .and(consent_records::consent_type.eq(check.consent_type.as_str()))
                            .and(consent_records::given_at.le(at.clone()))),
                    )
                    .filter(subjects::user_id.eq(check.user_id.as_str()))
                    .order((
                        consent_records::given_at.desc().nulls_last(),
                        consent_records::number.desc().nulls_last(),
                    ))
                    .select((Person::as_select(), Option::<Stored>::as_select(), at));
                Ok(row.first(connection).await.optional()?)
            })
            .await?;
        let nothing = Checked { granted: false, consent: None };
        let Some((person, stored, at)) = found else { return Ok(nothing) };
        let subject = self.keyring.open(person)?;
        by.concerns(&subject.user_id);
        let Some(stored) = stored.filter(|_| !subject.restricted) else { return Ok(nothing) };
        let granted = stored.granted && stored.expires_at.is_none_or(|expires_at| expires_at > at);
        Ok(Checked { granted, consent: Some(stored.open(&subject)?) })
    }

    /// The latest record of each type, of those already given.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when they do not fit into one answer.
    pub async fn current_consents(&self, by: &By, user_id: &UserId) -> Result<Current> {
        let max = self.answer_bytes();
        let found = self
            .store
            .snapshot(&by.deadline, "consent.current", async |connection| {
                let Some(subject) = self.reader(by, connection, user_id).await? else { return Ok(None) };
                let latest = consent_records::table
                    .filter(consent_records::subject_id.eq(subject.id))
                    .filter(consent_records::given_at.le(sql::<Timestamptz>("statement_timestamp()")))
                    .distinct_on(consent_records::consent_type)
                    .order((
                        consent_records::consent_type.asc(),
                        consent_records::given_at.desc(),
                        consent_records::number.desc(),
                    ));
                let sizes: Vec<i64> = latest.clone().select(size()).load(connection).await?;
                if total(&sizes) > max {
                    return Err(Error::too_large_but("the answer", max, "use consent.history"));
                }
                let stored: Vec<Stored> = latest.select(Stored::as_select()).load(connection).await?;
                Ok(Some((subject, stored)))
            })
            .await?;
        let Some((subject, stored)) = found else { return Ok(Current { items: Vec::new() }) };
        let items = stored.into_iter().map(|stored| stored.open(&subject)).collect::<Result<_>>()?;
        Ok(Current { items })
    }

    /// A page of a person's records, the latest given first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cursor that is none.
    pub async fn consent_history(&self, by: &By, history: &History) -> Result<Page<Consent>> {
        let of = ("consent.history", &history.user_id, &history.consent_type);
        let after: Option<(DateTime<Utc>, i64)> = decode(&of, history.cursor.as_deref())?;
        let found = self
            .store
            .snapshot(&by.deadline, "consent.history", async |connection| {
                let Some(subject) = self.reader(by, connection, &history.user_id).await? else {
                    return Ok(None);
                };
                let (sizes, stored) = self.consent_page(connection, &subject, history, after).await?;
                Ok(Some((subject, sizes, stored)))
            })
            .await?;
        let Some((subject, more, stored)) = found else { return Ok(Page::empty()) };
        let last = stored.last().filter(|_| more).map(|last| (last.given_at, last.number));
        let next_cursor = last.map(|key| encode(&of, &key)).transpose()?;
        let items = stored.into_iter().map(|stored| stored.open(&subject)).collect::<Result<_>>()?;
        Ok(Page { items, next_cursor })
    }

    async fn consent_page(
        &self,
        connection: &mut Connection,
        subject: &Subject,
        history: &History,
        after: Option<(DateTime<Utc>, i64)>,
    ) -> Result<(bool, Vec<Stored>)> {
        let rows = || {
            let mut rows = consent_records::table
                .filter(consent_records::subject_id.eq(subject.id))
                .order((consent_records::given_at.desc(), consent_records::number.desc()))
                .into_boxed();
            if let Some(consent_type) = &history.consent_type {
                rows = rows.filter(consent_records::consent_type.eq(consent_type.as_str()));
            }
            if let Some((given_at, number)) = after {
                rows = rows.filter(
                    consent_records::given_at
                        .lt(given_at)
                        .or(consent_records::given_at.eq(given_at).and(consent_records::number.lt(number))),
                );
            }
            rows
        };
        let sizes: Vec<i64> = rows().select(size()).limit(history.limit.and_one()).load(connection).await?;
        let taken = fit(&sizes, history.limit, self.answer_bytes());
        let limit = i64::try_from(taken).map_err(Error::internal)?;
        let stored = rows().select(Stored::as_select()).limit(limit).load(connection).await?;
        Ok((sizes.len() > taken, stored))
    }
}

/// The bytes of a record that are not bounded otherwise.
fn size() -> diesel::expression::SqlLiteral<Int8> {
    sql::<Int8>("coalesce(octet_length(metadata_sealed), 0)::bigint")
}

/// What stands under the id, when it is the same record; else a conflict.
async fn repeated(tx: &mut Connection, subject: &Subject, record: &Record, id: &RecordId) -> Result<Stored> {
    let conflict = || Error::conflict("another consent has this id");
    let row = consent_records::table.find(id.as_str()).select(Stored::as_select());
    let stored: Stored = row.first(tx).await.optional()?.ok_or_else(conflict)?;
    if stored.subject_id != subject.id {
        return Err(conflict());
    }
    let consent = stored.clone().open(subject)?;
    if record.repeats(&consent) { Ok(stored) } else { Err(conflict()) }
}
