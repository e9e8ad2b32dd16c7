//! Where a dump is tried out: a folder, and in it a private PostgreSQL, or a database on a server that the operator names. Both
//! go with it; what a process that was killed has left, the next drill removes: a folder that nobody holds a lock on, a
//! database that nobody is connected to, for whoever works in one does.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use diesel::dsl::sql;
use diesel::prelude::QueryableByName;
use diesel::sql_types::{Int4, Text};
use diesel_async::RunQueryDsl;
use nix::fcntl::{Flock, FlockArg};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use crate::audit::merkle::hex;
use crate::config::{self, Config, Database};
use crate::error::{Error, Result};
use crate::store::private::{Options, Private, SUPERUSER};
use crate::store::programs::Program;
use crate::store::{Deadline, Pinned, Store};
use crate::{clock, durable};

/// What the folders and databases of drills are called.
const FOLDER: &str = "sidekeep-drill-";
const DATABASE: &str = "sidekeep_drill_";
/// How old a folder is before it may be somebody's who was killed.
const LEFT: Duration = Duration::from_secs(60);
/// How long a server may take to drop the database.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many connections a drill has at once.
const POOL: usize = 4;

/// The private server has one customer and nothing to lose.
const SETTINGS: &[(&str, &str)] = &[
    ("autovacuum", "off"),
    ("cluster_name", "sidekeep-drill"),
    ("jit", "off"),
    ("maintenance_work_mem", "128MB"),
    ("max_connections", "16"),
    ("max_wal_senders", "0"),
    ("max_wal_size", "4GB"),
    ("wal_level", "minimal"),
];

#[derive(QueryableByName)]
struct Left {
    #[diesel(sql_type = Text)]
    name: String,
}

/// A scratch database with a folder.
#[derive(Debug)]
pub(super) struct Scratch {
    directory: PathBuf,
    url: Zeroizing<String>,
    database: Database,
    server: Option<Server>,
}

#[derive(Debug)]
enum Server {
    Private(Private),
    Other {
        store: Arc<Store>,
        name: String,
        _lock: Flock<File>,
        watching: CancellationToken,
        stay: Box<Pinned>,
    },
}

impl Scratch {
    /// Makes a database on a server of at least this major version.
    ///
    /// # Errors
    /// [`Error::Conflict`] or [`Error::Unavailable`], with what to do.
    pub(super) async fn open(
        config: &Config,
        least: u32,
        tracker: &TaskTracker,
        deadline: &Deadline,
    ) -> Result<Self> {
        let mut random = [0_u8; 6];
        rand::fill(&mut random).map_err(Error::internal)?;
        let random = hex(&random);
        let root = config::scratch_directory();
        let directory = root.join(format!("{FOLDER}{random}"));
        let made = directory.clone();
        let blocking = tokio::task::spawn_blocking(move || {
            sweep(&root);
            durable::create_directory(&made, 0o755)
        });
        let failed = |error: std::io::Error| Error::unavailable(format!("{}: {error}", directory.display()));
        blocking.await.map_err(Error::internal)?.map_err(failed)?;
        let database = Database { pool: POOL, ..config.database.clone() };
        let url = config::drill_url(config).map_err(|error| Error::conflict(error.to_string()))?;
        let mut scratch = Self { directory, url: Zeroizing::default(), database, server: None };
        match url {
            None => scratch.start(least).await?,
            Some(url) => scratch.create(&url, (&random, least), tracker, deadline).await?,
        }
        Ok(scratch)
    }

    /// Its folder.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// How to connect.
    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// Where.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Connections to it, until `watching` is cancelled.
    pub(super) fn store(&self, tracker: &TaskTracker, watching: &CancellationToken) -> Result<Arc<Store>> {
        observed(&self.database, &self.url, tracker, watching)
    }

    async fn start(&mut self, least: u32) -> Result<()> {
        let directory = self.directory.clone();
        let starting = tokio::task::spawn_blocking(move || {
            let program = Program::find("postgres", least).map_err(|error| {
                Error::conflict(format!("{error}; or name a server to try dumps out in backup.drill_url"))
            })?;
            let binaries = program.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let options = Options { sync: false, settings: SETTINGS, binaries };
            let private = Private::start(&directory, options);
            let private = private
                .map_err(|error| Error::unavailable(format!("the server to try the dump out: {error}")))?;
            private.provision(SUPERUSER, "drill").map_err(Error::internal)?;
            Ok::<_, Error>(private)
        });
        let private = starting.await.map_err(Error::internal)??;
        self.url = Zeroizing::new(private.url(SUPERUSER, "drill"));
        self.server = Some(Server::Private(private));
        Ok(())
    }

