//! A person in the keyring: created by a statement of its own, read in the snapshot of whoever needs it.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::rand;
use chrono::{DateTime, Utc};
use diesel::prelude::{
    ExpressionMethods, OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel::sql_types::{Array, Bytea, Int8, Text};
use diesel_async::RunQueryDsl;
use zeroize::Zeroizing;

use super::deployment::Deployment;
use super::kek::{Keks, Owner};
use super::seal::DataKey;
use crate::error::{Error, Result};
use crate::store::schema::{deployment, subjects};
use crate::store::{Connection, Deadline, Store};
use crate::values::UserId;

/// Subject ids are exact in JSON: 1 to 2^53 − 1.
const LARGEST: u64 = (1 << 53) - 1;

/// Subject 0: the deployment itself.
const DEPLOYMENT: i64 = 0;

/// How often a statement that must not meet a used subject id is tried: with 2^53 of them, once is nearly always enough.
const TRIES: usize = 3;

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
    deployment: Arc<str>,
    keks: Keks,
    own: OnceLock<Deployment>,
}

/// Why this keyring does not belong to the database.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database is of another deployment.
    #[error(
        "this database belongs to the deployment {found:?}, and deployment.name is {configured:?}; set it to {found:?}"
    )]
    OtherDeployment {
        /// What the database says.
        found: String,
        /// What the configuration says.
        configured: String,
    },
    /// A key-encryption key that wraps somebody's data key was not given.
    #[error(
        "{keys} data key(s) are wrapped by the key-encryption key {kek_id}, which is in none of keyring.key_files ({given}); add its file"
    )]
    MissingKek {
        /// The missing one.
        kek_id: String,
        /// How many data keys need it.
        keys: i64,
        /// The ids of those that were given.
        given: String,
    },
    /// The deployment's own key does not open.
    #[error(
        "the deployment's own data key does not open with the key-encryption key {0}: its row in subjects was changed"
    )]
    DoesNotOpen(String),
    /// The database answered otherwise.
    #[error(transparent)]
    Database(#[from] Error),
}

impl Keyring {
    /// The keyring of a deployment.
    pub fn new(deployment: &str, keks: Keks) -> Self {
        Self { deployment: deployment.into(), keks, own: OnceLock::new() }
    }

