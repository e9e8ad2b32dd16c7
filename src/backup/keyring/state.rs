//! What the database knows of the keyring's backup: which shards are to be written, what was begun, and what is stored.

use diesel::QueryableByName;
use diesel::prelude::{ExpressionMethods, QueryDsl};
use diesel::sql_types::{Array, Double, Int2, Int8, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Writer;
use super::compare::{Told, later};
use super::content::Content;
use super::kept::{MANIFEST, shard_name};
use super::manifest::Kept;
use crate::error::Result;
use crate::store::schema::{keyring_backups, keyring_shards};
use crate::store::{Connection, Deadline, Store};
use crate::values::RecordId;

/// Those that are behind, have a mark, or are sealed by another key-encryption key than new ones are.
const WANTED: &str = "SELECT k.shard FROM sidekeep.keyring_shards k \
    WHERE k.generation > k.stored OR EXISTS (SELECT FROM sidekeep.keyring_marks m WHERE m.shard = k.shard) \
    OR (k.stored > 0 AND k.sealed_under IS DISTINCT FROM $1) ORDER BY k.raised_at NULLS LAST, k.shard";
/// Waits for those who rely on the mark.
const ALONE: &str = "SELECT pg_advisory_xact_lock(hashtext('sidekeep.keyring_marks'), $1)";
const UNMARK: &str = "WITH gone AS (DELETE FROM sidekeep.keyring_marks WHERE shard = $1 RETURNING shard) \
    UPDATE sidekeep.keyring_shards k SET generation = k.generation + 1 FROM gone WHERE k.shard = gone.shard";
const BEGIN: &str = "INSERT INTO sidekeep.keyring_writes (id, object) VALUES ($1, $2) ON CONFLICT DO NOTHING";
/// Answers the generation that the database has now.
const STORED: &str = "UPDATE sidekeep.keyring_shards SET stored = $2, stored_at = clock_timestamp(), sealed_under = $3, kek_ids = $4, \
    raised_at = CASE WHEN generation = $2 THEN NULL ELSE raised_at END WHERE shard = $1 RETURNING generation";
const COUNT: &str = "UPDATE sidekeep.keyring_backups SET generation = generation + 1";
/// What was replaced longer than a week ago: whoever has stalled so long finds another version of the object, and a destination that was
/// away so long is another one.
const FORGET: &str = "DELETE FROM sidekeep.keyring_writes WHERE object = $1 AND id <> $2 AND begun_at < \
    (SELECT max(n.begun_at) FROM sidekeep.keyring_writes n WHERE n.object = $1 AND n.begun_at < now() - interval '7 days')";
const STORED_MANIFEST: &str = "UPDATE sidekeep.keyring_backups SET stored = greatest(stored, $1), stored_at = clock_timestamp() \
    RETURNING generation";
const ADOPT: &str = "WITH was AS (SELECT destination FROM sidekeep.keyring_backups FOR UPDATE) \
    UPDATE sidekeep.keyring_backups b SET destination = $1, stored = 0 FROM was \
    WHERE was.destination IS DISTINCT FROM $1 RETURNING was.destination";
const ANEW: &str = "UPDATE sidekeep.keyring_shards SET stored = 0, kek_ids = '{}', sealed_under = NULL \
    WHERE stored > 0";
const LATE: &str = "SELECT extract(epoch FROM clock_timestamp() - min(raised_at))::float8 AS seconds, count(raised_at) AS shards \
    FROM sidekeep.keyring_shards WHERE generation > stored";
const NEEDED: &str = "SELECT kek_id, count(*) AS shards FROM sidekeep.keyring_shards, \
    LATERAL (SELECT unnest(kek_ids) UNION SELECT sealed_under) AS needed (kek_id) \
    WHERE stored > 0 AND kek_id IS NOT NULL GROUP BY kek_id";

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Int2)]
    shard: i16,
}

#[derive(QueryableByName)]
struct Before {
    #[diesel(sql_type = Nullable<Text>)]
    destination: Option<String>,
}

#[derive(QueryableByName)]
struct Generation {
    #[diesel(sql_type = Int8)]
    generation: i64,
}

/// How late the backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, QueryableByName)]
pub struct Late {
    /// How long the oldest erasure, hold or restriction has not been in it; null where all are.
    #[diesel(sql_type = Nullable<Double>)]
    pub seconds: Option<f64>,
    /// How many shards wait for such a thing.
    #[diesel(sql_type = Int8)]
    pub shards: i64,
}

