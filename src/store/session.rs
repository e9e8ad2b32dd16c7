//! One session: what its driver sees beside the answers, and how it ends whatever the server does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use futures_util::future::poll_fn;
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// How long a session that is no longer wanted may take to say farewell; a server that stands still would take for ever.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long asking the server to stop a statement may take.
const CANCEL: Duration = Duration::from_secs(5);

pub(super) type Raw<S> = tokio_postgres::Connection<tokio_postgres::Socket, S>;

/// A session, and what its driver has seen beside the answers. Its socket is closed soon after it is dropped, whatever the
/// server does.
pub struct Session {
    /// The connection as diesel uses it.
    pub pg: AsyncPgConnection,
    /// What the driver has seen.
    pub seen: Arc<Seen>,
    tls: Option<MakeRustlsConnect>,
    ends: Ends,
}

/// How a session's driver is told to end.
pub(super) struct Ends {
    /// The session was dropped.
    _gone: DropGuard,
    /// Nothing that was sent is waited for.
    abandoned: CancellationToken,
}

impl Session {
    /// Takes over a connection that was just made, and hands it to a driver task on the tracker.
    pub(super) async fn new<S>(
        client: tokio_postgres::Client,
        connection: Raw<S>,
        tls: Option<MakeRustlsConnect>,
        tracker: &TaskTracker,
    ) -> Result<Self, diesel::ConnectionError>
    where
        S: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
    {
        let (seen, ends) = drive(connection, tracker);
        Ok(Self { pg: AsyncPgConnection::try_from(client).await?, seen, tls, ends })
    }

    /// Gives the session up, and asks the server to stop what it is doing for it: by itself, a server that waits for a lock
    /// does not notice that nobody waits for the answer.
    pub(super) fn cancel(self) -> impl Future<Output = ()> + Send + 'static {
        let (token, tls) = (self.pg.cancel_token(), self.tls.clone());
        // The server ends a transaction that waits for its next statement as soon as the socket is closed.
        self.ends.abandoned.cancel();
        drop(self);
        async move {
            let asking = async {
                match tls {
                    None => token.cancel_query(NoTls).await,
                    Some(tls) => token.cancel_query(tls).await,
                }
            };
            if !matches!(tokio::time::timeout(CANCEL, asking).await, Ok(Ok(()))) {
                tracing::debug!("PostgreSQL could not be asked to stop a statement");
            }
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// What a connection's driver has seen: it is written before the answer that follows is handed on.
#[derive(Debug, Default)]
pub struct Seen {
    warnings: AtomicU64,
    closed: AtomicBool,
}

impl Seen {
    /// How many warnings the server has sent. One during COMMIT means that the commit is not what it seems.
    pub fn warnings(&self) -> u64 {
        self.warnings.load(Ordering::Acquire)
    }

    /// Whether the connection has ended.
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn note(&self, message: &AsyncMessage) {
        if let AsyncMessage::Notice(notice) = message
            && notice.parsed_severity() == Some(tokio_postgres::error::Severity::Warning)
        {
            self.warnings.fetch_add(1, Ordering::AcqRel);
            tracing::warn!(code = notice.code().code(), "PostgreSQL: {}", notice.message());
        }
    }
}

pub(super) fn drive<S>(mut connection: Raw<S>, tracker: &TaskTracker) -> (Arc<Seen>, Ends)
where
    S: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
{
    let (seen, gone, abandoned) =
        (Arc::new(Seen::default()), CancellationToken::new(), CancellationToken::new());
    let (shared, unwanted, given_up) = (seen.clone(), gone.clone(), abandoned.clone());
    tracker.spawn(async move {
        let driving = async {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                shared.note(&message);
            }
        };
        // The connection itself waits for the answers to all that was sent, though nobody else does any more.
        let farewell = async {
            unwanted.cancelled().await;
            tokio::time::sleep(FAREWELL).await;
        };
        tokio::select! {
            () = driving => {}
            () = farewell => {}
            () = given_up.cancelled() => {}
        }
        // Before the connection is dropped, and with it the requests that were not answered.
        shared.closed.store(true, Ordering::Release);
        drop(connection);
    });
    (seen, Ends { _gone: gone.drop_guard(), abandoned })
}
