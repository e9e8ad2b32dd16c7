//! Tombstones that no erasure has left: whoever is restored from a backup is erased again by one.

use diesel::QueryableByName;
use diesel::sql_types::{Int8, Text};
use diesel_async::RunQueryDsl;

use super::findings::Findings;
use super::pass::Pass;
use crate::audit::tree::HEADS;
use crate::error::Result;

/// The two exclude one another.
const LIVING: &str = "SELECT e.subject_id, e.entry_id FROM sidekeep.subject_erasures e \
    JOIN sidekeep.subjects s ON s.subject_id = e.subject_id ORDER BY e.subject_id LIMIT 1000";
/// An entry is in the log no earlier than the erasure, and so in a month that is there, where that of the erasure is.
const UNENTERED: &str = "SELECT e.subject_id, e.entry_id FROM sidekeep.subject_erasures e \
    WHERE e.erased_at >= coalesce((SELECT max(d.month) + interval '1 month' FROM sidekeep.audit_dropped d) AT TIME ZONE 'UTC', '-infinity') \
    AND NOT EXISTS (SELECT FROM sidekeep.audit_staged s WHERE s.id = e.entry_id) \
    AND NOT EXISTS (SELECT FROM sidekeep.audit_logs l WHERE l.id = e.entry_id AND l.subject_id = e.subject_id \
        AND l.action = 'subject.erase') ORDER BY e.subject_id LIMIT 1000";

#[derive(QueryableByName)]
struct Tombstone {
    #[diesel(sql_type = Int8)]
    subject_id: i64,
    #[diesel(sql_type = Text)]
    entry_id: String,
}

impl Pass<'_> {
    /// Looks for tombstones of the living, and, where everything is looked at, for those of which the log knows nothing. One
    /// that was changed is found with the entries of its person.
    pub(super) async fn tombstones(&self, everything: bool, findings: &mut Findings) -> Result<()> {
        let read = self.log.store.snapshot(self.deadline, "audit.verify.tombstones", async |connection| {
            let living: Vec<Tombstone> = diesel::sql_query(LIVING).load(connection).await?;
            let unentered: Vec<Tombstone> = match everything {
                true => diesel::sql_query(UNENTERED).load(connection).await?,
                false => Vec::new(),
            };
            Ok((living, unentered))
        });
        let (living, unentered) = read.await?;
        for Tombstone { subject_id, .. } in living {
            let found = format!("{subject_id} in both");
            findings.add((HEADS, 0), "subject_erasures", "a person who is in the keyring, or erased", found);
        }
        for Tombstone { subject_id, entry_id } in unentered {
            let found = format!("no entry {entry_id} about {subject_id}");
            findings.add((HEADS, 0), "subject_erasures", "the entry of each erasure", found);
        }
        Ok(())
    }
}
