//! Checks of the places outside of the database: there, writable as far as can be seen, and with room. Writes nothing to find out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, faccessat};
use serde::Deserialize;

use super::check::{Finding, Needs};
use super::patient::Patient;
use crate::backup::place;
use crate::config::{self, Destination, Size};
use crate::objects::Objects;

/// Below this nothing can be relied on to be written; below that it is time to make room.
const LEAST: Size = Size::mib(256);
const LITTLE: Size = Size::mib(2048);
/// Of a hundred parts: with fewer free ones it is time to make room, also on a large disk.
const LITTLE_PARTS: u64 = 5;
/// How many files there must be room for.
const FILES: u64 = 1000;
/// How long a store may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where large objects are uploaded in parts. The store is asked for no list of them: the library of object stores has none.
const UNFINISHED: &str = ", nor whether a lifecycle rule (AbortIncompleteMultipartUpload, after a day) ends the uploads that a killed \
    daemon has left unfinished: without one they cost for ever";

const ROOM: &str = "make room, or move it to a larger disk";

/// One of the destinations of the configuration.
pub(super) async fn destination(patient: Arc<Patient>, key: &'static str) -> Finding {
    let config = patient.config();
    let destination = match key {
        "archive.destination" => &config.archive.destination,
        "backup.destination" => &config.backup.destination,
        "keyring.backup" => &config.keyring.backup,
        _ => &config.audit.publish,
    };
    let Some(destination) = destination.clone() else {
        if key == "audit.publish" && !config.audit.publish_command.is_empty() {
            return Finding::skipped(
                "a command publishes (audit.publish_command): what is behind it cannot be seen",
            );
        }
        return Finding::skipped(format!("{key} is not set"));
    };
    match &destination {
        Destination::Directory(path) => {
            let path = path.clone();
            // A file in it tells a directory of dumps from what is there while it is not mounted.
            let holds_dumps = key == "backup.destination";
            let sought = if holds_dumps { path.join(place::MARK) } else { path.clone() };
            // What this user may not see may be there.
            let is_gone = sought.try_exists().is_ok_and(|there| !there);
            if is_gone && was_used(&patient, key, &destination).await {
                let (why, advice) = if holds_dumps {
                    place::lost(&path)
                } else {
                    (
                        format!("{} is not there, and something was written to it before", path.display()),
                        "mount it: what is written beside it meanwhile would be found by nobody".to_owned(),
                    )
                };
                return Finding::fail(why, advice);
            }
            // Whoever may read the daemon's keys is root or the daemon's user.
            let serves = config.keyring.key_files.iter().all(|file| config::secret(file).is_ok());
            let looked = patient.tracker.spawn_blocking(move || directory(key, &path, serves)).await;
            looked.unwrap_or_else(|error| Finding::skipped(error.to_string()))
        }
        Destination::S3(_) | Destination::Gs(_) => bucket(&patient, key, &destination).await,
    }
}

/// Whether the database knows of something that is kept there.
async fn was_used(patient: &Patient, key: &str, destination: &Destination) -> bool {
    #[derive(Deserialize)]
    struct Used {
        used: bool,
    }
    let url = destination.to_string().replace('\'', "''");
    let kept = match key {
        "archive.destination" => {
            format!("sidekeep.audit_archives WHERE removed_at IS NULL AND starts_with(object, '{url}/')")
        }
        "backup.destination" => format!("sidekeep.backup_policy WHERE destination = '{url}'"),
        "keyring.backup" => {
            format!("sidekeep.keyring_backups WHERE destination = '{url}' AND stored_at IS NOT NULL")
        }
        _ => format!("sidekeep.audit_publications WHERE destination = '{url}'"),
    };
    let asked = format!("SELECT EXISTS (SELECT FROM {kept}) AS used");
    patient.lacks(Needs::Schema).is_none() && patient.one::<Used>(&asked).await.is_ok_and(|found| found.used)
}

async fn bucket(patient: &Patient, key: &str, destination: &Destination) -> Finding {
    let advice = format!(
        "are {key}, [s3] and [gs] right, do the credentials allow to list, and is the store reached from here?"
    );
    let listed = async {
        let objects = Objects::open(destination, patient.config())?;
        objects.list_after("", "", 1).await
    };
    match tokio::time::timeout(PATIENCE, listed).await {
        Ok(Ok(_)) => {
            let seen = format!(
                "{destination} answers; how much room it has and whether it takes writes cannot be seen"
            );
            match key {
                "archive.destination" | "backup.destination" => Finding::ok(format!("{seen}{UNFINISHED}")),
                _ => Finding::ok(seen),
            }
        }
        Ok(Err(trouble)) => Finding::fail(format!("{destination}: {trouble}"), advice),
        Err(_) => Finding::fail(
            format!("{destination}: no answer within {}", humantime::format_duration(PATIENCE)),
            advice,
        ),
    }
}

/// A directory that is not there yet is made by whoever first writes to it: what it will be in is looked at then.
fn directory(key: &str, path: &Path, serves: bool) -> Finding {
    let there = path.ancestors().find(|above| above.exists());
    let Some(there) = there else {
        return Finding::fail(format!("{}: there is no such place", path.display()), "mount it");
    };
    if !there.is_dir() {
        return Finding::fail(
            format!("{} is no directory", there.display()),
            format!("name another one in {key}"),
        );
    }
    if faccessat(AT_FDCWD, there, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).is_err() {
        return unwritable(there, serves);
    }
    let made = if there == path { "" } else { "; it is made with the first write" };
    match room(there) {
        Err(finding) => finding,
        Ok(room) => room.judged(&format!("{}{made}", path.display())),
    }
}

