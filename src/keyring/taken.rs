//! A person's row, taken for a transaction: shared by who writes about the person, alone by who erases, holds or restricts.
//!
//! Never opens a key.

use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel::sql_types::Int8;
use diesel_async::RunQueryDsl;

use super::person::Person;
use crate::error::Result;
use crate::store::Connection;
use crate::store::schema::subjects;
use crate::values::UserId;

impl Person {
    /// Reads a person and keeps the row from being erased, held or restricted until the transaction ends.
    ///
    /// # Errors
    /// The database's.
    pub async fn share(tx: &mut Connection, user_id: &UserId) -> Result<Option<Self>> {
        let row = subjects::table.filter(subjects::user_id.eq(user_id.as_str()));
        let row =
            row.select((Self::as_select(), pg_advisory_xact_lock_shared(subjects::subject_id).is_null()));
        Ok(row.for_share().first(tx).await.optional()?.map(first))
    }

    /// As [`Person::share`], by subject id.
    ///
    /// # Errors
    /// The database's.
    pub async fn share_by_id(tx: &mut Connection, subject_id: i64) -> Result<Option<Self>> {
        let row = subjects::table.find(subject_id);
        let row =
            row.select((Self::as_select(), pg_advisory_xact_lock_shared(subjects::subject_id).is_null()));
        Ok(row.for_share().first(tx).await.optional()?.map(first))
    }

    /// As [`Person::share`], of those of these people who still exist and whom nobody takes alone at this moment: waits for
    /// nobody. In the order of the subject ids.
    ///
    /// # Errors
    /// The database's.
    pub async fn share_free(tx: &mut Connection, subject_ids: &[i64]) -> Result<Vec<Self>> {
        let rows = subjects::table
            .filter(subjects::subject_id.eq_any(subject_ids))
            .order(subjects::subject_id)
            .select((Self::as_select(), pg_try_advisory_xact_lock_shared(subjects::subject_id)));
        let rows: Vec<(Self, bool)> = rows.for_share().skip_locked().load(tx).await?;
        Ok(rows.into_iter().filter_map(|(person, taken)| taken.then_some(person)).collect())
    }

    /// Reads a person and takes the row alone: who writes about the person has ended, and waits until the transaction ends.
    ///
    /// # Errors
    /// The database's.
    pub async fn lock(tx: &mut Connection, user_id: &UserId) -> Result<Option<Self>> {
        let row = subjects::table.filter(subjects::user_id.eq(user_id.as_str()));
        let row = row.select((Self::as_select(), pg_advisory_xact_lock(subjects::subject_id).is_null()));
        Ok(row.for_update().first(tx).await.optional()?.map(first))
    }

    /// As [`Person::lock`], by subject id.
    ///
    /// # Errors
    /// The database's.
    pub async fn lock_by_id(tx: &mut Connection, subject_id: i64) -> Result<Option<Self>> {
        let row = subjects::table.find(subject_id);
        let row = row.select((Self::as_select(), pg_advisory_xact_lock(subjects::subject_id).is_null()));
        Ok(row.for_update().first(tx).await.optional()?.map(first))
    }
}

/// The row alone, of a row and a lock.
fn first((person, _): (Person, bool)) -> Person {
    person
}

// Row locks are not fair: whoever shares a row lets others share it who come later, and keeps out for ever who wants it alone.
// An advisory lock by the subject id has a queue. PostgreSQL computes it before it locks the row (LockRows is the topmost
// node), and ends it with the transaction, so that it holds behind a pooler too.
diesel::define_sql_function! {
    fn pg_advisory_xact_lock_shared(key: Int8) -> Bool;
}
diesel::define_sql_function! {
    fn pg_advisory_xact_lock(key: Int8) -> Bool;
}
diesel::define_sql_function! {
    fn pg_try_advisory_xact_lock_shared(key: Int8) -> Bool;
}
