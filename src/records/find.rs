//! `subject.find`: whose profile has this e-mail address, or this name.
//!
//! Each profile carries a digest of both (HMAC-SHA-256 under a key derived from the deployment's data key), which goes with the
//! row; rotation re-wraps that data key and does not change it. An address is put in lower case by Unicode's rules, and
//! otherwise taken as it was sent; a name is taken exactly as it was sent. What was found is opened and compared, so that a
//! digest that was moved finds nobody else.

use diesel::dsl::exists;
use diesel::prelude::{ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Records;
use super::row::Row;
use crate::audit::By;
use crate::error::{Error, Result};
use crate::keyring::{Deployment, Person, Subject};
use crate::store::Deadline;
use crate::store::schema::{subjects, user_profiles};
use crate::values::ShortText;

const TABLE: &str = "user_profiles";
/// What the digests' MAC is for.
const PURPOSE: &str = "sidekeep find";

/// The most people that one address or name may find.
const FOUND: usize = 1000;

/// How many profiles get their digests in one transaction.
const FILLED: i64 = 100;

/// Parameters of `subject.find`: one of the two.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Find {
    /// The e-mail address, upper or lower case.
    pub email: Option<ShortText>,
    /// The name, exactly.
    pub username: Option<ShortText>,
}

/// Who was found.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Found {
    /// Their user ids.
    pub items: Vec<String>,
}

/// What a person is looked for by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Email,
    Username,
}

impl What {
    fn column(self) -> &'static str {
        match self {
            Self::Email => "email_sealed",
            Self::Username => "username_sealed",
        }
    }

    /// The form in which two texts are the same.
    fn normal(self, text: &str) -> String {
        match self {
            Self::Email => text.to_lowercase(),
            Self::Username => text.to_owned(),
        }
    }

    fn digest(self, own: &Deployment, text: &str) -> Vec<u8> {
        own.mac(PURPOSE, &[self.column().as_bytes(), self.normal(text).as_bytes()])
    }
}

/// What a profile is found by.
pub(super) struct Digests {
    pub(super) username: Vec<u8>,
    pub(super) email: Vec<u8>,
}

impl Digests {
    pub(super) fn of(own: &Deployment, username: &str, email: &str) -> Self {
        Self { username: What::Username.digest(own, username), email: What::Email.digest(own, email) }
    }
}

impl Find {
    fn what(&self) -> Result<(What, &ShortText)> {
        match (&self.email, &self.username) {
            (Some(email), None) => Ok((What::Email, email)),
            (None, Some(username)) => Ok((What::Username, username)),
            (None, None) => Err(Error::invalid("email", "is missing; give email or username")),
            (Some(_), Some(_)) => Err(Error::invalid("username", "goes without email; give one of them")),
        }
    }
}

impl Records {
    /// Whose profile has this address or name, in the order of user ids.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while profiles from before there were digests have none yet; [`Error::TooLarge`] for a name that
    /// too many share.
    pub async fn find_people(&self, by: &By, find: &Find) -> Result<Found> {
        let (what, text) = find.what()?;
        let digest = what.digest(self.keyring.own()?, text.as_str());
        let (unfinished, found) = self
            .store
            .snapshot(&by.deadline, "subject.find", async |connection| {
                let without = user_profiles::table.filter(user_profiles::email_digest.is_null());
                let unfinished: bool = diesel::select(exists(without)).get_result(connection).await?;
                let rows = subjects::table
                    .inner_join(user_profiles::table)
                    .order(subjects::user_id)
                    .limit(i64::try_from(FOUND).map_err(Error::internal)?.saturating_add(1));
                let found: Vec<(Person, Vec<u8>)> = match what {
                    What::Email => {
                        rows.filter(user_profiles::email_digest.eq(&digest))
                            .select((Person::as_select(), user_profiles::email_sealed))
                            .load(connection)
                            .await?
                    }
                    What::Username => {
                        rows.filter(user_profiles::username_digest.eq(&digest))
                            .select((Person::as_select(), user_profiles::username_sealed))
                            .load(connection)
                            .await?
                    }
                };
                Ok((unfinished, found))
            })
            .await?;
        if unfinished {
            return Err(Error::unavailable("older profiles are being made ready to be found; try again"));
        }
        if found.len() > FOUND {
            let max = u64::try_from(FOUND).map_err(Error::internal)?;
            return Err(Error::too_large("the number of people who are found", max));
        }
        let mut items = Vec::with_capacity(found.len());
        for (person, sealed) in found {
            let subject = self.keyring.open(person)?;
            let there = Row::new(&subject, TABLE, subject.id).open(what.column(), &sealed)?;
            if what.normal(&there) != what.normal(text.as_str()) {
                return Err(Error::Tampered { at: "user_profiles: a digest is not that of its row".into() });
            }
            items.push(subject.user_id);
        }
        if let [only] = items.as_slice() {
            by.concerns(only);
        }
        Ok(Found { items })
    }

    /// Makes the digests of some of the profiles that have none, from before there were digests. Answers whether
    /// there may be more.
    ///
    /// # Errors
    /// The store's.
    pub async fn make_digests(&self, deadline: &Deadline) -> Result<bool> {
        let own = self.keyring.own()?;
        // Where there are none, as nearly always, no transaction that locks is begun.
        let any: bool = self
            .store
            .single(deadline, "subject.find.unfilled", async |connection| {
                let without = user_profiles::table.filter(user_profiles::email_digest.is_null());
                Ok(diesel::select(exists(without)).get_result(connection).await?)
            })
            .await?;
        if !any {
            return Ok(false);
        }
        self.store
            .transact(deadline, "subject.find.fill", async |tx| {
                // Who is being written about makes the digests with that, or is next.
                let some: Vec<(Person, Vec<u8>, Vec<u8>)> = subjects::table
                    .inner_join(user_profiles::table)
                    .filter(user_profiles::email_digest.is_null())
                    .limit(FILLED)
                    .select((
                        Person::as_select(),
                        user_profiles::username_sealed,
                        user_profiles::email_sealed,
                    ))
                    .for_update()
                    .skip_locked()
                    .load(tx)
                    .await?;
                let made = some.len();
                for (person, username, email) in some {
                    let subject_id = person.subject_id();
                    let digests = self.digests(own, person, (&username, &email));
                    diesel::update(user_profiles::table.find(subject_id))
                        .set((
                            user_profiles::username_digest.eq(digests.username),
                            user_profiles::email_digest.eq(digests.email),
                        ))
                        .execute(tx)
                        .await?;
                }
                Ok(i64::try_from(made).is_ok_and(|made| made == FILLED))
            })
            .await
    }

    /// A profile that does not open is found by nothing; reading it says so.
    fn digests(&self, own: &Deployment, person: Person, (username, email): (&[u8], &[u8])) -> Digests {
        let open = |subject: Subject| {
            let row = Row::new(&subject, TABLE, subject.id);
            Ok(Digests::of(own, &row.open("username_sealed", username)?, &row.open("email_sealed", email)?))
        };
        self.keyring.open(person).and_then(open).unwrap_or_else(|error| {
            tracing::error!(%error, "a profile does not open, and is not found by address or name");
            Digests { username: Vec::new(), email: Vec::new() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::What;

    #[test]
    fn an_address_is_the_same_in_any_case_and_a_name_is_not() {
        assert_eq!(What::Email.normal("ÄNNE@Mail.Example"), What::Email.normal("änne@mail.example"));
        assert_ne!(What::Email.normal(" a@mail.example"), What::Email.normal("a@mail.example"));
        assert_ne!(What::Username.normal("Ada"), What::Username.normal("ada"));
    }
}
