//! Where to connect, and with which TLS.
//!
//! Never connects in the clear unless the server is on this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel_async::AsyncPgConnection;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::NoTls;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::TaskTracker;

use super::Dedicated;
use super::history::{self, History};
use super::session::Session;
use super::watch::SERVER_RUN;
use crate::config::{Database, Tls};

/// Where Debian keeps the certificates of public authorities.
pub(super) const SYSTEM_CA_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";

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
    /// The session could not ask its first question.
    #[error("the session could not be set up: {0}")]
    Question(#[from] diesel::result::Error),
    /// A standby may still have what the primary has erased.
    #[error("this PostgreSQL is a standby; name the primary in database.url, or all hosts of which one is")]
    Standby,
    /// It is not the cluster that was served before.
    #[error(
        "this PostgreSQL is another cluster than the one served so far; restart sidekeep to go over to it"
    )]
    OtherCluster,
    /// A fail-over has left it behind.
    #[error(
        "this PostgreSQL is on timeline {timeline}, and timeline {newest} was served before: it is an old primary, which lacks \
         what came after"
    )]
    LeftBehind {
        /// Its timeline.
        timeline: i64,
        /// The newest that was seen.
        newest: i64,
    },
    /// The server takes the session, and does not answer as it has to.
    #[error("{0}")]
    Mute(String),
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
    /// One for each host, as one that stands still must not keep the others from being tried.
    hosts: Vec<tokio_postgres::Config>,
    /// The host that was good last: the first to be tried.
    good: AtomicUsize,
    tls: Option<MakeRustlsConnect>,
    timeout: Duration,
    tracker: TaskTracker,
    history: History,
}

/// Where a server is.
#[derive(diesel::QueryableByName)]
struct Server {
    #[diesel(sql_type = diesel::sql_types::Bool)]
    in_recovery: bool,
    #[diesel(sql_type = diesel::sql_types::Text)]
    system: String,
    #[diesel(sql_type = diesel::sql_types::Int8)]
    timeline: i64,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("hosts", &self.hosts.len()).finish_non_exhaustive()
    }
}

async fn server(pg: &mut AsyncPgConnection) -> Result<Server, diesel::result::Error> {
    // Here alone: the trait has a `load` for every type, atomics too.
    use diesel_async::RunQueryDsl;
    match diesel::sql_query(history::SERVER).get_result(pg).await {
        Ok(server) => Ok(server),
        Err(_) => diesel::sql_query(history::RECOVERY).get_result(pg).await,
    }
}

impl Target {
    /// Reads URL and certificates; connects nowhere.
    ///
    /// # Errors
    /// [`ConnectError::Url`] or [`ConnectError::Certificates`].
    pub fn new(database: &Database, url: &str, tracker: TaskTracker) -> Result<Self, ConnectError> {
        Self::build(database, url, TargetSessionAttrs::ReadWrite, tracker)
    }

