//! `profile.*`: one profile a person.

use chrono::{DateTime, Utc};
use diesel::prelude::{
    ExpressionMethods, Insertable, OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper,
};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::find::Digests;
use super::row::Row;
use super::{Change, Deleted, Records, Take, expect_version, unheld};
use crate::audit::{By, SUBJECT};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::keyring::{Deployment, Person, Subject, Whole};
use crate::store::schema::{subjects, user_profiles};
use crate::store::{Connection, Fixed};
use crate::values::{Json, ShortText, UserId};

const TABLE: &str = "user_profiles";

/// A person's profile.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Profile {
    /// The person.
    pub user_id: String,
    /// The name the person goes by in the application.
    pub username: String,
    /// E-mail address.
    pub email: String,
    /// Full name.
    pub full_name: Option<String>,
    /// Whatever the application adds.
    pub metadata: Option<Json>,
    /// Counts the changes, from 1.
    pub version: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// Parameters of `profile.create`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The person.
    pub user_id: UserId,
    /// The name the person goes by in the application.
    pub username: ShortText,
    /// E-mail address.
    pub email: ShortText,
    /// Full name.
    pub full_name: Option<ShortText>,
    /// Whatever the application adds.
    pub metadata: Option<Json>,
}

/// Parameters of methods that name a person and nothing else.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Whose {
    /// The person.
    pub user_id: UserId,
}

/// Parameters of `profile.update`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// The person.
    pub user_id: UserId,
    /// A JSON Merge Patch (RFC 7396) on the profile.
    #[serde(deserialize_with = "crate::values::object")]
    pub changes: Changes,
    /// Refuse with `conflict` when the profile has another version.
    pub expected_version: Option<i64>,
}

/// What may be changed of a profile.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub struct Changes {
    /// The new name.
    #[serde(deserialize_with = "super::stays")]
    #[schemars(with = "ShortText")]
    pub username: Change<ShortText>,
    /// The new address.
    #[serde(deserialize_with = "super::stays")]
    #[schemars(with = "ShortText")]
    pub email: Change<ShortText>,
    /// The new full name; null removes it.
    pub full_name: Change<ShortText>,
    /// A patch on the metadata; null removes them.
    pub metadata: Change<Json>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = user_profiles, check_for_backend(diesel::pg::Pg))]
struct Stored {
    username_sealed: Vec<u8>,
    email_sealed: Vec<u8>,
    full_name_sealed: Option<Vec<u8>>,
    metadata_sealed: Option<Vec<u8>>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

#[derive(Insertable)]
#[diesel(table_name = user_profiles, treat_none_as_default_value = false)]
struct New {
    subject_id: i64,
    username_sealed: Vec<u8>,
    email_sealed: Vec<u8>,
    full_name_sealed: Option<Vec<u8>>,
    metadata_sealed: Option<Vec<u8>>,
    username_digest: Vec<u8>,
    email_digest: Vec<u8>,
}

impl Stored {
    fn open(self, subject: &Subject) -> Result<Profile> {
        let row = Row::new(subject, TABLE, subject.id);
        Ok(Profile {
            user_id: subject.user_id.clone(),
            username: row.open("username_sealed", &self.username_sealed)?,
            email: row.open("email_sealed", &self.email_sealed)?,
            full_name: row.open_some("full_name_sealed", self.full_name_sealed.as_deref())?,
            metadata: row.open_some_json("metadata_sealed", self.metadata_sealed.as_deref())?,
            version: self.version,
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
        })
    }
}

impl Records {
    /// Creates a person's profile.
    ///
    /// # Errors
    /// [`Error::Conflict`] when there is one.
    pub async fn create_profile(&self, by: &By, create: Create) -> Result<Profile> {
        self.check_size("metadata", create.metadata.as_ref())?;
        let own = self.keyring.own()?;
        self.write(by, &create.user_id, None, async |tx, subject| {
            by.about("profile", SUBJECT);
            subject.unrestricted()?;
            let digests = Digests::of(own, create.username.as_str(), create.email.as_str());
            let row = Row::new(subject, TABLE, subject.id);
            let new = New {
                subject_id: subject.id,
                username_sealed: row.seal("username_sealed", create.username.as_str())?,
                email_sealed: row.seal("email_sealed", create.email.as_str())?,
                full_name_sealed: row
                    .seal_some("full_name_sealed", create.full_name.as_ref().map(ShortText::as_str))?,
                metadata_sealed: row
                    .seal_some("metadata_sealed", create.metadata.as_ref().map(Json::as_str))?,
                username_digest: digests.username,
                email_digest: digests.email,
            };
            let stored: Option<Stored> = diesel::insert_into(user_profiles::table)
                .values(&new)
                .on_conflict_do_nothing()
                .returning(Stored::as_returning())
                .get_result(tx)
                .await
                .optional()?;
            stored
                .ok_or_else(|| Error::conflict("this person has a profile; use profile.update"))?
                .open(subject)
        })
        .await
    }

