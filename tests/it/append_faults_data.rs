//! Entries that cannot be written among others that can, ids that come again, months that are missing, and what was staged
//! by a daemon that is dead or slow.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::appends::{Heard, check_log, entry};
use crate::support::{Cluster, Daemon, Fault, Proxy, RpcError, World, read, timed, wait_for};

/// One stream for each daemon, and nothing else that writes to it.
const ALONE: &str = "audit.streams = 1\naudit.access = \"none\"\njobs.enabled = false\n";

fn is_append(sql: &str) -> bool {
    sql.starts_with("WITH head AS")
}

/// Sends these on one connection, all before the first answer, and answers what each heard.
fn together(daemon: &Daemon, entries: &[Value]) -> Vec<Result<Value, RpcError>> {
    let mut client = daemon.client();
    let ids: Vec<u64> = entries.iter().map(|entry| client.send_call("audit.append", entry.clone())).collect();
    let mut answers: Vec<Value> = ids.iter().map(|_| client.line()).collect();
    answers.sort_by_key(|answer| answer["id"].as_u64());
    answers.iter().map(read).collect()
}

#[test]
fn an_entry_that_cannot_be_written_sinks_nobody_else() {
    // What makes it so, what it says, and what its caller hears.
    let poisons: [(&str, Value, &str); 4] = [
        (
            "ALTER TABLE audit_logs ADD CONSTRAINT none CHECK (action <> 'poison')",
            json!({ "action": "poison" }),
            "internal error",
        ),
        (
            "UPDATE subjects SET wrapped_key = sha256('x') WHERE user_id = 'poison'",
            json!({ "action": "x", "user_id": "poison" }),
            "stored bytes do not open",
        ),
        ("SELECT 1", json!({ "action": "other", "id": "taken" }), "another entry has this id"),
        ("SELECT 1", json!({ "action": "x", "occurred_at": "2999-01-01T00:00:00Z" }), "occurred_at"),
    ];
    for (number, (statement, poison, heard)) in poisons.into_iter().enumerate() {
        let world = World::new();
        let daemon = world.start_with(ALONE);
        daemon.ok("audit.append", json!({ "action": "x", "user_id": "poison", "id": "taken" }));
        daemon.stop();
        world.sql(statement);
        // Nobody has met the person yet.
        let daemon = world.start_with(ALONE);
        let entries: Vec<Value> = (0..64)
            .map(|n| {
                if n % 13 == 5 {
                    poison.clone()
                } else {
                    json!({ "action": "good", "resource_id": n.to_string() })
                }
            })
            .collect();
        let (answers, took) = timed(|| together(&daemon, &entries));
        eprintln!("poison {number}: {took:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
        for (n, answer) in answers.iter().enumerate() {
            match answer {
                Ok(_) => assert_ne!(n % 13, 5),
                Err(error) => {
                    assert_eq!(n % 13, 5, "{error:?}");
                    assert!(error.message.contains(heard), "{error:?}");
                }
            }
        }
        let order = "SELECT bool_and(later) FROM (SELECT resource_id::int > lag(resource_id::int) OVER (ORDER BY position) later \
             FROM audit_logs WHERE action = 'good') t";
        assert_eq!(world.sql(order), "t", "in the order sent");
        assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'good'"), "59");
        check_log(&world, &daemon);
    }
}

#[test]
fn one_bad_entry_sinks_its_own_call_and_a_conflict_creates_nobody() {
    let world = World::new();
    let daemon = world.start_with(ALONE);
    let mut client = daemon.client();
    client.ok("audit.append", entry("taken"));
    let before = world.sql("SELECT count(*) FROM subjects");
    let conflict = json!({ "id": "taken", "action": "other", "user_id": "stranger" });
    assert_eq!(client.err("audit.append", conflict.clone()).kind(), "conflict");
    let many = json!({ "entries": [{ "action": "good", "user_id": "also" }, conflict] });
    assert_eq!(client.err("audit.append_many", many).kind(), "conflict");
    let early = json!({ "action": "x", "user_id": "early", "occurred_at": "2999-01-01T00:00:00Z" });
    assert_eq!(client.err("audit.append", early).field(), "occurred_at");
    assert_eq!(world.sql("SELECT count(*) FROM subjects"), before, "a refusal creates nobody");
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs"), "1");
    check_log(&world, &daemon);
}

#[test]
fn an_id_is_answered_the_same_by_every_daemon_and_after_a_restart() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    let many = json!({ "entries": (0..30).map(|n| entry(&format!("m{n}"))).collect::<Vec<_>>() });
    let one = first.ok("audit.append", entry("one"));
    let items = first.ok("audit.append_many", many.clone());
    let mut first = first;
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait(), Some(0));
    let restarted = first.start_again();
    for daemon in [&restarted, &second] {
        assert_eq!(daemon.ok("audit.append", entry("one")), one);
        assert_eq!(daemon.ok("audit.append_many", many.clone()), items);
        // Some of them with others that are new: those alone are appended, once, and each answer stands in its place.
        let mut part = many.clone();
        let entries = part["entries"].as_array_mut().unwrap();
        entries.truncate(3);
        entries.insert(0, json!({ "action": "new", "id": "new-0" }));
        entries.insert(2, json!({ "action": "new", "id": "new-2" }));
        entries.push(json!({ "action": "new", "id": "new-5" }));
        let placed = daemon.ok("audit.append_many", part.clone());
        for (place, known) in [(1, 0), (3, 1), (4, 2)] {
            assert_eq!(placed["items"][place], items["items"][known]);
        }
        for place in [0, 2, 5] {
            assert_eq!(placed["items"][place]["id"], format!("new-{place}"));
            let got = daemon.ok("audit.get", json!({ "id": format!("new-{place}") }));
            assert_eq!(got["position"], placed["items"][place]["position"]);
        }
        assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'new'"), "3");
        // One that says something else is refused with all that is new beside it.
        part["entries"][1]["action"] = json!("other");
        part["entries"][0]["id"] = json!("none");
        let refused = daemon.client().err("audit.append_many", part);
        assert_eq!(refused.kind(), "conflict");
        assert!(refused.message.contains("entries[1].id"), "{refused:?}");
        assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE id = 'none'"), "0");
        // Each parameter that differs is a conflict; what is left out is not compared.
        for (key, value) in [
            ("action", json!("other")),
            ("user_id", json!("other")),
            ("resource_id", json!("other")),
            ("ip_address", json!("203.0.113.8")),
            ("metadata", json!({ "id": "other" })),
            ("labels", json!({ "a": "b" })),
            ("outcome", json!("denied")),
            ("occurred_at", json!("2026-01-01T00:00:00Z")),
        ] {
            let mut other = entry("one");
            other[key] = value;
            assert_eq!(daemon.client().err("audit.append", other).kind(), "conflict", "{key}");
            let mut less = entry("one");
            if key != "action" {
                less.as_object_mut().unwrap().remove(key);
                assert_eq!(daemon.ok("audit.append", less), one, "without {key}");
            }
        }
    }
    // The same id to both at once, and twice in one connection: one entry, one answer.
    for round in 0..20 {
        let id = format!("race{round}");
        let answers: Vec<Value> = thread::scope(|scope| {
            let calls: Vec<_> = [&restarted, &second, &restarted, &second]
                .map(|daemon| scope.spawn(|| together(daemon, &[entry(&id), entry(&id)])))
                .into_iter()
                .collect();
            calls.into_iter().flat_map(|call| call.join().unwrap()).map(Result::unwrap).collect()
        });
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    }
    check_log(&world, &second);
}

