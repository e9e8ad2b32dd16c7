//! `[jobs]`: when each job runs, and in which time zone. What a job does is none of its business.

use std::str::FromStr;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::values::as_text;

/// How far ahead the gaps of a schedule are looked for, and of how many due times at most.
const LOOKED_AHEAD: TimeDelta = TimeDelta::days(400);
const LOOKED_AT: usize = 2000;

/// `[jobs]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Jobs {
    /// Whether this daemon runs jobs when they are due.
    pub enabled: bool,
    /// Signs the heads of the log, when something is new.
    #[serde(deserialize_with = "checkpoint")]
    pub checkpoint: Job,
    /// Makes the months of the log ahead of need.
    #[serde(deserialize_with = "partitions")]
    pub partitions: Job,
    /// Verifies the log.
    #[serde(deserialize_with = "verify")]
    pub verify: Job,
    /// Removes what has been kept long enough.
    #[serde(deserialize_with = "retention")]
    pub retention: Job,
    /// Writes the months of the log to their archive.
    #[serde(deserialize_with = "archive")]
    pub archive: Job,
    /// Dumps the database.
    #[serde(deserialize_with = "backup")]
    pub backup: Job,
    /// Backs the keyring up.
    #[serde(deserialize_with = "keyring_backup")]
    pub keyring_backup: Job,
    /// Restores the newest dump, to try it.
    #[serde(deserialize_with = "drill")]
    pub drill: Job,
}

/// One of `[jobs.<name>]`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Job {
    /// When it is due: five fields of cron, or six with seconds first.
    pub schedule: CronExpression,
    /// Whether it is due at all.
    pub enabled: bool,
    /// Whose clock the schedule goes by.
    pub time_zone: TimeZone,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            enabled: true,
            checkpoint: Job::at("* * * * *"),
            partitions: Job::at("0 4 * * *"),
            verify: Job::at("0 * * * *"),
            retention: Job::at("0 3 * * *"),
            archive: Job::at("0 4 * * *"),
            backup: Job::at("0 2 * * *"),
            keyring_backup: Job::at("* * * * *"),
            drill: Job::at("0 5 * * 0"),
        }
    }
}

impl Job {
    fn at(schedule: &'static str) -> Self {
        Self {
            schedule: CronExpression::built_in(schedule),
            enabled: true,
            time_zone: TimeZone(chrono_tz::UTC),
        }
    }

    /// How long it is at most from one due time to the next, of those of the coming year, or of the next 2,000.
    pub fn longest_gap(&self, from: DateTime<Utc>) -> TimeDelta {
        let cron = self.schedule.cron();
        let next = |after: &DateTime<Tz>| cron.find_next_occurrence(after, false).ok();
        let from = from.with_timezone(&self.time_zone.tz());
        let (mut longest, mut last) = (TimeDelta::zero(), next(&from));
        for _ in 0..LOOKED_AT {
            let Some(due) = last.filter(|due| due.signed_duration_since(from) < LOOKED_AHEAD) else { break };
            last = next(&due);
            let gap = last.map_or(LOOKED_AHEAD, |next| next.signed_duration_since(due));
            longest = longest.max(gap);
        }
        // One that is never due.
        if longest.is_zero() { LOOKED_AHEAD } else { longest }
    }
}

/// What a file says of a job; the rest is that job's default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    schedule: Option<CronExpression>,
    enabled: Option<bool>,
    time_zone: Option<TimeZone>,
}

fn checkpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Job, D::Error> {
    Said::deserialize(deserializer).map(|said| said.or(Jobs::default().checkpoint))
}

fn partitions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Job, D::Error> {
    Said::deserialize(deserializer).map(|said| said.or(Jobs::default().partitions))
}

fn verify<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Job, D::Error> {
    Said::deserialize(deserializer).map(|said| said.or(Jobs::default().verify))
}

fn retention<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Job, D::Error> {
    Said::deserialize(deserializer).map(|said| said.or(Jobs::default().retention))
}

fn archive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Job, D::Error> {
    Said::deserialize(deserializer).map(|said| said.or(Jobs::default().archive))
}

fn backup<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Job, D::Error> {
    Said::deserialize(deserializer).map(|said| said.or(Jobs::default().backup))
}

fn keyring_backup<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Job, D::Error> {
    Said::deserialize(deserializer).map(|said| said.or(Jobs::default().keyring_backup))
}

fn drill<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Job, D::Error> {
    Said::deserialize(deserializer).map(|said| said.or(Jobs::default().drill))
}

impl Said {
    fn or(self, default: Job) -> Job {
        Job {
            schedule: self.schedule.unwrap_or(default.schedule),
            enabled: self.enabled.unwrap_or(default.enabled),
            time_zone: self.time_zone.unwrap_or(default.time_zone),
        }
    }
}

/// When something is due, as cron writes it: minute, hour, day, month and weekday, perhaps with seconds before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronExpression {
    text: String,
    cron: Cron,
}

impl CronExpression {
    #[expect(clippy::expect_used, reason = "the literals above; every test of the configuration reads them")]
    fn built_in(text: &'static str) -> Self {
        text.parse().expect("a cron expression")
    }

    /// As croner knows it.
    pub fn cron(&self) -> &Cron {
        &self.cron
    }
}

impl FromStr for CronExpression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "must be five fields of cron (minute, hour, day, month, weekday) or six with seconds \
            first, as in \"30 2 * * *\"";
        let fields = text.split_whitespace().count();
        if !(5..=6).contains(&fields) {
            return Err(FORM.into());
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| format!("{FORM}: {error}"))?;
        let comes = cron.find_next_occurrence(&chrono::DateTime::UNIX_EPOCH, false).is_ok();
        comes.then(|| Self { text: text.into(), cron }).ok_or_else(|| "names a day that never comes".into())
    }
}

impl std::fmt::Display for CronExpression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A time zone by its name in the IANA database, as in `Europe/Berlin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeZone(chrono_tz::Tz);

impl TimeZone {
    /// As chrono knows it.
    pub fn tz(self) -> chrono_tz::Tz {
        self.0
    }
}

impl FromStr for TimeZone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| "must be the name of a time zone, as in \"UTC\" or \"Europe/Berlin\"".into())
    }
}

impl std::fmt::Display for TimeZone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

as_text!(CronExpression, "30 2 * * *");
as_text!(TimeZone, "Europe/Berlin");
