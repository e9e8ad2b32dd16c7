//! Legal holds: while one stands nothing of the person's is deleted, whoever tries and whenever it was placed.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use serde_json::{Value, json};

use crate::support::{Client, Daemon, Session, World, wait_for};

const ALICE: &str = "user:alice";

/// A person with a row of everything.
fn somebody(client: &mut Client, user_id: &str) {
    client
        .ok("profile.create", json!({ "user_id": user_id, "username": "alice", "email": "a@mail.example" }));
    client.ok("preferences.set", json!({ "user_id": user_id, "preferences": { "a": 1 } }));
    client.ok("consent.record", json!({ "user_id": user_id, "consent_type": "c", "granted": true }));
    let id = format!("v-{user_id}");
    let messages = json!([{ "role": "user", "content": "kept" }]);
    client.ok("conversation.create", json!({ "user_id": user_id, "id": id, "messages": messages }));
}

fn hold(client: &mut Client, id: &str) -> Value {
    client.ok("subject.hold", json!({ "user_id": ALICE, "reason": format!("case of {id}"), "id": id }))
}

fn release(client: &mut Client, id: &str) -> Value {
    client.ok("subject.release", json!({ "id": id, "reason": "case closed" }))
}

fn erase(client: &mut Client) -> crate::support::Answer {
    client.call("subject.erase", json!({ "user_id": ALICE, "reason": "request" }))
}

/// The whole log is intact, and no job failed.
pub fn assert_intact(daemon: &Daemon) {
    let report = daemon.ok("audit.verify", json!({}));
    assert_eq!(report["verdict"], "intact", "{report}");
    daemon.assert_well();
}

#[test]
fn a_hold_is_placed_repeated_listed_and_released() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let first = hold(&mut client, "h1");
    assert_eq!((&first["id"], &first["user_id"]), (&json!("h1"), &json!(ALICE)));
    assert_eq!((&first["reason"], &first["released_at"]), (&json!("case of h1"), &Value::Null));
    assert_eq!(hold(&mut client, "h1"), first);
    let other = |user_id: &str, reason: &str| json!({ "user_id": user_id, "reason": reason, "id": "h1" });
    assert_eq!(client.err("subject.hold", other(ALICE, "another")).kind(), "conflict");
    assert_eq!(client.err("subject.hold", other("user:bob", "case of h1")).kind(), "conflict");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'user:bob'"), "0", "a refusal");
    let named = json!({ "user_id": ALICE, "reason": "x", "id": ALICE });
    assert_eq!(client.err("subject.hold", named).field(), "id");
    let second = hold(&mut client, "h2");
    let bobs = client.ok("subject.hold", json!({ "user_id": "user:bob", "reason": "r" }));

    let list = |client: &mut Client, params: Value| client.ok("subject.holds", params)["items"].clone();
    assert_eq!(list(&mut client, json!({})), json!([bobs, second, first]));
    assert_eq!(list(&mut client, json!({ "user_id": ALICE })), json!([second, first]));
    assert_eq!(list(&mut client, json!({ "user_id": "nobody" })), json!([]));
    let page = client.ok("subject.holds", json!({ "limit": 2 }));
    assert_eq!(page["items"], json!([bobs, second]));
    let rest = client.ok("subject.holds", json!({ "limit": 2, "cursor": page["next_cursor"] }));
    assert_eq!(rest, json!({ "items": [first], "next_cursor": null }));

    let released = release(&mut client, "h1");
    assert!(released["released_at"].is_string(), "{released}");
    assert_eq!(released["release_reason"], "case closed");
    assert_eq!(release(&mut client, "h1"), released);
    let again = json!({ "id": "h1", "reason": "another" });
    assert_eq!(client.err("subject.release", again).kind(), "conflict");
    assert_eq!(client.err("subject.release", json!({ "id": "none", "reason": "r" })).kind(), "not_found");
    assert_eq!(hold(&mut client, "h1"), released, "a repeat answers what there is");
    // What is kept of it is sealed.
    let dump = Command::new("pg_dump").args(["--data-only", &world.owner_url]).output().unwrap();
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("h1") && !dump.contains("case of h1") && !dump.contains("case closed"));
    assert_intact(&daemon);
}

