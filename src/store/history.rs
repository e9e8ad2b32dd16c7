//! Whose history a server has: that of one cluster, on one timeline. A primary that a fail-over has left behind, and any other
//! cluster, is not gone on with within a run of the daemon. Knows of no connection.

use std::sync::{Mutex, PoisonError};

use super::connect::ConnectError;

/// SQL that tells where a server is. On a standby the timeline is that of whoever it follows, and not told.
pub(super) const SERVER: &str = "SELECT pg_is_in_recovery() AS in_recovery, system_identifier::text AS system, \
    CASE WHEN pg_is_in_recovery() THEN 0 \
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint END AS timeline \
    FROM pg_control_system()";

/// Whether it is in recovery alone, for a server that is not quite PostgreSQL and tells no more: it has no history.
pub(super) const RECOVERY: &str =
    "SELECT pg_is_in_recovery() AS in_recovery, '' AS system, 0::bigint AS timeline";

/// What was seen of the primaries so far.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Option<(String, i64)>>);

impl History {
    /// Takes note of a primary, if it has the history of those before it.
    ///
    /// # Errors
    /// [`ConnectError::OtherCluster`] and [`ConnectError::LeftBehind`].
    pub(super) fn admit(&self, system: &str, timeline: i64) -> Result<(), ConnectError> {
        if system.is_empty() {
            return Ok(());
        }
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some((known, _)) if known != system => return Err(ConnectError::OtherCluster),
            Some((_, newest)) if *newest > timeline => {
                return Err(ConnectError::LeftBehind { timeline, newest: *newest });
            }
            _ => {}
        }
        *seen = Some((system.to_owned(), timeline));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{ConnectError, History};

    #[test]
    fn a_history_goes_on_and_never_back() {
        let history = History::default();
        history.admit("7", 1).unwrap();
        history.admit("7", 1).unwrap();
        history.admit("7", 3).unwrap();
        assert!(matches!(history.admit("7", 2), Err(ConnectError::LeftBehind { timeline: 2, newest: 3 })));
        assert!(matches!(history.admit("8", 9), Err(ConnectError::OtherCluster)));
        history.admit("", 0).unwrap();
        history.admit("7", 3).unwrap();
    }
}
