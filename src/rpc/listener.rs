//! The socket file: made with its final owner and mode before anybody can connect, replaced when its daemon is dead, never taken from
//! a living one, and no other file is ever deleted.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use nix::unistd::{Gid, Group};
use tokio::net::{UnixListener, UnixStream};

use crate::config;

/// What `sockaddr_un` holds, without the NUL at its end.
const LONGEST_PATH: usize = 107;
/// How many may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A living daemon has it.
    #[error("{path}: a running daemon has this socket; stop it, or set socket.path to another path")]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error("socket.path is {length} bytes long, and a Unix socket's path has at most 107: {path}")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Something else lies there.
    #[error(
        "{path} is there and is not a socket; it is left alone: move it away, or set socket.path to another path"
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The group is not known here.
    #[error(
        "socket.group: there is no group {group:?}; create it (groupadd --system {group}), or set socket.group to one that exists, or to \"\" for the daemon's own"
    )]
    NoGroup {
        /// Its name.
        group: String,
    },
    /// The socket could not be given to the group.
    #[error(
        "socket.group: the socket cannot be given to the group {group:?}: {source}; add the daemon's user to that group, or start as root"
    )]
    GroupRefused {
        /// Its name.
        group: String,
        /// What the system says.
        source: Errno,
    },
    /// What systemd handed over is not a listening Unix stream socket.
    #[error(
        "the socket from systemd is not a listening Unix stream socket; set ListenStream= to a path in the socket unit"
    )]
    NotListening,
    /// The system refuses.
    #[error("{path}: {doing}: {source}")]
    Io {
        /// The path it is about.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

/// A listening socket. Its file goes with it, if it is still its own.
#[derive(Debug)]
pub struct Listener {
    inner: UnixListener,
    _file: Option<SocketFile>,
}

impl Listener {
    /// A socket that listens already, as systemd hands over. Its file is systemd's.
    ///
    /// # Errors
    /// It is something else, or it is not within a Tokio runtime.
    pub fn from_systemd(fd: OwnedFd) -> Result<Self, BindError> {
        let stream = socket::getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream);
        let listens = socket::getsockopt(&fd, sockopt::AcceptConn) == Ok(true);
        let unix = socket::getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok();
        if !(stream && listens && unix) {
            return Err(BindError::NotListening);
        }
        let path = PathBuf::from("the socket from systemd");
        let inner =
            listening(fd).map_err(|source| BindError::Io { path, doing: "cannot be used", source })?;
        Ok(Self { inner, _file: None })
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.inner.accept().await.map(|(stream, _)| stream)
    }
}

/// Makes the socket and listens on it. Within a Tokio runtime.
///
/// # Errors
/// See [`BindError`]; after any of them nothing new is left at the path.
pub fn bind(config: &config::Socket) -> Result<Listener, BindError> {
    let path = config.path.as_path();
    let length = path.as_os_str().as_bytes().len();
    if length > LONGEST_PATH {
        return Err(BindError::PathTooLong { path: path.into(), length });
    }
    let group = find_group(&config.group)?;
    // Whoever may not even lock there, as under the shipped unit, is told of a living daemon all the same.
    let lock = lock(path).or_else(|error| find_stale(path).and(Err(error)))?;
    if find_stale(path)? {
        std::fs::remove_file(path).map_err(|source| BindError::Io {
            path: path.into(),
            doing: "cannot remove the stale socket",
            source,
        })?;
    }
    let failed = |doing| move |source: io::Error| BindError::Io { path: path.into(), doing, source };
    let fd = stream_socket().map_err(failed("cannot make a socket"))?;
    let address = UnixAddr::new(path).map_err(io::Error::from).map_err(failed("cannot be an address"))?;
    socket::bind(fd.as_raw_fd(), &address).map_err(io::Error::from).map_err(failed("cannot bind"))?;
    // From here on the file exists, and goes again if anything fails. Nobody can connect before it listens.
    let file = SocketFile::new(path, lock).map_err(failed("cannot be read"))?;
    if let Some(gid) = group {
        nix::unistd::chown(path, None, Some(gid))
            .map_err(|source| BindError::GroupRefused { group: config.group.clone(), source })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(config.mode.0))
        .map_err(failed("cannot set its mode"))?;
    Backlog::new(BACKLOG)
        .and_then(|backlog| socket::listen(&fd, backlog))
        .map_err(io::Error::from)
        .map_err(failed("cannot listen"))?;
    let inner = listening(fd).map_err(failed("cannot be used"))?;
    Ok(Listener { inner, _file: Some(file) })
}

fn listening(fd: OwnedFd) -> io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

/// Whether this host has the group that the socket is given to.
///
/// # Errors
/// [`BindError::NoGroup`].
pub fn check_group(config: &config::Socket) -> Result<(), BindError> {
    find_group(&config.group).map(drop)
}

fn find_group(name: &str) -> Result<Option<Gid>, BindError> {
    if name.is_empty() {
        return Ok(None);
    }
    if let Ok(id) = name.parse() {
        return Ok(Some(Gid::from_raw(id)));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid)),
        _ => Err(BindError::NoGroup { group: name.into() }),
    }
}

/// The lock decides between two daemons that start at once; it falls with the process that holds it. Its file stays, as removing it could
/// take it from another one.
fn lock(path: &Path) -> Result<Flock<File>, BindError> {
    let mut name = OsString::from(path);
    name.push(".lock");
    let failed = |source| BindError::Io { path: PathBuf::from(&name), doing: "cannot be locked", source };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&name)
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => BindError::InUse { path: path.into() },
        error => failed(error.into()),
    })
}

/// Whether a socket lies there that nobody listens on.
fn find_stale(path: &Path) -> Result<bool, BindError> {
    let failed = |doing| move |source: io::Error| BindError::Io { path: path.into(), doing, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("cannot be read")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    // Non-blocking: a living daemon whose backlog is full would hold a blocking connect for as long.
    let fd = stream_socket().map_err(failed("cannot make a socket"))?;
    let address = UnixAddr::new(path).map_err(io::Error::from).map_err(failed("cannot be an address"))?;
    match socket::connect(fd.as_fd().as_raw_fd(), &address) {
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => Err(BindError::InUse { path: path.into() }),
        Err(Errno::ECONNREFUSED) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(failed("is there, and it cannot be told whether it is in use")(error.into())),
    }
}

/// The file of a socket, as it was when it was made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Dropped after the file is gone, so that the next daemon finds no file that is about to be removed.
    _lock: Flock<File>,
}

impl SocketFile {
    fn new(path: &Path, lock: Flock<File>) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(Self { path: path.into(), device: metadata.dev(), inode: metadata.ino(), _lock: lock })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if ours {
            // A file that stays is a stale socket, which the next daemon replaces.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests;
