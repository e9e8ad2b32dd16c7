//! `sidekeep dev`: one folder, one PostgreSQL, and both gone when it ends, however it ends.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::wait_for;

fn dev(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidekeep"));
    command
        .args(["dev", "--dir"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// A `sidekeep dev` that said it is ready. Killed when dropped, and PostgreSQL with it.
pub struct Dev(Child);

impl Dev {
    pub fn start(folder: &Path) -> Self {
        let mut child = dev(folder).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut all = String::new();
        while !all.contains("\nready.") && !all.starts_with("ready.") {
            assert_ne!(said.read_line(&mut all).unwrap(), 0, "it ended: {all}");
        }
        // What it says later must not stop it.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    pub fn end(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.0.wait().unwrap().code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn postmaster(folder: &Path) -> PathBuf {
    folder.join("postgres/data/postmaster.pid")
}

fn psql(folder: &Path, file: &str, statement: &str) -> Output {
    let url = std::fs::read_to_string(folder.join(file)).unwrap();
    Command::new("psql").args([url.trim(), "-XAtqc", statement]).output().unwrap()
}

#[test]
fn an_empty_folder_serves_and_serves_again_with_what_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("dev");
    let first = Dev::start(&folder);
    // Every job has what it needs.
    for arguments in [&["health", "--live"][..], &["backup"], &["call", "job.run", r#"{"name": "archive"}"#]]
    {
        let done = Command::new(env!("CARGO_BIN_EXE_sidekeep"))
            .arg("--config")
            .arg(folder.join("sidekeep.toml"))
            .args(arguments)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    assert!(psql(&folder, "keys/owner-url", "CREATE TABLE mine AS SELECT 7 AS n").status.success());
    let key = std::fs::read(folder.join("keys/kek")).unwrap();
    assert_eq!(first.end(Signal::SIGTERM), Some(0));
    assert!(!postmaster(&folder).exists(), "PostgreSQL ends with it");

    let mut edited = std::fs::read_to_string(folder.join("sidekeep.toml")).unwrap();
    edited.push_str("level = \"warn\"\n");
    sidekeep::durable::write(&folder.join("sidekeep.toml"), edited.as_bytes(), 0o644).unwrap();
    let second = Dev::start(&folder);
    assert_eq!(psql(&folder, "keys/owner-url", "SELECT n FROM mine").stdout, b"7\n");
    assert_eq!(std::fs::read_to_string(folder.join("sidekeep.toml")).unwrap(), edited);
    assert_eq!(std::fs::read(folder.join("keys/kek")).unwrap(), key);
    assert_eq!(second.end(Signal::SIGINT), Some(0));
}

#[test]
fn a_second_one_on_the_folder_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Dev::start(directory.path());
    let second = dev(directory.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(75));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another `sidekeep dev`"), "{said}");
}

#[test]
fn killed_at_once_it_leaves_nothing_that_stops_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let first = Dev::start(directory.path());
    assert!(psql(directory.path(), "keys/owner-url", "CREATE TABLE mine AS SELECT 7 AS n").status.success());
    assert_eq!(first.end(Signal::SIGKILL), None);
    let second = Dev::start(directory.path());
    assert_eq!(psql(directory.path(), "keys/owner-url", "SELECT n FROM mine").stdout, b"7\n");
    assert_eq!(second.end(Signal::SIGKILL), None);
    wait_for("PostgreSQL's end without anybody's help", || {
        (!postmaster(directory.path()).exists()).then_some(())
    });
}

#[test]
fn a_mistake_in_the_edited_file_is_found_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sidekeep.toml");
    sidekeep::durable::write(&file, b"[socket]\npaht = \"x\"\n", 0o644).unwrap();
    let refused = dev(directory.path()).output().unwrap();
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("paht"));
    assert!(!directory.path().join("postgres").exists());
}
