//! What entries say of rows beside the log: persons, who are in the keyring or erased, and consents, whose rows are as they
//! were when they were recorded.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::PoisonError;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{ExpressionMethods, QueryDsl, Queryable, Selectable, SelectableHelper};
use diesel::sql_types::{Bool, Nullable, Text};
use diesel_async::RunQueryDsl;
use serde_json::Value;

use super::findings::Findings;
use super::pass::Pass;
use super::rows::Claim;
use crate::audit::entry::Labels;
use crate::audit::merkle::Hash;
use crate::audit::staged;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::keyring::Deployment;
use crate::store::schema::{audit_logs, subject_erasures, subjects};
use crate::store::{AnyTime, Connection};
use crate::values::jcs;

/// So many living persons are remembered, so that each section need not ask for the same ones.
const REMEMBERED: usize = 1 << 16;
/// What the entry of an erasure is called.
const ERASURE: &str = "subject.erase";
/// What removes the row of a consent of somebody who lives, and is entered by itself.
const REMOVALS: [&str; 2] = ["consent.delete", "retention"];
/// What kind of record such an entry is about.
const CONSENT: &str = "consent";

/// What there is of the persons and consents of a section, in one snapshot.
#[derive(Default)]
struct Seen {
    living: HashSet<i64>,
    digests: HashMap<String, String>,
    removed: HashMap<String, DateTime<Utc>>,
    erased: HashSet<i64>,
}

/// Looks at the persons and the claims of a section.
///
/// # Errors
/// The store's.
pub(super) async fn look(
    pass: &Pass<'_>,
    stream: i32,
    (persons, claims): (HashMap<i64, i64>, Vec<Claim>),
    findings: &mut Findings,
) -> Result<()> {
    let mut unknown: BTreeSet<i64> = {
        let living = pass.living.lock().unwrap_or_else(PoisonError::into_inner);
        persons.keys().filter(|person| !living.contains(person)).copied().collect()
    };
    // Somebody who was seen living may be erased since; then the rows are gone with them.
    unknown.extend(claims.iter().map(|claim| claim.subject));
    if unknown.is_empty() {
        return Ok(());
    }
    let unknown: Vec<i64> = unknown.into_iter().collect();
    let ids: BTreeSet<&str> = claims.iter().map(|claim| claim.id.as_str()).collect();
    let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
    let seen = pass.log.store.snapshot(pass.deadline, "audit.verify.witness", async |connection| {
        let living: Vec<i64> = subjects::table
            .filter(subjects::subject_id.eq_any(&unknown))
            .select(subjects::subject_id)
            .load(connection)
            .await?;
        let mut seen = Seen { living: living.into_iter().collect(), ..Seen::default() };
        if !ids.is_empty() {
            seen.digests = (pass.digests)(connection, &ids).await?;
            let is_there = |claim: &&Claim| seen.digests.get(&claim.id) == Some(&claim.digest);
            let gone: BTreeSet<&str> =
                claims.iter().filter(|claim| !is_there(claim)).map(|claim| claim.id.as_str()).collect();
            seen.removed = removed(connection, pass.log.keyring.own()?, &gone).await?;
        }
        let gone: Vec<i64> = unknown.iter().filter(|person| !seen.living.contains(person)).copied().collect();
        if !gone.is_empty() {
            seen.erased = erased(connection, pass.log.keyring.own()?, &gone).await?;
        }
        Ok(seen)
    });
    let seen = seen.await?;
    for (person, position) in persons.iter().filter(|(person, _)| unknown.binary_search(person).is_ok()) {
        if seen.living.contains(person) {
            continue;
        }
        findings.gone.insert(*person);
        if !seen.erased.contains(person) {
            let expected =
                "a person of the keyring, or the entry and the tombstone of an erasure, with one certificate";
            findings.add((stream, *position), "subjects", expected, format!("neither of {person}"));
        }
    }
    claims.iter().for_each(|claim| compare(claim, &seen, findings));
    let mut living = pass.living.lock().unwrap_or_else(PoisonError::into_inner);
    if living.len().saturating_add(seen.living.len()) > REMEMBERED {
        living.clear();
    }
    living.extend(seen.living);
    Ok(())
}

fn compare(claim: &Claim, seen: &Seen, findings: &mut Findings) {
    // The rows of somebody who was erased went with them, or are evidence without what was sealed.
    if !seen.living.contains(&claim.subject) {
        return;
    }
    let there = seen.digests.get(&claim.id);
    // An id is free again once its record was removed: what was recorded before has gone with it.
    let removed = seen.removed.get(&claim.id).is_some_and(|at| claim.recorded_at <= *at);
    if there != Some(&claim.digest) && !removed {
        let found = there.map_or("nothing", String::as_str);
        findings.add(claim.place, "consent_records", claim.digest.as_str(), found);
    }
}

