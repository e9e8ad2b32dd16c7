//! How long dumps are kept, as the database knows it: whoever makes dumps says so there, and a certificate is dated by it,
//! whichever daemon writes it. The only writer of `backup_policy`.

use diesel::sql_types::{Int4, Int8, Nullable};
use diesel_async::RunQueryDsl;

use crate::config::Config;
use crate::error::Result;
use crate::store::{Deadline, Store};

const WRITE: &str = "INSERT INTO sidekeep.backup_policy (daily, weekly, monthly, physical_seconds, at) \
    VALUES ($1, $2, $3, $4, now()) ON CONFLICT (one) DO UPDATE SET daily = EXCLUDED.daily, weekly = EXCLUDED.weekly, \
    monthly = EXCLUDED.monthly, physical_seconds = EXCLUDED.physical_seconds, at = EXCLUDED.at";

/// Says how long the dumps that this daemon makes are kept.
///
/// # Errors
/// The store's.
pub async fn write(store: &Store, config: &Config, deadline: &Deadline) -> Result<()> {
    let keep = config.backup.keep;
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let physical = config.backup.physical_retention.map(|period| period.duration().as_secs());
    let physical = physical.and_then(|seconds| i64::try_from(seconds).ok());
    store
        .transact(deadline, "backup.policy", async |tx| {
            diesel::sql_query(WRITE)
                .bind::<Int4, _>(count(keep.daily))
                .bind::<Int4, _>(count(keep.weekly))
                .bind::<Int4, _>(count(keep.monthly))
                .bind::<Nullable<Int8>, _>(physical)
                .execute(tx)
                .await?;
            Ok(())
        })
        .await
}
