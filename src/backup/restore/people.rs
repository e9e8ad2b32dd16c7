//! Who is in the dump: those with a key live, those with a tombstone are erased again, and those with neither stop the restore.

use std::collections::{HashMap, HashSet};

use super::super::keyring::{Lines, Ring, SHARDS};
use super::super::rows::{ROWS, populate, remembered, rows_of};
use super::target::Ready;
use crate::audit::restored;
use crate::error::{Error, Result};
use crate::records::Records;
use crate::store::Deadline;
use crate::subjects::erase::{deletions, naming};

/// How many persons are deleted in one statement, which reads each table from end to end.
const PERSONS: usize = 50_000;

/// Who is who.
pub(super) struct Sorted {
    pub(super) erased_again: i64,
    pub(super) lost: i64,
}

impl Ready<'_> {
    /// Puts the persons of the keyring's backup into their table.
    pub(super) async fn bring_people(&self, ring: &Ring, deadline: &Deadline) -> Result<()> {
        // A user id was free again only once its person was erased, though the backup was cut off before it could tell.
        const ERASED: &str = "DELETE FROM sidekeep.subjects s USING sidekeep.subjects n \
            WHERE n.user_id = s.user_id AND (n.created_at, n.subject_id) > (s.created_at, s.subject_id)";
        for number in 0..SHARDS {
            let Some((_, plain)) = ring.shard(number).await? else { continue };
            let mut lines = Lines::of(&plain)?;
            loop {
                let some = lines.next(ROWS)?;
                if some.is_empty() {
                    break;
                }
                for table in ["subjects", "subject_refusals"] {
                    if let Some(rows) = rows_of(&some, table) {
                        self.owned().rows(&populate(table, ""), &[&rows], deadline).await?;
                    }
                }
            }
        }
        self.owned().rows(ERASED, &[], deadline).await?;
        Ok(())
    }

    /// Deletes the rows of everybody who has no key any more.
    pub(super) async fn erase_again(
        &self,
        ring: &Ring,
        accept_lost: i64,
        deadline: &Deadline,
    ) -> Result<Sorted> {
        let mut buried: HashMap<i64, bool> = HashMap::new();
        for number in 0..SHARDS {
            let Some((_, plain)) = ring.shard(number).await? else { continue };
            let mut lines = Lines::of(&plain)?;
            loop {
                let some = lines.next(ROWS)?;
                if some.is_empty() {
                    break;
                }
                let erased = remembered(&some)?;
                buried.extend(erased.iter().map(|one| (one.subject_id, one.keeps_consents())));
            }
        }
        let known: HashSet<i64> = self
            .owned()
            .column("SELECT subject_id FROM sidekeep.subject_erasures", &[], deadline)
            .await?
            .into_iter()
            .collect();
        let (living, outliving) = naming();
        let (with_rows, named) =
            (self.strays(&living, deadline).await?, self.strays(&outliving, deadline).await?);
        let everybody: HashSet<i64> = with_rows.iter().chain(&named).copied().collect();
        let lost: Vec<i64> =
            everybody.iter().filter(|id| !buried.contains_key(id) && !known.contains(id)).copied().collect();
        let count = i64::try_from(lost.len()).unwrap_or(i64::MAX);
        if count != accept_lost {
            return Err(Error::conflict(format!(
                "{count} person(s) of the dump have neither a key nor a tombstone in the keyring's backup, and --accept-lost says \
                 {accept_lost}: what they left could never be read again. Look for a newer keyring's backup; or restore again, \
                 with --accept-lost {count}, after DROP SCHEMA sidekeep CASCADE"
            )));
        }
        for keep in [false, true] {
            let gone: Vec<i64> = with_rows
                .iter()
                .filter(|id| buried.get(id).copied().unwrap_or_default() == keep)
                .copied()
                .collect();
            for some in gone.chunks(PERSONS) {
                for statement in deletions(keep) {
                    self.owned().rows(&statement, &[&some], deadline).await?;
                }
            }
        }
        let again = everybody.iter().filter(|id| buried.contains_key(id) && !known.contains(id)).count();
        Ok(Sorted { erased_again: i64::try_from(again).unwrap_or(i64::MAX), lost: count })
    }

    /// Whom these tables name, and who has no key.
    async fn strays(&self, named: &[(&str, &str)], deadline: &Deadline) -> Result<Vec<i64>> {
        let each = |(table, column): &(&str, &str)| {
            format!("SELECT {column} AS subject_id FROM sidekeep.{table} WHERE {column} IS NOT NULL")
        };
        let all = named.iter().map(each).collect::<Vec<_>>().join(" UNION ALL ");
        let query = format!(
            "SELECT DISTINCT n.subject_id FROM ({all}) n \
             WHERE NOT EXISTS (SELECT FROM sidekeep.subjects s WHERE s.subject_id = n.subject_id)"
        );
        self.owned().column(&query, &[], deadline).await
    }

    /// Tombstones and holds; and how far the backup is, as that of this database from now on.
    pub(super) async fn adopt(&self, ring: &Ring, deadline: &Deadline) -> Result<()> {
        const SHARD: &str = "INSERT INTO sidekeep.keyring_shards (shard, generation, raised_at) VALUES ($1, $2, clock_timestamp()) \
            ON CONFLICT (shard) DO UPDATE SET generation = greatest(excluded.generation, keyring_shards.generation), \
            stored = 0, raised_at = excluded.raised_at";
        const WRITE: &str =
            "INSERT INTO sidekeep.keyring_writes (id, object) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        const WHOLE: &str = "WITH gone AS (DELETE FROM sidekeep.keyring_backups) SELECT 1";
        const AGAIN: &str =
            "INSERT INTO sidekeep.keyring_backups (generation, stored, destination) VALUES ($1, 0, $2)";
        for number in 0..SHARDS {
            let Some((header, plain)) = ring.shard(number).await? else {
                let none = "INSERT INTO sidekeep.keyring_shards (shard) VALUES ($1) ON CONFLICT DO NOTHING";
                self.owned().rows(none, &[&number], deadline).await?;
                continue;
            };
            let next = header.generation.saturating_add(1);
            self.owned().rows(SHARD, &[&number, &next], deadline).await?;
            let name = super::super::keyring::shard_name(number);
            self.owned().rows(WRITE, &[&header.write, &name], deadline).await?;
            let mut lines = Lines::of(&plain)?;
            loop {
                let some = lines.next(ROWS)?;
                if some.is_empty() {
                    break;
                }
                for table in ["subject_erasures", "legal_holds"] {
                    if let Some(rows) = rows_of(&some, table) {
                        let insert = populate(table, " ON CONFLICT DO NOTHING");
                        self.owned().rows(&insert, &[&rows], deadline).await?;
                    }
                }
            }
        }
        let (generation, manifest) =
            (ring.manifest.generation.saturating_add(1), super::super::keyring::MANIFEST);
        self.owned().rows(WRITE, &[&ring.manifest.write, &manifest], deadline).await?;
        self.owned().rows(WHOLE, &[], deadline).await?;
        self.owned().rows(AGAIN, &[&generation, &ring.url()], deadline).await?;
        Ok(())
    }

    /// How many persons live, and how many holds are open.
    pub(super) async fn counts(&self, deadline: &Deadline) -> Result<(i64, i64)> {
        let persons = "SELECT count(*) FROM sidekeep.subjects WHERE subject_id <> 0";
        let holds = "SELECT count(*) FROM sidekeep.legal_holds WHERE released_at IS NULL";
        let owned = self.owned();
        Ok((owned.one(persons, &[], deadline).await?, owned.one(holds, &[], deadline).await?))
    }
}

/// Stages the entries of erasures that the log lacks.
pub(super) async fn stage_missing(
    records: &Records,
    ring: &Ring,
    from: &str,
    deadline: &Deadline,
) -> Result<i64> {
    let own = records.keyring().own()?;
    let mut count = 0_i64;
    for number in 0..SHARDS {
        let Some((_, plain)) = ring.shard(number).await? else { continue };
        let mut lines = Lines::of(&plain)?;
        loop {
            let some = lines.next(ROWS)?;
            if some.is_empty() {
                break;
            }
            let erased = remembered(&some)?;
            if erased.is_empty() {
                continue;
            }
            let staged = records.store().transact(deadline, "restore.stage", async |tx| {
                restored::stage_missing(tx, own, &erased, from).await
            });
            count = count.saturating_add(staged.await?);
        }
    }
    Ok(count)
}