#[test]
fn the_same_ids_in_two_calls_in_opposite_order_are_appended_once() {
    let world = World::new();
    let (first, second) = (world.start_with(ALONE), world.start_with(ALONE));
    for round in 0..12 {
        let forth: Vec<Value> = (0..200).map(|n| entry(&format!("r{round}-{n}"))).collect();
        let back: Vec<Value> = forth.iter().rev().cloned().collect();
        let (mut one, mut other) = thread::scope(|scope| {
            let one = scope.spawn(|| first.ok("audit.append_many", json!({ "entries": forth })));
            let other = scope.spawn(|| second.ok("audit.append_many", json!({ "entries": back })));
            (one.join().unwrap(), other.join().unwrap())
        });
        let (one, other) = (one["items"].as_array_mut().unwrap(), other["items"].as_array_mut().unwrap());
        other.reverse();
        assert_eq!(one, other);
    }
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs"), "2400");
    check_log(&world, &first);
}

#[test]
fn a_missing_month_is_made_and_one_that_cannot_be_is_waited_for() {
    let world = World::new();
    world.sql("SELECT created_at FROM deployment");
    let name = world.sql("SELECT 'audit_logs_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')");
    let gone = format!("DROP TABLE {name}");
    world.sql(&gone);
    let daemon = world.start_with(&format!("limits.call_timeout = \"1500ms\"\n{ALONE}"));
    world.sql("REVOKE EXECUTE ON FUNCTION create_audit_month(date) FROM sidekeep_app");
    let mut heard = Heard::default();
    // Whose deadline comes while the batch is with the server, which it is again and again, is told that nobody knows.
    let (error, took) = wait_for("a refusal", || {
        let (answer, took) = timed(|| heard.call(&mut daemon.client(), "refused"));
        let error = answer.unwrap_err();
        (error.kind() != "unknown_outcome").then_some((error, took))
    });
    assert_eq!(error.kind(), "unavailable", "{error:?}");
    assert!(took < Duration::from_secs(9) && !error.message.contains("audit_logs_"), "{took:?} {error:?}");
    world.sql("GRANT EXECUTE ON FUNCTION create_audit_month(date) TO sidekeep_app");
    wait_for("an entry", || heard.call(&mut daemon.client(), "made").ok());
    let triggers = format!(
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'sidekeep.{name}'::regclass AND tgname = 'append_only'"
    );
    assert!(world.sql(&triggers).parse::<u32>().unwrap() >= 1);
    heard.check(&world, &world.start());
}