/// How many shards of the backup open with a key-encryption key alone.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct Needed {
    /// Its id.
    #[diesel(sql_type = Text)]
    pub kek_id: String,
    /// How many.
    #[diesel(sql_type = Int8)]
    pub shards: i64,
}

/// The generation of the backup as a whole. Read in a snapshot, a stored manifest of this or a later generation covers what the
/// snapshot sees only where [`super::bring_up_to_date`] was called after it: that one's answer is the number to keep.
///
/// # Errors
/// The database's.
pub async fn generation(connection: &mut Connection) -> Result<i64> {
    Ok(keyring_backups::table.select(keyring_backups::generation).first(connection).await?)
}

/// How late the backup is.
///
/// # Errors
/// The store's.
pub async fn late(store: &Store, deadline: &Deadline) -> Result<Late> {
    let found = store.single(deadline, "keyring_backup.late", async |connection| {
        Ok(diesel::sql_query(LATE).get_result(connection).await?)
    });
    found.await
}

/// Which key-encryption keys the backup needs.
///
/// # Errors
/// The store's.
pub async fn needed(store: &Store, deadline: &Deadline) -> Result<Vec<Needed>> {
    let found = store.single(deadline, "keyring_backup.needed", async |connection| {
        Ok(diesel::sql_query(NEEDED).load(connection).await?)
    });
    found.await
}

