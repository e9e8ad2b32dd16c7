//! Restriction (GDPR Art. 18): a restricted person's data are stored, and that is all.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::holds::assert_intact;
use crate::support::{Client, World, wait_for};

const ALICE: &str = "user:alice";

fn restrict(client: &mut Client) {
    let done = client.ok("subject.restrict", json!({ "user_id": ALICE, "reason": "accuracy is contested" }));
    assert_eq!(done, json!({ "restricted": true }));
}

fn unrestrict(client: &mut Client) {
    let done = client.ok("subject.unrestrict", json!({ "user_id": ALICE, "reason": "it is accurate" }));
    assert_eq!(done, json!({ "restricted": false }));
}

fn somebody(client: &mut Client) {
    client.ok("profile.create", json!({ "user_id": ALICE, "username": "alice", "email": "a@mail.example" }));
    client.ok("preferences.set", json!({ "user_id": ALICE, "preferences": { "a": 1 } }));
    client
        .ok("consent.record", json!({ "user_id": ALICE, "consent_type": "c", "granted": true, "id": "c1" }));
    let messages = json!([{ "role": "user", "content": "stored" }]);
    client.ok("conversation.create", json!({ "user_id": ALICE, "id": "v1", "messages": messages }));
}

/// Every method that reads or writes records of a person, with what it refuses while the person is restricted.
fn refused() -> Vec<(&'static str, Value)> {
    vec![
        ("profile.create", json!({ "user_id": ALICE, "username": "x", "email": "x" })),
        ("profile.get", json!({ "user_id": ALICE })),
        ("profile.update", json!({ "user_id": ALICE, "changes": {} })),
        ("profile.delete", json!({ "user_id": ALICE })),
        ("preferences.get", json!({ "user_id": ALICE })),
        ("preferences.set", json!({ "user_id": ALICE, "preferences": {} })),
        ("preferences.update", json!({ "user_id": ALICE, "changes": {} })),
        ("preferences.delete", json!({ "user_id": ALICE })),
        ("consent.record", json!({ "user_id": ALICE, "consent_type": "c", "granted": true })),
        ("consent.record", json!({ "user_id": ALICE, "consent_type": "c", "granted": true, "id": "c1" })),
        ("consent.current", json!({ "user_id": ALICE })),
        ("consent.history", json!({ "user_id": ALICE })),
        ("conversation.create", json!({ "user_id": ALICE })),
        ("conversation.append", json!({ "id": "v1", "messages": [{ "role": "user", "content": "x" }] })),
        ("conversation.get", json!({ "id": "v1" })),
        ("conversation.messages", json!({ "id": "v1" })),
        ("conversation.list", json!({ "user_id": ALICE })),
        ("conversation.update", json!({ "id": "v1", "changes": { "title": "x" } })),
        ("conversation.delete", json!({ "id": "v1" })),
        ("conversation.search", json!({ "user_id": ALICE, "query": "stored" })),
    ]
}

#[test]
fn a_restricted_persons_records_are_stored_and_nothing_else() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    somebody(&mut client);
    let check = json!({ "user_id": ALICE, "consent_type": "c" });
    assert_eq!(client.ok("consent.check", check.clone())["granted"], true);
    restrict(&mut client);
    restrict(&mut client);
    let rows = "SELECT concat_ws(' ', (SELECT count(*) FROM user_profiles), (SELECT count(*) FROM user_preferences), \
                (SELECT count(*) FROM consent_records), (SELECT sum(version) FROM conversations), (SELECT count(*) FROM conversation_messages))";
    let before = world.sql(rows);
    for (method, params) in refused() {
        let error = client.err(method, params);
        assert_eq!((error.code, error.kind()), (-32024, "restricted"), "{method} {error:?}");
        let entries = client.ok("audit.query", json!({ "subject_user_id": ALICE, "action": method }));
        assert_eq!(entries["items"][0]["outcome"], "denied", "{method} {entries}");
    }
    assert_eq!(world.sql(rows), before);

    // Every method of the records is either in that list or goes on, and then it says nothing of them.
    assert_eq!(client.ok("consent.check", check.clone()), json!({ "granted": false, "consent": null }));
    let withdrawal = json!({ "user_id": ALICE, "consent_type": "c", "granted": false });
    assert_eq!(client.ok("consent.record", withdrawal)["granted"], false);
    let document = crate::discover::document();
    let known: Vec<&str> = refused().iter().map(|(method, _)| *method).chain(["consent.check"]).collect();
    for method in crate::discover::methods(&document) {
        let name = method["name"].as_str().unwrap();
        let of_records = ["profile.", "preferences.", "consent.", "conversation."];
        if of_records.iter().any(|noun| name.starts_with(noun)) {
            assert!(known.contains(&name), "{name} is not looked at");
        }
    }

    // The log, the rights and others go on.
    client.ok("audit.append", json!({ "action": "login", "user_id": ALICE }));
    client.ok("subject.hold", json!({ "user_id": ALICE, "reason": "r", "id": "h" }));
    client.ok("subject.release", json!({ "id": "h", "reason": "r" }));
    assert_eq!(client.ok("subject.status", json!({ "user_id": ALICE }))["restricted"], true);
    assert_eq!(client.ok("subject.find", json!({ "username": "alice" })), json!({ "items": [ALICE] }));
    client.ok("request.open", json!({ "user_id": ALICE, "kind": "objection" }));
    client.ok("profile.create", json!({ "user_id": "user:bob", "username": "b", "email": "b" }));

    unrestrict(&mut client);
    unrestrict(&mut client);
    assert_eq!(client.ok("profile.get", json!({ "user_id": ALICE }))["username"], "alice");
    assert_eq!(client.ok("conversation.get", json!({ "id": "v1" }))["messages"][0]["content"], "stored");
    let checked = client.ok("consent.check", check);
    assert_eq!((&checked["granted"], &checked["consent"]["granted"]), (&json!(false), &json!(false)));
    assert_intact(&daemon);
}