#[test]
fn nothing_of_a_held_person_is_deleted() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    somebody(&mut client, ALICE);
    hold(&mut client, "h1");
    hold(&mut client, "h2");
    let conversation = format!("v-{ALICE}");
    let messages = json!({ "messages": [{ "role": "user", "content": "other" }] });
    let refused = [
        ("profile.delete", json!({ "user_id": ALICE })),
        ("preferences.delete", json!({ "user_id": ALICE })),
        ("conversation.update", json!({ "id": conversation, "changes": messages })),
        ("conversation.delete", json!({ "id": conversation })),
        ("subject.erase", json!({ "user_id": ALICE, "reason": "request" })),
    ];
    let counts = client.ok("subject.status", json!({ "user_id": ALICE }))["counts"].clone();
    for (method, params) in &refused {
        let error = client.err(method, params.clone());
        assert_eq!((error.code, error.kind()), (-32023, "held"), "{method} {error:?}");
        assert_eq!(error.data["holds"], json!(["h1", "h2"]), "{method}");
        assert_eq!(error.data["retryable"], false);
        // The refusal is in the log, and about the person.
        let entries = client.ok("audit.query", json!({ "subject_user_id": ALICE, "action": method }));
        assert_eq!(entries["items"][0]["outcome"], "denied", "{method} {entries}");
    }
    let status = client.ok("subject.status", json!({ "user_id": ALICE }));
    for kind in ["profile", "preferences", "consents", "conversations", "messages"] {
        assert_eq!(status["counts"][kind], counts[kind], "{kind}");
    }
    let read = client.ok("conversation.get", json!({ "id": conversation }));
    assert_eq!(read["messages"][0]["content"], "kept");
    // What deletes nothing goes on.
    client.ok("conversation.update", json!({ "id": conversation, "changes": { "title": "t" } }));
    client.ok(
        "conversation.append",
        json!({ "id": conversation, "messages": [{ "role": "user", "content": "x" }] }),
    );
    client.ok("profile.update", json!({ "user_id": ALICE, "changes": { "full_name": "Alice" } }));
    client.ok("preferences.update", json!({ "user_id": ALICE, "changes": { "b": 2 } }));
    client.ok("consent.record", json!({ "user_id": ALICE, "consent_type": "c", "granted": false }));
    // Nobody else is held.
    somebody(&mut client, "user:bob");
    assert_eq!(client.ok("profile.delete", json!({ "user_id": "user:bob" })), json!({ "deleted": true }));

    release(&mut client, "h1");
    assert_eq!(erase(&mut client).unwrap_err().data["holds"], json!(["h2"]));
    release(&mut client, "h2");
    for (method, params) in refused {
        client.ok(method, params);
    }
    // The released holds went with the person; the log has what was done.
    assert_eq!(world.sql("SELECT count(*) FROM legal_holds"), "0");
    let placed = client.ok("audit.query", json!({ "action": "subject.hold" }));
    assert_eq!(placed["items"].as_array().unwrap().len(), 2);
    assert_intact(&daemon);
}

#[test]
fn whoever_deletes_by_hand_is_refused_too() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    somebody(&mut client, ALICE);
    hold(&mut client, "h1");
    let by_hand = |statement: &str| {
        let done = Command::new("psql")
            .args([&world.owner_url, "-Xq", "-v", "ON_ERROR_STOP=1", "-c", "SET search_path = sidekeep"])
            .args(["-c", statement])
            .output()
            .unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    for statement in [
        "DELETE FROM subjects WHERE user_id = 'user:alice'",
        "DELETE FROM subjects WHERE subject_id <> 0",
        "TRUNCATE subjects CASCADE",
        "TRUNCATE legal_holds",
        "DELETE FROM legal_holds",
        "UPDATE legal_holds SET subject_id = 0",
        "UPDATE legal_holds SET placed_at = now(), reason_sealed = ''",
    ] {
        let (done, said) = by_hand(statement);
        assert!(!done && said.contains("legal hold"), "{statement}: {said}");
    }
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'user:alice'"), "1");
    release(&mut client, "h1");
    let (done, said) = by_hand("UPDATE legal_holds SET released_at = NULL, release_reason_sealed = NULL");
    assert!(!done && said.contains("legal hold"), "{said}");
    let (done, said) = by_hand("DELETE FROM subjects WHERE user_id = 'user:alice'");
    assert!(done, "{said}");
    assert_eq!(world.sql("SELECT count(*) FROM legal_holds"), "0");
}

