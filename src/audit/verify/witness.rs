//! What entries say of rows beside the log: persons, who are in the keyring or erased, and consents, whose rows are as they
//! were when they were recorded.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::PoisonError;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel::sql_types::Bool;
use diesel_async::RunQueryDsl;

use super::findings::Findings;
use super::pass::Pass;
use super::rows::Claim;
use crate::audit::entry::Labels;
use crate::audit::staged;
use crate::error::Result;
use crate::keyring::Deployment;
use crate::store::Connection;
use crate::store::schema::{audit_logs, subject_erasures, subjects};

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
            let expected = "a person of the keyring, or the entry and the tombstone of an erasure";
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

/// Who of these was erased: a tombstone says so, and an entry that a daemon has made, which may still be on its way. Only an
/// erasure that was done has a certificate, whose digest its entry bears; one that was refused or only counted has none.
async fn erased(connection: &mut Connection, own: &Deployment, gone: &[i64]) -> Result<HashSet<i64>> {
    let tombstones: Vec<(i64, String)> = subject_erasures::table
        .filter(subject_erasures::subject_id.eq_any(gone))
        .select((subject_erasures::subject_id, subject_erasures::entry_id))
        .load(connection)
        .await?;
    let ids: Vec<&str> = tombstones.iter().map(|(_, entry)| entry.as_str()).collect();
    let entered: Vec<(String, Option<i64>)> = audit_logs::table
        .filter(audit_logs::id.eq_any(&ids))
        .filter(audit_logs::action.eq(ERASURE))
        .filter(audit_logs::outcome.eq("success"))
        .filter(sql::<Bool>("labels ?& array['sidekeep.method', 'sidekeep.row_sha256']"))
        .select((audit_logs::id, audit_logs::subject_id))
        .load(connection)
        .await?;
    let mut told: HashSet<(String, Option<i64>)> = entered.into_iter().collect();
    if told.len() < tombstones.len() {
        let staged = staged::genuine(connection, own, ERASURE).await?;
        let done = staged.into_iter().filter(|entry| entry.labels.as_ref().is_some_and(Labels::has_digest));
        told.extend(done.map(|entry| (entry.id, entry.subject_id)));
    }
    let is_told = |(person, entry): (i64, String)| told.contains(&(entry, Some(person))).then_some(person);
    Ok(tombstones.into_iter().filter_map(is_told).collect())
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
    let removals: Vec<(Option<String>, DateTime<Utc>)> = audit_logs::table
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
        removals.into_iter().filter_map(|(id, at)| Some((id?, at))).collect();
    for action in REMOVALS {
        let staged = staged::genuine(connection, own, action).await?;
        let consents = staged.into_iter().filter(|entry| entry.resource_type.as_deref() == Some(CONSENT));
        let ids = consents.filter_map(|entry| entry.resource_id);
        removed.extend(ids.map(|id| (id, DateTime::<Utc>::MAX_UTC)));
    }
    Ok(removed)
}
