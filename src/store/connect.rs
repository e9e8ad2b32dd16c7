//! One connection: where to, with which TLS, and who drives it.
//!
//! Never connects in the clear unless the server is on this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::poll_fn;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::TaskTracker;

use crate::config::{Database, Tls};

/// Where Debian keeps the certificates of public authorities.
const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why there is no connection. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is not one, or asks for what is not allowed.
    #[error("database.url: {0}")]
    Url(String),
    /// The certificates cannot be read.
    #[error("database.ca_file: {}: {why}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// PostgreSQL, the network or TLS said no.
    #[error("{}", explain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The session could not be set up.
    #[error("the session could not be set up: {0}")]
    Setup(#[from] diesel::ConnectionError),
    /// No answer in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
}

/// The whole chain of causes in one line; tokio-postgres itself says only the outermost.
fn explain(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// A server, or several of which one is to be found that can write.
pub struct Target {
    config: tokio_postgres::Config,
    tls: Option<MakeRustlsConnect>,
    timeout: Duration,
    tracker: TaskTracker,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("hosts", &self.config.get_hosts()).finish_non_exhaustive()
    }
}

/// A session, and what its driver has seen beside the answers.
pub struct Session {
    /// The connection as diesel uses it.
    pub pg: diesel_async::AsyncPgConnection,
    /// What the driver has seen.
    pub seen: Arc<Seen>,
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
}

impl Target {
    /// Reads URL and certificates; connects nowhere.
    ///
    /// # Errors
    /// [`ConnectError::Url`] or [`ConnectError::Certificates`].
    pub fn new(database: &Database, url: &str, tracker: TaskTracker) -> Result<Self, ConnectError> {
        let mut config: tokio_postgres::Config =
            url.parse().map_err(|error: tokio_postgres::Error| ConnectError::Url(explain(&error)))?;
        if config.get_hosts().is_empty() {
            return Err(ConnectError::Url(
                "names no host; use ?host=/var/run/postgresql for a Unix socket".into(),
            ));
        }
        let timeout = database.connect_timeout.duration();
        config.application_name("sidekeep");
        config.connect_timeout(timeout).tcp_user_timeout(timeout);
        config.keepalives_idle(timeout).keepalives_interval(timeout).keepalives_retries(3);
        if config.get_hosts().len() > 1 && config.get_target_session_attrs() == TargetSessionAttrs::Any {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let tls = choose_tls(database, &mut config)?;
        Ok(Self { config, tls, timeout, tracker })
    }

    /// Connects, and hands the connection to a driver task on the tracker. Ends within the timeout for each host.
    ///
    /// # Errors
    /// Says what the server, the network or TLS said.
    pub async fn connect(&self) -> Result<Session, ConnectError> {
        let hosts = u32::try_from(self.config.get_hosts().len()).unwrap_or(u32::MAX);
        let bound = self.timeout.saturating_mul(hosts);
        let connecting = async {
            let (client, seen) = self.client().await?;
            let pg = diesel_async::AsyncPgConnection::try_from(client).await?;
            Ok(Session { pg, seen })
        };
        tokio::time::timeout(bound, connecting).await.map_err(|_| ConnectError::Timeout(bound))?
    }

    /// Connects without diesel, for what needs a connection to itself and the server's own words.
    pub(super) async fn client(&self) -> Result<(tokio_postgres::Client, Arc<Seen>), ConnectError> {
        Ok(match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                (client, self.drive(connection))
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                (client, self.drive(connection))
            }
        })
    }

    fn drive<S>(&self, mut connection: tokio_postgres::Connection<tokio_postgres::Socket, S>) -> Arc<Seen>
    where
        S: tokio_postgres::tls::TlsStream + Unpin + Send + 'static,
    {
        let seen = Arc::new(Seen::default());
        let shared = seen.clone();
        self.tracker.spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message
                    && notice.parsed_severity() == Some(tokio_postgres::error::Severity::Warning)
                {
                    shared.warnings.fetch_add(1, Ordering::AcqRel);
                    tracing::warn!(code = notice.code().code(), "PostgreSQL: {}", notice.message());
                }
            }
            shared.closed.store(true, Ordering::Release);
        });
        seen
    }
}

fn choose_tls(
    database: &Database,
    config: &mut tokio_postgres::Config,
) -> Result<Option<MakeRustlsConnect>, ConnectError> {
    let sockets = config.get_hosts().iter().filter(|host| matches!(host, Host::Unix(_))).count();
    if sockets == config.get_hosts().len() {
        config.ssl_mode(SslMode::Disable);
        return Ok(None);
    }
    match database.tls {
        Tls::Off if config.get_hosts().iter().all(is_this_host) && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback) => {
            config.ssl_mode(SslMode::Disable);
            Ok(None)
        }
        Tls::Off => Err(ConnectError::Url(
            "database.tls = \"off\" is only for a Unix socket or a loopback address; use tls = \"verify-full\"".into(),
        )),
        Tls::VerifyFull if sockets > 0 => {
            Err(ConnectError::Url("names Unix sockets and network hosts; TLS needs one kind".into()))
        }
        Tls::VerifyFull => {
            config.ssl_mode(SslMode::Require);
            let path = database.ca_file.as_deref().unwrap_or(Path::new(SYSTEM_CA_FILE));
            Ok(Some(MakeRustlsConnect::new(client_config(path)?)))
        }
    }
}

fn is_this_host(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

/// TLS 1.3 alone; chain and host name are always checked.
fn client_config(path: &Path) -> Result<rustls::ClientConfig, ConnectError> {
    let wrong = |why: String| ConnectError::Certificates { path: path.to_owned(), why };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
