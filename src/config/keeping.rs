//! `[retention]`, `[archive]`, `[backup]`, and the object stores that they and the publication use: what is kept where, and how long.

use chrono::{DateTime, Datelike as _, Days, Months, NaiveDate, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Destination, Jobs, Period, Recipient, SecretFile, UrlOrFile};

/// The most dumps of one kind.
const MOST: u32 = 1000;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// In days.
const SHORTEST_MONTH: u64 = 28;
const LONGEST_MONTH: u64 = 31;

/// `[retention]`: how long what is over is kept.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// A conversation, from its last message, or from its creation where it has none.
    pub conversations: Period,
    /// A consent, from when another of its type replaced it, or from its expiry.
    pub consents: Period,
    /// A month of the audit log, from its end; and its archive.
    pub audit_logs: Period,
    /// A request of a person, from when it was closed.
    pub requests: Period,
    /// A run of a job, from its end.
    pub job_runs: Period,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            conversations: Period::seconds(90 * DAY),
            consents: Period::YEAR.times(7),
            audit_logs: Period::YEAR.times(7),
            requests: Period::YEAR.times(7),
            job_runs: Period::YEAR,
        }
    }
}

/// `[archive]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Archive {
    /// How long after its end a month of the audit log is archived.
    pub after: Period,
    /// Where.
    pub destination: Option<Destination>,
}

impl Default for Archive {
    fn default() -> Self {
        Self { after: Period::seconds(90 * DAY), destination: None }
    }
}

/// `[backup]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Backup {
    /// Where dumps of the database are kept; the keyring's own backup is in `keyring.backup`.
    pub destination: Option<Destination>,
    /// How many are kept.
    pub keep: Keep,
    /// Who alone can open a dump: public keys of age. Empty: whoever can read it.
    pub recipients: Vec<Recipient>,
    /// A file with the URL of a database server where a dump may be restored to try it, instead of a private PostgreSQL.
    pub drill_url: Option<UrlOrFile>,
    /// A file with a private key of age that opens what is encrypted for `recipients`, for drills alone.
    pub drill_identity_file: Option<SecretFile>,
    /// How long physical copies of the database are kept: base backups, WAL archives, snapshots.
    pub physical_retention: Option<Period>,
}

/// `backup.keep`: of the newest days, weeks and months that have a dump, the last one of each is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// Days.
    #[serde(deserialize_with = "count")]
    pub daily: u32,
    /// Weeks (ISO 8601).
    #[serde(deserialize_with = "count")]
    pub weekly: u32,
    /// Months.
    #[serde(deserialize_with = "count")]
    pub monthly: u32,
}

/// A number of dumps; serde's own words for one that is too large would name a type of Rust.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let given = u64::deserialize(deserializer)?;
    let within = u32::try_from(given).ok().filter(|count| *count <= MOST);
    within.ok_or_else(|| de::Error::custom(format_args!("must be from 0 to {MOST}, and is {given}")))
}

impl Default for Keep {
    fn default() -> Self {
        Self { daily: 7, weekly: 4, monthly: 12 }
    }
}

impl Keep {
    /// The day after which no dump from before this time is left, where dumps and drills are made in this rhythm: each is the
    /// last of its day, week or month, and waits for one that is newer than all of these, and for a drill to prove a newer one.
    pub fn gone_after(self, at: DateTime<Utc>, rhythm: Rhythm) -> Option<NaiveDate> {
        let date = at.date_naive();
        let every = days(rhythm.backup);
        let later = |from: NaiveDate, count: u32, days: u64| {
            from.checked_add_days(Days::new(u64::from(count).saturating_mul(days)))
        };
        let daily = later(date, self.daily, every)?;
        let sunday =
            date.checked_add_days(Days::new(u64::from(6 - date.weekday().num_days_from_monday())))?;
        let weekly = later(sunday, self.weekly, every.max(7))?;
        let monthly = match every {
            ..=SHORTEST_MONTH => date.with_day(1)?.checked_add_months(Months::new(self.monthly))?,
            _ => later(date, self.monthly, every.max(LONGEST_MONTH))?,
        };
        let periods = [(self.daily, daily), (self.weekly, weekly), (self.monthly, monthly)];
        let last = periods.into_iter().filter(|(count, _)| *count > 0).map(|(_, day)| day).max();
        last.unwrap_or(date).checked_add_days(Days::new(rhythm.waits()))
    }
}

/// How long it is at most from one dump to the next, and from one drill to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// Of dumps.
    pub backup: TimeDelta,
    /// Of drills.
    pub drill: TimeDelta,
}

impl Rhythm {
    /// As these jobs are scheduled.
    pub fn of(jobs: &Jobs, from: DateTime<Utc>) -> Self {
        Self { backup: jobs.backup.longest_gap(from), drill: jobs.drill.longest_gap(from) }
    }

    /// How many days a dump may wait, once nothing keeps it any more: for a newer one to be made and proved, and for the run
    /// after that.
    pub fn waits(self) -> u64 {
        days(self.backup).saturating_mul(2).saturating_add(days(self.drill)).saturating_sub(1)
    }
}

/// So many days, begun ones too, but for the hour by which a clock that changes makes one longer.
fn days(length: TimeDelta) -> u64 {
    u64::try_from(length.num_seconds()).unwrap_or_default().saturating_sub(2 * HOUR).div_ceil(DAY).max(1)
}

/// `[s3]`: how every `s3://` destination is reached.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct S3 {
    /// The URL of a store that is not Amazon's; without TLS only on a loopback address.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// A file with `access_key_id` and `secret_access_key`.
    pub credentials_file: Option<SecretFile>,
}

/// `[gs]`: how every `gs://` destination is reached.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gs {
    /// The URL of an emulator; without TLS only on a loopback address.
    pub endpoint: Option<String>,
    /// The key file of a service account (JSON).
    pub credentials_file: Option<SecretFile>,
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::{Keep, Rhythm};
    use crate::config::Jobs;

    #[test]
    fn the_day_follows_the_schedules() {
        let from: DateTime<Utc> = "2026-11-21T02:00:00Z".parse().unwrap();
        let keep = Keep { daily: 3, weekly: 0, monthly: 0 };
        let cases = [
            // A day, and the drill's week.
            ("0 2 * * *", "UTC", "0 5 * * 0", "2026-12-02"),
            ("0 2 * * *", "Europe/Berlin", "0 5 * * 0", "2026-12-02"),
            ("*/10 * * * *", "UTC", "0 5 * * *", "2026-11-26"),
            // Over the weekend it is three days.
            ("0 2 * * 1-5", "UTC", "0 5 * * *", "2026-12-06"),
            // Rarer than it is looked ahead.
            ("0 2 29 2 *", "UTC", "0 5 * * *", "2032-05-13"),
        ];
        for (backup, zone, drill, last) in cases {
            let mut jobs = Jobs::default();
            jobs.backup.schedule = backup.parse().unwrap();
            jobs.backup.time_zone = zone.parse().unwrap();
            jobs.drill.schedule = drill.parse().unwrap();
            let rhythm = Rhythm::of(&jobs, from);
            assert_eq!(
                keep.gone_after(from, rhythm).unwrap().to_string(),
                last,
                "{backup} {zone} {drill}: {rhythm:?}"
            );
        }
    }
}
