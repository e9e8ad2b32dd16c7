//! What PostgreSQL's own codes mean for a batch.

use tokio_postgres::error::SqlState;

use crate::error::Error;

/// Why a batch was not appended. Nothing of it is in the log, unless it is `Unknown`.
#[derive(Debug)]
pub(super) enum Refused {
    /// The lease is lost, or the head is not what this daemon believed.
    Lost,
    /// A person is gone, or has another key.
    StalePeople,
    /// This daemon's idea of the time is more than a minute off PostgreSQL's.
    Clock,
    /// An id is there already.
    Duplicate,
    /// A staged entry was taken by somebody else.
    Unmatched,
    /// There is no partition for this month.
    NoMonth,
    /// Another transaction was in the way: the same once more may do.
    Contended,
    /// PostgreSQL takes nothing at present: it is read-only, its disk is full, it is short of something.
    Unwritable(&'static str),
    /// PostgreSQL refuses the data.
    Data(String),
    /// The answer did not arrive: only the fence tells.
    Unknown,
}

pub(super) fn refusal(error: &tokio_postgres::Error) -> Refused {
    match error.code() {
        Some(code) if *code == SqlState::UNIQUE_VIOLATION => Refused::Duplicate,
        Some(code) if *code == SqlState::DIVISION_BY_ZERO => Refused::Unmatched,
        // "no partition of relation found for row" is a check violation of the parent.
        Some(code)
            if *code == SqlState::CHECK_VIOLATION
                && error.as_db_error().is_some_and(|e| e.constraint().is_none()) =>
        {
            Refused::NoMonth
        }
        // Deadlocks and the like, as of two batches with the same ids in opposite order.
        Some(code) if code.code().starts_with("40") || code.code().starts_with("55") => Refused::Contended,
        // The server ended the session: whether before or after the commit, it does not say.
        Some(code) if code.code().starts_with("57") || code.code().starts_with("08") => Refused::Unknown,
        Some(code) => {
            unwritable(code).map_or_else(|| Refused::Data(code.code().to_owned()), Refused::Unwritable)
        }
        None => Refused::Unknown,
    }
}

/// What keeps the server from writing anything, if that is what it says.
fn unwritable(code: &SqlState) -> Option<&'static str> {
    match code.code() {
        "25006" => Some("it is read-only"),
        "53100" => Some("its disk is full"),
        code if code.starts_with("58") => Some("its files cannot be written"),
        code if code.starts_with("53") => Some("it is short of memory or connections"),
        _ => None,
    }
}

pub(super) fn away(error: tokio_postgres::Error) -> Error {
    match error.code() {
        Some(code) if unwritable(code).is_some() => {
            Error::unavailable(format!("PostgreSQL: {}", unwritable(code).unwrap_or_default()))
        }
        Some(code) if code.code().starts_with("57") || code.code().starts_with("08") => {
            Error::unavailable("the connection to PostgreSQL was lost")
        }
        Some(code) => Error::internal(format!("{}: {error}", code.code())),
        None => Error::unavailable("the connection to PostgreSQL was lost"),
    }
}

pub(super) fn late() -> Error {
    Error::unavailable("PostgreSQL did not answer in time")
}
