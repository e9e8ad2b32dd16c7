//! What the checks look at: the configuration, and the connections that were made once for all of them. Judges nothing.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::check::{Finding, Needs};
use crate::app;
use crate::config::{self, Config, Loaded};
use crate::error::Result;
use crate::store::connect::ConnectError;
use crate::store::migrations::{self, Schema};
use crate::store::probe::{Obstacle, Probe, Tried};
use crate::store::{Deadline, Store};

/// How long what is asked through the store may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// How many connections that may open: the daemons need theirs.
const CONNECTIONS: usize = 2;

/// The way to PostgreSQL by one URL.
#[derive(Debug)]
pub(super) enum Way {
    /// There is no URL to be had, as this says.
    None(String),
    /// The URL or its certificates are wrong.
    Wrong(ConnectError),
    /// It was tried.
    Tried {
        /// The connection to a primary, if there is one.
        probe: Option<Box<Probe>>,
        /// Each of its hosts.
        hosts: Vec<Tried>,
    },
}

/// What is looked at.
#[derive(Debug)]
pub(super) struct Patient {
    pub(super) loaded: Loaded,
    /// By the URL that the daemon serves with.
    pub(super) daemon: Way,
    /// By the URL of the owner of the tables, where it is another one.
    pub(super) owner: Option<Way>,
    /// By the URL of the replica, where one is named.
    pub(super) replica: Option<Way>,
    /// What the schema is to this version, where the server could be asked.
    pub(super) schema: Option<Result<Schema, String>>,
    /// For what the rest of sidekeep can tell; nothing where there is no server.
    store: Option<Arc<Store>>,
    pub(super) tracker: TaskTracker,
    pub(super) end: CancellationToken,
}

impl Way {
    async fn of(
        url: Result<zeroize::Zeroizing<String>, config::DatabaseUrlError>,
        config: &Config,
        tracker: &TaskTracker,
    ) -> Self {
        match url {
            Err(error) => Self::None(error.to_string()),
            Ok(url) => Self::tried(Probe::connect(&config.database, &url, tracker).await),
        }
    }

    async fn of_replica(config: &Config, tracker: &TaskTracker) -> Option<Self> {
        match config::replica_url(config) {
            Err(error) => Some(Self::None(error.to_string())),
            Ok(url) => {
                let url = url?;
                Some(Self::tried(Probe::connect_replica(&config.database, &url, tracker).await))
            }
        }
    }

    fn tried(outcome: Result<(Option<Probe>, Vec<Tried>), ConnectError>) -> Self {
        match outcome {
            Err(error) => Self::Wrong(error),
            Ok((probe, hosts)) => Self::Tried { probe: probe.map(Box::new), hosts },
        }
    }

    pub(super) fn probe(&self) -> Option<&Probe> {
        match self {
            Self::Tried { probe, .. } => probe.as_deref(),
            _ => None,
        }
    }

    /// Why there is no connection: of several hosts what the one says that came furthest.
    pub(super) fn refusal(&self) -> Option<(Obstacle, String)> {
        let of = |error: &ConnectError| (error.obstacle(), error.to_string());
        match self {
            Self::None(why) => Some((Obstacle::Settings, why.clone())),
            Self::Wrong(error) => Some(of(error)),
            Self::Tried { probe: Some(_), .. } => None,
            Self::Tried { hosts, .. } => {
                let mut said: Vec<_> =
                    hosts.iter().filter_map(|tried| tried.refused.as_ref()).map(of).collect();
                said.sort_by_key(|(obstacle, _)| {
                    *obstacle == Obstacle::Unreached || *obstacle == Obstacle::Standby
                });
                said.into_iter().next()
            }
        }
    }
}

impl Patient {
    /// Connects wherever the configuration leads. Ends within a few times `database.connect_timeout`.
    pub(super) async fn meet(loaded: Loaded, tracker: TaskTracker) -> Self {
        let config = &loaded.config;
        let url = config::database_url(config);
        let owner_is_other = config.database.migrate_url_file.is_some();
        let owners = async {
            match owner_is_other {
                true => Some(Way::of(config::migrate_url(config), config, &tracker).await),
                false => None,
            }
        };
        let again = url.as_ref().ok().cloned();
        let (daemon, owner, replica) =
            tokio::join!(Way::of(url, config, &tracker), owners, Way::of_replica(config, &tracker));
        let end = CancellationToken::new();
        let mut patient = Self { loaded, daemon, owner, replica, schema: None, store: None, tracker, end };
        if let (Some(_), Some(url)) = (patient.daemon.probe(), again) {
            let database = &patient.loaded.config.database;
            let asked = migrations::check(database, &url, &patient.tracker);
            let schema = tokio::time::timeout(PATIENCE, asked).await;
            patient.schema = Some(match schema {
                Ok(schema) => schema.map_err(|error| error.to_string()),
                Err(_) => Err("the server did not answer in time".to_owned()),
            });
            let mut config = patient.loaded.config.clone();
            config.database.pool = CONNECTIONS;
            patient.store = app::open_store(&config, &patient.tracker, &patient.end).ok();
        }
        patient
    }

    pub(super) fn config(&self) -> &Config {
        &self.loaded.config
    }

    /// Why a check that needs this cannot look.
    pub(super) fn lacks(&self, needs: Needs) -> Option<String> {
        if needs == Needs::Nothing {
            return None;
        }
        if self.daemon.probe().is_none() {
            return Some("there is no connection to PostgreSQL; see the checks database.*".to_owned());
        }
        match (needs, &self.schema) {
            (Needs::Schema, Some(Ok(Schema::Fits))) | (Needs::Server, _) => None,
            _ => Some("the schema is not the one of this version; see schema.migrations".to_owned()),
        }
    }

    /// Asks as the daemon does.
    pub(super) async fn ask<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>, Finding> {
        match self.daemon.probe() {
            Some(probe) => probe.ask(query).await.map_err(|error| unanswered(&error)),
            None => Err(Finding::skipped("there is no connection to PostgreSQL")),
        }
    }

    /// As [`Patient::ask`], the one row of the answer.
    pub(super) async fn one<T: DeserializeOwned>(&self, query: &str) -> Result<T, Finding> {
        let found = self.ask(query).await?.into_iter().next();
        found.ok_or_else(|| Finding::skipped("PostgreSQL answered without a row"))
    }

    /// Asks as whoever sees most: the owner of the tables where there is a connection, else the daemon.
    pub(super) async fn ask_owner<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>, Finding> {
        match self.owner.as_ref().and_then(Way::probe) {
            Some(probe) => probe.ask(query).await.map_err(|error| unanswered(&error)),
            None => self.ask(query).await,
        }
    }

    /// As [`Patient::ask_owner`], the one row of the answer.
    pub(super) async fn one_owner<T: DeserializeOwned>(&self, query: &str) -> Result<T, Finding> {
        let found = self.ask_owner(query).await?.into_iter().next();
        found.ok_or_else(|| Finding::skipped("PostgreSQL answered without a row"))
    }

    /// The store, and until when it is waited for.
    pub(super) fn store(&self) -> Result<(&Arc<Store>, Deadline), Finding> {
        let store =
            self.store.as_ref().ok_or_else(|| Finding::skipped("there is no connection to PostgreSQL"))?;
        Ok((store, Deadline::after(PATIENCE, self.end.clone())))
    }
}

/// A question without an answer tells of the server, and not of what was asked.
pub(super) fn unanswered(error: &crate::error::Error) -> Finding {
    Finding::fail(
        format!("it could not be asked: {}", crate::error::chain(error)),
        "look at the log of PostgreSQL, and at database.pooler",
    )
}
