//! A connection that only looks at a server, for whoever wants to know how it is set up.
//!
//! Each question is one message, and so a transaction of its own that can change nothing. None is prepared, so that it is
//! answered behind any pooler.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio_postgres::error::SqlState;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use tokio_util::task::TaskTracker;

use super::Dedicated;
use super::connect::{ConnectError, Target};
use crate::config::Database;
use crate::error::{Error, Result};

/// How long a question may take at the server, in milliseconds, and how long its answer is waited for.
const AT_THE_SERVER: u32 = 4000;
const PATIENCE: Duration = Duration::from_secs(5);

/// What stands between this host and a session, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The URL or the certificates of the configuration.
    Settings,
    /// Nobody answers, or who starts or ends just now.
    Unreached,
    /// The server speaks no TLS, or not such as is asked for.
    Tls,
    /// The role is not there, may not log in, or has another password.
    Role,
    /// There is no such database.
    Database,
    /// The server takes no more connections.
    Full,
    /// It is a standby.
    Standby,
    /// The server says something else.
    Other,
}

/// One host of a URL, and what came of trying it.
#[derive(Debug)]
pub struct Tried {
    /// Where, as in `db.example.org:5432`.
    pub host: String,
    /// Why there is no session.
    pub refused: Option<ConnectError>,
}

/// An open connection.
#[derive(Debug)]
pub struct Probe {
    pub(super) connection: Dedicated,
    /// Whether it goes through TLS.
    pub tls: bool,
    /// Where, as in `db.example.org:5432`.
    pub host: String,
}

/// Which servers will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Primary,
    Any,
}

#[derive(Deserialize)]
struct Recovery {
    in_recovery: bool,
}

impl Probe {
    /// Tries all hosts of a URL at once, each for `database.connect_timeout`, and keeps the first that is a primary.
    ///
    /// # Errors
    /// The URL is wrong, or its certificates cannot be read.
    pub async fn connect(
        database: &Database,
        url: &str,
        tracker: &TaskTracker,
    ) -> Result<(Option<Self>, Vec<Tried>), ConnectError> {
        let target = Target::new(database, url, tracker.clone())?;
        Ok(Self::first(database, &target, Wanted::Primary, tracker).await)
    }

    /// As [`Probe::connect`], by the URL of a replica: the first host that answers is kept, whatever it is.
    ///
    /// # Errors
    /// As [`Probe::connect`].
    pub async fn connect_replica(
        database: &Database,
        url: &str,
        tracker: &TaskTracker,
    ) -> Result<(Option<Self>, Vec<Tried>), ConnectError> {
        let target = Target::replica(database, url, tracker.clone())?;
        Ok(Self::first(database, &target, Wanted::Any, tracker).await)
    }

    async fn first(
        database: &Database,
        target: &Target,
        wanted: Wanted,
        tracker: &TaskTracker,
    ) -> (Option<Self>, Vec<Tried>) {
        let bound = database.connect_timeout.duration();
        let trying = target.hosts().iter().map(|host| async {
            let outcome = tokio::time::timeout(bound, Self::to(target, host, wanted, tracker)).await;
            (label(host), outcome.unwrap_or(Err(ConnectError::Timeout(bound))))
        });
        let (mut found, mut tried) = (None, Vec::new());
        for (host, outcome) in join_all(trying).await {
            let refused = match outcome {
                Ok(probe) => {
                    found.get_or_insert(probe);
                    None
                }
                Err(error) => Some(error),
            };
            tried.push(Tried { host, refused });
        }
        (found, tried)
    }

