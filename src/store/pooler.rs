//! Whether sessions have a server process of their own, or share it with others between transactions, as behind a pooler in
//! transaction mode. Found by asking alone.

use std::time::Duration;

use super::probe::{Probe, said};
use crate::error::{Error, Result};

/// How long one that has to wait for another's transaction is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is tried: a pooler with idle processes may hand out the same one by chance.
const TRIES: usize = 3;

const PID: &str = "SELECT pg_backend_pid() AS pid";

/// How sessions stand to the processes of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// Each has one to itself.
    Own,
    /// They share them, and what was prepared is found again.
    Shared,
    /// They share them, and what was prepared is lost.
    SharedAndForgetful,
}

#[derive(serde::Deserialize)]
struct Process {
    pid: i32,
}

impl Probe {
    async fn process(&self) -> Result<i32> {
        Ok(self.one::<Process>(PID).await?.pid)
    }
}

/// Asks two sessions of one URL in turn: while both live, a process that has answered both is shared, and so is one that
/// answers a session no more while the other one is in a transaction.
///
/// # Errors
/// [`Error::Unavailable`], with the server's own words.
pub async fn sessions(one: &Probe, other: &Probe) -> Result<Sessions> {
    let own = one.process().await?;
    for _ in 0..TRIES {
        let again = one.process().await?;
        let held = hold(other).await;
        let meanwhile = tokio::time::timeout(PATIENCE, one.process()).await;
        release(other).await;
        let shared = match (held, meanwhile) {
            // In statement mode there are no transactions at all.
            (Err(_), Ok(Ok(_))) => true,
            (Err(error), _) => return Err(error),
            // It waits until the other one's transaction is over.
            (Ok(_), Err(_)) => true,
            (Ok(held), Ok(meanwhile)) => again != own || held == own || meanwhile? != own,
        };
        if shared {
            return Ok(if remembers(one, other).await {
                Sessions::Shared
            } else {
                Sessions::SharedAndForgetful
            });
        }
    }
    Ok(Sessions::Own)
}

/// Whether a statement that one has prepared is found while the other one takes up a process.
async fn remembers(one: &Probe, other: &Probe) -> bool {
    for _ in 0..TRIES {
        let Ok(prepared) = one.connection.client.prepare(PID).await else { return false };
        let _ = hold(other).await;
        let asking = one.connection.client.query_one(&prepared, &[]);
        let answered = tokio::time::timeout(PATIENCE, asking).await;
        release(other).await;
        // One that waits says nothing of it.
        if matches!(answered, Ok(Err(_))) {
            return false;
        }
    }
    true
}

/// Begins a transaction, and answers its process.
async fn hold(probe: &Probe) -> Result<i32> {
    let begun = probe.connection.client.simple_query("BEGIN TRANSACTION READ ONLY");
    match tokio::time::timeout(PATIENCE, begun).await {
        Ok(begun) => begun.map_err(|error| said(&error))?,
        Err(_) => return Err(Error::unavailable("no answer to BEGIN")),
    };
    let rows = probe.connection.client.simple_query("SELECT pg_backend_pid()").await;
    let rows = rows.map_err(|error| said(&error))?;
    let pid = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    pid.ok_or_else(|| Error::unavailable("PostgreSQL answered without a row"))
}

async fn release(probe: &Probe) {
    // What could not be begun has nothing to end.
    let _ = tokio::time::timeout(PATIENCE, probe.connection.client.simple_query("ROLLBACK")).await;
}