impl Writer<'_> {
    fn store(&self) -> &Store {
        self.records.store()
    }

    /// In another destination than before, everything is to be written.
    pub(super) async fn adopt(&self) -> Result<()> {
        let adopted = self.store().transact(self.deadline, "keyring_backup.adopt", async |tx| {
            let adopt = diesel::sql_query(ADOPT).bind::<Text, _>(self.objects.url());
            let before: Vec<Before> = adopt.load(tx).await?;
            if !before.is_empty() {
                diesel::sql_query(ANEW).execute(tx).await?;
            }
            Ok(before.into_iter().find_map(|before| before.destination))
        });
        if let Some(before) = adopted.await? {
            tracing::warn!(
                before,
                destination = self.objects.url(),
                "the keyring is backed up to another destination than before; remove what is left at the old one"
            );
        }
        Ok(())
    }

    /// The shards that are to be written, those that wait longest for an erasure first.
    pub(super) async fn wanted(&self) -> Result<Vec<i16>> {
        let keks = self.records.keyring().keks();
        let sealing = keks.sealing()?.id();
        let found = self.store().single(self.deadline, "keyring_backup.wanted", async |connection| {
            let rows: Vec<Number> =
                diesel::sql_query(WANTED).bind::<Text, _>(sealing).load(connection).await?;
            Ok(rows.into_iter().map(|row| row.shard).collect())
        });
        found.await
    }

    /// The shards that the database believes to be stored, each with its generation.
    pub(super) async fn believed(&self) -> Result<Vec<(i16, i64)>> {
        let found = self.store().single(self.deadline, "keyring_backup.believed", async |connection| {
            let stored = keyring_shards::table.filter(keyring_shards::stored.gt(0));
            Ok(stored.select((keyring_shards::shard, keyring_shards::stored)).load(connection).await?)
        });
        found.await
    }

    /// The generation of the manifest that the database believes to be stored.
    pub(super) async fn believed_manifest(&self) -> Result<i64> {
        let found = self.store().single(self.deadline, "keyring_backup.believed", async |connection| {
            Ok(keyring_backups::table.select(keyring_backups::stored).first(connection).await?)
        });
        found.await
    }

    /// Whether an object tells of something that this database has not done.
    pub(super) async fn is_later(&self, told: Told) -> Result<bool> {
        let told = [told];
        let found = self.store().single(self.deadline, "keyring_backup.begun", async |connection| {
            Ok(!later(connection, &told).await?.is_empty())
        });
        found.await
    }

    /// Begins to write a shard: raises it where there is a mark.
    pub(super) async fn begin(&self, shard: i16, write: &RecordId) -> Result<()> {
        let name = shard_name(shard);
        let begun = self.store().transact(self.deadline, "keyring_backup.begin", async |tx| {
            diesel::sql_query(ALONE).bind::<diesel::sql_types::Int4, _>(i32::from(shard)).execute(tx).await?;
            diesel::sql_query(UNMARK).bind::<Int2, _>(shard).execute(tx).await?;
            let begin = diesel::sql_query(BEGIN).bind::<Text, _>(write.as_str());
            begin.bind::<Text, _>(&name).execute(tx).await?;
            Ok(())
        });
        begun.await
    }

    /// Begins to write a manifest.
    pub(super) async fn begin_manifest(&self, write: &RecordId) -> Result<()> {
        let begun = self.store().autocommit(self.deadline, "keyring_backup.begin", async |connection| {
            let begin = diesel::sql_query(BEGIN).bind::<Text, _>(write.as_str());
            begin.bind::<Text, _>(MANIFEST).execute(connection).await?;
            Ok(())
        });
        begun.await
    }

    /// A shard as the database has it: its generation and what is in it, of one snapshot.
    pub(super) async fn content(&self, shard: i16) -> Result<(i64, Content)> {
        let read = self.store().snapshot(self.deadline, "keyring_backup.read", async |connection| {
            let row = keyring_shards::table.find(shard).select(keyring_shards::generation);
            let generation: i64 = row.first(connection).await?;
            Ok((generation, Content::read(connection, shard).await?))
        });
        read.await
    }

    /// Notes that a generation of a shard is stored. Answers which one the database has now.
    pub(super) async fn settle(
        &self,
        (shard, generation): (i16, i64),
        write: &RecordId,
        (sealed_under, kek_ids): (&str, &[String]),
    ) -> Result<i64> {
        let name = shard_name(shard);
        let settled = self.store().transact(self.deadline, "keyring_backup.settle", async |tx| {
            let stored = diesel::sql_query(STORED).bind::<Int2, _>(shard).bind::<Int8, _>(generation);
            let stored = stored.bind::<Text, _>(sealed_under).bind::<Array<Text>, _>(kek_ids);
            let now: Generation = stored.get_result(tx).await?;
            diesel::sql_query(COUNT).execute(tx).await?;
            let forget = diesel::sql_query(FORGET).bind::<Text, _>(&name);
            forget.bind::<Text, _>(write.as_str()).execute(tx).await?;
            Ok(now.generation)
        });
        settled.await
    }

    /// What a manifest is to say: the generation, whether it is stored already, and the shards.
    pub(super) async fn to_tell(&self) -> Result<(i64, bool, Vec<Kept>)> {
        let read =
            self.store().snapshot(self.deadline, "keyring_backup.tell", async |connection| {
                let row =
                    keyring_backups::table.select((keyring_backups::generation, keyring_backups::stored));
                let (generation, stored): (i64, i64) = row.first(connection).await?;
                let rows: Vec<(i16, i64, Option<String>, Vec<String>)> = keyring_shards::table
                    .filter(keyring_shards::stored.gt(0))
                    .order(keyring_shards::shard)
                    .select((
                        keyring_shards::shard,
                        keyring_shards::stored,
                        keyring_shards::sealed_under,
                        keyring_shards::kek_ids,
                    ))
                    .load(connection)
                    .await?;
                let kept =
                    |(shard, generation, sealed_under, kek_ids): (i16, i64, Option<String>, Vec<String>)| {
                        Kept { shard, generation, sealed_under: sealed_under.unwrap_or_default(), kek_ids }
                    };
                Ok((generation, stored >= generation, rows.into_iter().map(kept).collect()))
            });
        read.await
    }

    /// Notes that a manifest is stored. Answers the generation that the database has now.
    pub(super) async fn settle_manifest(&self, generation: i64, write: &RecordId) -> Result<i64> {
        let settled = self.store().transact(self.deadline, "keyring_backup.settle", async |tx| {
            let stored = diesel::sql_query(STORED_MANIFEST).bind::<Int8, _>(generation);
            let now: Generation = stored.get_result(tx).await?;
            let forget = diesel::sql_query(FORGET).bind::<Text, _>(MANIFEST);
            forget.bind::<Text, _>(write.as_str()).execute(tx).await?;
            Ok(now.generation)
        });
        settled.await
    }

    /// The time by PostgreSQL's clock.
    pub(super) async fn now(&self) -> Result<chrono::DateTime<chrono::Utc>> {
        let now = self.store().single(self.deadline, "keyring_backup.now", async |connection| {
            let now = diesel::dsl::sql::<diesel::sql_types::Timestamptz>("clock_timestamp()");
            Ok(diesel::select(now).get_result(connection).await?)
        });
        now.await
    }
}
