//! The end of a daemon, and the socket file from its first moment to its last.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Client, Daemon, Session, World, read, wait_for};

fn create(user_id: &str) -> Value {
    json!({ "user_id": user_id, "username": "u", "email": "u@mail.example" })
}

fn in_flight(daemon: &Daemon, count: u64) {
    let mut client = daemon.client();
    wait_for("the calls", || {
        (client.ok("system.status", json!({}))["calls"]["in_flight"] == count).then_some(())
    });
}

/// What clients got until the connection ended.
#[derive(Default)]
struct Told {
    done: BTreeSet<String>,
    refused: BTreeSet<String>,
    unanswered: BTreeSet<String>,
}

/// Writes until the daemon ends: eight calls at a time on one connection.
fn load(daemon: &Daemon, worker: usize, began: &AtomicBool) -> Told {
    let mut told = Told::default();
    let Ok(mut client) = Client::try_connect(&daemon.socket) else { return told };
    let (mut next, mut waiting) = (0, std::collections::BTreeMap::new());
    loop {
        while waiting.len() < 8 {
            let user = format!("w{worker}-{next}");
            next += 1;
            let request =
                json!({ "jsonrpc": "2.0", "id": user, "method": "profile.create", "params": create(&user) });
            if client.try_send(format!("{request}\n").as_bytes()).is_err() {
                break;
            }
            waiting.insert(user, ());
        }
        let Some(answer) = client.try_line() else { break };
        began.store(true, Ordering::Relaxed);
        let user = answer["id"].as_str().unwrap().to_owned();
        waiting.remove(&user);
        match read(&answer) {
            Ok(_) => told.done.insert(user),
            Err(error) => {
                assert_eq!(error.kind(), "unavailable", "{error:?}");
                told.refused.insert(user)
            }
        };
    }
    told.unanswered = waiting.into_keys().collect();
    told
}

