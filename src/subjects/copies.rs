//! When the last copy from before an erasure is gone: dumps, as whoever makes them keeps them, and physical copies, as the
//! operator declares.
//!
//! Removes none. What a copy holds of an erased person has no key from the erasure on.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use diesel::prelude::{OptionalExtension, QueryDsl};
use diesel_async::RunQueryDsl;

use super::certificate::UNKNOWN;
use crate::config::{Config, Keep};
use crate::error::Result;
use crate::store::Connection;
use crate::store::schema::backup_policy;

/// What a certificate says of copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copies {
    /// The day after which no dump is left; nothing where none are made.
    pub(super) backups: Option<String>,
    /// The day after which no physical copy is left, or that this is not known.
    pub(super) physical: String,
}

impl Copies {
    /// Of an erasure at this time, as this daemon is configured, and as the one that makes the dumps is.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn of(tx: &mut Connection, config: &Config, at: DateTime<Utc>) -> Result<Self> {
        let policy: Option<(i32, i32, i32, Option<i64>)> = backup_policy::table
            .select((
                backup_policy::daily,
                backup_policy::weekly,
                backup_policy::monthly,
                backup_policy::physical_seconds,
            ))
            .first(tx)
            .await
            .optional()?;
        let count = |count: i32| u32::try_from(count).unwrap_or_default();
        let told = policy.map(|(daily, weekly, monthly, _)| Keep {
            daily: count(daily),
            weekly: count(weekly),
            monthly: count(monthly),
        });
        let own = config.backup.destination.as_ref().map(|_| config.backup.keep);
        let backups = [told, own].into_iter().flatten().filter_map(|keep| keep.gone_after(at)).max();
        let declared = config.backup.physical_retention.map(|period| period.duration().as_secs());
        let declared = declared.and_then(|seconds| i64::try_from(seconds).ok());
        let seconds = declared.or_else(|| policy.and_then(|(_, _, _, seconds)| seconds));
        let physical =
            seconds.and_then(TimeDelta::try_seconds).and_then(|period| at.checked_add_signed(period));
        let day = |day: NaiveDate| day.format("%Y-%m-%d").to_string();
        Ok(Self {
            backups: backups.map(day),
            physical: physical.map_or(UNKNOWN.to_owned(), |at| day(at.date_naive())),
        })
    }
}
