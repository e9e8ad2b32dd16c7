//! A person in the keyring: created by a statement of its own, read in the snapshot of whoever needs it.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use chrono::{DateTime, Utc};
use diesel::prelude::{
    ExpressionMethods, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel::sql_types::{Array, Bytea, Int8, Text};
use diesel_async::RunQueryDsl;
use zeroize::Zeroizing;

use super::deployment::Deployment;
use super::kek::{Kek, Keks, Owner};
use super::register::Register;
use super::rotation::Progress;
use super::seal::DataKey;
use crate::error::{Error, Result};
use crate::store::schema::subjects;
use crate::store::{Connection, Deadline, Store};
use crate::values::UserId;

/// Subject ids are exact in JSON: 1 to 2^53 − 1.
const LARGEST: u64 = (1 << 53) - 1;

/// A person's row as it was read.
#[derive(Clone, Queryable, Selectable)]
#[diesel(table_name = subjects, check_for_backend(diesel::pg::Pg))]
pub struct Person {
    subject_id: i64,
    user_id: Option<String>,
    wrapped_key: Vec<u8>,
    kek_id: String,
    restricted_at: Option<DateTime<Utc>>,
}

/// A person whose key is open, for as long as one call holds it.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The number that stands for the person everywhere else.
    pub id: i64,
    /// The person's id in the application.
    pub user_id: String,
    /// What seals and opens the person's data.
    pub key: DataKey,
    /// Whether processing is restricted.
    pub restricted: bool,
}

/// The keys of this deployment, and the way to its people's.
#[derive(Debug)]
pub struct Keyring {
    pub(super) deployment: Arc<str>,
    pub(super) keks: ArcSwap<Keks>,
    pub(super) own: OnceLock<Deployment>,
    pub(super) register: Register,
    pub(super) progress: Progress,
}

impl Keyring {
    /// The keyring of a deployment.
    pub fn new(deployment: &str, keks: Keks) -> Self {
        Self {
            deployment: deployment.into(),
            register: Register::new(keks.ids()),
            keks: ArcSwap::from_pointee(keks),
            own: OnceLock::new(),
            progress: Progress::default(),
        }
    }

    /// The key-encryption keys that this daemon has at this moment.
    pub fn keks(&self) -> Arc<Keks> {
        self.keks.load_full()
    }

    /// Opens a person's data key.
    ///
    /// # Errors
    /// [`Error::Tampered`] when the row was changed; an internal error when its key-encryption key was not given.
    pub fn open(&self, person: Person) -> Result<Subject> {
        let data_key = self.unwrap(&person)?;
        Ok(Subject {
            id: person.subject_id,
            key: DataKey::new(self.deployment.clone(), &data_key)?,
            restricted: person.restricted_at.is_some(),
            user_id: person.user_id.unwrap_or_default(),
        })
    }

    /// The deployment's own keys.
    ///
    /// # Errors
    /// [`Error::Unavailable`] before [`Keyring::check`] has succeeded.
    pub fn own(&self) -> Result<&Deployment> {
        self.own.get().ok_or_else(|| Error::unavailable("PostgreSQL has not been reached since the start"))
    }

    /// The name that is bound into everything.
    pub fn deployment(&self) -> &str {
        &self.deployment
    }

    pub(super) fn unwrap(&self, person: &Person) -> Result<Zeroizing<[u8; 32]>> {
        let keks = self.keks();
        let kek = keks.find(&person.kek_id).ok_or_else(|| {
            Error::internal(format!(
                "the key-encryption key {} is in none of keyring.key_files",
                person.kek_id
            ))
        })?;
        kek.unwrap(person.owner(&self.deployment), &person.wrapped_key)
            .ok_or_else(|| Error::Tampered { at: "subjects.wrapped_key".into() })
    }

    /// Makes sure that these people exist, in one statement of its own, committed at once. They are inserted in the
    /// order of their user ids, so that two callers who create the same people do not deadlock.
    ///
    /// # Errors
    /// [`Error::Conflict`] where one of them was erased and is refused for a while; the others exist then. Else as
    /// [`Store::autocommit`].
    pub async fn create(&self, store: &Store, deadline: &Deadline, user_ids: &[&UserId]) -> Result<()> {
        if self.create_allowed(store, deadline, user_ids).await?.is_empty() { Ok(()) } else { Err(refused()) }
    }

    /// As [`Keyring::create`], and answers who is refused.
    ///
    /// # Errors
    /// As [`Store::autocommit`].
    pub async fn create_allowed(
        &self,
        store: &Store,
        deadline: &Deadline,
        user_ids: &[&UserId],
    ) -> Result<Vec<String>> {
        let mut user_ids: Vec<&str> = user_ids.iter().map(|user_id| user_id.as_str()).collect();
        user_ids.sort_unstable();
        user_ids.dedup();
        // One for all, whichever keys the daemon may be given meanwhile.
        let keks = self.keks();
        let kek = keks.wrapping()?;
        let (mut ids, mut keys, mut digests) = (Vec::new(), Vec::new(), Vec::new());
        for user_id in &user_ids {
            let row = self.draw(kek, random_subject_id()?, Some(user_id))?;
            ids.push(row.subject_id);
            keys.push(row.wrapped_key);
            digests.push(self.refusal(user_id)?);
        }
        store
            .autocommit(deadline, "subjects.create", async |connection| {
                let created = diesel::sql_query(CREATE)
                    .bind::<Array<Int8>, _>(&ids)
                    .bind::<Array<Text>, _>(&user_ids)
                    .bind::<Array<Bytea>, _>(&keys)
                    .bind::<Array<Bytea>, _>(&digests)
                    .bind::<Text, _>(kek.id());
                let refused: Vec<Refused> = created.load(connection).await?;
                Ok(refused.into_iter().map(|refused| refused.user_id).collect())
            })
            .await
    }