/// For root this is no question of who asks; for somebody else it says nothing of the daemon.
fn unwritable(path: &Path, serves: bool) -> Finding {
    let path = path.display();
    if nix::unistd::geteuid().is_root() {
        return Finding::fail(format!("{path} cannot be written to"), "is it mounted read-only?");
    }
    if serves {
        return Finding::fail(
            format!("{path} cannot be written to by this user, who may read the daemon's keys"),
            "give it to the daemon's user, and name it in ReadWritePaths= of the unit",
        );
    }
    Finding::skipped(format!(
        "{path}: whether the daemon may write there, this user cannot see; run doctor as root"
    ))
}

/// What a file system has left for who is not root.
struct Room {
    free: u64,
    all: u64,
    files: Option<u64>,
}

fn room(path: &Path) -> Result<Room, Finding> {
    let found = statvfs(path).map_err(|errno| {
        Finding::skipped(format!("{}: how full it is cannot be seen: {}", path.display(), errno.desc()))
    })?;
    if found.flags().contains(FsFlags::ST_RDONLY) {
        return Err(Finding::fail(
            format!("{}: is mounted read-only", path.display()),
            "mount it to be written to; why was it not?",
        ));
    }
    let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
    // Some file systems count no files.
    let files = (found.files() > 0).then(|| found.files_available());
    Ok(Room { free: bytes(found.blocks_available()), all: bytes(found.blocks()), files })
}

impl Room {
    fn judged(&self, what: &str) -> Finding {
        let parts = self.free.saturating_mul(100).checked_div(self.all).unwrap_or(100);
        let why = format!("{what}: {} of {} are free ({parts} %)", readable(self.free), readable(self.all));
        if self.free < LEAST.bytes() {
            return Finding::fail(why, ROOM);
        }
        if let Some(files) = self.files.filter(|files| *files < FILES) {
            return Finding::fail(format!("{what}: there is room for {files} more files"), ROOM);
        }
        if self.free < LITTLE.bytes() || parts < LITTLE_PARTS {
            return Finding::warn(why, ROOM);
        }
        Finding::ok(why)
    }
}

fn readable(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

#[derive(Deserialize)]
struct Server {
    pid: i32,
    local: bool,
    size: i64,
}

/// The disks that PostgreSQL writes to, where it runs on this host and this user may see them.
pub(super) async fn database(patient: Arc<Patient>) -> Finding {
    // A session by TCP may lead anywhere, also where its address is this host's.
    const ASKED: &str = "SELECT pg_backend_pid() AS pid, pg_database_size(current_database()) AS size, \
        coalesce(host(inet_server_addr()) IN ('127.0.0.1', '::1') OR inet_server_addr() = inet_client_addr(), true) AS local";
    let Server { pid, local, size } = match patient.one(ASKED).await {
        Ok(server) => server,
        Err(finding) => return finding,
    };
    let size = readable(size.unsigned_abs());
    let elsewhere = format!(
        "the database has {size}; how full its disk is cannot be seen from this host, or by this user"
    );
    if !local {
        return Finding::skipped(elsewhere);
    }
    let looked =
        patient.tracker.spawn_blocking(move || data_directory(pid).map(|data| of_server(&data, &size)));
    // The process is that of the patient's own session, which is open until all checks are done.
    match looked.await {
        Ok(Some(finding)) => finding,
        _ => Finding::skipped(elsewhere),
    }
}

/// Where the server process of a session works, which is the server's data directory; nothing where that is no process of
/// PostgreSQL's on this host.
fn data_directory(pid: i32) -> Option<PathBuf> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let data = std::fs::canonicalize(format!("/proc/{pid}/cwd")).ok()?;
    (name.trim() == "postgres" && data.join("PG_VERSION").exists()).then_some(data)
}

/// The data, and the write-ahead log, which may be on another disk.
fn of_server(data: &Path, size: &str) -> Finding {
    let wal = std::fs::canonicalize(data.join("pg_wal")).unwrap_or_else(|_| data.to_owned());
    let mut found = Vec::new();
    for path in [data, &wal] {
        match room(path) {
            Ok(room) => found.push(room.judged(&path.display().to_string())),
            Err(finding) => found.push(finding),
        }
    }
    found.sort_by_key(|finding| finding.advice.is_none());
    let mut worst = found.into_iter().next().unwrap_or_else(|| Finding::skipped("nothing was seen"));
    worst.why = format!("{}; the database has {size}", worst.why);
    worst
}

#[cfg(test)]
mod tests {
    use super::{Room, room};
    use crate::cli::doctor::check::Status;

    #[test]
    fn what_is_left_is_judged() {
        const GIB: u64 = 1 << 30;
        let cases = [
            (100 * GIB, 200 * GIB, None, Status::Ok),
            (3 * GIB, 20 * GIB, Some(10_000), Status::Ok),
            (3 * GIB, 200 * GIB, None, Status::Warn),
            (GIB, 8 * GIB, None, Status::Warn),
            (GIB / 8, GIB, None, Status::Fail),
            (100 * GIB, 200 * GIB, Some(7), Status::Fail),
            (0, 0, None, Status::Fail),
        ];
        for (free, all, files, status) in cases {
            assert_eq!(Room { free, all, files }.judged("x").status, status, "{free} of {all}, {files:?}");
        }
        assert!(room(std::path::Path::new("/")).is_ok_and(|room| room.all > 0));
    }
}
