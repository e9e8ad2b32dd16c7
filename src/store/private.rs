//! A private PostgreSQL for `sidekeep dev` and the tests: one cluster in a directory, reached by a Unix socket, ended with the process.
//!
//! Everything lies in the directory: `postgres/` (the data and the socket, for the server's user alone) and `postgres.log`.
//! Never touches a cluster that it did not make, and never listens on a network.

use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::durable;

pub use error::Error;

mod account;
mod binaries;
mod error;
mod leftover;
mod server;
mod sql;

/// The superuser of every private cluster.
pub const SUPERUSER: &str = "postgres";

/// The port is only a part of the socket's name.
const PORT: &str = "5432";
/// How long crash recovery, or the end of a server that is still there, may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a private cluster is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Whether commits reach the disk. Only tests do without.
    pub sync: bool,
    /// PostgreSQL's settings that differ from its defaults.
    pub settings: &'a [(&'a str, &'a str)],
    /// Where PostgreSQL's programs are; searched for when not given.
    pub binaries: Option<&'a Path>,
}

/// A running private cluster. It ends with this value, and with the process, however that ends.
#[derive(Debug)]
pub struct Private {
    socket_directory: PathBuf,
    server: server::Server,
    created: bool,
    // Released last: until the server is gone, nobody else may start one here.
    _lock: Flock<File>,
}

impl Private {
    /// Starts the cluster in `directory`, and makes both if they are not there. Accepts connections on return.
    ///
    /// What an earlier process left is put right first: a server that still runs is stopped, a stale lock file is removed,
    /// and PostgreSQL recovers by itself.
    ///
    /// # Errors
    /// In one line, what to do about it; with the end of PostgreSQL's log where it says more.
    pub fn start(directory: &Path, options: Options<'_>) -> Result<Self, Error> {
        let absolute =
            std::path::absolute(directory).map_err(|source| Error::io("is not a path", directory, source))?;
        check_socket_path(&absolute.join("postgres"))?;
        durable::create_directory(directory, 0o755)
            .map_err(|source| Error::io("cannot make the directory", directory, source))?;
        let directory = directory
            .canonicalize()
            .map_err(|source| Error::io("cannot find the directory", directory, source))?;
        let lock = lock(&directory)?;
        let home = directory.join("postgres");
        check_socket_path(&home)?;
        let data = home.join("data");
        let binaries = binaries::find(options.binaries, version(&data).as_deref())?;
        let account = account::prepare(&home)?;
        let launcher = server::Launcher { account, home: &home };
        let created = !data.join("PG_VERSION").exists();
        if created {
            initialise(&launcher, &binaries, options.sync)?;
        } else {
            leftover::settle(&home, "data", PATIENCE)?;
        }
        let server = launcher.start(&binaries, &directory.join("postgres.log"), &arguments(options))?;
        server.ready(&data, PATIENCE)?;
        Ok(Self { socket_directory: home, server, created, _lock: lock })
    }

    /// Where to connect as `user` to `database`: a URL that psql and the daemon both take.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!(
            "postgresql://{}@/{}?host={}",
            percent_encode(user.as_bytes(), b""),
            percent_encode(database.as_bytes(), b""),
            percent_encode(self.socket_directory.as_os_str().as_bytes(), b"/"),
        )
    }

    /// The process id of the server.
    pub fn pid(&self) -> i32 {
        self.server.pid()
    }

    /// Whether the cluster was made just now.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Makes a role that may log in, and a database, where they are missing.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn provision(&self, role: &str, database: &str) -> Result<(), Error> {
        sql::provision(&self.url(SUPERUSER, "postgres"), role, database)
    }

    /// Runs statements in `database` as the superuser, in one implicit transaction.
    ///
    /// # Errors
    /// What PostgreSQL says.
    pub fn execute(&self, database: &str, statements: &str) -> Result<(), Error> {
        sql::execute(&self.url(SUPERUSER, database), statements)
    }

    /// Ends all sessions, writes a checkpoint and waits until the server is gone.
    ///
    /// # Errors
    /// That the server did not end in time; it is then made to stop at once, and recovers at its next start.
    pub fn stop(self) -> Result<(), Error> {
        self.server.stop(Signal::SIGINT, PATIENCE)
    }
}

fn lock(directory: &Path) -> Result<Flock<File>, Error> {
    let file =
        File::open(directory).map_err(|source| Error::io("cannot open the directory", directory, source))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => Error::InUse { directory: directory.into() },
        errno => Error::io("cannot lock the directory", directory, errno.into()),
    })
}

/// A Unix socket's path holds 107 bytes, and clients connect by the whole of it.
fn check_socket_path(home: &Path) -> Result<(), Error> {
    let length = home.as_os_str().len() + format!("/.s.PGSQL.{PORT}").len();
    let over = length.saturating_sub(107);
    if over > 0 { Err(Error::PathTooLong { directory: home.into(), over }) } else { Ok(()) }
}

/// The major version that made the cluster.
fn version(data: &Path) -> Option<String> {
    std::fs::read_to_string(data.join("PG_VERSION")).ok().map(|text| text.trim().to_owned())
}

/// Makes the cluster under another name first, so that one by the right name is always whole.
fn initialise(launcher: &server::Launcher<'_>, binaries: &Path, sync: bool) -> Result<(), Error> {
    let made = launcher.home.join("data.new");
    leftover::settle(launcher.home, "data.new", PATIENCE)?;
    if made.exists() {
        std::fs::remove_dir_all(&made).map_err(|source| {
            Error::io("cannot remove what is left of a start that failed", &made, source)
        })?;
    }
    launcher.initdb(binaries, "data.new")?;
    if sync {
        durable::sync_tree(&made).map_err(|source| Error::io("cannot be synced", &made, source))?;
    }
    let data = launcher.home.join("data");
    std::fs::rename(&made, &data)
        .and_then(|()| File::open(launcher.home)?.sync_all())
        .map_err(|source| Error::io("cannot make the cluster", &data, source))
}

fn arguments(options: Options<'_>) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut set = |name: &str, value: &str| arguments.extend(["-c".to_owned(), format!("{name}={value}")]);
    set("port", PORT);
    set("listen_addresses", "");
    set("unix_socket_directories", server::HOME);
    set("logging_collector", "off");
    if !options.sync {
        set("fsync", "off");
        set("full_page_writes", "off");
    }
    for (name, value) in options.settings {
        set(name, value);
    }
    arguments
}

/// RFC 3986: all but the unreserved characters, and those in `also`, as `%XX`.
fn percent_encode(bytes: &[u8], also: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || also.contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

#[cfg(test)]
mod tests;