    async fn to(
        target: &Target,
        host: &tokio_postgres::Config,
        wanted: Wanted,
        tracker: &TaskTracker,
    ) -> Result<Self, ConnectError> {
        let connection = match target.tls() {
            None => {
                let (client, connection) = host.connect(NoTls).await?;
                Dedicated::new(client, connection, tracker)
            }
            Some(tls) => {
                let (client, connection) = host.connect(tls.clone()).await?;
                Dedicated::new(client, connection, tracker)
            }
        };
        let probe = Self { connection, tls: target.tls().is_some(), host: label(host) };
        match probe.one::<Recovery>("SELECT pg_is_in_recovery() AS in_recovery").await {
            Ok(Recovery { in_recovery: true }) if wanted == Wanted::Primary => Err(ConnectError::Standby),
            Ok(_) => Ok(probe),
            Err(error) => Err(ConnectError::Mute(error.to_string())),
        }
    }

    /// The rows of a query, each as the type that has members of the names of its columns.
    ///
    /// # Errors
    /// [`Error::Unavailable`], with the server's own words.
    pub async fn ask<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>> {
        // Several statements in one message are one transaction, which ends with the message, also by an error.
        let message = format!(
            "SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = {AT_THE_SERVER}; SET LOCAL search_path = pg_catalog; \
             SELECT coalesce(json_agg(to_json(q)), '[]')::text FROM ({query}) AS q"
        );
        let answer = tokio::time::timeout(PATIENCE, self.connection.client.simple_query(&message)).await;
        let answer = answer.map_err(|_| {
            Error::unavailable(format!("no answer within {}", humantime::format_duration(PATIENCE)))
        })?;
        let rows = answer.map_err(|error| said(&error))?;
        let row = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        serde_json::from_str(row.unwrap_or("[]")).map_err(Error::internal)
    }

    /// The first row of a query.
    ///
    /// # Errors
    /// As [`Probe::ask`]; there is none.
    pub async fn one<T: DeserializeOwned>(&self, query: &str) -> Result<T> {
        let found = self.ask(query).await?.into_iter().next();
        found.ok_or_else(|| Error::unavailable("PostgreSQL answered without a row"))
    }
}

/// The server's own words, without the statement.
pub(super) fn said(error: &tokio_postgres::Error) -> Error {
    let why = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    Error::unavailable(format!("PostgreSQL: {why}"))
}

fn label(host: &tokio_postgres::Config) -> String {
    use tokio_postgres::config::Host;
    let port = <[u16]>::first(host.get_ports()).copied().unwrap_or(5432);
    match <[Host]>::first(host.get_hosts()) {
        Some(Host::Unix(path)) => format!("{}/.s.PGSQL.{port}", path.display()),
        Some(Host::Tcp(name)) => format!("{name}:{port}"),
        None => "no host".to_owned(),
    }
}

impl ConnectError {
    /// What stands in the way.
    pub fn obstacle(&self) -> Obstacle {
        let error = match self {
            Self::Url(_) | Self::Certificates { .. } => return Obstacle::Settings,
            Self::Standby => return Obstacle::Standby,
            Self::Timeout(_) => return Obstacle::Unreached,
            Self::Setup(_)
            | Self::Question(_)
            | Self::Mute(_)
            | Self::OtherCluster
            | Self::LeftBehind { .. } => {
                return Obstacle::Other;
            }
            Self::Postgres(error) => error,
        };
        if let Some(said) = error.as_db_error() {
            let code = said.code();
            return match code {
                // pg_hba.conf may ask for TLS: then it is no fault of the role.
                code if code.code().starts_with("28") && said.message().ends_with("no encryption") => {
                    Obstacle::Tls
                }
                code if code.code().starts_with("28") => Obstacle::Role,
                code if *code == SqlState::INVALID_CATALOG_NAME => Obstacle::Database,
                code if *code == SqlState::INSUFFICIENT_PRIVILEGE => Obstacle::Role,
                code if *code == SqlState::TOO_MANY_CONNECTIONS => Obstacle::Full,
                // It starts or ends.
                code if *code == SqlState::CANNOT_CONNECT_NOW => Obstacle::Unreached,
                _ => Obstacle::Other,
            };
        }
        // The library names the kind of its error in its text alone.
        if error.to_string().contains("TLS") { Obstacle::Tls } else { Obstacle::Unreached }
    }
}
