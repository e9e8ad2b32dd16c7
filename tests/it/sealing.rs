//! What lies in the database opens for its person alone, and only where it was put.

use serde_json::json;

use crate::support::World;

#[test]
fn nothing_personal_is_readable_in_the_database() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let mark = "ZEBRAMARK";
    client.ok("profile.create", json!({ "user_id": "u", "username": mark, "email": format!("{mark}@x.example"), "full_name": mark, "metadata": { mark: mark } }));
    client.ok("preferences.set", json!({ "user_id": "u", "preferences": { mark: mark } }));
    client.ok("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": true, "ip_address": "203.0.113.77", "user_agent": mark, "metadata": mark }));
    client.ok("conversation.create", json!({ "user_id": "u", "id": "c", "title": mark, "metadata": mark, "messages": [{ "role": "user", "content": mark, "name": mark }] }));
    let dump = std::process::Command::new("pg_dump").arg(&world.owner_url).output().unwrap();
    assert!(dump.status.success() && !dump.stdout.is_empty());
    let dump = String::from_utf8_lossy(&dump.stdout).to_lowercase();
    let hex: String = mark.bytes().map(|byte| format!("{byte:02x}")).collect();
    for text in [mark.to_lowercase(), hex, "203.0.113.77".into()] {
        assert!(!dump.contains(&text), "{text} stands in the database");
    }
    let log = daemon.log();
    assert!(!log.contains(mark) && !log.contains("203.0.113.77"), "{log}");
}

#[test]
fn sealed_bytes_that_were_moved_or_changed_do_not_open() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for user in ["a", "b", "c"] {
        client.ok("profile.create", json!({ "user_id": user, "username": user, "email": "x@y.example" }));
    }
    let of = |user: &str| format!("(SELECT subject_id FROM subjects WHERE user_id = '{user}')");
    world.sql(&format!(
        "UPDATE user_profiles SET email_sealed = username_sealed WHERE subject_id = {}",
        of("a")
    ));
    let error = client.err("profile.get", json!({ "user_id": "a" }));
    assert_eq!((error.kind(), &error.data["at"]), ("tampered", &json!("user_profiles.email_sealed")));
    world.sql(&format!("UPDATE user_profiles SET username_sealed = (SELECT username_sealed FROM user_profiles WHERE subject_id = {}) WHERE subject_id = {}", of("c"), of("b")));
    assert_eq!(client.err("profile.get", json!({ "user_id": "b" })).kind(), "tampered");
    // Another person's key does not open with this person's name either.
    world.sql(&format!("UPDATE subjects SET wrapped_key = (SELECT wrapped_key FROM subjects WHERE user_id = 'c') WHERE subject_id = {}", of("b")));
    assert_eq!(client.err("profile.get", json!({ "user_id": "b" })).data["at"], "subjects.wrapped_key");
    assert_eq!(client.ok("profile.get", json!({ "user_id": "c" }))["username"], "c");
}

#[test]
fn a_person_who_is_gone_is_gone_for_every_daemon_at_once() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    let person = json!({ "user_id": "u" });
    first.ok("profile.create", json!({ "user_id": "u", "username": "old", "email": "x@y.example" }));
    first.ok(
        "conversation.create",
        json!({ "user_id": "u", "id": "c", "messages": [{ "role": "user", "content": "x" }] }),
    );
    assert_eq!(second.ok("profile.get", person.clone())["username"], "old");
    let old = world.sql("SELECT subject_id FROM subjects WHERE user_id = 'u'");
    world.sql("DELETE FROM subjects WHERE user_id = 'u'");
    for daemon in [&first, &second] {
        assert_eq!(daemon.client().err("profile.get", person.clone()).kind(), "not_found");
        assert_eq!(daemon.client().err("conversation.get", json!({ "id": "c" })).kind(), "not_found");
    }
    assert_eq!(world.sql("SELECT count(*) FROM conversation_messages"), "0");
    second.ok("profile.create", json!({ "user_id": "u", "username": "new", "email": "x@y.example" }));
    assert_eq!(first.ok("profile.get", person)["username"], "new");
    assert_ne!(world.sql("SELECT subject_id FROM subjects WHERE user_id = 'u'"), old);
}

#[test]
fn a_restricted_person_is_stored_only() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.ok("profile.create", json!({ "user_id": "u", "username": "x", "email": "x@y.example" }));
    client.ok("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": true }));
    client.ok("conversation.create", json!({ "user_id": "u", "id": "c" }));
    world.sql("UPDATE subjects SET restricted_at = now() WHERE user_id = 'u'");
    let person = json!({ "user_id": "u" });
    for (method, params) in [
        ("profile.get", person.clone()),
        ("profile.delete", person.clone()),
        ("profile.update", json!({ "user_id": "u", "changes": {} })),
        ("preferences.set", json!({ "user_id": "u", "preferences": 1 })),
        ("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": true })),
        ("consent.current", person.clone()),
        ("consent.history", person.clone()),
        ("conversation.list", person),
        ("conversation.get", json!({ "id": "c" })),
        ("conversation.append", json!({ "id": "c", "messages": [{ "role": "user", "content": 1 }] })),
        ("conversation.delete", json!({ "id": "c" })),
        ("conversation.search", json!({ "user_id": "u", "query": "x" })),
    ] {
        assert_eq!(client.err(method, params).kind(), "restricted", "{method}");
    }
    assert_eq!(
        client.ok("consent.check", json!({ "user_id": "u", "consent_type": "t" })),
        json!({ "granted": false, "consent": null })
    );
    client.ok("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": false }));
}
