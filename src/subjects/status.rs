//! `subject.status` and `subject.certificate`: what is held about a person now, and what is left of one who is gone.

use diesel::prelude::{ExpressionMethods, OptionalExtension, QueryDsl, SelectableHelper};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::certificate::{Body, Counts};
use super::erase::count;
use crate::audit::document::{self, Signed};
use crate::audit::{By, SUBJECT};
use crate::error::{Error, Result};
use crate::keyring::Person;
use crate::records::{Records, open_holds};
use crate::store::schema::{subject_erasures, subjects};
use crate::values::{RecordId, UserId};

/// What is held about a person.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Status {
    /// Whether processing is restricted (GDPR Art. 18).
    pub restricted: bool,
    /// The ids of the legal holds that stand.
    pub holds: Vec<String>,
    /// How many rows there are.
    pub counts: Held,
}

/// How many rows of each kind are held.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Held {
    /// What an erasure deletes.
    #[serde(flatten)]
    pub records: Counts,
    /// Entries of the audit log that name the person.
    pub audit_entries: i64,
}

/// Parameters of `subject.certificate`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The certificate's id.
    pub id: RecordId,
}

/// Counts what is held about a person.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn status(records: &Records, by: &By, user_id: &UserId) -> Result<Status> {
    records.log().drained(&by.deadline).await?;
    records
        .store()
        .snapshot(&by.deadline, "subject.status", async |connection| {
            let row =
                subjects::table.filter(subjects::user_id.eq(user_id.as_str())).select(Person::as_select());
            let person: Option<Person> = row.first(connection).await.optional()?;
            let person = person.ok_or(Error::NotFound { what: "subject" })?;
            by.concerns(user_id.as_str());
            by.about("user", SUBJECT);
            let mut rows = count(connection, person.subject_id(), |_| true).await?;
            let audit_entries = rows.remove("audit_entries").unwrap_or_default();
            Ok(Status {
                restricted: person.is_restricted(),
                holds: open_holds(connection, person.subject_id()).await?,
                counts: Held { records: Counts::of(&rows)?, audit_entries },
            })
        })
        .await
}

/// The certificate of an erasure, without the salt, which is kept nowhere.
///
/// # Errors
/// [`Error::NotFound`].
pub async fn certificate(records: &Records, by: &By, which: &Which) -> Result<Signed<Body>> {
    let found: Option<serde_json::Value> = records
        .store()
        .single(&by.deadline, "subject.certificate", async |connection| {
            let row = subject_erasures::table.filter(subject_erasures::certificate_id.eq(which.id.as_str()));
            Ok(row.select(subject_erasures::certificate).first(connection).await.optional()?)
        })
        .await?;
    by.about("erasure", which.id.as_str());
    let found = found.ok_or(Error::NotFound { what: "certificate" })?;
    let tampered = || Error::Tampered { at: "subject_erasures.certificate".into() };
    document::verify(&found).map_err(|_| tampered())?;
    let certificate: Signed<Body> = serde_json::from_value(found).map_err(|_| tampered())?;
    if certificate.body.id == which.id.as_str() { Ok(certificate) } else { Err(tampered()) }
}
