//! Every transaction has a name and goes through one function, which times it, retries it, ends it by the call's
//! deadline, and says honestly how it ended: committed, not committed, or outcome unknown.

use std::time::Duration;

use deadpool::managed::Object;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::time::Instant;

use super::pool::{Manager, Pooled};
use super::{Deadline, Store};
use crate::error::{Error, Result};

/// The statements of a transaction. They may run several times, so they do nothing but talk to PostgreSQL.
pub trait Body<'c, T>:
    AsyncFn(&'c mut AsyncPgConnection) -> Result<T>
    + Fn(&'c mut AsyncPgConnection) -> <Self as Body<'c, T>>::Running
{
    /// The running statements.
    type Running: Future<Output = Result<T>> + Send;
}

impl<'c, T, F, R> Body<'c, T> for F
where
    F: AsyncFn(&'c mut AsyncPgConnection) -> Result<T> + Fn(&'c mut AsyncPgConnection) -> R,
    R: Future<Output = Result<T>> + Send,
{
    type Running = R;
}

/// The most often one transaction is tried.
const ATTEMPTS: u32 = 6;

/// How one attempt ended, when it did not succeed. Nothing of it was committed, but for `Unknown`.
enum Failure {
    /// Worth another attempt at once: a serialization failure, a deadlock, a connection that was lost.
    Again(Error),
    /// The caller's answer.
    Final(Error),
    /// COMMIT was sent, and its outcome is not known.
    Unknown,
}

impl Store {
    /// Runs the statements as one READ COMMITTED transaction, and commits it.
    ///
    /// # Errors
    /// Whatever the body answers, after a rollback. [`Error::Unavailable`] and [`Error::Overloaded`]: nothing was
    /// committed. [`Error::UnknownOutcome`]: COMMIT was sent and its answer did not arrive, or PostgreSQL warned.
    pub async fn transact<T, F>(&self, deadline: &Deadline, name: &'static str, body: F) -> Result<T>
    where
        F: for<'c> Body<'c, T> + Sync,
        T: Send,
    {
        self.attempts(deadline, name, async |connection: &mut Pooled| {
            let output = begin(connection, deadline, "BEGIN", &body).await?;
            let session = &mut connection.session;
            let warnings = session.seen.warnings();
            match deadline.run(session.pg.batch_execute("COMMIT")).await {
                Err(_) => Err(Failure::Unknown),
                Ok(Ok(())) if session.seen.warnings() > warnings => Err(Failure::Unknown),
                Ok(Ok(())) => {
                    connection.busy = false;
                    Ok(output)
                }
                Ok(Err(error)) => Err(judge_commit(error, session.seen.closed())),
            }
        })
        .await
    }

    /// Runs reads that must see one state of the database, and takes nothing but a snapshot.
    ///
    /// # Errors
    /// Whatever the body answers, [`Error::Unavailable`] or [`Error::Overloaded`].
    pub async fn snapshot<T, F>(&self, deadline: &Deadline, name: &'static str, body: F) -> Result<T>
    where
        F: for<'c> Body<'c, T> + Sync,
        T: Send,
    {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        self.attempts(deadline, name, async |connection: &mut Pooled| {
            let output = begin(connection, deadline, BEGIN, &body).await?;
            // Nothing depends on how a read ends, except whether the connection can be used again.
            let ended = deadline.run(connection.session.pg.batch_execute("COMMIT")).await;
            connection.busy = !matches!(ended, Ok(Ok(())));
            Ok(output)
        })
        .await
    }

    /// Runs one statement without BEGIN and COMMIT: a read, or a write that may be repeated.
    ///
    /// # Errors
    /// Whatever the body answers, [`Error::Unavailable`] or [`Error::Overloaded`].
    pub async fn single<T, F>(&self, deadline: &Deadline, name: &'static str, body: F) -> Result<T>
    where
        F: for<'c> Body<'c, T> + Sync,
        T: Send,
    {
        self.attempts(deadline, name, async |connection: &mut Pooled| {
            let Pooled { session, busy } = connection;
            match deadline.run(body(&mut session.pg)).await {
                Err(_) => Err(Failure::Final(late())),
                Ok(Ok(output)) => {
                    *busy = false;
                    Ok(output)
                }
                Ok(Err(error)) => {
                    *busy = session.seen.closed();
                    Err(judge(error, session.seen.closed()))
                }
            }
        })
        .await
    }

    async fn attempts<T, F>(&self, deadline: &Deadline, name: &'static str, attempt: F) -> Result<T>
    where
        F: for<'c> Attempt<'c, T> + Sync,
        T: Send,
    {
        let started = Instant::now();
        let mut tries = 0_u32;
        let result = loop {
            tries = tries.saturating_add(1);
            let mut connection = match self.connection(deadline).await {
                Ok(connection) => connection,
                Err(error) => break Err(error),
            };
            connection.busy = true;
            let ended = attempt(&mut connection).await;
            self.give_back(connection);
            match ended {
                Ok(output) => break Ok(output),
                Err(Failure::Again(error)) if tries < ATTEMPTS && !deadline.has_passed() => {
                    metrics::counter!("sidekeep_transaction_retries_total", "name" => name).increment(1);
                    tracing::debug!(name, tries, error = %causes(&error), "trying again");
                    tokio::time::sleep(pause(tries)).await;
                }
                Err(Failure::Again(error) | Failure::Final(error)) => break Err(error),
                Err(Failure::Unknown) => break Err(Error::UnknownOutcome),
            }
        };
        let outcome = if result.is_ok() { "committed" } else { outcome(&result) };
        metrics::counter!("sidekeep_transactions_total", "name" => name, "outcome" => outcome).increment(1);
        metrics::histogram!("sidekeep_transaction_duration_seconds", "name" => name)
            .record(started.elapsed());
        result
    }

    /// A connection in an unknown state is closed, and what it may still be doing is cancelled.
    fn give_back(&self, connection: Object<Manager>) {
        if !connection.busy {
            return;
        }
        let pooled = Object::take(connection);
        if pooled.session.seen.closed() {
            return;
        }
        let cancel = pooled.session.pg.cancel_token();
        drop(pooled);
        self.tracker.spawn(tokio::time::timeout(Duration::from_secs(5), async move {
            // Only speeds the server up, which finds the closed connection by itself; so it may fail, as it does under TLS.
            let _ = cancel.cancel_query(tokio_postgres::NoTls).await;
        }));
    }
}

/// Begins a transaction and runs its statements; rolls back what fails.
async fn begin<T, F>(
    connection: &mut Pooled,
    deadline: &Deadline,
    begin: &'static str,
    body: &F,
) -> Result<T, Failure>
where
    F: for<'c> Body<'c, T> + Sync,
    T: Send,
{
    let Pooled { session, busy } = connection;
    let begun = deadline.run(session.pg.batch_execute(begin)).await;
    begun.map_err(|_| Failure::Final(late()))?.map_err(|error| judge(error.into(), session.seen.closed()))?;
    match deadline.run(body(&mut session.pg)).await {
        Err(_) => Err(Failure::Final(late())),
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => {
            let failure = judge(error, session.seen.closed());
            let rolled_back = deadline.run(session.pg.batch_execute("ROLLBACK")).await;
            *busy = !matches!(rolled_back, Ok(Ok(())));
            Err(failure)
        }
    }
}

/// One attempt at a transaction, on a connection of the pool.
trait Attempt<'c, T>:
    AsyncFn(&'c mut Pooled) -> Result<T, Failure> + Fn(&'c mut Pooled) -> <Self as Attempt<'c, T>>::Running
{
    type Running: Future<Output = Result<T, Failure>> + Send;
}

impl<'c, T, F, R> Attempt<'c, T> for F
where
    F: AsyncFn(&'c mut Pooled) -> Result<T, Failure> + Fn(&'c mut Pooled) -> R,
    R: Future<Output = Result<T, Failure>> + Send,
{
    type Running = R;
}

fn late() -> Error {
    Error::unavailable("PostgreSQL did not answer within the call's deadline")
}

/// Between attempts: a random part of a time that doubles.
fn pause(tries: u32) -> Duration {
    let most = Duration::from_millis(5).saturating_mul(1_u32.checked_shl(tries).unwrap_or(u32::MAX));
    most.mul_f64(rand_fraction())
}

fn rand_fraction() -> f64 {
    let mut byte = [0_u8; 1];
    match aws_lc_rs::rand::fill(&mut byte) {
        Ok(()) => f64::from(byte[0]) / 255.0,
        Err(_) => 1.0,
    }
}

/// What an error before COMMIT means. Nothing was committed.
fn judge(error: Error, closed: bool) -> Failure {
    let Error::Internal(cause) = error else { return Failure::Final(error) };
    let Some(database) = cause.downcast_ref::<DieselError>() else {
        return Failure::Final(Error::Internal(cause));
    };
    if closed {
        return Failure::Again(Error::unavailable("the connection to PostgreSQL was lost"));
    }
    match database {
        DieselError::DatabaseError(kind, information) => match kind {
            DatabaseErrorKind::SerializationFailure => {
                Failure::Again(Error::unavailable("too many transactions on the same rows"))
            }
            DatabaseErrorKind::ReadOnlyTransaction => {
                Failure::Again(Error::unavailable("this PostgreSQL is read-only: a standby, or set so"))
            }
            DatabaseErrorKind::UnableToSendCommand | DatabaseErrorKind::ClosedConnection => {
                Failure::Again(Error::unavailable("the connection to PostgreSQL was lost"))
            }
            // diesel keeps no SQLSTATE; these are told by their text, and a server in another language is merely not retried.
            DatabaseErrorKind::Unknown if information.message().contains("deadlock detected") => {
                Failure::Again(Error::unavailable("too many transactions on the same rows"))
            }
            DatabaseErrorKind::Unknown if information.message().contains("No space left on device") => {
                Failure::Final(Error::unavailable("PostgreSQL's disk is full"))
            }
            _ => Failure::Final(Error::Internal(cause)),
        },
        _ => Failure::Final(Error::Internal(cause)),
    }
}

/// What an error as the answer to COMMIT means: the server's own refusal is a rollback, a lost connection is unknown.
fn judge_commit(error: DieselError, closed: bool) -> Failure {
    match &error {
        _ if closed => Failure::Unknown,
        DieselError::DatabaseError(
            DatabaseErrorKind::UnableToSendCommand
            | DatabaseErrorKind::ClosedConnection
            | DatabaseErrorKind::Unknown,
            _,
        ) => Failure::Unknown,
        DieselError::DatabaseError(..) => judge(error.into(), closed),
        _ => Failure::Unknown,
    }
}

fn outcome<T>(result: &Result<T>) -> &'static str {
    match result {
        Err(Error::UnknownOutcome) => "unknown",
        Err(Error::Unavailable { .. } | Error::Overloaded { .. }) => "unavailable",
        _ => "refused",
    }
}

fn causes(error: &Error) -> String {
    match error {
        Error::Internal(cause) => cause.to_string(),
        _ => error.to_string(),
    }
}
