//! Consents whose rows no entry tells of: whoever owns the tables can plant one. Goes through the rows in the order of their ids, a
//! page at a time, and asks for the entries of each page; the other way, from the entries to the rows, is `witness`.
//!
//! A row and its staged entry are committed together, and a stream takes entries in with one statement: a snapshot has the entry
//! in one of the two places, unless it went with its month.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Array, Int8, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::ConsentRow;
use super::findings::Findings;
use super::pass::Pass;
use super::witness::REMOVALS;
use crate::audit::entry::Labels;
use crate::audit::staged;
use crate::audit::tree::HEADS;
use crate::error::Result;
use crate::keyring::Deployment;
use crate::store::Connection;

/// What the entry of a consent is called.
const RECORDING: &str = "consent.record";
/// Around the time of its row an entry is nearly always: then one month is looked into.
const NEAR: &str = "AND l.recorded_at >= k.recorded_at - interval '1 hour' AND l.recorded_at < k.recorded_at + interval '1 day'";
/// What was recorded before may have its entry in a month that was dropped: an entry is no older than its row, but for clocks that
/// differ after a fail-over. What stands in the table of a stream that nobody has leased counts for nothing.
const DROPPED: &str = "SELECT (max(d.month) + interval '1 month') AT TIME ZONE 'UTC' + interval '1 hour' AS until \
    FROM sidekeep.audit_dropped d WHERE d.stream IN (SELECT s.stream FROM sidekeep.audit_streams s)";

/// Those of these ids of which an entry of somebody living says what their row has to be, and no later one that it was removed: that
/// the row is another one is told with the entry.
const TOLD: &str = "SELECT k.id FROM unnest($1::text[]) AS k (id) WHERE EXISTS (SELECT FROM sidekeep.audit_logs l \
    WHERE l.resource_id = k.id COLLATE \"C\" AND l.resource_type = 'consent' AND l.labels ? 'sidekeep.row_sha256' \
    AND EXISTS (SELECT FROM sidekeep.subjects s WHERE s.subject_id = l.subject_id) \
    AND NOT EXISTS (SELECT FROM sidekeep.audit_logs r WHERE r.resource_id = l.resource_id AND r.resource_type = 'consent' \
        AND r.action = ANY($2) AND r.labels ? 'sidekeep.method' AND r.recorded_at >= l.recorded_at))";

#[derive(QueryableByName)]
struct Named {
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(QueryableByName)]
struct Gone {
    #[diesel(sql_type = Nullable<Timestamptz>)]
    until: Option<DateTime<Utc>>,
}

impl Pass<'_> {
    /// Looks for consents of which the log knows nothing, where everything is looked at. Memory does not grow with their number.
    pub(super) async fn unentered(&self, everything: bool) -> Result<Findings> {
        let mut findings = Findings::default();
        if !everything {
            return Ok(findings);
        }
        let own = self.log.keyring.own()?;
        let mut last = String::new();
        loop {
            let page = self.log.store.snapshot(self.deadline, "audit.verify.consents", async |connection| {
                let rows = (self.consents.after)(connection, &last).await?;
                let end = rows.last().map(|row| row.id.clone());
                Ok((end, without(connection, own, rows).await?))
            });
            let (end, missing) = page.await?;
            for ConsentRow { id, subject, .. } in self.still(own, missing).await? {
                let found = format!("no entry of {id}, of {subject}");
                findings.add((HEADS, 0), "consent_records", "the entry of each row", found);
            }
            let Some(end) = end else { return Ok(findings) };
            last = end;
        }
    }

    /// Those of them that are still there, and without an entry: a month may have gone between two questions of one snapshot.
    async fn still(&self, own: &Deployment, missing: Vec<ConsentRow>) -> Result<Vec<ConsentRow>> {
        if missing.is_empty() {
            return Ok(missing);
        }
        let ids: Vec<String> = missing.iter().map(|row| row.id.clone()).collect();
        let again = self.log.store.snapshot(self.deadline, "audit.verify.consents", async |connection| {
            let there = (self.consents.digests)(connection, &ids).await?;
            let rows =
                missing.iter().filter(|row| there.get(&row.id) == Some(&row.digest)).cloned().collect();
            without(connection, own, rows).await
        });
        again.await
    }
}

/// The rows that no entry tells of, of this snapshot.
async fn without(
    connection: &mut Connection,
    own: &Deployment,
    mut rows: Vec<ConsentRow>,
) -> Result<Vec<ConsentRow>> {
    for within in [NEAR, ""] {
        if rows.is_empty() {
            return Ok(rows);
        }
        let missing = unfound(connection, &rows, within).await?;
        rows.retain(|row| missing.contains(&row.id));
    }
    if rows.is_empty() {
        return Ok(rows);
    }
    let Gone { until } = diesel::sql_query(DROPPED).get_result(connection).await?;
    rows.retain(|row| until.is_none_or(|until| row.recorded_at >= until));
    let staged = staged::genuine(connection, own, RECORDING).await?;
    rows.retain(|row| {
        !staged.iter().any(|entry| {
            entry.resource_id.as_deref() == Some(&row.id)
                && entry.subject_id == Some(row.subject)
                && entry.labels.as_ref().and_then(Labels::digest) == Some(&row.digest)
        })
    });
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let told = diesel::sql_query(TOLD).bind::<Array<Text>, _>(ids).bind::<Array<Text>, _>(&REMOVALS[..]);
    let told: Vec<Named> = told.load(connection).await?;
    rows.retain(|row| !told.iter().any(|told| told.id == row.id));
    Ok(rows)
}

/// The ids of the rows that no entry of the log tells of, among those within. Each is asked for by itself, along the index.
async fn unfound(connection: &mut Connection, rows: &[ConsentRow], within: &str) -> Result<HashSet<String>> {
    let query = format!(
        "SELECT k.id FROM unnest($1::text[], $2::bigint[], $3::text[], $4::timestamptz[]) \
            AS k (id, subject_id, digest, recorded_at) \
         LEFT JOIN LATERAL (SELECT true AS there FROM sidekeep.audit_logs l WHERE l.resource_id = k.id COLLATE \"C\" \
            AND l.resource_type = 'consent' AND l.subject_id = k.subject_id \
            AND l.labels ->> 'sidekeep.row_sha256' = k.digest {within} LIMIT 1) AS e ON true WHERE e.there IS NULL"
    );
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let subjects: Vec<i64> = rows.iter().map(|row| row.subject).collect();
    let digests: Vec<&str> = rows.iter().map(|row| row.digest.as_str()).collect();
    let times: Vec<DateTime<Utc>> = rows.iter().map(|row| row.recorded_at).collect();
    let missing: Vec<Named> = diesel::sql_query(query)
        .bind::<Array<Text>, _>(ids)
        .bind::<Array<Int8>, _>(subjects)
        .bind::<Array<Text>, _>(digests)
        .bind::<Array<Timestamptz>, _>(times)
        .load(connection)
        .await?;
    Ok(missing.into_iter().map(|row| row.id).collect())
}