    /// Reads a person's profile, in one statement.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn profile(&self, by: &By, user_id: &UserId) -> Result<Profile> {
        let found: Option<(Person, Stored)> = self
            .store
            .single(&by.deadline, "profile.get", async |connection| {
                let row = subjects::table
                    .inner_join(user_profiles::table)
                    .filter(subjects::user_id.eq(user_id.as_str()))
                    .select((Person::as_select(), Stored::as_select()));
                Ok(Fixed(row).get_result(connection).await.optional()?)
            })
            .await?;
        let Some((person, stored)) = found else { return self.absent(by, user_id, "profile").await };
        by.about("profile", SUBJECT);
        stored.open(&self.unrestricted(by, person)?)
    }

    /// Applies a merge patch to a person's profile.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Conflict`] when the version is not the expected one.
    pub async fn update_profile(&self, by: &By, update: Update) -> Result<Profile> {
        let changed = self
            .write_known(by, &update.user_id, &async |tx: &mut Connection, subject: &Subject| {
                by.about("profile", SUBJECT);
                subject.unrestricted()?;
                let stored = lock(tx, subject).await?.ok_or(Error::NotFound { what: "profile" })?;
                expect_version(update.expected_version, stored.version)?;
                let profile = self.patch(stored.open(subject)?, update.changes.clone())?;
                save(tx, subject, self.keyring.own()?, &profile).await
            })
            .await?;
        changed.ok_or(Error::NotFound { what: "profile" })
    }

    fn patch(&self, mut profile: Profile, changes: Changes) -> Result<Profile> {
        if let Some(username) = changes.username.set() {
            profile.username = username.into_string();
        }
        if let Some(email) = changes.email.set() {
            profile.email = email.into_string();
        }
        match changes.full_name {
            Change::Keep => {}
            Change::Remove => profile.full_name = None,
            Change::Set(full_name) => profile.full_name = Some(full_name.into_string()),
        }
        profile.metadata = self.patch_metadata(profile.metadata, changes.metadata)?;
        Ok(profile)
    }

    /// A merge patch on metadata, whose result is bounded like what is sent at once.
    pub(super) fn patch_metadata(
        &self,
        metadata: Option<Json>,
        change: Change<Json>,
    ) -> Result<Option<Json>> {
        let metadata = match change {
            Change::Keep => return Ok(metadata),
            Change::Remove => None,
            Change::Set(patch) => Some(Json::merge(metadata.as_ref(), &patch)),
        };
        self.check_size("metadata", metadata.as_ref())?;
        Ok(metadata)
    }

    /// Deletes a person's profile; the person stays.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_profile(&self, by: &By, user_id: &UserId) -> Result<Deleted> {
        let rows = self
            .write_keyless(by, (user_id, Take::Share), &async |tx: &mut Connection, person: &Whole| {
                by.about("profile", SUBJECT);
                person.unrestricted()?;
                unheld(tx, person.subject_id()).await?;
                Ok(diesel::delete(user_profiles::table.find(person.subject_id())).execute(tx).await?)
            })
            .await?;
        Ok(Deleted { deleted: rows.is_some_and(|rows| rows > 0) })
    }
}

async fn lock(tx: &mut Connection, subject: &Subject) -> Result<Option<Stored>> {
    let row = user_profiles::table.find(subject.id).select(Stored::as_select()).for_update();
    Ok(row.first(tx).await.optional()?)
}

async fn save(
    tx: &mut Connection,
    subject: &Subject,
    own: &Deployment,
    profile: &Profile,
) -> Result<Profile> {
    let digests = Digests::of(own, &profile.username, &profile.email);
    let row = Row::new(subject, TABLE, subject.id);
    let stored: Stored = diesel::update(user_profiles::table.find(subject.id))
        .set((
            user_profiles::username_sealed.eq(row.seal("username_sealed", &profile.username)?),
            user_profiles::email_sealed.eq(row.seal("email_sealed", &profile.email)?),
            user_profiles::full_name_sealed
                .eq(row.seal_some("full_name_sealed", profile.full_name.as_deref())?),
            user_profiles::metadata_sealed
                .eq(row.seal_some("metadata_sealed", profile.metadata.as_ref().map(Json::as_str))?),
            user_profiles::username_digest.eq(digests.username),
            user_profiles::email_digest.eq(digests.email),
            user_profiles::version.eq(user_profiles::version + 1),
        ))
        .returning(Stored::as_returning())
        .get_result(tx)
        .await?;
    stored.open(subject)
}
