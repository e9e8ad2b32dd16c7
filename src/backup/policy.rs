//! How long dumps are kept, and how far that is so, as the database knows it: whoever makes dumps says so there, and a
//! certificate is dated by it, whichever daemon writes it. The only writer of `backup_policy`.
//!
//! Also which dump is being made: a run that was killed has left something under that name, and the next one clears it.

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::prelude::{OptionalExtension, QueryDsl};
use diesel::sql_types::{Int4, Int8, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use crate::config::{Config, Rhythm};
use crate::error::{Error, Result};
use crate::store::schema::backup_policy;
use crate::store::{Deadline, Store};

const BEGIN: &str = "INSERT INTO sidekeep.backup_policy \
        (daily, weekly, monthly, physical_seconds, every_seconds, drill_seconds, making, at) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, now()) ON CONFLICT (one) DO UPDATE SET daily = EXCLUDED.daily, \
    weekly = EXCLUDED.weekly, monthly = EXCLUDED.monthly, physical_seconds = EXCLUDED.physical_seconds, \
    every_seconds = EXCLUDED.every_seconds, drill_seconds = EXCLUDED.drill_seconds, making = EXCLUDED.making";
const END: &str = "UPDATE sidekeep.backup_policy SET making = NULL, oldest_at = $1, proved_at = $2, destination = $3, at = now()";
const PROVED: &str = "UPDATE sidekeep.backup_policy SET proved_at = greatest(proved_at, $1)";
/// Of the erasures whose certificate says that dumps from before are gone by now, when the latest was.
const PROMISED: &str = "(SELECT max(erased_at) FROM sidekeep.subject_erasures \
    WHERE certificate #>> '{body,backups_gone_after}' ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}$' \
    AND certificate #>> '{body,backups_gone_after}' < to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD'))";

/// Says how long the dumps that this daemon makes are kept, and that it makes this one now. From here on an erasure's
/// certificate tells of it. Answers the one that a run before had begun and not ended.
///
/// # Errors
/// The store's.
pub async fn begin(
    store: &Store,
    config: &Config,
    (name, at): (&str, DateTime<Utc>),
    deadline: &Deadline,
) -> Result<Option<String>> {
    let keep = config.backup.keep;
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let physical = config.backup.physical_retention.map(|period| period.duration().as_secs());
    let physical = physical.and_then(|seconds| i64::try_from(seconds).ok());
    let Rhythm { backup, drill } = Rhythm::of(&config.jobs, at);
    store
        .transact(deadline, "backup.policy.begin", async |tx| {
            let before = backup_policy::table.select(backup_policy::making).for_update();
            let before: Option<Option<String>> = before.first(tx).await.optional()?;
            diesel::sql_query(BEGIN)
                .bind::<Int4, _>(count(keep.daily))
                .bind::<Int4, _>(count(keep.weekly))
                .bind::<Int4, _>(count(keep.monthly))
                .bind::<Nullable<Int8>, _>(physical)
                .bind::<Int8, _>(backup.num_seconds().max(1))
                .bind::<Int8, _>(drill.num_seconds().max(1))
                .bind::<Text, _>(name)
                .execute(tx)
                .await?;
            Ok(before.flatten())
        })
        .await
}

/// Where the last dump was made to; nothing before the first.
///
/// # Errors
/// The store's.
pub async fn destination(store: &Store, deadline: &Deadline) -> Result<Option<String>> {
    let found = store.single(deadline, "backup.policy.destination", async |connection| {
        let destination = backup_policy::table.select(backup_policy::destination);
        Ok(destination.first::<Option<String>>(connection).await.optional()?.flatten())
    });
    found.await
}

/// Fails where another run has begun since: what this one has written may be cleared by now.
///
/// # Errors
/// [`Error::Unavailable`]; the store's.
pub async fn still_mine(store: &Store, name: &str, deadline: &Deadline) -> Result<()> {
    let making = store.single(deadline, "backup.policy.making", async |connection| {
        let making = backup_policy::table.select(backup_policy::making);
        Ok(making.first::<Option<String>>(connection).await.optional()?.flatten())
    });
    match making.await? {
        Some(making) if making == name => Ok(()),
        _ => Err(Error::unavailable("another run has begun a dump since; this one is given up")),
    }
}

/// Which dumps there are, of this run's end, and where: the snapshot of the oldest, and of the newest that was proved.
///
/// # Errors
/// The store's.
pub async fn end(
    store: &Store,
    destination: &str,
    (oldest, proved): (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    deadline: &Deadline,
) -> Result<()> {
    store
        .transact(deadline, "backup.policy.end", async |tx| {
            let end = diesel::sql_query(END).bind::<Nullable<Timestamptz>, _>(oldest);
            let end = end.bind::<Nullable<Timestamptz>, _>(proved).bind::<Text, _>(destination);
            end.execute(tx).await?;
            Ok(())
        })
        .await
}

/// The dump of this snapshot was proved.
///
/// # Errors
/// The store's.
pub async fn proved(store: &Store, snapshot: DateTime<Utc>, deadline: &Deadline) -> Result<()> {
    store
        .transact(deadline, "backup.policy.proved", async |tx| {
            diesel::sql_query(PROVED).bind::<Timestamptz, _>(snapshot).execute(tx).await?;
            Ok(())
        })
        .await
}

/// No dump of a snapshot from before this time may be left, by the certificates that were given; nothing where none is due.
///
/// # Errors
/// The store's.
pub async fn promised(store: &Store, deadline: &Deadline) -> Result<Option<DateTime<Utc>>> {
    store
        .single(deadline, "backup.policy.promised", async |connection| {
            Ok(diesel::select(sql::<Nullable<Timestamptz>>(PROMISED)).get_result(connection).await?)
        })
        .await
}
