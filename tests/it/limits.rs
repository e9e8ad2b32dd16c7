//! The errors of interface.md §1, each provoked once, and the limits that keep the daemon small and fair.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::outcome::hold_commits;
use crate::support::{Client, Cluster, Daemon, RpcError, Session, World, timed, wait_for};

fn create(user_id: &str) -> Value {
    json!({ "user_id": user_id, "username": "u", "email": "u@mail.example" })
}

/// An error of the table: code, kind, whether it is worth trying again, and then when.
#[track_caller]
fn assert_kind(error: &RpcError, kind: &str, code: i64, retryable: bool) {
    assert_eq!(
        (error.kind(), error.code, &error.data["retryable"]),
        (kind, code, &json!(retryable)),
        "{error:?}"
    );
    let after = error.data.get("retry_after_ms").and_then(Value::as_u64);
    assert_eq!(after.is_some_and(|after| after > 0), retryable, "{error:?}");
    assert!(!error.message.is_empty());
}

/// An answer that waits for nothing, of some: a machine that stands still for a moment holds one of them up.
fn quickest(client: &mut Client, method: &str) -> (Value, Duration) {
    let answers = (0..5).map(|_| timed(|| client.ok(method, json!({}))));
    answers.min_by_key(|(_, took)| *took).unwrap()
}

fn in_flight(daemon: &Daemon, count: u64) {
    let mut client = daemon.client();
    wait_for("the calls", || {
        (client.ok("system.status", json!({}))["calls"]["in_flight"] == count).then_some(())
    });
}

#[test]
fn each_kind_of_error_says_what_the_caller_can_do() {
    let world = World::new();
    let daemon =
        world.start_with("limits.max_record_bytes = \"8KiB\"\nlimits.max_answer_bytes = \"32KiB\"\n");
    let mut client = daemon.client();
    client.ok("profile.create", create("u"));

    assert_kind(&client.err("profile.get", json!({ "user_id": "nobody" })), "not_found", -32020, false);
    assert_kind(&client.err("profile.create", create("u")), "conflict", -32021, false);
    let update = json!({ "user_id": "u", "changes": {}, "expected_version": 9 });
    let stale = client.err("profile.update", update);
    assert_kind(&stale, "conflict", -32021, false);
    assert_eq!(stale.data["current_version"], 1);

    let large = json!({ "user_id": "u", "preferences": "x".repeat(9 << 10) });
    let error = client.err("preferences.set", large);
    assert_kind(&error, "too_large", -32025, false);
    assert_eq!(error.data["max"], 8 << 10);
    client.ok("preferences.set", json!({ "user_id": "u", "preferences": "x".repeat(8000) }));
    let message = json!({ "role": "user", "content": "x".repeat(6000) });
    client.ok("conversation.create", json!({ "user_id": "u", "id": "c", "messages": vec![message; 9] }));
    let error = client.err("conversation.get", json!({ "id": "c" }));
    assert_kind(&error, "too_large", -32025, false);
    assert_eq!(error.data["max"], 32 << 10);
    let get = json!({ "jsonrpc": "2.0", "id": 1, "method": "preferences.get", "params": { "user_id": "u" } });
    let answers = daemon.client().exchange(json!(vec![get; 40]).to_string().as_bytes());
    let last = crate::support::read(answers[0].as_array().unwrap().last().unwrap()).unwrap_err();
    assert_kind(&last, "too_large", -32025, false);

    world.sql("UPDATE subjects SET restricted_at = now() WHERE user_id = 'u'");
    assert_kind(&client.err("profile.get", json!({ "user_id": "u" })), "restricted", -32024, false);
    world.sql("UPDATE subjects SET restricted_at = NULL WHERE user_id = 'u'");
    world.sql("UPDATE user_profiles SET email_sealed = username_sealed");
    let error = client.err("profile.get", json!({ "user_id": "u" }));
    assert_kind(&error, "tampered", -32028, false);
    assert_eq!(error.data["at"], "user_profiles.email_sealed");
    daemon.assert_well();
}

#[test]
fn an_internal_error_tells_its_request_id_and_nothing_else() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("profile.create", create("secret-person"));
    world.sql("REVOKE SELECT ON user_profiles FROM sidekeep_app");
    let error = daemon.client().err("profile.get", json!({ "user_id": "secret-person" }));
    assert_eq!((error.code, error.message.as_str()), (-32603, "internal error"), "{error:?}");
    let members: Vec<&String> = error.data.as_object().unwrap().keys().collect();
    assert_eq!(members, ["request_id"], "{error:?}");
    let log = daemon.log();
    let line = log
        .lines()
        .find(|line| line.contains(error.data["request_id"].as_str().unwrap()))
        .expect("the log has it");
    assert!(line.contains("permission denied") && line.contains("profile.get"), "{line}");
    assert!(!log.contains("secret-person"), "{log}");
}