/// Who of these was erased: a tombstone says so, and an entry that a daemon has made, which may still be on its way. The entry
/// bears the digest of the certificate: an erasure that was refused or only counted has none, and a tombstone that was changed
/// has another.
async fn erased(connection: &mut Connection, own: &Deployment, gone: &[i64]) -> Result<HashSet<i64>> {
    let tombstones: Vec<Tombstone> = subject_erasures::table
        .filter(subject_erasures::subject_id.eq_any(gone))
        .select(Tombstone::as_select())
        .load(connection)
        .await?;
    let ids: Vec<&str> = tombstones.iter().map(|tombstone| tombstone.entry_id.as_str()).collect();
    let entered: Vec<Erasure> = audit_logs::table
        .filter(audit_logs::id.eq_any(&ids))
        .filter(audit_logs::action.eq(ERASURE))
        .filter(audit_logs::outcome.eq("success"))
        .filter(sql::<Bool>("labels ? 'sidekeep.method'"))
        .select((
            audit_logs::id,
            audit_logs::subject_id,
            sql::<Nullable<Text>>("labels ->> 'sidekeep.row_sha256'"),
        ))
        .load(connection)
        .await?;
    let mut told: HashSet<Erasure> = entered.into_iter().collect();
    if told.len() < tombstones.len() {
        let staged = staged::genuine(connection, own, ERASURE).await?;
        told.extend(staged.into_iter().map(|entry| {
            let digest = entry.labels.as_ref().and_then(Labels::digest).map(str::to_owned);
            (entry.id, entry.subject_id, digest)
        }));
    }
    let is_told = |tombstone: Tombstone| {
        let person = tombstone.subject_id;
        let digest = tombstone.digest()?;
        told.contains(&(tombstone.entry_id, Some(person), Some(digest))).then_some(person)
    };
    Ok(tombstones.into_iter().filter_map(is_told).collect())
}

/// What the entry of an erasure says: its id, whom it concerns, and the digest of the certificate.
type Erasure = (String, Option<i64>, Option<String>);

/// What an erasure leaves.
#[derive(Queryable, Selectable)]
#[diesel(table_name = subject_erasures, check_for_backend(diesel::pg::Pg))]
struct Tombstone {
    subject_id: i64,
    #[diesel(deserialize_as = AnyTime)]
    erased_at: DateTime<Utc>,
    reason: String,
    entry_id: String,
    certificate_id: String,
    certificate: Value,
}

impl Tombstone {
    /// The SHA-256 of what its certificate says; nothing where the certificate is not that of these columns.
    fn digest(&self) -> Option<String> {
        let body = self.certificate.get("body")?;
        let at = Timestamp::from(self.erased_at).to_string();
        let columns = [
            ("id", &self.certificate_id),
            ("reason", &self.reason),
            ("entry_id", &self.entry_id),
            ("erased_at", &at),
        ];
        let agree = columns
            .iter()
            .all(|(name, column)| body.get(name).and_then(Value::as_str) == Some(column.as_str()));
        agree.then(|| jcs(body)).flatten().map(|canonical| Hash::of(&[&canonical]).hex())
    }
}

/// Which of these rows were removed by a daemon, as the log says, and when last. An entry that is still on its way was staged
/// by the transaction that removed the row.
async fn removed(
    connection: &mut Connection,
    own: &Deployment,
    gone: &BTreeSet<&str>,
) -> Result<HashMap<String, DateTime<Utc>>> {
    if gone.is_empty() {
        return Ok(HashMap::new());
    }
    let removals: Vec<(Option<String>, AnyTime)> = audit_logs::table
        .filter(audit_logs::resource_id.eq_any(gone))
        .filter(audit_logs::resource_type.eq(CONSENT))
        .filter(audit_logs::action.eq_any(REMOVALS))
        // What only a daemon writes.
        .filter(sql::<Bool>("labels ? 'sidekeep.method'"))
        .order(audit_logs::recorded_at)
        .select((audit_logs::resource_id, audit_logs::recorded_at))
        .load(connection)
        .await?;
    let mut removed: HashMap<String, DateTime<Utc>> =
        removals.into_iter().filter_map(|(id, at)| Some((id?, at.into()))).collect();
    for action in REMOVALS {
        let staged = staged::genuine(connection, own, action).await?;
        let consents = staged.into_iter().filter(|entry| entry.resource_type.as_deref() == Some(CONSENT));
        let ids = consents.filter_map(|entry| entry.resource_id);
        removed.extend(ids.map(|id| (id, DateTime::<Utc>::MAX_UTC)));
    }
    Ok(removed)
}