#[test]
fn a_restricted_person_can_be_erased_and_held() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    somebody(&mut client);
    restrict(&mut client);
    client.ok("subject.hold", json!({ "user_id": ALICE, "reason": "r", "id": "h" }));
    let erase = json!({ "user_id": ALICE, "reason": "request" });
    assert_eq!(client.err("subject.erase", erase.clone()).kind(), "held");
    client.ok("subject.release", json!({ "id": "h", "reason": "r" }));
    client.ok("subject.erase", erase);
    // Who comes back is somebody else, whom nothing restricts.
    client.ok("preferences.set", json!({ "user_id": ALICE, "preferences": {} }));
    assert_eq!(client.ok("subject.status", json!({ "user_id": ALICE }))["restricted"], false);
    assert_intact(&daemon);
}

#[test]
fn the_reason_is_in_the_log_for_as_long_as_the_person_is() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    assert_eq!(
        client.err("subject.unrestrict", json!({ "user_id": "nobody", "reason": "r" })).kind(),
        "not_found"
    );
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'nobody'"), "0");
    assert_eq!(client.err("subject.restrict", json!({ "user_id": ALICE })).field(), "reason");
    // Somebody unknown can be restricted before anything is stored.
    restrict(&mut client);
    unrestrict(&mut client);
    let reasons = |client: &mut Client| {
        ["subject.restrict", "subject.unrestrict"].map(|action| {
            let found = client.ok("audit.query", json!({ "action": action, "outcome": "success" }));
            let entry = found["items"][0].clone();
            assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found}");
            (entry["subject_user_id"].clone(), entry["metadata"]["reason"].clone())
        })
    };
    assert_eq!(
        reasons(&mut client),
        [(json!(ALICE), json!("accuracy is contested")), (json!(ALICE), json!("it is accurate"))]
    );
    client.ok("subject.erase", json!({ "user_id": ALICE, "reason": "request" }));
    assert_eq!(reasons(&mut client), [(Value::Null, Value::Null), (Value::Null, Value::Null)]);
    assert_intact(&daemon);
}

/// Two daemons write about one person while another restricts and frees: no write that was acknowledged, and none at all, is
/// committed between the acknowledgement of a restriction and its end.
#[test]
fn no_write_is_committed_after_a_restriction_was_acknowledged() {
    const ROUNDS: usize = 40;
    let world = World::new();
    let (left, right) = (world.start(), world.start());
    let mut client = left.client();
    somebody(&mut client);
    let (stop, written, refused) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let began = Barrier::new(5);
    thread::scope(|scope| {
        for worker in 0..4 {
            let daemon = if worker % 2 == 0 { &left } else { &right };
            let (stop, written, refused, began) = (&stop, &written, &refused, &began);
            scope.spawn(move || {
                let mut client = daemon.client();
                began.wait();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (method, params) = match number % 3 {
                        0 => ("preferences.set", json!({ "user_id": ALICE, "preferences": { "n": number } })),
                        1 => (
                            "conversation.append",
                            json!({ "id": "v1", "messages": [{ "role": "u", "content": number }] }),
                        ),
                        _ => (
                            "profile.update",
                            json!({ "user_id": ALICE, "changes": { "full_name": format!("{number}") } }),
                        ),
                    };
                    match client.call(method, params) {
                        Ok(_) => written.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            assert_eq!(error.kind(), "restricted", "{error:?}");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
        began.wait();
        let state = "SELECT concat_ws(' ', (SELECT version FROM user_profiles), (SELECT version FROM user_preferences), \
                     (SELECT version FROM conversations), (SELECT count(*) FROM conversation_messages))";
        for _ in 0..ROUNDS {
            let before = written.load(Ordering::Relaxed);
            wait_for("a write", || (written.load(Ordering::Relaxed) > before).then_some(()));
            restrict(&mut client);
            let (then, seen) = (world.sql(state), refused.load(Ordering::Relaxed));
            wait_for("refusals", || (refused.load(Ordering::Relaxed) > seen + 4).then_some(()));
            assert_eq!(world.sql(state), then, "written after the restriction was acknowledged");
            unrestrict(&mut client);
        }
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("{ROUNDS} restrictions between {written:?} writes and {refused:?} refusals");
    assert_intact(&left);
    right.stop();
}