    /// As [`Target::new`], for the URL of a replica: of several hosts each will do, as none of them takes writes.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn replica(database: &Database, url: &str, tracker: TaskTracker) -> Result<Self, ConnectError> {
        Self::build(database, url, TargetSessionAttrs::Any, tracker)
    }

    /// Of several hosts, one with these attributes is connected to, where the URL names none.
    fn build(
        database: &Database,
        url: &str,
        attributes: TargetSessionAttrs,
        tracker: TaskTracker,
    ) -> Result<Self, ConnectError> {
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
            config.target_session_attrs(attributes);
        }
        let tls = choose_tls(database, &mut config)?;
        let hosts = each_host(&config);
        let first = match config.get_load_balance_hosts() {
            LoadBalanceHosts::Random => super::random_below(hosts.len()),
            _ => 0,
        };
        Ok(Self { hosts, good: AtomicUsize::new(first), tls, timeout, tracker, history: History::default() })
    }

    /// Connects to the first host that can be had, and hands the connection to a driver task on the tracker. Ends within
    /// `database.connect_timeout` for each host.
    ///
    /// # Errors
    /// What the last host, the network or TLS said.
    pub async fn connect(&self) -> Result<Session, ConnectError> {
        self.connect_within(self.timeout).await
    }

    /// As [`Target::connect`], with at most so long for each host.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub async fn connect_within(&self, most: Duration) -> Result<Session, ConnectError> {
        let bound = most.min(self.timeout);
        let first = self.good.load(Ordering::Relaxed);
        let mut failure = ConnectError::Url("names no host".into());
        for (index, host) in self.hosts.iter().enumerate().cycle().skip(first).take(self.hosts.len()) {
            match tokio::time::timeout(bound, self.connect_to(host)).await {
                Ok(Ok(session)) => {
                    self.good.store(index, Ordering::Relaxed);
                    return Ok(session);
                }
                Ok(Err(error)) => failure = error,
                Err(_) => failure = ConnectError::Timeout(bound),
            }
        }
        Err(failure)
    }

    /// Connects without diesel, for what keeps a connection to itself and wants the server's own words.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub(super) async fn connect_alone(&self) -> Result<Dedicated, ConnectError> {
        Ok(self.connect_pinned().await?.0)
    }

    /// As [`Target::connect_alone`], to a standby as well.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub(super) async fn connect_replica(&self) -> Result<Dedicated, ConnectError> {
        let mut failure = ConnectError::Url("names no host".into());
        for host in &self.hosts {
            match tokio::time::timeout(self.timeout, self.connect_any(host)).await {
                Ok(Ok(mut connection)) => {
                    connection.is_replica = true;
                    return Ok(connection);
                }
                Ok(Err(error)) => failure = error,
                Err(_) => failure = ConnectError::Timeout(self.timeout),
            }
        }
        Err(failure)
    }

    /// One for each host.
    pub(super) fn hosts(&self) -> &[tokio_postgres::Config] {
        &self.hosts
    }

    /// The TLS that is spoken, if any.
    pub(super) fn tls(&self) -> Option<&MakeRustlsConnect> {
        self.tls.as_ref()
    }

    /// The first host.
    pub(super) fn first(&self) -> Option<&tokio_postgres::Config> {
        <[tokio_postgres::Config]>::first(&self.hosts)
    }

    /// As [`Target::connect_alone`]; answers the host, too.
    ///
    /// # Errors
    /// As [`Target::connect`].
    pub(super) async fn connect_pinned(&self) -> Result<(Dedicated, &tokio_postgres::Config), ConnectError> {
        let first = self.good.load(Ordering::Relaxed);
        let mut failure = ConnectError::Url("names no host".into());
        for (index, host) in self.hosts.iter().enumerate().cycle().skip(first).take(self.hosts.len()) {
            match tokio::time::timeout(self.timeout, self.connect_alone_to(host)).await {
                Ok(Ok(connection)) => {
                    self.good.store(index, Ordering::Relaxed);
                    return Ok((connection, host));
                }
                Ok(Err(error)) => failure = error,
                Err(_) => failure = ConnectError::Timeout(self.timeout),
            }
        }
        Err(failure)
    }

    async fn connect_alone_to(&self, host: &tokio_postgres::Config) -> Result<Dedicated, ConnectError> {
        let mut connection = self.connect_any(host).await?;
        let server = match connection.client.query_one(history::SERVER, &[]).await {
            Ok(server) => server,
            Err(_) => connection.client.query_one(history::RECOVERY, &[]).await?,
        };
        self.admit(&Server {
            in_recovery: server.get("in_recovery"),
            system: server.get("system"),
            timeline: server.get("timeline"),
        })?;
        connection.run = connection.client.query_one(SERVER_RUN, &[]).await?.get("run");
        Ok(connection)
    }

    async fn connect_any(&self, host: &tokio_postgres::Config) -> Result<Dedicated, ConnectError> {
        Ok(match &self.tls {
            None => {
                let (client, connection) = host.connect(NoTls).await?;
                Dedicated::new(client, connection, &self.tracker)
            }
            Some(tls) => {
                let (client, connection) = host.connect(tls.clone()).await?;
                Dedicated::new(client, connection, &self.tracker)
            }
        })
    }

    async fn connect_to(&self, host: &tokio_postgres::Config) -> Result<Session, ConnectError> {
        let mut session = match &self.tls {
            None => {
                let (client, connection) = host.connect(NoTls).await?;
                Session::new(client, connection, None, &self.tracker).await?
            }
            Some(tls) => {
                let (client, connection) = host.connect(tls.clone()).await?;
                Session::new(client, connection, Some(tls.clone()), &self.tracker).await?
            }
        };
        let server = server(&mut session.pg).await?;
        self.admit(&server)?;
        Ok(session)
    }

    /// Whether a server may be gone on with.
    fn admit(&self, server: &Server) -> Result<(), ConnectError> {
        if server.in_recovery {
            return Err(ConnectError::Standby);
        }
        self.history.admit(&server.system, server.timeline)
    }
}

/// The same, once for each of its hosts.
fn each_host(config: &tokio_postgres::Config) -> Vec<tokio_postgres::Config> {
    let (addresses, ports) = (config.get_hostaddrs(), config.get_ports());
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| {
        let mut one = tokio_postgres::Config::new();
        match host {
            Host::Tcp(name) => one.host(name),
            Host::Unix(path) => one.host_path(path),
        };
        addresses.get(index).map(|address| one.hostaddr(*address));
        ports.get(index).or(ports.first()).map(|port| one.port(*port));
        config.get_user().map(|user| one.user(user));
        config.get_password().map(|password| one.password(password));
        config.get_dbname().map(|name| one.dbname(name));
        config.get_options().map(|options| one.options(options));
        config.get_application_name().map(|name| one.application_name(name));
        config.get_connect_timeout().map(|timeout| one.connect_timeout(*timeout));
        config.get_tcp_user_timeout().map(|timeout| one.tcp_user_timeout(*timeout));
        config.get_keepalives_interval().map(|interval| one.keepalives_interval(interval));
        config.get_keepalives_retries().map(|retries| one.keepalives_retries(retries));
        one.keepalives(config.get_keepalives()).keepalives_idle(config.get_keepalives_idle());
        one.ssl_mode(config.get_ssl_mode()).ssl_negotiation(config.get_ssl_negotiation());
        one.channel_binding(config.get_channel_binding());
        one.target_session_attrs(config.get_target_session_attrs());
        one
    });
    hosts.collect()
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
