//! What an error of PostgreSQL means for the transaction that met it: try again, tell the caller, or say that nobody knows.
//!
//! Decides; sends nothing but a question whether the connection still lives.

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::SimpleAsyncConnection;

use super::Deadline;
use super::session::Session;
use crate::error::{Error, Result};

/// How one attempt ended, when it did not succeed. Nothing of it was committed, but for `Unknown`.
pub(super) enum Failure {
    /// Worth another attempt at once: a serialization failure, a deadlock, a connection that was lost.
    Again(Error),
    /// This session takes no writes.
    ReadOnly(Error),
    /// The caller's answer.
    Final(Error),
    /// A commit was sent, and its outcome is not known.
    Unknown,
}

/// PostgreSQL did not answer in time.
pub(super) fn late() -> Error {
    Error::unavailable("PostgreSQL did not answer within the call's deadline")
}

fn lost() -> Failure {
    Failure::Again(Error::unavailable("the connection to PostgreSQL was lost"))
}

fn contended() -> Failure {
    Failure::Again(Error::unavailable("too many transactions on the same rows"))
}

/// Whether the connection has ended, after an error. A server that ends a session says so in the answer to whatever it was
/// asked, and diesel does not say which errors are of that kind; so an error of no known kind is followed by a question.
pub(super) async fn is_lost(session: &mut Session, deadline: &Deadline, error: &Error) -> bool {
    if session.seen.closed() {
        return true;
    }
    let Error::Internal(cause) = error else { return false };
    match cause.downcast_ref() {
        Some(DieselError::DatabaseError(DatabaseErrorKind::Unknown, _)) => {
            !matches!(deadline.run(session.pg.batch_execute("")).await, Ok(Ok(())))
        }
        Some(DieselError::DatabaseError(
            DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection,
            _,
        )) => true,
        _ => false,
    }
}

/// What an error before COMMIT means. Nothing was committed.
pub(super) fn judge(error: Error, lost_connection: bool) -> Failure {
    let Error::Internal(cause) = error else { return Failure::Final(error) };
    let Some(database) = cause.downcast_ref::<DieselError>() else {
        return Failure::Final(Error::Internal(cause));
    };
    if lost_connection {
        return lost();
    }
    match database {
        DieselError::DatabaseError(kind, information) => match kind {
            DatabaseErrorKind::SerializationFailure => contended(),
            DatabaseErrorKind::ReadOnlyTransaction => {
                Failure::ReadOnly(Error::unavailable("this PostgreSQL is read-only"))
            }
            DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection => lost(),
            DatabaseErrorKind::Unknown => {
                judge_by_text(information.message()).unwrap_or(Failure::Final(Error::Internal(cause)))
            }
            _ => Failure::Final(Error::Internal(cause)),
        },
        _ => Failure::Final(Error::Internal(cause)),
    }
}

/// diesel keeps no SQLSTATE, so these are told by their text; from a server in another language they are internal errors.
fn judge_by_text(message: &str) -> Option<Failure> {
    let says = |text: &str| message.contains(text);
    if says("deadlock detected") {
        Some(contended())
    } else if says("No space left on device") || says("Disk quota exceeded") {
        Some(Failure::Final(Error::unavailable("PostgreSQL's disk is full")))
    } else if says("out of memory") || says("out of shared memory") {
        Some(Failure::Final(Error::unavailable("PostgreSQL is out of memory")))
    } else if says("canceling statement due to") {
        Some(Failure::Final(Error::unavailable("the statement was cancelled in PostgreSQL")))
    } else {
        None
    }
}

/// What an error as the answer to COMMIT means: from a server that goes on answering it is a rollback.
pub(super) fn judge_commit(error: Error, lost_connection: bool) -> Failure {
    let Error::Internal(cause) = &error else { return Failure::Unknown };
    match cause.downcast_ref() {
        Some(DieselError::DatabaseError(..)) if !lost_connection => judge(error, false),
        _ => Failure::Unknown,
    }
}

/// One word for the figures.
pub(super) fn word<T>(result: &Result<T>) -> &'static str {
    match result {
        Ok(_) => "committed",
        Err(Error::UnknownOutcome) => "unknown",
        Err(Error::Unavailable { .. } | Error::Overloaded { .. }) => "unavailable",
        Err(_) => "refused",
    }
}
