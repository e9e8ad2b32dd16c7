//! When a job is due: pure, from a schedule, a time zone, what ran last and what time it is. Reads no clock and no table.

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;

use crate::config;

/// When one job is due.
#[derive(Clone, Copy, Debug)]
pub struct Schedule<'a> {
    cron: &'a Cron,
    zone: Tz,
}

impl<'a> Schedule<'a> {
    /// As it is configured.
    pub fn of(job: &'a config::Job) -> Self {
        Self { cron: job.schedule.cron(), zone: job.time_zone.tz() }
    }

    /// The first due time after this one.
    pub fn next(self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Asked anew each time: the zone's offset is that of the day, not that of the start.
        let after = after.trunc_subsecs(0);
        let next = self.cron.find_next_occurrence(&after.with_timezone(&self.zone), false).ok()?;
        Some(next.to_utc()).filter(|next| *next > after)
    }

    /// The one due time to run now: the latest that is after `last` and not after `now`. Those before it were missed, and
    /// running this one makes up for them.
    pub fn due(self, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let within = |after| self.next(after).filter(|next| *next > last && *next <= now);
        let mut latest = within(last)?;
        let mut end = now;
        // After years without a daemon, a job that is due each second was missed too often to count.
        while end.signed_duration_since(latest) > TimeDelta::seconds(1) {
            let middle = latest.checked_add_signed(end.signed_duration_since(latest) / 2)?;
            match within(middle) {
                Some(later) => latest = later,
                None => end = middle,
            }
        }
        while let Some(later) = within(latest) {
            latest = later;
        }
        Some(latest)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};

    use super::Schedule;
    use crate::config::{Job, Jobs};

    fn job(schedule: &str, time_zone: &str) -> Job {
        Job {
            schedule: schedule.parse().unwrap(),
            time_zone: time_zone.parse().unwrap(),
            ..Jobs::default().verify
        }
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// All due times in a range, by asking for the next again and again.
    fn all(job: &Job, from: &str, to: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut after = at(from);
        while let Some(next) = Schedule::of(job).next(after).filter(|next| *next <= at(to)) {
            found.push(next.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
            after = next;
        }
        found
    }

    #[test]
    fn a_time_that_the_clock_skips_runs_when_it_has_been_skipped() {
        let daily = job("30 2 * * *", "Europe/Berlin");
        assert_eq!(
            all(&daily, "2026-03-27T12:00:00Z", "2026-03-31T12:00:00Z"),
            ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z"]
        );
    }

    #[test]
    fn a_time_that_the_clock_repeats_runs_once_and_every_half_hour_goes_on() {
        let daily = job("30 2 * * *", "Europe/Berlin");
        assert_eq!(
            all(&daily, "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z"),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
        let schedule = Schedule::of(&daily);
        let (first, second) = (at("2026-10-25T00:30:00Z"), at("2026-10-25T01:30:00Z"));
        assert_eq!(schedule.due(first, second), None, "02:30 in winter time, when it ran in summer time");
        assert_eq!(schedule.due(at("2026-10-24T12:00:00Z"), second), Some(first));
        let half_hourly = job("*/30 * * * *", "Europe/Berlin");
        assert_eq!(all(&half_hourly, "2026-10-24T22:00:00Z", "2026-10-25T03:00:00Z").len(), 10);
    }

    #[test]
    fn the_offset_is_that_of_the_day_and_not_that_of_the_start() {
        let daily = job("0 4 * * *", "Europe/Berlin");
        assert_eq!(
            Schedule::of(&daily).due(at("2026-01-01T03:00:00Z"), at("2026-07-01T12:00:00Z")),
            Some(at("2026-07-01T02:00:00Z"))
        );
        assert_eq!(
            Schedule::of(&job("0 4 * * *", "UTC")).next(at("2026-07-01T02:00:00Z")),
            Some(at("2026-07-01T04:00:00Z"))
        );
    }

    #[test]
    fn of_all_that_was_missed_the_latest_is_due() {
        let minutely = job("* * * * *", "UTC");
        let schedule = Schedule::of(&minutely);
        let last = at("2026-11-20T12:00:00Z");
        let cases = [
            ("2026-11-20T12:00:00Z", None),
            ("2026-11-20T12:00:59.999999Z", None),
            ("2026-11-20T12:01:00Z", Some("2026-11-20T12:01:00Z")),
            ("2026-11-20T12:01:59.999999Z", Some("2026-11-20T12:01:00Z")),
            ("2026-11-20T12:07:30Z", Some("2026-11-20T12:07:00Z")),
            ("2033-11-20T12:07:30Z", Some("2033-11-20T12:07:00Z")),
        ];
        for (now, due) in cases {
            assert_eq!(schedule.due(last, at(now)), due.map(at), "{now}");
        }
        let secondly = job("* * * * * *", "UTC");
        assert_eq!(
            Schedule::of(&secondly).due(at("2020-01-01T00:00:00.5Z"), at("2026-11-20T12:00:00.5Z")),
            Some(at("2026-11-20T12:00:00Z"))
        );
    }

    #[test]
    fn a_clock_that_went_back_makes_nothing_due_before_it_is_where_it_was() {
        let minutely = job("* * * * *", "UTC");
        let schedule = Schedule::of(&minutely);
        assert_eq!(schedule.due(at("2026-11-20T13:00:00Z"), at("2026-11-20T12:00:30Z")), None);
        assert_eq!(schedule.next(at("2026-11-20T12:00:30Z")), Some(at("2026-11-20T12:01:00Z")));
    }

    #[test]
    fn bisecting_finds_what_walking_finds() {
        let schedules =
            ["*/7 * * * * *", "* * 0 * * *", "0 0 29 2 *", "30 2 * * 1-5", "0 0 1 1,7 *", "5,9 */5 L * *"];
        for text in schedules {
            for zone in ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York"] {
                let job = job(text, zone);
                let last = at("2027-10-30T21:59:57.25Z");
                for seconds in [0, 1, 6, 7, 59, 3_600, 5_400, 86_399, 100_000] {
                    let now = last + TimeDelta::seconds(seconds);
                    let mut walked = None;
                    while let Some(next) =
                        Schedule::of(&job).next(walked.unwrap_or(last)).filter(|t| *t <= now)
                    {
                        walked = Some(next);
                    }
                    assert_eq!(Schedule::of(&job).due(last, now), walked, "{text} {zone} {seconds}");
                }
            }
        }
    }
}
