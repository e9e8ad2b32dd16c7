//! `preferences.*`: one set of preferences a person.

use chrono::{DateTime, Utc};
use diesel::prelude::{
    ExpressionMethods, OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::row::Row;
use super::{Deleted, Records, expect_version, unheld};
use crate::audit::{By, SUBJECT};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::{Person, Subject};
use crate::store::Connection;
use crate::store::schema::{subjects, user_preferences};
use crate::values::{Json, UserId};

const TABLE: &str = "user_preferences";
const COLUMN: &str = "preferences_sealed";

/// A person's preferences.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Preferences {
    /// The person.
    pub user_id: String,
    /// As the application set them.
    pub preferences: Json,
    /// Counts the changes, from 1.
    pub version: i64,
    /// When they were last changed.
    pub updated_at: Timestamp,
}

/// Parameters of `preferences.set`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// The person.
    pub user_id: UserId,
    /// All of the preferences.
    pub preferences: Json,
}

/// Parameters of `preferences.update`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// The person.
    pub user_id: UserId,
    /// A JSON Merge Patch (RFC 7396).
    pub changes: Json,
    /// Refuse with `conflict` when the preferences have another version.
    pub expected_version: Option<i64>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = user_preferences, check_for_backend(diesel::pg::Pg))]
struct Stored {
    preferences_sealed: Vec<u8>,
    version: i64,
    updated_at: DateTime<Utc>,
}

impl Stored {
    fn open(&self, subject: &Subject) -> Result<Preferences> {
        Ok(Preferences {
            user_id: subject.user_id.clone(),
            preferences: Row::new(subject, TABLE, subject.id).open_json(COLUMN, &self.preferences_sealed)?,
            version: self.version,
            updated_at: self.updated_at.into(),
        })
    }
}

impl Records {
    /// Reads a person's preferences, in one statement.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn preferences(&self, by: &By, user_id: &UserId) -> Result<Preferences> {
        let found: Option<(Person, Stored)> = self
            .store
            .single(&by.deadline, "preferences.get", async |connection| {
                let row = subjects::table
                    .inner_join(user_preferences::table)
                    .filter(subjects::user_id.eq(user_id.as_str()))
                    .select((Person::as_select(), Stored::as_select()));
                Ok(row.first(connection).await.optional()?)
            })
            .await?;
        let Some((person, stored)) = found else { return self.absent(by, user_id, "preferences").await };
        by.about("preferences", SUBJECT);
        stored.open(&self.unrestricted(by, person)?)
    }

    /// Sets all of a person's preferences.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub async fn set_preferences(&self, by: &By, set: Set) -> Result<Preferences> {
        self.check_size("preferences", Some(&set.preferences))?;
        self.write(by, &set.user_id, None, async |tx, subject| {
            by.about("preferences", SUBJECT);
            subject.unrestricted()?;
            let sealed = Row::new(subject, TABLE, subject.id).seal(COLUMN, set.preferences.as_str())?;
            let stored: Stored = diesel::insert_into(user_preferences::table)
                .values((
                    user_preferences::subject_id.eq(subject.id),
                    user_preferences::preferences_sealed.eq(&sealed),
                ))
                .on_conflict(user_preferences::subject_id)
                .do_update()
                .set((
                    user_preferences::preferences_sealed.eq(&sealed),
                    user_preferences::version.eq(user_preferences::version + 1),
                ))
                .returning(Stored::as_returning())
                .get_result(tx)
                .await?;
            stored.open(subject)
        })
        .await
    }

    /// Applies a merge patch to a person's preferences.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`] when the version is not the expected one, [`Error::TooLarge`].
    pub async fn update_preferences(&self, by: &By, update: Update) -> Result<Preferences> {
        let changed = self
            .write_known(by, &update.user_id, &async |tx: &mut Connection, subject: &Subject| {
                by.about("preferences", SUBJECT);
                subject.unrestricted()?;
                let row = user_preferences::table.find(subject.id).select(Stored::as_select()).for_update();
                let stored: Option<Stored> = row.first(tx).await.optional()?;
                let stored = stored.ok_or(Error::NotFound { what: "preferences" })?;
                expect_version(update.expected_version, stored.version)?;
                let merged = Json::merge(Some(&stored.open(subject)?.preferences), &update.changes);
                self.check_size("preferences", Some(&merged))?;
                let sealed = Row::new(subject, TABLE, subject.id).seal(COLUMN, merged.as_str())?;
                let stored: Stored = diesel::update(user_preferences::table.find(subject.id))
                    .set((
                        user_preferences::preferences_sealed.eq(sealed),
                        user_preferences::version.eq(user_preferences::version + 1),
                    ))
                    .returning(Stored::as_returning())
                    .get_result(tx)
                    .await?;
                stored.open(subject)
            })
            .await?;
        changed.ok_or(Error::NotFound { what: "preferences" })
    }

    /// Deletes a person's preferences; the person stays.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_preferences(&self, by: &By, user_id: &UserId) -> Result<Deleted> {
        let rows = self
            .write_known(by, user_id, &async |tx: &mut Connection, subject: &Subject| {
                by.about("preferences", SUBJECT);
                subject.unrestricted()?;
                unheld(tx, subject.id).await?;
                Ok(diesel::delete(user_preferences::table.find(subject.id)).execute(tx).await?)
            })
            .await?;
        Ok(Deleted { deleted: rows.is_some_and(|rows| rows > 0) })
    }
}
