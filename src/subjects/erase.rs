//! `subject.erase` (GDPR Art. 17): one transaction in which the person's rows, and the keyring row that opens everything else,
//! are deleted, and a tombstone, a certificate and an entry of the log are left.
//!
//! Goes through the tables as the selector says. Never touches the audit log: what it holds of the person opens no more.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{ExpressionMethods, Insertable, OptionalExtension, QueryDsl};
use diesel::sql_types::{Bytea, Double, Int8, Timestamptz};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::certificate::{Body, Certificate, Counts, FORMAT, Kept, Reason, Salt};
use super::copies::Copies;
use super::impersonal;
use super::request::{Done, attach};
use super::retention::is_forgotten;
use super::selector::{Erasure, SCHEMA, TABLES, Table, Whose};
use crate::audit::document::{Signed, canonical};
use crate::audit::merkle::Hash;
use crate::audit::{By, Pinned, SUBJECT, Staged};
use crate::config::{Config, KeepConsents};
use crate::error::{Error, Result};
use crate::keyring::{Person, Place};
use crate::records::retention::Retiring;
use crate::records::{Records, unheld};
use crate::store::Connection;
use crate::store::schema::subject_erasures;
use crate::values::{RecordId, ShortText, UserId};

/// What the entry of an erasure is called, whoever makes it.
const METHOD: &str = "subject.erase";
/// How many refusals that are over are cleared away with an erasure.
const CLEARED: i64 = 100;

const REFUSE: &str = "INSERT INTO sidekeep.subject_refusals AS r (digest, refused_until) \
    VALUES ($1, clock_timestamp() + make_interval(secs => $2)) \
    ON CONFLICT (digest) DO UPDATE SET refused_until = greatest(r.refused_until, EXCLUDED.refused_until)";
const CLEAR: &str = "DELETE FROM sidekeep.subject_refusals WHERE digest IN (SELECT digest FROM sidekeep.subject_refusals \
    WHERE refused_until < clock_timestamp() ORDER BY refused_until LIMIT $1 FOR UPDATE SKIP LOCKED)";

/// Parameters of `subject.erase`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Erase {
    /// The person.
    pub user_id: UserId,
    /// Why (GDPR Art. 17(1)).
    pub reason: Reason,
    /// What the controller wants to remember of it; sealed with the deployment's key, so it must not name the person.
    pub note: Option<ShortText>,
    /// The certificate's id: with it and the salt, the call may be repeated.
    pub id: Option<RecordId>,
    /// What ties the certificate to the user id; drawn where it is not given.
    pub salt: Option<Salt>,
    /// The request of the person's that this answers; the certificate's id is noted there.
    pub request_id: Option<RecordId>,
    /// Change nothing, and only count.
    #[serde(default, deserialize_with = "crate::values::or_default")]
    #[schemars(with = "Option<bool>")]
    pub dry_run: bool,
}

/// What `subject.erase` answers.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Erased {
    /// The person is erased.
    Certified(Box<Certificate>),
    /// Nothing was changed.
    Counted(DryRun),
}

/// What an erasure would do.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct DryRun {
    /// True: nothing was changed.
    pub dry_run: bool,
    /// What the certificate would say.
    pub body: Foreseen,
}

/// What a certificate would say of rows.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Foreseen {
    /// Why.
    pub reason: Reason,
    /// How many rows would be deleted.
    pub counts: Counts,
    /// How many would stay.
    pub kept: Kept,
}

#[derive(Insertable)]
#[diesel(table_name = subject_erasures)]
struct Tombstone<'a> {
    subject_id: i64,
    erased_at: DateTime<Utc>,
    reason: &'a str,
    entry_id: &'a str,
    certificate_id: &'a str,
    certificate: serde_json::Value,
    note_sealed: Option<Vec<u8>>,
}

#[derive(diesel::QueryableByName)]
struct Rows {
    #[diesel(sql_type = Int8)]
    rows: i64,
}

/// One erasure, however often its transaction is tried.
struct Attempt<'a> {
    records: &'a Records,
    config: &'a Config,
    by: &'a By,
    asked: &'a Erase,
    id: RecordId,
    entry_id: RecordId,
    salt: Salt,
    /// Only a person whom nothing refers to.
    retiring: Option<&'a Retiring<'a>>,
}

