//! Every transaction has a name and goes through one function, which times it, retries it, ends it by the call's
//! deadline, and says honestly how it ended: committed, not committed, or outcome unknown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio::time::Instant;

use super::pool::Pooled;
use super::verdict::{self, Failure, is_lost, judge, judge_commit, late};
use super::{Deadline, Store, jitter};
use crate::error::{Error, Result};

/// The statements of a transaction. They may run several times, so they do nothing but talk to PostgreSQL.
/// An error of PostgreSQL's is handed on: the COMMIT of a transaction in which one was passed over is answered by a rollback
/// that looks like success.
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
                Ok(Err(error)) => {
                    let error = error.into();
                    connection.busy = is_lost(session, deadline, &error).await;
                    Err(judge_commit(error, connection.busy))
                }
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

    /// Runs one read without BEGIN and COMMIT.
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
                    *busy = is_lost(session, deadline, &error).await;
                    Err(judge(error, *busy))
                }
            }
        })
        .await
    }

    /// Runs one write without BEGIN and COMMIT, which does the same when it is done twice: it is repeated where the
    /// connection was lost.
    ///
    /// # Errors
    /// As [`Store::transact`]; the statement itself is what commits.
    pub async fn autocommit<T, F>(&self, deadline: &Deadline, name: &'static str, body: F) -> Result<T>
    where
        F: for<'c> Body<'c, T> + Sync,
        T: Send,
    {
        let sent = AtomicBool::new(false);
        let ended = self
            .attempts(deadline, name, async |connection: &mut Pooled| {
                let Pooled { session, busy } = connection;
                let warnings = session.seen.warnings();
                match deadline.run(body(&mut session.pg)).await {
                    Err(_) => Err(Failure::Unknown),
                    Ok(Ok(_)) if session.seen.warnings() > warnings => Err(Failure::Unknown),
                    Ok(Ok(output)) => {
                        *busy = false;
                        Ok(output)
                    }
                    Ok(Err(error)) => {
                        *busy = is_lost(session, deadline, &error).await;
                        sent.fetch_or(*busy, Ordering::Relaxed);
                        Err(judge(error, *busy))
                    }
                }
            })
            .await;
        match ended {
            // Nothing of the last attempt was committed; of one before it, nobody knows.
            Err(Error::Unavailable { .. } | Error::Overloaded { .. }) if sent.load(Ordering::Relaxed) => {
                Err(Error::UnknownOutcome)
            }
            ended => ended,
        }
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
            drop(connection);
            match ended {
                Ok(output) => break Ok(output),
                Err(Failure::Again(error)) if tries < ATTEMPTS && !deadline.has_passed() => {
                    metrics::counter!("sidekeep_transaction_retries_total", "name" => name).increment(1);
                    tracing::debug!(name, tries, %error, "trying again");
                    if deadline.run(tokio::time::sleep(pause(tries))).await.is_err() {
                        break Err(error);
                    }
                }
                // A session keeps what it was told when it began; a new one may be told otherwise.
                Err(Failure::ReadOnly(_)) if tries == 1 => self.purge(),
                Err(Failure::Again(error) | Failure::ReadOnly(error) | Failure::Final(error)) => {
                    break Err(error);
                }
                Err(Failure::Unknown) => break Err(Error::UnknownOutcome),
            }
        };
        if deadline.has_passed() && result.is_err() {
            self.watch.doubt();
        }
        metrics::counter!("sidekeep_transactions_total", "name" => name, "outcome" => verdict::word(&result))
            .increment(1);
        metrics::histogram!("sidekeep_transaction_duration_seconds", "name" => name)
            .record(started.elapsed());
        result
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
    match deadline.run(session.pg.batch_execute(begin)).await {
        Err(_) => return Err(Failure::Final(late())),
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let error = error.into();
            *busy = is_lost(session, deadline, &error).await;
            return Err(judge(error, *busy));
        }
    }
    match deadline.run(body(&mut session.pg)).await {
        Err(_) => Err(Failure::Final(late())),
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => {
            // A server that ended the session may have said so in its last answer alone.
            let rolled_back = deadline.run(session.pg.batch_execute("ROLLBACK")).await;
            *busy = !matches!(rolled_back, Ok(Ok(())));
            Err(judge(error, matches!(rolled_back, Ok(Err(_))) || session.seen.closed()))
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

/// Between attempts: a random part of a time that doubles.
fn pause(tries: u32) -> Duration {
    jitter(Duration::from_millis(5).saturating_mul(1_u32.checked_shl(tries).unwrap_or(u32::MAX)))
}
