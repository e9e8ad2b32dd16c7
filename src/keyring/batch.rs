//! A batch of a rotation: some keys read, opened and wrapped again, and replaced in one statement.

use diesel::QueryableByName;
use diesel::prelude::{ExpressionMethods, QueryDsl, SelectableHelper};
use diesel::sql_types::{Array, Binary, Int8, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::kek::{Kek, Keks};
use super::person::Person;
use crate::error::Result;
use crate::store::schema::subjects;
use crate::store::{Deadline, Store};

/// How many keys are re-wrapped in one statement: it holds their rows, and those people's writes, for some milliseconds.
const BATCH: i64 = 1000;
/// The keys under one key-encryption key whose subject ids are after the one and up to the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch<'a> {
    pub(super) from: &'a str,
    pub(super) after: i64,
    pub(super) last: i64,
}

/// Keys as they were read.
pub(super) struct Batch {
    people: Vec<Person>,
    last: i64,
}

/// A batch, opened and wrapped again.
#[derive(Default)]
pub(super) struct Rewrapped {
    ids: Vec<i64>,
    old: Vec<Vec<u8>>,
    new: Vec<Vec<u8>>,
    /// Of whom the key does not open.
    pub(super) unopened: Vec<i64>,
}

#[derive(QueryableByName)]
struct Done {
    #[diesel(sql_type = Nullable<Int8>)]
    rewrapped: Option<i64>,
}

impl Batch {
    /// The next keys of a stretch. Nothing at its end.
    pub(super) async fn read(
        store: &Store,
        deadline: &Deadline,
        stretch: Stretch<'_>,
    ) -> Result<Option<Self>> {
        let Stretch { from, after, last } = stretch;
        let people: Vec<Person> = store
            .single(deadline, "keyring.page", async |connection| {
                let rows = subjects::table
                    .filter(subjects::kek_id.eq(from))
                    .filter(subjects::subject_id.gt(after))
                    .filter(subjects::subject_id.le(last))
                    .order((subjects::kek_id, subjects::subject_id))
                    .limit(BATCH)
                    .select(Person::as_select());
                Ok(rows.load(connection).await?)
            })
            .await?;
        let last = people.last().map(Person::subject_id);
        Ok(last.map(|last| Self { people, last }))
    }

    /// The greatest subject id.
    pub(super) fn last(&self) -> i64 {
        self.last
    }

    /// Opens the keys and wraps them under the new key-encryption key. Takes some milliseconds of a processor.
    pub(super) fn rewrap(&self, deployment: &str, keks: &Keks, target: &Kek) -> Result<Rewrapped> {
        let mut batch = Rewrapped::default();
        for person in &self.people {
            let owner = person.owner(deployment);
            let opened = keks.find(person.kek_id()).and_then(|kek| kek.unwrap(owner, person.wrapped_key()));
            let Some(data_key) = opened else {
                batch.unopened.push(person.subject_id());
                continue;
            };
            batch.ids.push(person.subject_id());
            batch.old.push(person.wrapped_key().to_vec());
            batch.new.push(target.wrap(owner, &data_key)?);
        }
        Ok(batch)
    }
}

impl Rewrapped {
    /// Stores them where they are still the ones that were read, and answers how many were: nothing at all where a living
    /// daemon lacks the new key.
    ///
    /// # Errors
    /// The store's; done twice it does the same.
    pub(super) async fn replace(
        &self,
        store: &Store,
        deadline: &Deadline,
        kek_id: &str,
    ) -> Result<Option<i64>> {
        const REPLACE: &str = "SELECT sidekeep.rewrap_subjects($1, $2, $3, $4) AS rewrapped";
        if self.ids.is_empty() {
            return Ok(Some(0));
        }
        let done = store.autocommit(deadline, "keyring.rewrap", async |connection| {
            let query = diesel::sql_query(REPLACE)
                .bind::<Array<Int8>, _>(&self.ids)
                .bind::<Array<Binary>, _>(&self.old)
                .bind::<Array<Binary>, _>(&self.new)
                .bind::<Text, _>(kek_id);
            let done: Done = query.get_result(connection).await?;
            Ok(done.rewrapped)
        });
        done.await
    }
}
