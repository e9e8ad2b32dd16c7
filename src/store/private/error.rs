//! Why a private PostgreSQL does not run, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a private PostgreSQL does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the directory.
    #[error("{directory}: another process runs a PostgreSQL here; stop it, or choose another directory")]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// PostgreSQL's programs are not there.
    #[error("PostgreSQL is not installed; on Debian: apt-get install postgresql")]
    Missing,
    /// Programs were named, and are not there.
    #[error("{directory}: there are no `initdb` and `postgres` here")]
    NotThere {
        /// Where they should be.
        directory: PathBuf,
    },
    /// The cluster is of a version that is not installed.
    #[error(
        "the cluster was made by PostgreSQL {version}, which is not installed; \
         on Debian: apt-get install postgresql-{version}, or choose another directory"
    )]
    OtherVersion {
        /// The major version.
        version: String,
    },
    /// The socket's path would be too long.
    #[error(
        "{directory}: the path of a Unix socket here is {over} bytes too long; choose a directory with a shorter path"
    )]
    PathTooLong {
        /// Where the socket would be.
        directory: PathBuf,
        /// By how many bytes.
        over: usize,
    },
    /// PostgreSQL refuses to run as root, and there is no other user to run it as.
    #[error("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as")]
    NoAccount,
    /// The directory is another user's.
    #[error("{directory}: belongs to uid {owner}; run as that user or as root, or choose another directory")]
    Foreign {
        /// The directory.
        directory: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A process of an earlier server does not end.
    #[error("{directory}: processes of an earlier PostgreSQL do not end: {processes:?}")]
    Occupied {
        /// The data directory.
        directory: PathBuf,
        /// Their ids.
        processes: Vec<i32>,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// The end of what it said.
        said: String,
    },
    /// The server did not get ready, or did not end, in time.
    #[error("PostgreSQL did not {what} in {seconds} s; see {log}")]
    Late {
        /// What it did not do.
        what: &'static str,
        /// How long it had.
        seconds: u64,
        /// Its log.
        log: PathBuf,
    },
    /// PostgreSQL refused a statement.
    #[error("PostgreSQL: {0}")]
    Query(String),
    /// The operating system refused something.
    #[error("{path}: {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.into(), source }
    }
}
