//! The only reader of the time, and the one form in which times cross the socket.

use chrono::{DateTime, Datelike, SubsecRound, TimeDelta, Timelike, Utc};
use nix::time::{ClockId, clock_gettime};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The daemon's own idea of the time, to the microsecond. Times that are stored come from PostgreSQL.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Timestamp {
    Timestamp(Utc::now().trunc_subsecs(6))
}

/// An instant to the microsecond, between the years 1 and 9999: RFC 3339 in UTC as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(DateTime<Utc>);

/// A moment by this host's clock and by how long it is up, which no setting of the clock moves.
#[derive(Clone, Copy, Debug)]
pub struct Anchor {
    wall: DateTime<Utc>,
    up: Option<TimeDelta>,
}

impl Anchor {
    /// This moment.
    pub fn now() -> Self {
        // Counts while the host sleeps, too.
        let up = clock_gettime(ClockId::CLOCK_BOOTTIME).ok();
        let up = up.map(|up| TimeDelta::seconds(up.tv_sec()) + TimeDelta::nanoseconds(up.tv_nsec()));
        Self { wall: now().0, up }
    }

    /// How far the clock was moved since.
    pub fn moved(self) -> TimeDelta {
        let present = Self::now();
        let passed = present.up.zip(self.up).map(|(present, then)| present - then);
        passed.map_or(TimeDelta::zero(), |passed| present.wall - self.wall - passed)
    }
}

impl Timestamp {
    /// The instant in chrono's type, as diesel binds it.
    pub fn utc(self) -> DateTime<Utc> {
        self.0
    }

    /// Reads RFC 3339 with any offset; digits past the microsecond are dropped, a leap second is the next second.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "must be an RFC 3339 time, as in 2026-11-20T19:55:00.000000Z";
        let at = DateTime::parse_from_rfc3339(text).map_err(|_| FORM)?;
        let at = DateTime::from_timestamp_micros(at.timestamp_micros()).ok_or(FORM)?;
        if !(1..=9999).contains(&at.year()) {
            return Err("must be between the years 0001 and 9999");
        }
        Ok(Self(at))
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(at: DateTime<Utc>) -> Self {
        Self(at)
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Digit by digit, which is many times as fast as patterns: each entry of the audit log has two or three of them.
        let (date, time) = (self.0.date_naive(), self.0.time());
        if !(0..=9999).contains(&date.year()) {
            // Not of those that are ever written; it must not look like one.
            return write!(f, "{}", self.0.format("%Y-%m-%dT%H:%M:%S%.6fZ"));
        }
        let micros = self.0.timestamp_subsec_micros() % 1_000_000;
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let fields = [
            (0..4, date.year().unsigned_abs()),
            (5..7, date.month()),
            (8..10, date.day()),
            (11..13, time.hour()),
            (14..16, time.minute()),
            (17..19, time.second()),
            (20..26, micros),
        ];
        for (place, mut value) in fields {
            for digit in text.get_mut(place).into_iter().flatten().rev() {
                *digit = b'0'.saturating_add(u8::try_from(value % 10).unwrap_or_default());
                value /= 10;
            }
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339; answers are in UTC with microseconds, input takes any offset.",
            "examples": ["2026-11-20T19:55:00.000000Z"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn times_are_shown_in_utc_with_microseconds() {
        let cases = [
            ("2026-02-01T00:00:00+01:00", "2026-01-31T23:00:00.000000Z"),
            ("2026-02-01T00:00:00.123456789Z", "2026-02-01T00:00:00.123456Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
            ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000Z"),
        ];
        for (text, shown) in cases {
            assert_eq!(Timestamp::parse(text).map(|t| t.to_string()), Ok(shown.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "yesterday",
            "2026-02-30T00:00:00Z",
            "2026-02-01",
            "0001-01-01T00:00:00+01:00",
            "10000-01-01T00:00:00Z",
        ] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }
}
