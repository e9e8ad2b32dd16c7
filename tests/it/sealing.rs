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

/// Each sealed column with the call that opens it. Entries on their way, and the note of an erasure, which nothing reads back
/// on its own, are verified elsewhere.
fn openers() -> Vec<(&'static str, &'static str, serde_json::Value)> {
    let person = || json!({ "user_id": "a" });
    let (history, requests) = (json!({ "user_id": "a", "limit": 1 }), json!({ "user_id": "a" }));
    vec![
        ("user_profiles.username_sealed", "profile.get", person()),
        ("user_profiles.email_sealed", "profile.get", person()),
        ("user_profiles.full_name_sealed", "profile.get", person()),
        ("user_profiles.metadata_sealed", "profile.get", person()),
        ("user_preferences.preferences_sealed", "preferences.get", person()),
        ("consent_records.ip_address_sealed", "consent.history", history.clone()),
        ("consent_records.user_agent_sealed", "consent.history", history.clone()),
        ("consent_records.metadata_sealed", "consent.history", history),
        ("conversations.title_sealed", "conversation.list", person()),
        ("conversations.metadata_sealed", "conversation.list", person()),
        ("conversation_messages.message_sealed", "conversation.messages", json!({ "id": "va" })),
        ("legal_holds.reason_sealed", "subject.holds", person()),
        ("legal_holds.release_reason_sealed", "subject.holds", person()),
        ("requests.extension_reason_sealed", "request.list", requests.clone()),
        ("requests.outcome_reason_sealed", "request.list", requests),
        ("audit_logs.client_sealed", "audit.get", json!({ "id": "ea" })),
        ("audit_logs.metadata_sealed", "audit.get", json!({ "id": "ea" })),
    ]
}

#[test]
fn no_sealed_column_opens_what_stood_in_another_place() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for user in ["a", "b"] {
        let id = |kind: &str| format!("{kind}{user}");
        let text = "sealed";
        client.ok(
            "profile.create",
            json!({ "user_id": user, "username": text, "email": text, "full_name": text, "metadata": text }),
        );
        client.ok("preferences.set", json!({ "user_id": user, "preferences": text }));
        client.ok("consent.record", json!({ "user_id": user, "consent_type": "t", "granted": true, "ip_address": text, "user_agent": text, "metadata": text }));
        client.ok("conversation.create", json!({ "user_id": user, "id": id("v"), "title": text, "metadata": text, "messages": [{ "role": "user", "content": text }] }));
        client.ok(
            "audit.append",
            json!({ "id": id("e"), "action": "x", "user_id": user, "ip_address": text, "metadata": text }),
        );
        client.ok("subject.hold", json!({ "user_id": user, "id": id("h"), "reason": text }));
        client.ok("subject.release", json!({ "id": id("h"), "reason": text }));
        client.ok("request.open", json!({ "user_id": user, "id": id("q"), "kind": "access" }));
        client.ok("request.extend", json!({ "id": id("q"), "reason": text }));
        client.ok("request.close", json!({ "id": id("q"), "outcome": "done", "reason": text }));
    }
    let openers = openers();
    let catalogue = world.sql(
        "SELECT string_agg(relname || '.' || attname, ',' ORDER BY relname, attname) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid \
         WHERE relnamespace = 'sidekeep'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition AND attname LIKE '%\\_sealed' \
         AND relname NOT IN ('audit_staged', 'subject_erasures')",
    );
    let mut known: Vec<_> = openers.iter().map(|(column, ..)| *column).collect();
    known.sort_unstable();
    assert_eq!(known.join(","), catalogue, "a new sealed column needs a line here");
    let run = |statement: &str| world.sql(&format!("SET session_replication_role = replica; {statement}"));
    for (column, method, params) in openers {
        let (table, column) = column.split_once('.').unwrap();
        let of = |user: &str| match table {
            "audit_logs" => format!("{table}.id = 'e{user}'"),
            "conversation_messages" => format!("{table}.conversation_id = 'v{user}'"),
            _ => format!("{table}.subject_id = (SELECT subject_id FROM subjects WHERE user_id = '{user}')"),
        };
        let right = client.ok(method, params.clone());
        let (a, b) = (of("a"), of("b"));
        run(&format!("CREATE TABLE public.kept AS SELECT {column} AS bytes FROM {table} WHERE {a}"));
        let others = [
            // The same column of another row, and another column of the same person.
            format!("SELECT {column} FROM {table} WHERE {b}"),
            match (table, column) {
                ("user_preferences", _) => "SELECT username_sealed FROM user_profiles JOIN subjects USING (subject_id) WHERE user_id = 'a'",
                _ => "SELECT preferences_sealed FROM user_preferences JOIN subjects USING (subject_id) WHERE user_id = 'a'",
            }
            .to_owned(),
        ];
        for other in others {
            run(&format!("UPDATE {table} SET {column} = ({other}) WHERE {a}"));
            let error = client.err(method, params.clone());
            assert_eq!(error.kind(), "tampered", "{table}.{column}: {error:?}");
            assert!(error.data["at"].as_str().unwrap().contains(table), "{error:?}");
        }
        run(&format!(
            "UPDATE {table} SET {column} = (SELECT bytes FROM public.kept) WHERE {a}; DROP TABLE public.kept"
        ));
        assert_eq!(client.ok(method, params), right, "{table}.{column} is as it was");
    }
    daemon.assert_well();
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
