//! A person whose wrapped key opens no more. What needs the person's row alone, an erasure first of all, goes on without the
//! key; but not where the key is only misplaced, so that a swap of two persons is found before one of them is taken for the other.

use diesel::prelude::{ExpressionMethods, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::kek::{Keks, Owner};
use super::person::{Keyring, Person, Subject};
use crate::error::{Error, Result};
use crate::store::Connection;
use crate::store::schema::subjects;

/// How many persons are looked at in one go.
const PAGE: i64 = 1000;

/// A person whom a change is about that needs no key.
pub enum Whole {
    /// The key opens.
    Yes(Subject),
    /// The wrapped key was changed: nothing that was sealed for the person opens any more.
    Damaged(Person),
}

impl Whole {
    /// The number that stands for the person.
    pub fn subject_id(&self) -> i64 {
        match self {
            Self::Yes(subject) => subject.id,
            Self::Damaged(person) => person.subject_id(),
        }
    }

    /// The person's id in the application.
    pub fn user_id(&self) -> &str {
        match self {
            Self::Yes(subject) => &subject.user_id,
            Self::Damaged(person) => person.user_id().unwrap_or_default(),
        }
    }

    /// Whether processing is restricted.
    pub fn is_restricted(&self) -> bool {
        match self {
            Self::Yes(subject) => subject.restricted,
            Self::Damaged(person) => person.is_restricted(),
        }
    }

    /// Whether the key opens no more.
    pub fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }
}

impl Keyring {
    /// Opens a person's key for a change that can do without it. Where it does not open, the whole keyring is read.
    ///
    /// # Errors
    /// [`Error::Tampered`] where the person's row and another one have been mixed up; else as [`Keyring::open`].
    pub async fn open_or_damaged(&self, connection: &mut Connection, person: Person) -> Result<Whole> {
        match self.open(person.clone()) {
            Ok(subject) => Ok(Whole::Yes(subject)),
            Err(error @ Error::Tampered { .. }) => {
                if self.is_misplaced(connection, &person).await? {
                    Err(error)
                } else {
                    Ok(Whole::Damaged(person))
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the row has another person's key or user id, or another row this person's.
    async fn is_misplaced(&self, connection: &mut Connection, person: &Person) -> Result<bool> {
        let (keks, mut after) = (self.keks(), -1_i64);
        loop {
            let page: Vec<Person> = subjects::table
                .filter(subjects::subject_id.gt(after))
                .order(subjects::subject_id)
                .limit(PAGE)
                .select(Person::as_select())
                .load(connection)
                .await?;
            let Some(last) = page.last() else { return Ok(false) };
            after = last.subject_id();
            let mut others = page.iter().filter(|other| other.subject_id() != person.subject_id());
            if others.any(|other| self.are_mixed_up(&keks, person, other)) {
                return Ok(true);
            }
        }
    }

    fn are_mixed_up(&self, keks: &Keks, person: &Person, other: &Person) -> bool {
        let (own, others) = (person.owner(&self.deployment), other.owner(&self.deployment));
        let opens =
            |owner: Owner<'_>, wrapped: &[u8]| keks.iter().any(|kek| kek.unwrap(owner, wrapped).is_some());
        opens(others, person.wrapped_key())
            || opens(own, other.wrapped_key())
            // The user ids have changed places, and the keys stayed.
            || opens(Owner { user_id: others.user_id, ..own }, person.wrapped_key())
            || opens(Owner { user_id: own.user_id, ..others }, other.wrapped_key())
    }
}