    /// What stands for a user id that is not to be taken again: it tells nothing without the deployment's key.
    ///
    /// # Errors
    /// As [`Keyring::own`].
    pub fn refusal(&self, user_id: &str) -> Result<Vec<u8>> {
        Ok(self.own()?.mac("sidekeep refusal", &[self.deployment.as_bytes(), user_id.as_bytes()]))
    }

    pub(super) async fn insert(&self, store: &Store, deadline: &Deadline, rows: &[NewPerson]) -> Result<()> {
        store
            .autocommit(deadline, "subjects.create", async |connection| {
                diesel::insert_into(subjects::table)
                    .values(rows)
                    .on_conflict_do_nothing()
                    .execute(connection)
                    .await?;
                Ok(())
            })
            .await
    }

    pub(super) fn draw(&self, kek: &Kek, subject_id: i64, user_id: Option<&str>) -> Result<NewPerson> {
        let mut data_key = Zeroizing::new([0_u8; 32]);
        rand::fill(&mut *data_key).map_err(Error::internal)?;
        let owner = Owner { deployment: &self.deployment, subject_id, user_id };
        Ok(NewPerson {
            subject_id,
            user_id: user_id.map(str::to_owned),
            wrapped_key: kek.wrap(owner, &data_key)?,
            kek_id: kek.id().to_owned(),
        })
    }
}

/// Inserts persons, and answers those who are refused.
const CREATE: &str = "SELECT * FROM sidekeep.create_subjects($1, $2, $3, $4, $5) AS refused (user_id)";

#[derive(diesel::QueryableByName)]
struct Refused {
    #[diesel(sql_type = Text)]
    user_id: String,
}

/// What a writer hears who would bring an erased person back.
pub fn refused() -> Error {
    Error::conflict(
        "user_id: this person was erased, and keyring.refuse_again keeps the user id from being taken again so soon",
    )
}

#[derive(diesel::Insertable)]
#[diesel(table_name = subjects)]
pub(super) struct NewPerson {
    subject_id: i64,
    user_id: Option<String>,
    wrapped_key: Vec<u8>,
    kek_id: String,
}

/// Uniform over 1 ..= 2^53 − 1.
fn random_subject_id() -> Result<i64> {
    loop {
        let mut bytes = [0_u8; 8];
        rand::fill(&mut bytes).map_err(Error::internal)?;
        let id = u64::from_be_bytes(bytes) & LARGEST;
        if id != 0 {
            return i64::try_from(id).map_err(Error::internal);
        }
    }
}

impl Person {
    /// To whom the key is bound.
    pub(super) fn owner<'a>(&'a self, deployment: &'a str) -> Owner<'a> {
        Owner { deployment, subject_id: self.subject_id, user_id: self.user_id.as_deref() }
    }

    /// The number that stands for the person.
    pub fn subject_id(&self) -> i64 {
        self.subject_id
    }

    /// The person's id in the application.
    pub fn user_id(&self) -> Option<&str> {
        self.user_id.as_deref()
    }

    /// The wrapped key: as long as the row has it, the person is the same.
    pub fn wrapped_key(&self) -> &[u8] {
        &self.wrapped_key
    }

    /// Whether processing is restricted.
    pub fn is_restricted(&self) -> bool {
        self.restricted_at.is_some()
    }

    /// Which key-encryption key wraps the person's key.
    pub fn kek_id(&self) -> &str {
        &self.kek_id
    }

    /// Reads those of these people who exist.
    ///
    /// # Errors
    /// The database's.
    pub async fn find(connection: &mut Connection, user_ids: &[&str]) -> Result<Vec<Self>> {
        let rows = subjects::table.filter(subjects::user_id.eq_any(user_ids)).select(Self::as_select());
        Ok(rows.load(connection).await?)
    }

    /// Reads those of these people who still exist.
    ///
    /// # Errors
    /// The database's.
    pub async fn find_by_id(connection: &mut Connection, subject_ids: &[i64]) -> Result<Vec<Self>> {
        let rows = subjects::table.filter(subjects::subject_id.eq_any(subject_ids)).select(Self::as_select());
        Ok(rows.load(connection).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, random_subject_id};

    #[test]
    fn subject_ids_are_exact_in_json() {
        for _ in 0..1000 {
            let id = u64::try_from(random_subject_id().unwrap()).unwrap();
            assert!((1..=LARGEST).contains(&id));
        }
        assert_eq!(LARGEST, 9_007_199_254_740_991);
    }
}
