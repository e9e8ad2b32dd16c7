//! What may lie at the socket's path.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;

use super::{BindError, Listener, bind};
use crate::config::{FileMode, Socket};

fn socket(path: &Path) -> Socket {
    Socket { path: path.into(), group: String::new(), mode: FileMode(0o640), ..Socket::default() }
}

#[tokio::test]
async fn the_socket_has_its_mode_and_group_and_goes_with_its_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let group = nix::unistd::getegid().as_raw().to_string();
    let listener = bind(&Socket { group, ..socket(&path) }).unwrap();
    let metadata = std::fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
    assert_eq!(metadata.gid(), nix::unistd::getegid().as_raw());
    StdStream::connect(&path).unwrap();
    drop(listener);
    assert!(!path.exists());
    drop(bind(&socket(&path)).unwrap());
}

#[tokio::test]
async fn a_living_socket_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = bind(&socket(&path)).unwrap();
    assert!(matches!(bind(&socket(&path)), Err(BindError::InUse { .. })));
    StdStream::connect(&path).unwrap();
    drop(first);
    let foreign = StdListener::bind(&path).unwrap();
    assert!(matches!(bind(&socket(&path)), Err(BindError::InUse { .. })));
    StdStream::connect(&path).unwrap();
    drop(foreign);
}

#[tokio::test]
async fn who_cannot_lock_is_told_of_a_living_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    std::fs::create_dir(dir.path().join("s.lock")).unwrap();
    let living = StdListener::bind(&path).unwrap();
    assert!(matches!(bind(&socket(&path)), Err(BindError::InUse { .. })));
    drop(living);
    assert!(matches!(bind(&socket(&path)), Err(BindError::Io { .. })));
    assert!(path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(StdListener::bind(&path).unwrap());
    assert!(path.exists());
    let _listener = bind(&socket(&path)).unwrap();
    StdStream::connect(&path).unwrap();
}

#[tokio::test]
async fn no_other_file_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    std::fs::File::create(&path).unwrap();
    assert!(matches!(bind(&socket(&path)), Err(BindError::NotASocket { .. })));
    assert!(path.exists());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(bind(&socket(&path)), Err(BindError::NotASocket { .. })));
    let link = dir.path().join("link");
    symlink("nowhere", &link).unwrap();
    assert!(matches!(bind(&socket(&link)), Err(BindError::NotASocket { .. })));
    assert!(std::fs::symlink_metadata(&link).is_ok());
}

#[tokio::test]
async fn what_replaced_the_socket_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = bind(&socket(&path)).unwrap();
    // Moved, not removed: a new file could have the inode of one that is gone.
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    std::fs::File::create(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}

#[tokio::test]
async fn a_path_has_at_most_107_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let fill = |length: usize| dir.path().join("x".repeat(length - dir.path().as_os_str().len() - 1));
    let error = bind(&socket(&fill(108))).unwrap_err().to_string();
    assert!(error.contains("108 bytes") && error.contains("107"), "{error}");
    bind(&socket(&fill(107))).unwrap();
}

#[tokio::test]
async fn an_unknown_group_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let error = bind(&Socket { group: "no-such-group".into(), ..socket(&path) }).unwrap_err().to_string();
    assert!(error.contains("socket.group") && error.contains("no-such-group"), "{error}");
    assert!(!path.exists());
}

#[tokio::test]
async fn systemd_hands_over_a_listening_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = Listener::from_systemd(StdListener::bind(&path).unwrap().into()).unwrap();
    let (client, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
    let (client, accepted) = (client.unwrap(), accepted.unwrap());
    drop((client, listener));
    assert!(path.exists(), "its file is systemd's");
    let connected = accepted.into_std().unwrap();
    assert!(matches!(Listener::from_systemd(connected.into()), Err(BindError::NotListening)));
}
