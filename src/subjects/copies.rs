//! When the last copy from before an erasure is gone: dumps, as whoever makes them keeps them, and physical copies, as the
//! operator declares. Promises no day that what was last seen of the dumps speaks against.
//!
//! Removes none. What a copy holds of an erased person has no key from the erasure on.

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use diesel::prelude::{OptionalExtension, QueryDsl, Queryable, Selectable, SelectableHelper};
use diesel_async::RunQueryDsl;

use super::certificate::UNKNOWN;
use crate::config::{Config, Keep, Rhythm};
use crate::error::Result;
use crate::store::Connection;
use crate::store::schema::backup_policy;

/// What a certificate says of copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copies {
    /// The day after which no dump is left, or that this is not known; nothing where none are made.
    pub(super) backups: Option<String>,
    /// The day after which no physical copy is left, or that this is not known.
    pub(super) physical: String,
}

/// What whoever makes the dumps has last said of them.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = backup_policy)]
struct Policy {
    daily: i32,
    weekly: i32,
    monthly: i32,
    physical_seconds: Option<i64>,
    every_seconds: i64,
    drill_seconds: i64,
    at: DateTime<Utc>,
    oldest_at: Option<DateTime<Utc>>,
    proved_at: Option<DateTime<Utc>>,
}

impl Policy {
    fn keep(&self) -> Keep {
        let count = |count: i32| u32::try_from(count).unwrap_or_default();
        Keep { daily: count(self.daily), weekly: count(self.weekly), monthly: count(self.monthly) }
    }

    fn rhythm(&self) -> Rhythm {
        let length = |seconds| TimeDelta::try_seconds(seconds).unwrap_or(TimeDelta::MAX);
        Rhythm { backup: length(self.every_seconds), drill: length(self.drill_seconds) }
    }

    /// Whether dumps are made and proved as they are scheduled, so that old ones go: none does before a newer one is proved.
    fn is_kept(&self, at: DateTime<Utc>) -> bool {
        let late = at.checked_sub_days(Days::new(self.rhythm().waits().saturating_add(1)));
        // Before the first drill, its turn may not have come yet.
        let proved = self.proved_at.or(self.oldest_at);
        late.is_none_or(|late| self.at >= late && proved.is_none_or(|proved| proved >= late))
    }
}

impl Copies {
    /// Of an erasure at this time, as this daemon is configured, and as the one that makes the dumps is.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn of(tx: &mut Connection, config: &Config, at: DateTime<Utc>) -> Result<Self> {
        let policy = backup_policy::table.select(Policy::as_select()).first(tx).await.optional()?;
        let declared = config.backup.physical_retention.map(|period| period.duration().as_secs());
        let declared = declared.and_then(|seconds| i64::try_from(seconds).ok());
        let seconds = declared.or_else(|| policy.as_ref().and_then(|policy| policy.physical_seconds));
        let physical =
            seconds.and_then(TimeDelta::try_seconds).and_then(|period| at.checked_add_signed(period));
        Ok(Self {
            backups: backups(policy.as_ref(), config, at),
            physical: physical.map_or(UNKNOWN.to_owned(), |at| day(at.date_naive())),
        })
    }
}

fn backups(policy: Option<&Policy>, config: &Config, at: DateTime<Utc>) -> Option<String> {
    let own = config.backup.destination.as_ref().map(|_| config.backup.keep);
    if policy.is_none() && own.is_none() {
        return None;
    }
    if policy.is_some_and(|policy| !policy.is_kept(at)) {
        return Some(UNKNOWN.to_owned());
    }
    let rhythm = policy.map_or_else(|| Rhythm::of(&config.jobs, at), Policy::rhythm);
    let keeps = [policy.map(Policy::keep), own].into_iter().flatten();
    let last = keeps.map(|keep| keep.gone_after(at, rhythm)).collect::<Option<Vec<_>>>();
    let last = last.and_then(|days| days.into_iter().max());
    Some(last.map_or(UNKNOWN.to_owned(), day))
}

fn day(day: NaiveDate) -> String {
    day.format("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};

    use super::{Policy, backups};
    use crate::config::{Config, Destination};

    /// 2026-11-21, a Saturday.
    fn at(days: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_226_400, 0).unwrap() + TimeDelta::days(days)
    }

    fn policy() -> Policy {
        Policy {
            daily: 2,
            weekly: 0,
            monthly: 0,
            physical_seconds: None,
            every_seconds: 86_400,
            drill_seconds: 7 * 86_400,
            at: at(0),
            oldest_at: Some(at(-12)),
            proved_at: Some(at(-7)),
        }
    }

    #[test]
    fn a_day_is_promised_as_long_as_dumps_are_made_and_proved() {
        let config = Config::default();
        let said = |policy: Policy| backups(Some(&policy), &config, at(0)).unwrap();
        assert_eq!(said(policy()), "2026-12-01");
        assert_eq!(said(Policy { oldest_at: Some(at(0)), proved_at: None, ..policy() }), "2026-12-01");
        assert_eq!(said(Policy { oldest_at: None, proved_at: None, ..policy() }), "2026-12-01");
        assert_eq!(said(Policy { at: at(-10), ..policy() }), "unknown", "none are made any more");
        assert_eq!(said(Policy { proved_at: None, ..policy() }), "unknown", "none was ever proved");
        assert_eq!(
            said(Policy { proved_at: Some(at(-10)), ..policy() }),
            "unknown",
            "none is proved any more"
        );
        // Ten days from one to the next, and ten weeks from one drill to the next.
        let rarely = Policy { every_seconds: 864_000, drill_seconds: 6_048_000, ..policy() };
        assert_eq!(said(rarely), "2027-03-10");
    }

    #[test]
    fn who_makes_none_promises_nothing() {
        let mut config = Config::default();
        assert_eq!(backups(None, &config, at(0)), None);
        config.backup.destination = Some(Destination::Directory("/srv/dumps".into()));
        // A year's months, and the wait of a daily dump and a weekly drill.
        assert_eq!(backups(None, &config, at(0)).as_deref(), Some("2027-11-09"));
    }
}
