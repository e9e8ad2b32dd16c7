//! How long there is to answer a request (GDPR Art. 12(3)): one calendar month from receipt, extended by two further ones.
//!
//! Months are counted in UTC. Where a month has no such day, its last one (Regulation (EEC) 1182/71, Art. 3(2)(c)).

use chrono::{DateTime, Months, TimeDelta, Utc};
use diesel::dsl::sql;
use diesel::sql_types::Timestamptz;
use diesel_async::RunQueryDsl;

use crate::error::{Error, Result};
use crate::store::Connection;

/// How far a caller's clock may be ahead of PostgreSQL's.
const AHEAD: TimeDelta = TimeDelta::minutes(5);

/// PostgreSQL's clock.
pub(super) async fn now(tx: &mut Connection) -> Result<DateTime<Utc>> {
    Ok(diesel::select(sql::<Timestamptz>("clock_timestamp()")).get_result(tx).await?)
}

/// Until when a request must be answered: a month after its receipt, or three.
pub(super) fn due(received_at: DateTime<Utc>, extended: bool) -> Result<DateTime<Utc>> {
    let months = Months::new(if extended { 3 } else { 1 });
    received_at.checked_add_months(months).ok_or_else(|| Error::internal("no such date"))
}

/// When a request was received, which cannot be later than now.
pub(super) fn received(given: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    match given {
        Some(given) if given.signed_duration_since(now) > AHEAD => {
            Err(Error::invalid("received_at", "lies in the future"))
        }
        Some(given) => Ok(given),
        None => Ok(now),
    }
}

/// Whether the time can still be extended: the person must be told within the first month.
pub(super) fn can_extend(received_at: DateTime<Utc>, now: DateTime<Utc>) -> Result<bool> {
    Ok(now <= due(received_at, false)?)
}

#[cfg(test)]
mod tests {
    use super::{can_extend, due, received};
    use crate::clock::Timestamp;
    use chrono::{DateTime, TimeDelta, Utc};

    fn at(text: &str) -> DateTime<Utc> {
        Timestamp::parse(text).unwrap().utc()
    }

    #[test]
    fn a_month_ends_on_its_day_or_on_its_last() {
        let cases = [
            ("2026-03-05T10:00:00Z", "2026-04-05T10:00:00Z", "2026-06-05T10:00:00Z"),
            ("2026-01-31T23:59:59.999999Z", "2026-02-28T23:59:59.999999Z", "2026-04-30T23:59:59.999999Z"),
            ("2028-01-31T00:00:00Z", "2028-02-29T00:00:00Z", "2028-04-30T00:00:00Z"),
            ("2028-01-30T00:00:00Z", "2028-02-29T00:00:00Z", "2028-04-30T00:00:00Z"),
            ("2027-11-30T00:00:00Z", "2027-12-30T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("2026-08-31T12:00:00Z", "2026-09-30T12:00:00Z", "2026-11-30T12:00:00Z"),
            ("2026-12-31T12:00:00Z", "2027-01-31T12:00:00Z", "2027-03-31T12:00:00Z"),
            ("2026-02-28T12:00:00Z", "2026-03-28T12:00:00Z", "2026-05-28T12:00:00Z"),
            // The day is that of UTC.
            ("2026-01-31T23:30:00-01:00", "2026-03-01T00:30:00Z", "2026-05-01T00:30:00Z"),
        ];
        for (received_at, month, three) in cases {
            assert_eq!(due(at(received_at), false).unwrap(), at(month), "{received_at}");
            assert_eq!(due(at(received_at), true).unwrap(), at(three), "{received_at}");
        }
    }

    #[test]
    fn only_the_first_month_can_be_extended() {
        let received_at = at("2026-01-31T10:00:00Z");
        let end = at("2026-02-28T10:00:00Z");
        assert!(can_extend(received_at, received_at).unwrap() && can_extend(received_at, end).unwrap());
        assert!(!can_extend(received_at, end + TimeDelta::microseconds(1)).unwrap());
    }

    #[test]
    fn nothing_is_received_in_the_future() {
        let now = at("2026-11-20T19:55:00Z");
        assert_eq!(received(None, now).unwrap(), now);
        assert!(received(Some(now + TimeDelta::minutes(5)), now).is_ok());
        assert!(received(Some(now + TimeDelta::minutes(6)), now).is_err());
    }
}
