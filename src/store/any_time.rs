//! Times and days as a column has them, whatever they are: PostgreSQL has `infinity`, and years that chrono has not. What reads
//! rows in order to judge them must get to see those, instead of failing on them.
//!
//! What chrono cannot say becomes its first or last moment, which is in no row that a daemon has written: those are of the
//! years 1 to 9999.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use diesel::data_types::{PgDate, PgTimestamp};
use diesel::deserialize::{self, FromSql, FromSqlRow, Queryable};
use diesel::pg::{Pg, PgValue};
use diesel::sql_types::{Date, Nullable, Timestamptz};

/// From the beginning of 1970 to that of 2000, where PostgreSQL begins to count, in microseconds.
const EPOCH: i64 = 946_684_800_000_000;

/// A time.
#[derive(Clone, Copy, Debug, FromSqlRow)]
pub struct AnyTime(DateTime<Utc>);

/// A time, or none.
#[derive(Clone, Copy, Debug)]
pub struct AnyTimeOrNone(Option<DateTime<Utc>>);

/// A day.
#[derive(Clone, Copy, Debug, FromSqlRow)]
pub struct AnyDate(NaiveDate);

impl FromSql<Timestamptz, Pg> for AnyTime {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let PgTimestamp(micros) = FromSql::<Timestamptz, Pg>::from_sql(value)?;
        let beyond = if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
        let at = micros.checked_add(EPOCH).filter(|_| micros != i64::MIN);
        Ok(Self(at.and_then(DateTime::from_timestamp_micros).unwrap_or(beyond)))
    }
}

impl Queryable<Nullable<Timestamptz>, Pg> for AnyTimeOrNone {
    type Row = Option<AnyTime>;

    fn build(row: Self::Row) -> deserialize::Result<Self> {
        Ok(Self(row.map(DateTime::from)))
    }
}

impl FromSql<Date, Pg> for AnyDate {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let PgDate(days) = FromSql::<Date, Pg>::from_sql(value)?;
        let beyond = if days < 0 { NaiveDate::MIN } else { NaiveDate::MAX };
        let first = NaiveDate::from_ymd_opt(2000, 1, 1);
        let day = first.and_then(|first| first.checked_add_signed(TimeDelta::days(i64::from(days))));
        Ok(Self(day.unwrap_or(beyond)))
    }
}

impl From<AnyTime> for DateTime<Utc> {
    fn from(AnyTime(at): AnyTime) -> Self {
        at
    }
}

impl From<AnyTimeOrNone> for Option<DateTime<Utc>> {
    fn from(AnyTimeOrNone(at): AnyTimeOrNone) -> Self {
        at
    }
}

impl From<AnyDate> for NaiveDate {
    fn from(AnyDate(day): AnyDate) -> Self {
        day
    }
}
