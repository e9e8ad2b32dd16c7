//! Which dumps are kept: of the newest days, weeks and months that have one, the last of each, unless a certificate says that it
//! is gone. And none goes before a newer one is proved, so that the last that was proved never goes. Pure.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use chrono::{DateTime, Datelike as _, TimeDelta, Utc};

use crate::config::Keep;

/// How long what has no manifest is left alone: a run may be writing it, and none takes as long. The next one of a day later
/// finds it.
pub const LEFT_ALONE: TimeDelta = TimeDelta::hours(13);

/// A dump, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aged {
    /// Its name.
    pub name: String,
    /// When its snapshot was taken.
    pub at: DateTime<Utc>,
    /// Whether it was proved.
    pub proved: bool,
}

/// In the order of their snapshots, whatever they are called: names once told the second alone.
pub fn newest_first(dumps: &mut [Aged]) {
    dumps.sort_by_key(|dump| Reverse(dump.at));
}

/// The names of those that go, of dumps that are all there are, the newest first. None from before `promised` is kept longer
/// than until a newer one is proved.
pub fn expired(dumps: &[Aged], keep: Keep, promised: Option<DateTime<Utc>>) -> Vec<&str> {
    let (mut days, mut weeks, mut months) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut proved = false;
    let mut expired = Vec::new();
    for dump in dumps {
        let date = dump.at.date_naive();
        let week = date.iso_week();
        let kept = [
            first(&mut days, (date.year(), date.ordinal()), keep.daily),
            first(&mut weeks, (week.year(), week.week()), keep.weekly),
            first(&mut months, (date.year(), date.month()), keep.monthly),
        ];
        let over = kept == [false; 3] || promised.is_some_and(|promised| dump.at < promised);
        if proved && over {
            expired.push(dump.name.as_str());
        }
        proved |= dump.proved;
    }
    expired
}

/// Whether this is the first dump of a period, and the period one of the newest so many.
fn first(periods: &mut BTreeSet<(i32, u32)>, period: (i32, u32), most: u32) -> bool {
    let more = periods.len() < usize::try_from(most).unwrap_or(usize::MAX);
    more && periods.insert(period)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};
    use proptest::prelude::*;

    use super::{Aged, expired, newest_first};
    use crate::config::{Keep, Rhythm};

    fn at(days: i64) -> DateTime<Utc> {
        // 2026-11-21, a Saturday.
        DateTime::from_timestamp(1_795_226_400, 0).unwrap() + TimeDelta::days(days)
    }

    /// A dump a day up to day 0, the newest first; these are proved.
    fn daily(days: i64, proved: &[i64]) -> Vec<Aged> {
        let dump = |day| Aged { name: day_name(day), at: at(day), proved: proved.contains(&day) };
        (0..days).map(|age| dump(-age)).collect()
    }

    fn day_name(day: i64) -> String {
        at(day).format("%Y-%m-%d").to_string()
    }

    #[test]
    fn the_last_of_each_day_week_and_month_is_kept() {
        let dumps = daily(400, &[0]);
        let gone = expired(&dumps, Keep { daily: 3, weekly: 2, monthly: 3 }, None);
        let kept: Vec<&str> =
            dumps.iter().map(|dump| dump.name.as_str()).filter(|name| !gone.contains(name)).collect();
        let expected = ["2026-11-21", "2026-11-20", "2026-11-19", "2026-11-15", "2026-10-31", "2026-09-30"];
        assert_eq!(kept, expected);
    }

    #[test]
    fn nothing_goes_before_a_newer_one_is_proved() {
        let keep = Keep { daily: 1, weekly: 0, monthly: 0 };
        assert!(expired(&daily(30, &[]), keep, None).is_empty());
        let dumps = daily(5, &[-3]);
        assert_eq!(expired(&dumps, keep, None), [day_name(-4)], "the proved one stays, and what is newer");
    }

    #[test]
    fn several_of_one_day_count_as_one() {
        let of =
            |name: &str, hour| Aged { name: name.into(), at: at(0) + TimeDelta::hours(hour), proved: true };
        let dumps = [of("c", 3), of("b", 2), of("a", 1), Aged { name: "y".into(), at: at(-1), proved: true }];
        assert_eq!(expired(&dumps, Keep { daily: 2, weekly: 0, monthly: 0 }, None), ["b", "a"]);
    }

    #[test]
    fn of_one_second_the_last_is_the_newest_whatever_they_are_called() {
        let of = |name: &str, micros| Aged {
            name: name.into(),
            at: at(0) + TimeDelta::microseconds(micros),
            proved: true,
        };
        let mut dumps = [of("z", 1), of("a", 3), of("m", 2)];
        newest_first(&mut dumps);
        assert_eq!(expired(&dumps, Keep { daily: 1, weekly: 0, monthly: 0 }, None), ["m", "z"]);
    }

    #[test]
    fn what_a_certificate_says_is_gone_goes_once_a_newer_one_is_proved() {
        let keep = Keep { daily: 30, weekly: 0, monthly: 0 };
        assert_eq!(expired(&daily(4, &[0]), keep, Some(at(-1))), [day_name(-2), day_name(-3)]);
        assert!(
            expired(&daily(4, &[-3]), keep, Some(at(0))).is_empty(),
            "it is the last one that was proved"
        );
    }

    proptest! {
        #[test]
        fn the_newest_that_was_proved_never_goes_and_the_certificate_is_true(
            proved in proptest::collection::vec(0_i64..200, 0..40),
            counts in (0_u32..10, 0_u32..8, 0_u32..5),
            (every, drilled) in (1_i64..40, 1_i64..3),
        ) {
            let keep = Keep { daily: counts.0, weekly: counts.1, monthly: counts.2 };
            let proved: Vec<i64> = proved.iter().map(|age| -age).collect();
            let dumps = daily(200, &proved);
            let gone = expired(&dumps, keep, None);
            let newest = dumps.iter().find(|dump| dump.proved);
            prop_assert!(newest.is_none_or(|newest| !gone.contains(&newest.name.as_str())));
            // With dumps and drills as they are scheduled, what is left is younger than the certificate says.
            let rhythm = Rhythm { backup: TimeDelta::days(every), drill: TimeDelta::days(every * drilled * 7) };
            let made = 400 / every;
            let dump = |nth: i64| {
                let proved = nth % (drilled * 7) == drilled * 7 - 1;
                Aged { name: day_name(-nth * every), at: at(-nth * every), proved }
            };
            let dumps: Vec<Aged> = (0..made).map(dump).collect();
            let gone = expired(&dumps, keep, None);
            for dump in dumps.iter().filter(|dump| !gone.contains(&dump.name.as_str())) {
                let promised = keep.gone_after(dump.at, rhythm);
                prop_assert!(promised.is_none_or(|day| day >= at(0).date_naive()), "{} {promised:?}", dump.name);
            }
        }
    }
}