#[test]
fn without_postgresql_calls_are_unavailable_and_the_daemon_lives() {
    let world = World::new();
    let daemon = world.spawn("database.url = \"postgresql://sidekeep_app@/none?host=/nonexistent\"\n");
    daemon.wait_listening();
    let mut client = daemon.client();
    for (method, params) in [("profile.get", json!({ "user_id": "u" })), ("profile.create", create("u"))] {
        assert_kind(&client.err(method, params), "unavailable", -32027, true);
    }
    let (health, took) = quickest(&mut client, "system.health");
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(health["status"], "unavailable");
    assert_eq!(health["checks"]["database"]["status"], "unavailable");
    assert!(health["checks"]["database"]["message"].is_string(), "{health}");
    assert_eq!(client.err("profile.get", json!({ "user_id": 5 })).kind(), "unavailable");
    client.ok("rpc.discover", json!({}));
    client.ok("system.metrics", json!({}));
}

#[test]
fn over_its_places_the_daemon_is_overloaded_and_still_healthy() {
    let world = World::new();
    let daemon = world
        .start_with("limits.calls = 2\nlimits.calls_per_connection = 2\ndatabase.acquire_timeout = \"3s\"\n");
    daemon.ok("profile.create", create("held"));
    let lock = Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    in_flight(&daemon, 2);
    let mut other = daemon.client();
    assert_kind(&other.err("profile.get", json!({ "user_id": "u" })), "overloaded", -32026, true);
    let (health, took) = quickest(&mut other, "system.health");
    assert_eq!(health["status"], "ok");
    assert!(took < Duration::from_millis(500), "{took:?}");
    other.ok("system.status", json!({}));
    lock.release();
    for _ in 0..2 {
        assert!(client.line()["result"]["deleted"].is_boolean());
    }
    assert_eq!(other.err("profile.get", json!({ "user_id": "u" })).kind(), "not_found");
}

#[test]
fn a_pool_that_stays_full_is_overloaded() {
    let world = World::new();
    // Long enough for what the daemon itself does with the only connection, now and then.
    let daemon =
        world.start_with("database.pool = 1\ndatabase.acquire_timeout = \"2s\"\njobs.enabled = false\n");
    daemon.ok("profile.create", create("held"));
    let lock = Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    in_flight(&daemon, 1);
    wait_for("the pool to be full", || {
        let pool = daemon.ok("system.status", json!({}))["pool"].clone();
        (pool["open"] == 1 && pool["free"] == 0).then_some(())
    });
    let error = daemon.client().err("profile.get", json!({ "user_id": "u" }));
    assert_kind(&error, "overloaded", -32026, true);
    lock.release();
    assert_eq!(client.line()["result"], json!({ "deleted": true }));
}

#[test]
fn a_commit_without_an_answer_has_an_unknown_outcome_and_a_call_before_it_none() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let mut daemon =
        world.start_with("limits.call_timeout = \"3s\"\nsocket.drain = \"200ms\"\naudit.access = \"none\"\n");
    daemon.ok("profile.create", create("held"));
    let lock = Session::hold(&world.owner_url, "held");
    let error = daemon.client().err("profile.delete", json!({ "user_id": "held" }));
    assert_kind(&error, "unavailable", -32027, true);
    lock.release();

    hold_commits(&cluster);
    let error = daemon.client().err("profile.delete", json!({ "user_id": "held" }));
    assert_kind(&error, "unknown_outcome", -32029, true);
    let read = daemon.client().call("profile.get", json!({ "user_id": "held" }));
    assert!(read.is_ok() || read.unwrap_err().kind() == "not_found", "a read commits nothing");

    let mut client = daemon.client();
    client.send_call("preferences.set", json!({ "user_id": "held", "preferences": {} }));
    in_flight(&daemon, 1);
    // Of this call, and not of what else the daemon commits.
    let commit = "SELECT count(*) FROM pg_stat_activity JOIN pg_locks l USING (pid) \
                  WHERE wait_event = 'SyncRep' AND relation = 'user_preferences'::regclass";
    wait_for("the commit", || (world.sql(commit) != "0").then_some(()));
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let error = crate::support::read(&client.line()).unwrap_err();
    assert_kind(&error, "unknown_outcome", -32029, true);
    assert_eq!(daemon.wait(), Some(0));
    world.sql("ALTER SYSTEM RESET synchronous_standby_names");
    world.sql("SELECT pg_reload_conf()");
}

#[test]
fn two_thousand_connections_are_served_at_once() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let world = World::new();
    let daemon = world.start();
    let mut clients: Vec<Client> = (0..2000).map(|_| daemon.client()).collect();
    for client in &mut clients {
        client.send_call("system.health", json!({}));
    }
    for client in &mut clients {
        assert_eq!(client.line()["result"]["status"], "ok");
    }
    // Those that were asked for its health before may be on their way out.
    wait_for("no other connections", || {
        (clients[0].ok("system.status", json!({}))["connections"]["open"] == 2000).then_some(())
    });
    drop(clients);
    daemon.wait_for_no_connections();
    daemon.assert_well();
}