#[test]
fn under_load_what_was_answered_is_committed_and_what_was_begun_is_answered() {
    let world = World::new();
    for round in 0..10 {
        let mut daemon = world.start();
        let began = AtomicBool::new(false);
        let told: Vec<Told> = thread::scope(|scope| {
            let (daemon, began) = (&daemon, &began);
            let workers: Vec<_> =
                (0..4).map(|worker| scope.spawn(move || load(daemon, round * 10 + worker, began))).collect();
            wait_for("the load", || began.load(Ordering::Relaxed).then_some(()));
            daemon.signal(Signal::SIGTERM);
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
        assert!(!daemon.socket.exists(), "the socket goes with its daemon");
        let stored = world.sql("SELECT s.user_id FROM user_profiles JOIN subjects s USING (subject_id)");
        let stored: BTreeSet<String> = stored.lines().map(str::to_owned).collect();
        for told in told {
            assert!(told.done.is_subset(&stored), "answered and not committed: {:?}", told.done);
            assert!(told.refused.is_disjoint(&stored), "refused and committed: {:?}", told.refused);
            let silent: Vec<_> = told.unanswered.intersection(&stored).collect();
            assert!(silent.is_empty(), "committed and not answered: {silent:?}");
        }
        assert!(!daemon.log().contains("panicked"));
    }
}

#[test]
fn a_call_that_outlasts_the_drain_is_told_what_became_of_it() {
    let world = World::new();
    let mut daemon = world.start_with("socket.drain = \"300ms\"\n");
    daemon.ok("profile.create", create("held"));
    let lock = Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    in_flight(&daemon, 1);
    let mut idle = daemon.client();
    idle.ok("system.health", json!({}));
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert!(idle.try_line().is_none(), "an idle connection is closed");
    let error = read(&client.line()).unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!((error.kind(), &error.data["retryable"]), ("unavailable", &json!(true)), "{error:?}");
    assert!(client.try_line().is_none());
    assert_eq!(daemon.wait(), Some(0));
    lock.release();
    assert_eq!(world.sql("SELECT count(*) FROM user_profiles"), "1", "nothing was committed");
}

#[test]
fn a_call_that_ends_within_the_drain_is_answered() {
    let world = World::new();
    let mut daemon = world.start();
    daemon.ok("profile.create", create("held"));
    let lock = Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    in_flight(&daemon, 1);
    daemon.signal(Signal::SIGINT);
    wait_for("the socket's end", || (!daemon.socket.exists()).then_some(()));
    assert!(Client::try_connect(&daemon.socket).is_err(), "nobody new is taken");
    lock.release();
    assert_eq!(client.line()["result"], json!({ "deleted": true }));
    assert_eq!(daemon.wait(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let world = World::new();
    let mut daemon = world.start_with("socket.drain = \"1h\"\n");
    daemon.ok("profile.create", create("held"));
    let _lock = Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    in_flight(&daemon, 1);
    daemon.signal(Signal::SIGTERM);
    wait_for("the drain", || (!daemon.socket.exists()).then_some(()));
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let code = daemon.wait();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(code, Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("cut"), "{}", daemon.log());
}

#[test]
fn a_socket_that_is_left_over_is_replaced() {
    let world = World::new();
    let mut daemon = world.start();
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    assert!(daemon.socket.exists());
    let again = daemon.start_again();
    again.assert_well();
    again.stop();
}

#[test]
fn a_living_daemon_keeps_its_socket() {
    let world = World::new();
    let daemon = world.start();
    let begun = std::fs::metadata(&daemon.socket).unwrap().ino();
    let (file, _) = world.configure(&format!("socket.path = {:?}\n", daemon.socket));
    let second = crate::support::sidekeep(&["--config", file.to_str().unwrap(), "serve"]);
    assert_eq!(second.status.code(), Some(75), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("owns this socket"), "{second:?}");
    assert_eq!(std::fs::metadata(&daemon.socket).unwrap().ino(), begun);
    daemon.assert_well();

    let path = world.path("other.sock");
    let _other = UnixListener::bind(&path).unwrap();
    let (file, _) = world.configure(&format!("socket.path = {path:?}\n"));
    let third = crate::support::sidekeep(&["--config", file.to_str().unwrap(), "serve"]);
    assert_eq!(third.status.code(), Some(75), "whoever listens there: {third:?}");
    assert!(path.exists());
}

#[test]
fn what_is_no_socket_is_never_deleted() {
    let world = World::new();
    let path = world.path("precious");
    let start = |path: &std::path::Path| {
        let (file, _) = world.configure(&format!("socket.path = {path:?}\n"));
        crate::support::sidekeep(&["--config", file.to_str().unwrap(), "serve"])
    };
    std::fs::write(&path, "precious").unwrap();
    let refused = start(&path);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not a socket"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    let link = world.path("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(!start(&link).status.success());
    assert!(link.symlink_metadata().unwrap().file_type().is_symlink());
    let directory = world.path("directory");
    std::fs::create_dir(&directory).unwrap();
    assert!(!start(&directory).status.success());
    assert!(directory.is_dir());
}

#[test]
fn the_socket_has_its_mode_and_group_before_anybody_can_connect() {
    let world = World::new();
    let gid = if nix::unistd::geteuid().is_root() { 54_322 } else { nix::unistd::getegid().as_raw() };
    for (mode, bits) in [("0660", 0o660), ("0600", 0o600), ("0666", 0o666)] {
        let daemon = world.spawn(&format!("socket.mode = \"{mode}\"\nsocket.group = \"{gid}\"\n"));
        // Asked before connecting: whoever connects sees what was there first.
        let seen = wait_for("a connection", || {
            let before = std::fs::symlink_metadata(&daemon.socket).ok()?;
            Client::try_connect(&daemon.socket).ok().map(|_| before)
        });
        assert!(seen.file_type().is_socket());
        assert_eq!((seen.permissions().mode() & 0o7777, seen.gid()), (bits, gid));
        daemon.wait_ready();
        daemon.stop();
    }
    let mut refused = world.spawn("socket.group = \"no-such-group-here\"\n");
    assert_ne!(refused.wait(), Some(0));
    assert!(refused.log().contains("no-such-group-here"));
    assert!(!refused.socket.exists());
}
