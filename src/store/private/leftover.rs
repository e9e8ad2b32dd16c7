//! What an earlier server left behind: processes that still run, and the lock files that name them.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Error;

/// How often to look whether they are gone.
const STEP: Duration = Duration::from_millis(10);

/// Returns when no process works in this data directory any more and no lock file claims so.
///
/// A server that outlived its daemon is told to end. PostgreSQL itself would take a lock file for alive whose process id
/// has gone to another process of the same user; here a process counts only when it works in this very directory.
pub(super) fn settle(home: &Path, data: &str, patience: Duration) -> Result<(), Error> {
    let data = home.join(data);
    let began = Instant::now();
    let mut told = false;
    loop {
        let processes = working_in(&data);
        if processes.is_empty() {
            return unlock(home, &data);
        }
        if let Some(server) = postmaster(&data).filter(|pid| !told && processes.contains(&pid.as_raw())) {
            match kill(server, Signal::SIGINT) {
                Ok(()) | Err(Errno::ESRCH) => told = true,
                Err(errno) => {
                    return Err(Error::io("cannot stop the server that is left", &data, errno.into()));
                }
            }
        }
        if began.elapsed() > patience {
            return Err(Error::Occupied { directory: data, processes });
        }
        std::thread::sleep(STEP);
    }
}

/// The server's process id, as its lock file says.
pub(super) fn postmaster(data: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().map(Pid::from_raw)
}

/// All of PostgreSQL's processes have their data directory as the working directory.
fn working_in(data: &Path) -> Vec<i32> {
    let Ok(wanted) = data.metadata() else { return Vec::new() };
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let at = entry.path().join("cwd").metadata().ok()?;
            ((at.dev(), at.ino()) == (wanted.dev(), wanted.ino())).then_some(pid)
        })
        .collect()
}

fn unlock(home: &Path, data: &Path) -> Result<(), Error> {
    let socket = format!(".s.PGSQL.{}", super::PORT);
    let stale = [data.join("postmaster.pid"), home.join(format!("{socket}.lock")), home.join(socket)];
    for file in stale {
        match std::fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("cannot remove a stale file", &file, error)),
        }
    }
    Ok(())
}