/// What a daemon stages stays where it is: its batches go nowhere, nor does for a while the question what became of them. With
/// it, killed or not, another one.
fn staged_by(world: &World, proxy: &Proxy, direct: &str, dead: bool) -> (Daemon, Daemon) {
    let mut daemon = world.start_with("audit.streams = 1\naudit.access = \"writes\"\njobs.enabled = false\n");
    daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": 0 }));
    world.drained();
    proxy.fail(Fault::MuteBefore, is_append);
    proxy.then_fail(Fault::MuteBefore, |sql| sql.contains("SET epoch = epoch + 1"));
    let mut client = daemon.client();
    for n in 1..=20 {
        client.ok("preferences.set", json!({ "user_id": "u", "preferences": n }));
    }
    // Before the other one is there to take any of it in; and it takes the stream of nobody.
    assert_eq!(world.sql("SELECT count(*) FROM audit_staged"), "20");
    if dead {
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
    }
    world.sql("UPDATE audit_streams SET leased_until = now() + interval '50 seconds'");
    let other = world.start_with(&format!(
        "database.url = {direct:?}\naudit.streams = 1\naudit.access = \"writes\"\njobs.enabled = false\n"
    ));
    (daemon, other)
}

fn proxied() -> (World, Proxy, String) {
    let mut world = World::new();
    let proxy = Proxy::new(&Cluster::shared().socket_directory());
    let direct = std::mem::take(&mut world.app_url);
    world.app_url = proxy.url(&direct);
    (world, proxy, direct)
}

#[test]
fn what_a_dead_or_slow_daemon_has_staged_is_taken_in_by_another_in_order() {
    thread::scope(|scope| {
        for dead in [true, false] {
            scope.spawn(move || {
                let (world, proxy, direct) = proxied();
                let (daemon, other) = staged_by(&world, &proxy, &direct, dead);
                // A reader is answered when what was staged before is in the log, and not without it.
                let (page, took) = timed(|| other.ok("audit.query", json!({ "action": "preferences.set" })));
                eprintln!("dead {dead}: the reader waited {took:?}");
                assert_eq!(page["items"].as_array().unwrap().len(), 21);
                let order = "SELECT bool_and(later) FROM (SELECT id > lag(id) OVER (ORDER BY position) later \
                     FROM audit_logs WHERE stream = 1) t";
                assert_eq!(world.sql(order), "t", "in the order of staging");
                if !dead {
                    // The slow one finds, when its fence has decided, that others were there first.
                    let slow = wait_for("the slow one", || {
                        daemon.client().call("audit.append", entry("after")).ok()
                    });
                    assert_eq!(slow["stream"], 0);
                }
                let versions = world.sql("SELECT version FROM user_preferences");
                assert_eq!(versions, "21");
                let entered = "SELECT count(*) FROM audit_logs WHERE action = 'preferences.set'";
                assert_eq!(world.sql(entered), "21");
                check_log(&world, &other);
            });
        }
    });
}

#[test]
fn a_row_that_nobody_staged_holds_nobody_up() {
    let world = World::new();
    let daemon = world.start_with(ALONE);
    world.sql(
        "INSERT INTO audit_staged (staged_at, id, action, mac) \
         SELECT now() - interval '1 hour', 'planted' || n, 'forged', sha256('x') FROM generate_series(1, 600) n",
    );
    daemon.ok("audit.query", json!({}));
    // More of them than are looked at in one go do not hide what a daemon that died has staged.
    let mut dead = world.start_with("audit.streams = 1\njobs.enabled = false\n");
    let mut lock = crate::support::Psql::open(&world.owner_url);
    dead.ok("preferences.set", json!({ "user_id": "u", "preferences": 0 }));
    wait_for("the first", || (world.sql("SELECT count(*) FROM audit_logs") == "1").then_some(()));
    lock.run("BEGIN; LOCK TABLE audit_logs IN SHARE MODE");
    dead.ok("preferences.set", json!({ "user_id": "u", "preferences": 1 }));
    dead.signal(Signal::SIGKILL);
    dead.wait();
    world.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'WITH head AS%' AND wait_event_type = 'Lock'");
    lock.run("COMMIT");
    let page = wait_for("what was staged", || {
        daemon.client().call("audit.query", json!({ "action": "preferences.set" })).ok()
    });
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    let report = daemon.ok("audit.verify", json!({}));
    let told = (report["breaks"].as_array().unwrap().len(), report["more_breaks"].as_u64());
    assert_eq!(told, (100, Some(500)));
}