    /// The ids of the key-encryption keys, the active one first.
    pub fn kek_ids(&self) -> impl Iterator<Item = &str> {
        self.keks.ids()
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

    fn unwrap(&self, person: &Person) -> Result<Zeroizing<[u8; 32]>> {
        let owner = Owner {
            deployment: &self.deployment,
            subject_id: person.subject_id,
            user_id: person.user_id.as_deref(),
        };
        let kek = self.keks.find(&person.kek_id).ok_or_else(|| {
            Error::internal(format!(
                "the key-encryption key {} is in none of keyring.key_files",
                person.kek_id
            ))
        })?;
        kek.unwrap(owner, &person.wrapped_key)
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
        let (mut ids, mut keys, mut digests) = (Vec::new(), Vec::new(), Vec::new());
        for user_id in &user_ids {
            let row = self.draw(random_subject_id()?, Some(user_id))?;
            ids.push(row.subject_id);
            keys.push(row.wrapped_key);
            digests.push(self.refusal(user_id)?);
        }
        let kek = self.keks.active()?.id();
        store
            .autocommit(deadline, "subjects.create", async |connection| {
                let created = diesel::sql_query(CREATE)
                    .bind::<Array<Int8>, _>(&ids)
                    .bind::<Array<Text>, _>(&user_ids)
                    .bind::<Array<Bytea>, _>(&keys)
                    .bind::<Array<Bytea>, _>(&digests)
                    .bind::<Text, _>(kek);
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

    async fn insert(&self, store: &Store, deadline: &Deadline, rows: &[NewPerson]) -> Result<()> {
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

    fn draw(&self, subject_id: i64, user_id: Option<&str>) -> Result<NewPerson> {
        let mut data_key = Zeroizing::new([0_u8; 32]);
        rand::fill(&mut *data_key).map_err(Error::internal)?;
        let kek = self.keks.active()?;
        let owner = Owner { deployment: &self.deployment, subject_id, user_id };
        Ok(NewPerson {
            subject_id,
            user_id: user_id.map(str::to_owned),
            wrapped_key: kek.wrap(owner, &data_key)?,
            kek_id: kek.id().to_owned(),
        })
    }

    /// Checks that database and keys belong together, and makes the deployment's own key where there is none yet.
    ///
    /// # Errors
    /// [`StartError`]: nothing may be served.
    pub async fn check(&self, store: &Store, deadline: &Deadline) -> Result<(), StartError> {
        let found = self.name_database(store, deadline).await?;
        if found != *self.deployment {
            return Err(StartError::OtherDeployment { found, configured: self.deployment.to_string() });
        }
        self.check_keks(store, deadline).await?;
        for _ in 0..TRIES {
            let own: Option<Person> = store
                .single(deadline, "keyring.check", async |connection| {
                    let row = subjects::table.find(DEPLOYMENT).select(Person::as_select());
                    Ok(row.first(connection).await.optional()?)
                })
                .await?;
            match own {
                Some(own) => {
                    let kek_id = own.kek_id.clone();
                    let data_key = self.unwrap(&own).map_err(|_| StartError::DoesNotOpen(kek_id))?;
                    let key = DataKey::new(self.deployment.clone(), &data_key)?;
                    // Whoever came first has the same key.
                    let _ = self.own.set(Deployment::new(self.deployment.clone(), key, &data_key)?);
                    return Ok(());
                }
                None => {
                    let row = self.draw(DEPLOYMENT, None)?;
                    self.insert(store, deadline, &[row]).await?;
                }
            }
        }
        Err(StartError::Database(Error::internal("the deployment's own row in subjects does not stay")))
    }

    async fn name_database(&self, store: &Store, deadline: &Deadline) -> Result<String> {
        for _ in 0..TRIES {
            let found: Option<String> = store
                .single(deadline, "deployment.name", async |connection| {
                    Ok(deployment::table.select(deployment::name).first(connection).await.optional()?)
                })
                .await?;
            if let Some(found) = found {
                return Ok(found);
            }
            store
                .autocommit(deadline, "deployment.name", async |connection| {
                    diesel::insert_into(deployment::table)
                        .values(deployment::name.eq(&*self.deployment))
                        .on_conflict_do_nothing()
                        .execute(connection)
                        .await?;
                    Ok(())
                })
                .await?;
        }
        Err(Error::internal("the deployment's own name does not stay"))
    }

    async fn check_keks(&self, store: &Store, deadline: &Deadline) -> Result<(), StartError> {
        let given: Vec<&str> = self.keks.ids().collect();
        let missing: Option<(String, i64)> = store
            .single(deadline, "keyring.keks", async |connection| {
                let used: Vec<KekId> = diesel::sql_query(USED_KEKS).load(connection).await?;
                let Some(KekId { kek_id }) =
                    used.into_iter().find(|used| !given.contains(&used.kek_id.as_str()))
                else {
                    return Ok(None);
                };
                let keys = subjects::table
                    .filter(subjects::kek_id.eq(&kek_id))
                    .count()
                    .get_result(connection)
                    .await?;
                Ok(Some((kek_id, keys)))
            })
            .await?;
        match missing {
            None => Ok(()),
            Some((kek_id, keys)) => Err(StartError::MissingKek { kek_id, keys, given: given.join(", ") }),
        }
    }
}

/// Each key-encryption key in use, found by as many steps through its index as there are keys, however many the people.
const USED_KEKS: &str = "WITH RECURSIVE used AS ( \
    (SELECT kek_id FROM sidekeep.subjects ORDER BY kek_id LIMIT 1) UNION ALL \
    SELECT (SELECT s.kek_id FROM sidekeep.subjects s WHERE s.kek_id > used.kek_id ORDER BY s.kek_id LIMIT 1) \
    FROM used WHERE used.kek_id IS NOT NULL) \
    SELECT kek_id FROM used WHERE kek_id IS NOT NULL";

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

#[derive(diesel::QueryableByName)]
struct KekId {
    #[diesel(sql_type = diesel::sql_types::Text)]
    kek_id: String,
}

#[derive(diesel::Insertable)]
#[diesel(table_name = subjects)]
struct NewPerson {
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
