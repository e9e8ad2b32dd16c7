//! What changes while the daemon runs: SIGHUP reads the configuration again.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::peer::{Somebody, can_be_others};
use crate::support::{Daemon, World, wait_for};

impl Daemon {
    fn configuration(&self) -> String {
        std::fs::read_to_string(&self.config).unwrap()
    }

    /// Puts another configuration in place and says so; waits until the log has this word once more than before.
    fn reload(&self, text: &str, logged: &str) {
        let count = |log: &str| log.matches(logged).count();
        let before = count(&self.log());
        std::fs::write(&self.config, text).unwrap();
        self.signal(Signal::SIGHUP);
        wait_for(logged, || (count(&self.log()) > before).then_some(()));
    }
}

#[test]
fn other_rules_are_in_force_without_a_restart() {
    let world = World::new();
    world.open();
    let daemon = world.start_with("socket.mode = \"0666\"\n");
    let base = daemon.configuration();
    let mut client = daemon.client();
    let call = json!({ "user_id": "nobody" });
    let purpose = "access.require_purpose = true\n";
    daemon.reload(&format!("{base}{purpose}"), "was reloaded");
    assert_eq!(
        client.err("profile.get", call.clone()).field(),
        "context.purpose",
        "on an open connection too"
    );
    daemon.reload(&base, "was reloaded");
    assert_eq!(client.err("profile.get", call.clone()).kind(), "not_found");

    if can_be_others() {
        let peer = Somebody::new(54_321, 54_321, &[]);
        let kind = || peer.calls(&daemon.socket, "profile.get", &call).unwrap_err().kind().to_owned();
        assert_eq!(kind(), "forbidden");
        daemon.reload(&format!("{base}[[access.rules]]\nuser = 54321\nrole = \"app\"\n"), "was reloaded");
        assert_eq!(kind(), "not_found");
        daemon.reload(&base, "was reloaded");
        assert_eq!(kind(), "forbidden");
    }
    daemon.assert_well();
}

#[test]
fn a_wrong_file_changes_nothing_and_is_told() {
    let world = World::new();
    let daemon = world.start_with("access.require_purpose = true\n");
    let base = daemon.configuration();
    let mut client = daemon.client();
    let reload_error =
        |client: &mut crate::support::Client| client.ok("system.status", json!({}))["reload_error"].clone();
    assert_eq!(reload_error(&mut client), Value::Null);
    for (wrong, named) in [
        ("access.require_purpose = maybe\n".to_owned(), "0.toml"),
        (format!("{base}[limits]\ncals = 5\n"), "calls"),
        (
            format!("{base}[[access.rules]]\nuser = \"no-such-user-here\"\nrole = \"app\"\n"),
            "no-such-user-here",
        ),
        (format!("{base}[[access.rules]]\nuser = 5\nallow = [\"nothing\"]\n"), "nothing"),
    ] {
        daemon.reload(&wrong, "the old one stays");
        let error = reload_error(&mut client);
        assert!(error.as_str().unwrap().contains(named), "{wrong}: {error}");
        assert_eq!(client.err("profile.get", json!({ "user_id": "u" })).field(), "context.purpose");
        client.ok("system.health", json!({}));
    }
    daemon.reload(&base, "was reloaded");
    assert_eq!(reload_error(&mut client), Value::Null);
    daemon.assert_well();
}

#[test]
fn a_key_that_needs_a_restart_is_named() {
    let world = World::new();
    let daemon = world.start();
    let base = daemon.configuration();
    daemon.reload(
        &format!("{base}limits.calls = 99\ndatabase.pool = 3\nlog.level = \"warn\"\n"),
        "need a restart",
    );
    let log = daemon.log();
    let line = log.lines().rfind(|line| line.contains("need a restart")).unwrap();
    assert!(line.contains("limits.calls") && line.contains("database.pool"), "{line}");
    assert!(!line.contains("log.level"), "{line}");
    let status = daemon.ok("system.status", json!({}));
    assert_eq!((&status["calls"]["max"], &status["pool"]["max"]), (&json!(4096), &json!(8)));
    assert_eq!(status["log_level"], "warn");
    daemon.assert_well();
}

#[test]
fn calls_in_flight_outlive_a_reload() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("profile.create", json!({ "user_id": "held", "username": "u", "email": "e" }));
    let lock = crate::support::Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    wait_for("the call", || (daemon.ok("system.status", json!({}))["calls"]["in_flight"] == 1).then_some(()));
    daemon.reload(&daemon.configuration(), "was reloaded");
    daemon.reload("nonsense", "the old one stays");
    lock.release();
    assert_eq!(client.line()["result"], json!({ "deleted": true }));
}
