//! Who is at the other end, as the kernel says.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use tokio::net::UnixStream;

use crate::audit::{Pinned, Turns};

/// The process at the other end of a connection, as it was when it connected.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its process id, where the kernel tells; it may have been reused since.
    pub pid: Option<i32>,
    /// The order in which the entries that it sends are appended.
    pub turns: Turns,
    /// Where they are appended.
    pub pinned: Pinned,
}

impl Peer {
    /// Asks the kernel (SO_PEERCRED, SO_PEERGROUPS).
    ///
    /// # Errors
    /// The kernel does not tell; then nothing may be answered.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        use std::os::fd::AsFd;
        let credentials = stream.peer_cred()?;
        Ok(Self {
            uid: credentials.uid(),
            gid: credentials.gid(),
            groups: supplementary_groups(stream.as_fd())?,
            pid: credentials.pid(),
            turns: Turns::default(),
            pinned: Pinned::default(),
        })
    }

    /// This process itself.
    pub fn own() -> Self {
        Self {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            groups: Vec::new(),
            pid: i32::try_from(std::process::id()).ok(),
            turns: Turns::default(),
            pinned: Pinned::default(),
        }
    }
}

/// Where the kernel does not know the option (before Linux 4.13) there are none, and a rule by group sees the primary one alone.
fn supplementary_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0; 32];
    loop {
        match peer_groups(socket, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            Err((error, needed)) if error.raw_os_error() == Some(libc::ERANGE) && needed > groups.len() => {
                groups.resize(needed, 0);
            }
            Err((error, _)) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => return Ok(Vec::new()),
            Err((error, _)) => return Err(error),
        }
    }
}

/// Fills `groups` and says how many there are, or on `ERANGE` how many there is need for.
#[expect(unsafe_code, reason = "neither std, tokio nor nix offers SO_PEERGROUPS")]
fn peer_groups(socket: BorrowedFd<'_>, groups: &mut [libc::gid_t]) -> Result<usize, (io::Error, usize)> {
    let one = size_of::<libc::gid_t>();
    let mut length = libc::socklen_t::try_from(size_of_val(groups)).unwrap_or(0);
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most `length` bytes to `groups`, which has
    // that many, and any bytes are a valid gid_t; `length` is a valid place for the length that it answers.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    let count = usize::try_from(length).unwrap_or(0) / one;
    if status == 0 { Ok(count) } else { Err((io::Error::last_os_error(), count)) }
}

#[cfg(test)]
mod tests {
    use super::Peer;

    #[tokio::test]
    async fn the_kernel_says_who_it_is() {
        let (one, _other) = tokio::net::UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!((peer.uid, peer.gid, peer.pid), (Peer::own().uid, Peer::own().gid, Peer::own().pid));
        let own: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        assert_eq!(peer.groups, own);
    }
}
