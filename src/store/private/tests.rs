//! The private cluster on a real PostgreSQL: made, reused, recovered, refused.

use std::process::Command;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::*;

fn start(directory: &Path) -> Private {
    Private::start(directory, Options::default()).unwrap()
}

fn psql(url: &str, statement: &str) -> String {
    let done = Command::new("psql").args([url, "-XAtqc", statement]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_cluster_is_made_used_stopped_and_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("with space & 100%");
    let postgres = start(&inside);
    assert!(postgres.created());
    for _ in 0..2 {
        postgres.provision("an app", "a \"base\"").unwrap();
    }
    postgres.execute("a \"base\"", "CREATE TABLE t AS SELECT 1 AS n").unwrap();
    assert_eq!(psql(&postgres.url(SUPERUSER, "a \"base\""), "SELECT n FROM t"), "1");
    assert_eq!(psql(&postgres.url("an app", "a \"base\""), "SELECT current_user"), "an app");
    assert_eq!(psql(&postgres.url(SUPERUSER, "postgres"), "SHOW data_checksums"), "on");
    let pid = Pid::from_raw(postgres.pid());
    postgres.stop().unwrap();
    assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    let postgres = start(&inside);
    assert!(!postgres.created());
    assert_eq!(psql(&postgres.url(SUPERUSER, "a \"base\""), "SELECT n FROM t"), "1");
}

#[test]
fn the_server_outlives_the_thread_that_started_it() {
    let directory = tempfile::tempdir().unwrap();
    let postgres = std::thread::scope(|scope| scope.spawn(|| start(directory.path())).join().unwrap());
    assert_eq!(psql(&postgres.url(SUPERUSER, "postgres"), "SELECT 1"), "1");
}

#[test]
fn a_second_one_on_a_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _first = start(directory.path());
    let second = Private::start(directory.path(), Options::default());
    assert!(matches!(second, Err(Error::InUse { .. })), "{second:?}");
}

#[test]
fn a_server_that_was_killed_recovers_though_its_process_id_went_to_another() {
    let directory = tempfile::tempdir().unwrap();
    let postgres = start(directory.path());
    postgres.execute("postgres", "CREATE TABLE t (n int)").unwrap();
    kill(Pid::from_raw(postgres.pid()), Signal::SIGKILL).unwrap();
    drop(postgres);
    // A living process with that id: this one. PostgreSQL by itself would not start.
    let lock = directory.path().join("postgres/data/postmaster.pid");
    let claimed = format!("{}\n/proc/self/fd/9/data\n", std::process::id());
    durable::write(&lock, claimed.as_bytes(), 0o666).unwrap();
    let postgres = start(directory.path());
    assert_eq!(psql(&postgres.url(SUPERUSER, "postgres"), "SELECT count(*) FROM t"), "0");
}

#[test]
fn a_server_that_outlived_its_daemon_is_ended_first() {
    let directory = tempfile::tempdir().unwrap();
    let Private { server, _lock, .. } = start(directory.path());
    let orphan = Pid::from_raw(server.pid());
    let watch = std::thread::spawn(move || server.ready(Path::new("/nonexistent"), PATIENCE));
    drop(_lock);
    let postgres = start(directory.path());
    assert_ne!(postgres.pid(), orphan.as_raw());
    assert_eq!(kill(orphan, None), Err(nix::errno::Errno::ESRCH));
    assert!(matches!(watch.join().unwrap(), Err(Error::Failed { .. })));
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let failed = Private::start(
        directory.path(),
        Options { settings: &[("work_mem", "nonsense")], ..Options::default() },
    );
    let text = failed.unwrap_err().to_string();
    assert!(text.contains("work_mem"), "{text}");
}

#[test]
fn what_an_interrupted_first_start_left_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let half = directory.path().join("postgres/data.new");
    durable::create_directory(&half, 0o700).unwrap();
    durable::write(&half.join("PG_VERSION"), b"15\n", 0o600).unwrap();
    assert!(start(directory.path()).created());
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let deep = directory.path().join("x".repeat(100));
    let refused = Private::start(&deep, Options::default());
    assert!(matches!(refused, Err(Error::PathTooLong { .. })), "{refused:?}");
    assert!(!deep.exists());
}

#[test]
fn programs_that_are_missing_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let refused = binaries::find(Some(empty.path()), None);
    assert!(matches!(refused, Err(Error::NotThere { .. })), "{refused:?}");
    let refused = binaries::find(None, Some("9"));
    assert!(matches!(refused, Err(Error::OtherVersion { .. })), "{refused:?}");
    let all = [Error::Missing, refused.unwrap_err()].map(|error| error.to_string());
    assert!(all.iter().all(|text| text.contains("apt-get install postgresql")), "{all:?}");
}
