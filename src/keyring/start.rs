//! Whether keys and database belong together: looked at when a daemon starts, and when it is given other keys.

use std::time::Duration;

use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::deployment::Deployment;
use super::kek::Keks;
use super::person::{Keyring, Person};
use super::seal::DataKey;
use super::usage;
use crate::error::{Error, Result};
use crate::store::schema::{deployment, subjects};
use crate::store::{Deadline, Store};

/// Subject 0: the deployment itself.
const DEPLOYMENT: i64 = 0;

/// How often a statement that must not meet a used subject id is tried: with 2^53 of them, once is nearly always enough.
const TRIES: usize = 3;

/// How often the other daemons are looked at while they have still to notice something.
const AGAIN: Duration = Duration::from_millis(200);

/// Whether a process lists itself among the daemons: one that only reads does not, and nobody waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// It serves.
    Yes,
    /// It only reads.
    No,
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
        "{keys} data key(s) are wrapped by the key-encryption key {kek_id}, which is in none of keyring.key_files ({given}); add its file, and take it away only after `sidekeep keyring rotate`"
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
    /// Checks that database and keys belong together, and makes the deployment's own key where there is none yet.
    ///
    /// # Errors
    /// [`StartError`]: nothing may be served.
    pub async fn check(&self, store: &Store, deadline: &Deadline, listed: Listed) -> Result<(), StartError> {
        let found = self.name_database(store, deadline).await?;
        if found != *self.deployment {
            return Err(StartError::OtherDeployment { found, configured: self.deployment.to_string() });
        }
        let keks = self.keks();
        check_keks(store, deadline, &keks).await?;
        if listed == Listed::Yes {
            match self.agree(store, deadline, &keks).await {
                // Nobody can wrap anything either; it is listed with its first sign of life that can be written.
                Err(StartError::Database(Error::Unavailable { .. })) if takes_no_writes(store) => {}
                agreed => agreed?,
            }
        }
        for _ in 0..TRIES {
            let own: Option<Person> = store
                .single(deadline, "keyring.check", async |connection| {
                    let row = subjects::table.find(DEPLOYMENT).select(Person::as_select());
                    Ok(row.first(connection).await.optional()?)
                })
                .await?;
            match own {
                Some(own) => {
                    let kek_id = own.kek_id().to_owned();
                    let data_key = self.unwrap(&own).map_err(|_| StartError::DoesNotOpen(kek_id))?;
                    let key = DataKey::new(self.deployment.clone(), &data_key)?;
                    // Whoever came first has the same key.
                    let _ = self.own.set(Deployment::new(self.deployment.clone(), key, &data_key)?);
                    return Ok(());
                }
                None => {
                    let row = self.draw(self.keks().wrapping()?, DEPLOYMENT, None)?;
                    self.insert(store, deadline, &[row]).await?;
                }
            }
        }
        Err(StartError::Database(Error::internal("the deployment's own row in subjects does not stay")))
    }

    /// As [`Keyring::check`], and makes nothing. Answers whether any daemon has used this database yet.
    ///
    /// # Errors
    /// [`StartError`]: no daemon would serve.
    pub async fn compare(&self, store: &Store, deadline: &Deadline) -> Result<bool, StartError> {
        let (found, own): (Option<String>, Option<Person>) = store
            .snapshot(deadline, "keyring.compare", async |connection| {
                let name = deployment::table.select(deployment::name).first(connection).await.optional()?;
                let row = subjects::table.find(DEPLOYMENT).select(Person::as_select());
                Ok((name, row.first(connection).await.optional()?))
            })
            .await?;
        let Some(found) = found else { return Ok(false) };
        if found != *self.deployment {
            return Err(StartError::OtherDeployment { found, configured: self.deployment.to_string() });
        }
        check_keks(store, deadline, &self.keks()).await?;
        if let Some(own) = &own {
            self.unwrap(own).map_err(|_| StartError::DoesNotOpen(own.kek_id().to_owned()))?;
        }
        Ok(own.is_some())
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

    /// Lists this daemon with these keys, and makes sure that it opens whatever anybody wraps from now on.
    async fn agree(&self, store: &Store, deadline: &Deadline, keks: &Keks) -> Result<(), StartError> {
        let living = self.enlist(store, deadline, keks).await?;
        let other = living.iter().find(|daemon| keks.find(&daemon.wraps_under).is_none());
        if let Some(other) = other {
            // It wraps under one that both have as soon as it has noticed this one.
            return Err(StartError::Database(Error::unavailable(format!(
                "the daemon {} wraps new keys under the key-encryption key {}, which is in none of keyring.key_files",
                other.daemon, other.wraps_under
            ))));
        }
        // Once more: from now on nobody wraps under another one, but it may have been done until now.
        check_keks(store, deadline, keks).await
    }

    /// Goes on with other key-encryption keys. Until nothing needs those that are left out, they are kept.
    ///
    /// # Errors
    /// [`StartError::MissingKek`]: one that is left out is still in use. The old ones stay.
    pub async fn adopt(&self, store: &Store, deadline: &Deadline, given: Keks) -> Result<(), StartError> {
        let old = self.keks();
        // What anybody has wrapped until now opens as before; what is wrapped from now on opens with the new ones alone.
        self.keks.store(std::sync::Arc::new(given.and(&old)));
        let agreed = loop {
            match self.agree(store, deadline, &given).await {
                Err(StartError::Database(Error::Unavailable { .. })) if !deadline.has_passed() => {
                    // The end of the deadline is noticed above.
                    let _ = deadline.run(tokio::time::sleep(AGAIN)).await;
                }
                agreed => break agreed,
            }
        };
        match agreed {
            Ok(()) => {
                self.keks.store(std::sync::Arc::new(self.agreed(&given)));
                Ok(())
            }
            // Nothing is left out: what could not be told to PostgreSQL yet is told with the next sign of life.
            Err(StartError::Database(_)) if old.iter().all(|kek| given.find(kek.id()).is_some()) => {
                self.announce(&given);
                Ok(())
            }
            Err(error) => {
                self.announce(&old);
                self.keks.store(old.clone());
                let _ = self.enlist(store, deadline, &old).await;
                Err(error)
            }
        }
    }
}

/// Whether the server lets read alone, as far as it was last seen.
fn takes_no_writes(store: &Store) -> bool {
    let seen = store.watch().seen().and_then(|seen| seen.server.ok());
    seen.is_some_and(|server| server.read_only || server.in_recovery)
}

/// Nothing is in use that was not given.
async fn check_keks(store: &Store, deadline: &Deadline, keks: &Keks) -> Result<(), StartError> {
    let used = usage::used(store, deadline).await?;
    let Some(kek_id) = used.into_iter().find(|id| keks.find(id).is_none()) else { return Ok(()) };
    let keys = usage::count(store, deadline, &kek_id).await?;
    Err(StartError::MissingKek { kek_id, keys, given: keks.ids().join(", ") })
}
