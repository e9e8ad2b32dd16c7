//! Entries of erasures that a restore has lost: written again from what the keyring's backup remembers of them.

use std::collections::HashSet;

use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel_async::RunQueryDsl;
use serde_json::Value;

use super::by::METHOD;
use super::document::canonical;
use super::entry::{DIGEST, Entry, FORMAT, Labels};
use super::merkle::Hash;
use super::staged;
use crate::error::{Error, Result};
use crate::keyring::Deployment;
use crate::store::Connection;
use crate::store::schema::{audit_logs, audit_staged};

/// The action of an entry about an erasure.
const ACTION: &str = "subject.erase";
/// What kind of thing it is about.
const KIND: &str = "erasure";
/// What it was restored from.
const RESTORED: &str = "sidekeep.restored";

/// What is remembered of an erasure.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Remembered {
    /// The number that the person had.
    pub subject_id: i64,
    /// The entry that told of it.
    pub entry_id: String,
    /// Its certificate's id.
    pub certificate_id: String,
    /// The certificate, `{body, key, signature}`.
    pub certificate: Value,
}

impl Remembered {
    /// How many consents were kept as evidence.
    pub fn keeps_consents(&self) -> bool {
        let kept = self.certificate.pointer("/body/kept/consents").and_then(Value::as_i64);
        kept.is_some_and(|kept| kept > 0)
    }

    fn entry(&self, from: &str) -> Result<Entry> {
        let body = self
            .certificate
            .get("body")
            .ok_or_else(|| Error::Tampered { at: "keyring.backup: the certificate of an erasure".into() })?;
        Ok(Entry {
            stream: 0,
            position: 0,
            recorded_at: chrono::DateTime::UNIX_EPOCH,
            format: FORMAT,
            id: self.entry_id.clone(),
            actor_id: None,
            subject_id: Some(self.subject_id),
            action: ACTION.to_owned(),
            resource_type: Some(KIND.to_owned()),
            resource_id: Some(self.certificate_id.clone()),
            outcome: Some("success".to_owned()),
            occurred_at: None,
            labels: Some(Labels::own([
                (METHOD, ACTION.to_owned()),
                (DIGEST, Hash::of(&[&canonical(body)?]).hex()),
                (RESTORED, from.to_owned()),
            ])),
            client_sealed: None,
            metadata_sealed: None,
        })
    }
}

/// Stages the entries of these erasures that the log lacks. Answers how many.
///
/// # Errors
/// The database's; a certificate that is none.
pub async fn stage_missing(
    tx: &mut Connection,
    own: &Deployment,
    erasures: &[Remembered],
    from: &str,
) -> Result<i64> {
    let ids: Vec<&str> = erasures.iter().map(|erasure| erasure.entry_id.as_str()).collect();
    let there = audit_logs::table.filter(audit_logs::id.eq_any(&ids)).select(audit_logs::id);
    let mut known: HashSet<String> = there.load(tx).await?.into_iter().collect();
    let staged = audit_staged::table.filter(audit_staged::id.eq_any(&ids)).select(audit_staged::id);
    known.extend(staged.load::<String>(tx).await?);
    let mut count = 0_i64;
    for erasure in erasures.iter().filter(|erasure| !known.contains(&erasure.entry_id)) {
        staged::stage(tx, own, erasure.entry(from)?).await?;
        count = count.saturating_add(1);
    }
    Ok(count)
}