    async fn create(
        &mut self,
        url: &str,
        (random, least): (&str, u32),
        tracker: &TaskTracker,
        deadline: &Deadline,
    ) -> Result<()> {
        let lock = File::open(&self.directory)
            .and_then(|folder| {
                Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
            })
            .map_err(|error| Error::unavailable(format!("{}: {error}", self.directory.display())))?;
        let watching = CancellationToken::new();
        let store = observed(&self.database, url, tracker, &watching)?;
        // Where this fails, nobody watches any more.
        let watching = watching.drop_guard();
        let major = u32::try_from(major(&store, deadline).await?).map_err(Error::internal)?;
        if major < least {
            return Err(Error::conflict(format!(
                "backup.drill_url: the server is PostgreSQL {major}, and the dump needs {least}: name one that is not older"
            )));
        }
        drop_left(&store, deadline).await;
        let name = format!("{DATABASE}{}_{random}", clock::now().utc().timestamp());
        let statement = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'");
        execute(&store, &statement, deadline).await.map_err(|error| {
            Error::unavailable(format!(
                "backup.drill_url: no database can be made: {}",
                crate::error::chain(&error)
            ))
        })?;
        self.url = config::with_database(url, &name);
        // From here on somebody is connected to it.
        let stay = match Pinned::begin(&self.database, &self.url, tracker, deadline).await {
            Ok(stay) => Box::new(stay),
            Err(error) => {
                drop_database(&store, &name).await;
                return Err(error);
            }
        };
        let watching = watching.disarm();
        self.server = Some(Server::Other { store, name, _lock: lock, watching, stay });
        Ok(())
    }

    /// Drops the database, and removes the folder.
    pub(super) async fn close(mut self) {
        match self.server.take() {
            Some(Server::Other { store, name, watching, stay, .. }) => {
                drop(stay);
                drop_database(&store, &name).await;
                watching.cancel();
            }
            Some(Server::Private(private)) => drop(tokio::task::spawn_blocking(move || drop(private)).await),
            None => {}
        }
        let directory = self.directory.clone();
        drop(tokio::task::spawn_blocking(move || remove(&directory)).await);
    }
}

impl Drop for Scratch {
    /// Of one that was cut: its end is not waited for.
    fn drop(&mut self) {
        let (server, directory) = (self.server.take(), self.directory.clone());
        if let Some(server) = server {
            let ending = std::thread::Builder::new().name("drill".into());
            let ended = ending.spawn(move || {
                drop(server);
                remove(&directory);
            });
            if let Err(error) = ended {
                tracing::warn!(%error, "a drill has left its folder; the next one removes it");
            }
        } else {
            remove(&directory);
        }
    }
}

/// A file for this user's eyes only.
///
/// # Errors
/// The system's.
pub(super) fn create(path: &Path) -> Result<File> {
    let file = File::options().create_new(true).write(true).mode(0o600).open(path);
    file.map_err(|error| Error::unavailable(format!("{}: {error}", path.display())))
}

fn observed(
    database: &Database,
    url: &str,
    tracker: &TaskTracker,
    watching: &CancellationToken,
) -> Result<Arc<Store>> {
    let store = Store::new(database, url, tracker.clone());
    let store = Arc::new(store.map_err(|error| Error::conflict(format!("the scratch database: {error}")))?);
    let (observed, end) = (store.clone(), watching.clone());
    tracker.spawn(async move { observed.observe(end).await });
    Ok(store)
}

async fn execute(store: &Store, statement: &str, deadline: &Deadline) -> Result<()> {
    let done = store.autocommit(deadline, "backup.drill.database", async |connection| {
        diesel::sql_query(statement).execute(connection).await?;
        Ok(())
    });
    done.await
}

async fn major(store: &Store, deadline: &Deadline) -> Result<i32> {
    let asked = store.single(deadline, "backup.drill.version", async |connection| {
        let number = sql::<Int4>("current_setting('server_version_num')::int / 10000");
        Ok(diesel::select(number).get_result(connection).await?)
    });
    asked.await
}

async fn drop_database(store: &Store, name: &str) {
    let deadline = Deadline::after(PATIENCE, CancellationToken::new());
    let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
    if let Err(error) = execute(store, &statement, &deadline).await {
        tracing::warn!(name, error = %crate::error::chain(&error), "the database of a drill is left over");
    }
}

/// Drops databases of drills that nobody is connected to. One that was made just now may be somebody's who will be.
async fn drop_left(store: &Store, deadline: &Deadline) {
    const LEFT: &str = "SELECT d.datname::text AS name FROM pg_database d WHERE d.datname ~ '^sidekeep_drill_[0-9]{10,11}_[0-9a-f]{12}$' \
        AND to_timestamp(split_part(d.datname, '_', 3)::bigint) NOT BETWEEN now() - interval '1 hour' AND now() + interval '1 hour' \
        AND pg_has_role(d.datdba, 'MEMBER') AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datid = d.oid)";
    let left = store.single(deadline, "backup.drill.left", async |connection| {
        Ok(diesel::sql_query(LEFT).load::<Left>(connection).await?)
    });
    let left = left.await.unwrap_or_else(|error| {
        tracing::warn!(error = %crate::error::chain(&error), "what older drills have left is not looked for");
        Vec::new()
    });
    for Left { name } in left {
        match execute(store, &format!("DROP DATABASE IF EXISTS {name}"), deadline).await {
            Ok(()) => tracing::info!(name, "the database of a drill that was killed was dropped"),
            Err(error) => {
                tracing::warn!(name, error = %crate::error::chain(&error), "the database of an older drill is left over");
            }
        }
    }
}

/// Removes folders of drills that were killed: whoever works in one holds a lock on it.
fn sweep(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(FOLDER));
        let changed = entry.metadata().and_then(|data| data.modified()).ok().and_then(|at| at.elapsed().ok());
        if !ours || changed.is_none_or(|age| age < LEFT) {
            continue;
        }
        let Ok(folder) = File::open(&path) else { continue };
        if Flock::lock(folder, FlockArg::LockExclusiveNonblock).is_ok() {
            remove(&path);
        }
    }
}

fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "the folder of a drill is left over: {}", directory.display());
    }
}