#[test]
fn a_connection_over_the_limit_is_told_and_closed() {
    let world = World::new();
    let daemon = world.start_with("limits.connections = 3\n");
    let connect = || {
        let mut client = Client::try_connect(&daemon.socket).ok()?;
        client.try_send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"system.health\"}\n").ok()?;
        (client.try_line()?["id"] == 1).then_some(client)
    };
    let mut kept: Vec<Client> = (0..3).map(|_| wait_for("a place", connect)).collect();
    let mut one_more = daemon.client();
    let told = crate::support::read(&one_more.line()).unwrap_err();
    assert_kind(&told, "overloaded", -32026, true);
    assert!(one_more.try_line().is_none());
    kept.pop();
    wait_for("a place", connect);
}

#[test]
fn who_never_reads_holds_no_memory_and_nobody_up() {
    let world = World::new();
    let daemon = world.start_with(
        "limits.buffered_bytes = \"2MiB\"\nsocket.max_message_bytes = \"1MiB\"\nlimits.max_answer_bytes = \"1MiB\"\n\
         limits.max_record_bytes = \"512KiB\"\nlimits.write_timeout = \"1m\"\n\
         database.pool = 2\ndatabase.acquire_timeout = \"20s\"\n",
    );
    let mut large = create("large");
    large["metadata"] = json!("x".repeat(500_000));
    daemon.ok("profile.create", large);
    daemon.ok("profile.create", create("small"));
    let before = daemon.memory_kib("VmRSS");
    let get = json!({ "jsonrpc": "2.0", "id": 1, "method": "profile.get", "params": { "user_id": "large" } });
    let mut deaf: Vec<Client> = (0..8).map(|_| daemon.client()).collect();
    for client in &mut deaf {
        client.raw().set_nonblocking(true).unwrap();
        for _ in 0..25 {
            if client.raw().write(format!("{get}\n").as_bytes()).is_err() {
                break;
            }
        }
    }
    let (began, mut client) = (Instant::now(), daemon.client());
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(client.ok("system.health", json!({}))["status"], "ok");
        client.ok("profile.get", json!({ "user_id": "small" }));
    }
    // The bound, what calls in flight hold before it is counted, and what the allocator keeps.
    let peak = daemon.memory_kib("VmHWM");
    assert!(peak < before + (32 << 10), "from {before} KiB to {peak} KiB, where all answers are 100 MB");
    drop(client);
    daemon.wait_for_no_connections();
    drop(deaf);
    daemon.assert_well();
}

#[test]
fn who_never_finishes_is_told_and_closed() {
    let world = World::new();
    let daemon = world.start_with("limits.read_timeout = \"300ms\"\n");
    let mut idle = daemon.client();
    idle.ok("system.health", json!({}));
    for beginning in [&b"{\"jsonrpc\":\"2.0\","[..], b"[", b"{bad", b"\"x"] {
        let mut client = daemon.client();
        client.send(beginning);
        let told = client.line();
        assert_eq!((&told["error"]["code"], &told["id"]), (&json!(-32700), &Value::Null), "{told}");
        while let Some(more) = client.try_line() {
            assert_eq!(more["error"]["code"], -32700, "{more}");
        }
    }
    idle.ok("system.health", json!({}));
    daemon.assert_well();
}

#[test]
fn a_connection_at_its_cap_waits_and_loses_nothing() {
    let world = World::new();
    let daemon = world.start_with("limits.calls_per_connection = 4\n");
    daemon.ok("profile.create", create("u"));
    let mut client = daemon.client();
    let mut writer = client.raw().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            for id in 0..2000 {
                let get = json!({ "jsonrpc": "2.0", "id": id, "method": "profile.get", "params": { "user_id": "u" } });
                writeln!(writer, "{get}").unwrap();
            }
        });
        let mut seen = vec![false; 2000];
        for _ in 0..2000 {
            let answer = client.line();
            assert_eq!(answer["result"]["username"], "u", "{answer}");
            seen[usize::try_from(answer["id"].as_u64().unwrap()).unwrap()] = true;
        }
        assert!(seen.into_iter().all(|seen| seen));
    });
}

/// More of them than places at the database: whoever follows the log takes none while nothing happens.
#[test]
fn those_who_follow_the_log_hold_nobody_up() {
    let world = World::new();
    let daemon =
        world.start_with("database.pool = 2\ndatabase.acquire_timeout = \"10s\"\njobs.enabled = false\n");
    daemon.ok("profile.create", create("user:ada"));
    let after = daemon.ok("audit.tail", json!({ "action": "nothing", "limit": 1000 }))["after"].clone();
    let followers: Vec<_> = (0..40)
        .map(|_| {
            let mut client = daemon.client();
            client.send_call("audit.tail", json!({ "after": after, "action": "invoice.*", "wait": "25s" }));
            client
        })
        .collect();
    in_flight(&daemon, 40);
    let mut client = daemon.client();
    let get = |_| timed(|| client.ok("profile.get", json!({ "user_id": "user:ada" }))).1;
    let mut took: Vec<Duration> = (0..20).map(get).collect();
    took.sort_unstable();
    assert!(took[10] < Duration::from_secs(1), "{took:?}");
    client.ok("audit.append", json!({ "id": "e-1", "action": "invoice.read" }));
    for mut follower in followers {
        let answer = follower.line();
        assert_eq!(answer["result"]["items"][0]["id"], "e-1", "{answer}");
    }
    daemon.assert_well();
}