/// Erases a person, or counts what that would delete.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Held`]; [`Error::Conflict`] where the id is another erasure's, or this daemon cannot sign.
pub async fn erase(records: &Records, config: &Config, by: &By, asked: &Erase) -> Result<Erased> {
    if asked.dry_run {
        return foresee(records, config, by, asked).await.map(Erased::Counted);
    }
    impersonal(&asked.user_id, "id", asked.id.as_ref().map(RecordId::as_str))?;
    // Before anything is erased: an erasure without its certificate cannot exist.
    records.log().signer()?;
    let attempt = Attempt::new(records, config, by, asked)?;
    let erased = records
        .entered(by, async || {
            records.store().transact(&by.deadline, by.method, async |tx| attempt.run(tx).await).await
        })
        .await?;
    Ok(Erased::Certified(Box::new(erased.ok_or(Error::NotFound { what: "subject" })?)))
}

/// Erases a person whom nothing refers to any more; answers false where that is no longer so, or a hold stands.
///
/// # Errors
/// As [`erase`].
pub(super) async fn forget(
    records: &Records,
    config: &Config,
    retiring: &Retiring<'_>,
    asked: &Erase,
) -> Result<bool> {
    records.log().signer()?;
    let by = By::new(retiring.deadline.clone(), Pinned::default(), METHOD, nix::unistd::geteuid().as_raw());
    by.tells("run", retiring.run);
    let attempt = Attempt { retiring: Some(retiring), ..Attempt::new(records, config, &by, asked)? };
    let erased = records.entered(&by, async || {
        records.store().transact(&by.deadline, by.method, async |tx| attempt.run(tx).await).await
    });
    match erased.await {
        Ok(erased) => Ok(erased.is_some()),
        Err(Error::Held { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl<'a> Attempt<'a> {
    fn new(records: &'a Records, config: &'a Config, by: &'a By, asked: &'a Erase) -> Result<Self> {
        Ok(Self {
            records,
            config,
            by,
            asked,
            id: asked.id.clone().unwrap_or_else(RecordId::generate),
            entry_id: RecordId::generate(),
            salt: asked.salt.clone().map_or_else(Salt::generate, Ok)?,
            retiring: None,
        })
    }
}

impl Attempt<'_> {
    async fn run(&self, tx: &mut Connection) -> Result<Option<(Certificate, Staged)>> {
        let person = Person::lock(tx, &self.asked.user_id).await?;
        // Behind the lock: the erasure that this one waited for may have been the same.
        if let Some(repeated) = self.repeated(tx).await? {
            return Ok(Some((repeated, None)));
        }
        let Some(person) = person else { return Ok(None) };
        let (subject_id, kek_id) = (person.subject_id(), person.kek_id().to_owned());
        let erased = self.records.keyring().open_or_damaged(tx, person).await?;
        self.by.concerns_whole(&erased);
        unheld(tx, subject_id).await?;
        if self.retiring.is_some() && !is_forgotten(tx, subject_id).await? {
            return Ok(None);
        }
        let keep = self.config.erasure.consents == KeepConsents::Keep;
        let mut rows = BTreeMap::new();
        for table in TABLES {
            let Some(statement) = deletion(table, keep) else { continue };
            let gone: Rows = diesel::sql_query(statement).bind::<Int8, _>(subject_id).get_result(tx).await?;
            rows.extend(table.counted.map(|name| (name, gone.rows)));
        }
        match self.retiring {
            // Nobody asked for it: whoever comes back is welcome.
            Some(retiring) => (retiring.tally)(tx, ("subjects", 1)).await?,
            None => self.refuse(tx).await?,
        }
        if let Some(request_id) = &self.asked.request_id {
            let done = Done { method: self.by.method, id: Some(self.id.as_str()) };
            attach(tx, request_id, subject_id, done).await?;
        }
        let erased_at = diesel::select(sql::<Timestamptz>("clock_timestamp()")).get_result(tx).await?;
        let copies = Copies::of(tx, self.config, erased_at).await?;
        let signed = Signed::sign(self.records.log(), self.body(&rows, erased_at, (kek_id, copies))?)?;
        self.by.about("erasure", self.id.as_str());
        self.by.stored(Hash::of(&[&canonical(&signed.body)?]).hex());
        self.bury(tx, subject_id, erased_at, &signed).await?;
        let staged = self.records.log().stage_erasure(tx, self.by, &erased, &self.entry_id).await?;
        Ok(Some((Certificate { signed, salt: self.salt.clone() }, staged)))
    }

    /// What stands under the id, when it is this erasure; a conflict when it is another.
    async fn repeated(&self, tx: &mut Connection) -> Result<Option<Certificate>> {
        let Some(id) = &self.asked.id else { return Ok(None) };
        let row = subject_erasures::table.filter(subject_erasures::certificate_id.eq(id.as_str())).select((
            subject_erasures::subject_id,
            subject_erasures::certificate,
            subject_erasures::note_sealed,
        ));
        let found: Option<(i64, serde_json::Value, Option<Vec<u8>>)> = row.first(tx).await.optional()?;
        let Some((subject_id, certificate, note)) = found else { return Ok(None) };
        let signed: Signed<Body> = serde_json::from_value(certificate)
            .map_err(|_| Error::Tampered { at: "subject_erasures.certificate".into() })?;
        let own = self.records.keyring().own()?;
        let row = subject_id.to_string();
        let note = note.map(|note| own.key.open_text(note_place(&row), &note)).transpose()?;
        let same = self.asked.salt.is_some()
            && self.salt.commitment(&self.asked.user_id) == signed.body.commitment
            && self.asked.reason == signed.body.reason
            && self.asked.note.as_ref().is_none_or(|given| note.as_deref() == Some(given.as_str()));
        if !same {
            return Err(Error::conflict(
                "id: an erasure has this id already; to repeat it, send what it was sent with, the salt too",
            ));
        }
        Ok(Some(Certificate { signed, salt: self.salt.clone() }))
    }

    fn body(
        &self,
        rows: &BTreeMap<&'static str, i64>,
        erased_at: DateTime<Utc>,
        (kek_id, copies): (String, Copies),
    ) -> Result<Body> {
        let counts = Counts::of(rows)?;
        let keyring = self.records.keyring();
        // Copies from before a rotation are under a key that was the first one then.
        let mut kek_ids: Vec<String> = keyring.keks().ids().into_iter().chain([kek_id]).collect();
        kek_ids.sort_unstable();
        kek_ids.dedup();
        Ok(Body {
            format: FORMAT.into(),
            deployment: keyring.deployment().to_owned(),
            id: self.id.as_str().to_owned(),
            erased_at: erased_at.into(),
            reason: self.asked.reason,
            commitment: self.salt.commitment(&self.asked.user_id),
            kept: kept(self.config, &counts),
            counts,
            entry_id: self.entry_id.as_str().to_owned(),
            backups_gone_after: copies.backups,
            physical_copies_gone_after: copies.physical,
            kek_ids,
        })
    }

    /// Leaves the tombstone.
    async fn bury(
        &self,
        tx: &mut Connection,
        subject_id: i64,
        erased_at: DateTime<Utc>,
        signed: &Signed<Body>,
    ) -> Result<()> {
        let own = self.records.keyring().own()?;
        let row = subject_id.to_string();
        let note = self.asked.note.as_ref();
        let tombstone = Tombstone {
            subject_id,
            erased_at,
            reason: self.asked.reason.as_str(),
            entry_id: self.entry_id.as_str(),
            certificate_id: self.id.as_str(),
            certificate: serde_json::to_value(signed).map_err(Error::internal)?,
            note_sealed: note
                .map(|note| own.key.seal(note_place(&row), note.as_str().as_bytes()))
                .transpose()?,
        };
        diesel::insert_into(subject_erasures::table).values(tombstone).execute(tx).await?;
        Ok(())
    }

    /// Keeps the user id from being taken again, where it is to be.
    async fn refuse(&self, tx: &mut Connection) -> Result<()> {
        diesel::sql_query(CLEAR).bind::<Int8, _>(CLEARED).execute(tx).await?;
        let Some(period) = self.config.keyring.refuse_again else { return Ok(()) };
        let digest = self.records.keyring().refusal(self.asked.user_id.as_str())?;
        diesel::sql_query(REFUSE)
            .bind::<Bytea, _>(digest)
            .bind::<Double, _>(period.duration().as_secs_f64())
            .execute(tx)
            .await?;
        Ok(())
    }
}

/// Counts what an erasure would delete, in one snapshot.
async fn foresee(records: &Records, config: &Config, by: &By, asked: &Erase) -> Result<DryRun> {
    let counts = records
        .store()
        .snapshot(&by.deadline, "subject.erase.dry_run", async |connection| {
            let found = Person::find(connection, &[asked.user_id.as_str()]).await?;
            let person = found.into_iter().next().ok_or(Error::NotFound { what: "subject" })?;
            let person = records.keyring().open_or_damaged(connection, person).await?;
            by.concerns_whole(&person);
            by.about("dry_run", SUBJECT);
            unheld(connection, person.subject_id()).await?;
            let erased = |table: &Table| deletion(table, false).is_some();
            Counts::of(&count(connection, person.subject_id(), erased).await?)
        })
        .await?;
    let kept = kept(config, &counts);
    Ok(DryRun { dry_run: true, body: Foreseen { reason: asked.reason, counts, kept } })
}

/// A person's rows in the counted tables that are wanted.
///
/// # Errors
/// The database's.
pub(super) async fn count(
    connection: &mut Connection,
    subject_id: i64,
    wanted: impl Fn(&Table) -> bool,
) -> Result<BTreeMap<&'static str, i64>> {
    let mut rows = BTreeMap::new();
    for table in TABLES {
        let (Some(counted), Some(condition), true) = (table.counted, table.condition(), wanted(table)) else {
            continue;
        };
        let statement =
            format!("SELECT count(*) AS rows FROM {SCHEMA}.{name} WHERE {condition}", name = table.name);
        let found: Rows =
            diesel::sql_query(statement).bind::<Int8, _>(subject_id).get_result(connection).await?;
        rows.insert(counted, found.rows);
    }
    Ok(rows)
}

/// The statements that delete all rows of several persons at once, whose subject ids are `$1`, where the database deletes none
/// by itself; each answers how many `rows` that were. For a database that is being restored.
pub fn deletions(keep: bool) -> Vec<String> {
    let of_many = |statement: String| statement.replace("= $1", "= ANY ($1)");
    let statement = |table: &Table| {
        let cascading = matches!(table.erasure, Erasure::Cascades);
        let table = if cascading { Table { erasure: Erasure::Deleted, ..*table } } else { *table };
        deletion(&table, keep).map(of_many)
    };
    TABLES.iter().filter_map(statement).collect()
}

/// A table, and a column of it that names somebody.
pub type Naming = (&'static str, &'static str);

/// The tables whose rows are of persons who live, and those whose rows outlive them, each with the columns that name somebody.
pub fn naming() -> (Vec<Naming>, Vec<Naming>) {
    let (mut living, mut outliving) = (Vec::new(), Vec::new());
    for table in TABLES.iter().filter(|table| table.name != "subjects") {
        let columns: &[&str] = match table.whose {
            Whose::Subject => &["subject_id"],
            Whose::Named => &["actor_id", "subject_id"],
            Whose::Through { .. } | Whose::Nobody => &[],
        };
        let outlives = matches!(table.erasure, Erasure::Outlives | Erasure::Nothing);
        let named = columns.iter().map(|column| (table.name, *column));
        if outlives { outliving.extend(named) } else { living.extend(named) }
    }
    (living, outliving)
}

/// The statement that deletes a person's rows of a table and counts them; nothing where they are not deleted.
fn deletion(table: &Table, keep: bool) -> Option<String> {
    let (name, condition) = (table.name, table.condition()?);
    match table.erasure {
        Erasure::MovedTo(evidence) if keep => {
            let columns = table.clear.join(", ");
            Some(format!(
                "WITH gone AS (DELETE FROM {SCHEMA}.{name} WHERE {condition} RETURNING {columns}), \
                 kept AS (INSERT INTO {SCHEMA}.{evidence} ({columns}) SELECT {columns} FROM gone RETURNING 1) \
                 SELECT count(*) AS rows FROM kept"
            ))
        }
        Erasure::Deleted | Erasure::MovedTo(_) => Some(format!(
            "WITH gone AS (DELETE FROM {SCHEMA}.{name} WHERE {condition} RETURNING 1) SELECT count(*) AS rows FROM gone"
        )),
        Erasure::Cascades | Erasure::Outlives | Erasure::Nothing => None,
    }
}

fn kept(config: &Config, counts: &Counts) -> Kept {
    let keep = config.erasure.consents == KeepConsents::Keep;
    Kept { consents: if keep { counts.consents } else { 0 } }
}

fn note_place(row: &str) -> Place<'_> {
    Place { table: "subject_erasures", column: "note_sealed", row }
}