/// A hand that deletes waits for a hold that is being placed, and one that is being released.
#[test]
fn a_deletion_by_hand_sees_the_hold_that_it_waited_for() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    somebody(&mut client, ALICE);
    hold(&mut client, "h1");
    release(&mut client, "h1");
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let mut placing = Session::begin(&world.owner_url);
        placing.run(
            "SELECT 1 FROM subjects WHERE user_id = 'user:alice' FOR UPDATE; \
             INSERT INTO legal_holds (id, subject_id, reason_sealed) \
             SELECT 'by hand', subject_id, 'x' FROM subjects WHERE user_id = 'user:alice'",
        );
        let url = world.owner_url.clone();
        let deleting = thread::spawn(move || {
            let begin = format!("BEGIN ISOLATION LEVEL {level}");
            let statement = "DELETE FROM sidekeep.subjects WHERE user_id = 'user:alice'";
            let done = Command::new("psql")
                .args([&url, "-Xq", "-v", "ON_ERROR_STOP=1", "-c", &begin, "-c", statement, "-c", "COMMIT"])
                .output()
                .unwrap();
            assert!(!done.status.success(), "{done:?}");
        });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                     AND datname = current_database() AND query LIKE 'DELETE%'";
        wait_for("the deletion to wait", || (world.sql(waits) == "1").then_some(()));
        placing.release();
        deleting.join().unwrap();
        assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'user:alice'"), "1", "{level}");
        world.sql(
            "UPDATE legal_holds SET released_at = now(), release_reason_sealed = '' WHERE id = 'by hand'",
        );
        world.sql("DELETE FROM legal_holds WHERE id = 'by hand'");
    }
}

#[test]
fn a_hold_and_an_erasure_at_the_same_moment_exclude_each_other() {
    const ROUNDS: usize = 60;
    let world = World::new();
    let (left, right) = (world.start(), world.start());
    let (mut holding, mut erasing) = (left.client(), right.client());
    let (mut held, mut erased) = (0, 0);
    let barrier = Arc::new(Barrier::new(2));
    for round in 0..ROUNDS {
        somebody(&mut holding, ALICE);
        let id = format!("h{round}");
        let (hold, erasure) = thread::scope(|scope| {
            let placing = scope.spawn(|| {
                barrier.wait();
                holding.call("subject.hold", json!({ "user_id": ALICE, "reason": "r", "id": id }))
            });
            barrier.wait();
            let erasure = erase(&mut erasing);
            (placing.join().unwrap(), erasure)
        });
        // The hold may come after the erasure: then it is a new person's, who has nothing yet.
        hold.unwrap();
        let rows = world.sql("SELECT count(*) FROM user_profiles");
        match erasure {
            Ok(_) => {
                assert_eq!(rows, "0");
                erased += 1;
            }
            Err(error) => {
                assert_eq!((error.kind(), rows.as_str()), ("held", "1"), "{error:?}");
                assert_eq!(error.data["holds"], json!([id]));
                held += 1;
            }
        }
        assert_eq!(erase(&mut erasing).unwrap_err().kind(), "held", "an acknowledged hold stands");
        release(&mut holding, &id);
        erase(&mut erasing).unwrap();
    }
    eprintln!("of {ROUNDS} rounds the hold came first in {held}, the erasure in {erased}");
    assert_intact(&left);
    right.stop();
}

#[test]
fn no_delete_is_done_after_a_hold_was_acknowledged() {
    const ROUNDS: usize = 40;
    let world = World::new();
    let (left, right) = (world.start(), world.start());
    let mut client = left.client();
    let barrier = Barrier::new(3);
    let deleted = AtomicU32::new(0);
    for round in 0..ROUNDS {
        somebody(&mut client, &format!("u{round}"));
    }
    let race = |daemon: &Daemon, offset: usize| {
        let mut client = daemon.client();
        for round in 0..ROUNDS {
            barrier.wait();
            let user_id = format!("u{round}");
            let (method, params) = match (round + offset) % 3 {
                0 => ("profile.delete", json!({ "user_id": user_id })),
                1 => ("preferences.delete", json!({ "user_id": user_id })),
                _ => ("conversation.delete", json!({ "id": format!("v-{user_id}") })),
            };
            match client.call(method, params) {
                Ok(answer) => {
                    assert_eq!(answer, json!({ "deleted": true }));
                    deleted.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => assert_eq!(error.kind(), "held", "{error:?}"),
            }
            barrier.wait();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| race(&left, 0));
        scope.spawn(|| race(&right, 1));
        for round in 0..ROUNDS {
            barrier.wait();
            let user_id = format!("u{round}");
            client.ok("subject.hold", json!({ "user_id": user_id, "reason": "r" }));
            // From the acknowledgement on, nothing changes.
            let rows = |client: &mut Client| {
                let status = client.ok("subject.status", json!({ "user_id": user_id }));
                ["profile", "preferences", "conversations"].map(|kind| status["counts"][kind].clone())
            };
            let then = rows(&mut client);
            barrier.wait();
            assert_eq!(rows(&mut client), then, "{user_id}");
        }
    });
    eprintln!("{} of {} deletes came before the hold", deleted.load(Ordering::Relaxed), 2 * ROUNDS);
    assert_intact(&left);
    right.stop();
}
