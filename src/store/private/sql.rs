//! The few statements that make a private cluster usable, sent from synchronous code.

use futures_util::future::{Either, select};
use tokio_postgres::{Client, NoTls};

use super::Error;

/// Makes a role that may log in, and a database, where they are missing.
pub(super) fn provision(url: &str, role: &str, database: &str) -> Result<(), Error> {
    with_client(url, async |client| {
        let (role_name, database_name) = (quoted(role), quoted(database));
        if client.query_opt("SELECT 1 FROM pg_roles WHERE rolname = $1", &[&role]).await?.is_none() {
            client.batch_execute(&format!("CREATE ROLE {role_name} LOGIN")).await?;
        }
        if client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&database]).await?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {database_name}")).await?;
        }
        Ok(())
    })
}

/// Runs statements in one implicit transaction.
pub(super) fn execute(url: &str, statements: &str) -> Result<(), Error> {
    with_client(url, async |client| client.batch_execute(statements).await)
}

/// On a thread of its own, so that callers inside a runtime may use it too.
fn with_client<F>(url: &str, work: F) -> Result<(), Error>
where
    F: AsyncFnOnce(&Client) -> Result<(), tokio_postgres::Error> + Send,
{
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| Error::Query(error.to_string()))?.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await.map_err(said)?;
            let work = Box::pin(work(&client));
            match select(work, connection).await {
                Either::Left((done, _)) => done.map_err(said),
                Either::Right((Err(error), _)) => Err(said(error)),
                Either::Right((Ok(()), work)) => work.await.map_err(said),
            }
        })
    };
    std::thread::scope(|scope| {
        scope.spawn(run).join().unwrap_or_else(|_| Err(Error::Query("the connection's thread failed".into())))
    })
}

fn said(error: tokio_postgres::Error) -> Error {
    Error::Query(error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
