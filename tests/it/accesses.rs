//! The accounting of disclosures: who accessed one person's data, from the log alone.

use serde_json::{Value, json};

use crate::support::{Client, Daemon, World, sidekeep, wait_for};

fn daemon(world: &World) -> Daemon {
    world.start()
}

fn by(user_id: &str, purpose: &str) -> Value {
    json!({ "user_id": user_id, "purpose": purpose, "request_id": format!("req-{purpose}") })
}

/// What, who and why of each item, the newest first.
fn told(page: &Value) -> Vec<(String, Value, Value)> {
    let items = page["items"].as_array().unwrap().iter();
    items
        .map(|item| (item["what"].as_str().unwrap().to_owned(), item["who"].clone(), item["purpose"].clone()))
        .collect()
}

fn accesses(client: &mut Client, user_id: &str) -> Value {
    client.ok("subject.accesses", json!({ "user_id": user_id }))
}

#[test]
fn every_call_that_names_the_person_is_told_with_who_when_what_and_why() {
    let world = World::new();
    let daemon = daemon(&world);
    let mut client = daemon.client();
    let create =
        json!({ "user_id": "alice", "username": "a", "email": "a@b", "context": by("bob", "signup") });
    client.ok("profile.create", create);
    client.ok("profile.get", json!({ "user_id": "alice", "context": by("bob", "support") }));
    client.ok("conversation.create", json!({ "user_id": "alice", "id": "talk" }));
    client.ok("conversation.get", json!({ "id": "talk", "context": by("alice", "own") }));
    let appended = json!({ "action": "invoice.read", "user_id": "bob", "subject_user_id": "alice", "id": "e-1",
        "occurred_at": "2026-01-01T00:00:00Z", "resource_type": "invoice", "resource_id": "inv-1" });
    client.ok("audit.append", appended);
    client.ok("audit.get", json!({ "id": "e-1", "context": by("eve", "audit") }));
    client.ok("audit.query", json!({ "subject_user_id": "alice" }));
    client.ok("audit.query", json!({ "user_id": "bob", "subject_user_id": "alice" }));
    client.ok("audit.query", json!({ "user_id": "alice", "subject_user_id": "bob" }));
    client.err("conversation.create", json!({ "user_id": "alice", "id": "talk", "title": "another" }));
    client.ok("profile.create", json!({ "user_id": "other", "username": "o", "email": "o@b" }));
    client.ok("profile.get", json!({ "user_id": "other" }));

    for method in ["subject.holds", "request.list"] {
        client.ok(method, json!({ "user_id": "alice" }));
    }
    assert_eq!(client.err("preferences.get", json!({ "user_id": "alice" })).kind(), "not_found");
    client.err("preferences.get", json!({ "user_id": "nobody" }));

    let page = accesses(&mut client, "alice");
    assert!(page["items"].as_array().unwrap().iter().take(3).all(|item| item["across_people"] == false));
    let (none, s) = (Value::Null, |text: &str| json!(text));
    let expected = vec![
        (s("preferences.get"), none.clone(), none.clone()),
        (s("request.list"), none.clone(), none.clone()),
        (s("subject.holds"), none.clone(), none.clone()),
        (s("conversation.create"), none.clone(), none.clone()),
        (s("audit.query"), none.clone(), none.clone()),
        (s("audit.query"), none.clone(), none.clone()),
        (s("audit.query"), none.clone(), none.clone()),
        (s("audit.get"), s("eve"), s("audit")),
        (s("invoice.read"), s("bob"), none.clone()),
        (s("conversation.get"), s("alice"), s("own")),
        (s("conversation.create"), none.clone(), none),
        (s("profile.get"), s("bob"), s("support")),
        (s("profile.create"), s("bob"), s("signup")),
    ];
    let expected: Vec<_> =
        expected.into_iter().map(|(what, who, why)| (what.as_str().unwrap().to_owned(), who, why)).collect();
    assert_eq!(told(&page), expected, "{page:#}");
    assert_eq!(
        (&page["items"][0]["outcome"], &page["items"][3]["outcome"]),
        (&json!("failure"), &json!("failure"))
    );
    let get = &page["items"][11];
    assert_eq!(
        (&get["request_id"], &get["uid"], &get["outcome"], &get["across_people"], &get["resource_id"]),
        (
            &json!("req-support"),
            &json!(nix::unistd::Uid::effective().as_raw()),
            &json!("success"),
            &json!(false),
            &json!("alice")
        ),
    );
    assert_eq!(page["items"][8]["when"], "2026-01-01T00:00:00.000000Z");
    assert_eq!(page["items"][8]["uid"], Value::Null);
    // The accounting is an access, too.
    assert_eq!(told(&accesses(&mut client, "alice"))[0].0, "subject.accesses");
    daemon.assert_well();
}

#[test]
fn reads_across_people_are_listed_as_such_since_the_person_is_known() {
    let world = World::new();
    let daemon = daemon(&world);
    let mut client = daemon.client();
    client.ok("audit.append", json!({ "action": "before" }));
    client.ok("audit.query", json!({ "action": "before" }));
    client.ok("preferences.set", json!({ "user_id": "alice", "preferences": {} }));
    // A writer knows the server's clock to within the time that asking for it took.
    let known = world.sql("SELECT to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM subjects WHERE user_id = 'alice'");
    wait_for("the clocks", || {
        let later = client.ok("audit.append", json!({ "action": "later" }))["recorded_at"].clone();
        (later.as_str().unwrap() > known.as_str()).then_some(())
    });
    client.ok("audit.query", json!({ "action": "preferences.*", "context": { "purpose": "review" } }));
    client.ok("audit.tail", json!({ "limit": 1 }));
    // Under the name of a method, but an application's own.
    client.ok("audit.append", json!({ "action": "audit.query" }));
    let page = accesses(&mut client, "alice");
    let across: Vec<_> =
        page["items"].as_array().unwrap().iter().map(|item| item["across_people"].clone()).collect();
    let names: Vec<_> = told(&page).into_iter().map(|(what, _, _)| what).collect();
    assert_eq!(names, ["audit.tail", "audit.query", "preferences.set"]);
    assert_eq!(json!(across), json!([true, true, false]));
    assert_eq!(page["items"][1]["purpose"], "review");
    // What was looked for is kept with the entry, without naming anybody.
    client.ok("audit.query", json!({ "user_id": "alice", "action": "x*", "resource_id": "alice" }));
    let shown =
        client.ok("audit.query", json!({ "action": "audit.query", "subject_user_id": "alice", "limit": 1 }));
    let filter = &shown["items"][0]["metadata"]["filter"];
    assert_eq!(filter["action"], "x*");
    assert!(filter["user_id"].is_number() && filter["resource_id"].is_number(), "{filter}");
    assert!(!filter.to_string().contains("alice"), "{filter}");
    daemon.assert_well();
}

#[test]
fn pages_tell_each_access_once_and_times_narrow_them() {
    let world = World::new();
    let daemon = daemon(&world);
    let mut client = daemon.client();
    client.ok("preferences.set", json!({ "user_id": "alice", "preferences": {} }));
    for year in 2001..=2020 {
        let at = format!("{year}-01-01T00:00:00Z");
        client.ok("audit.append", json!({ "action": at, "subject_user_id": "alice", "occurred_at": at }));
        client.ok("audit.query", json!({}));
    }
    let whole: Vec<_> = told(&accesses(&mut client, "alice")).into_iter().map(|(what, _, _)| what).collect();
    assert_eq!(whole.len(), 41);
    let (mut paged, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let mut params = json!({ "user_id": "alice", "limit": 7, "to": "2999-12-31T00:00:00Z" });
        if !cursor.is_null() {
            params["cursor"] = cursor;
        }
        let page = client.ok("subject.accesses", params);
        paged.extend(
            told(&page).into_iter().map(|(what, _, _)| what).filter(|what| what != "subject.accesses"),
        );
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(paged, whole);
    let between = json!({ "user_id": "alice", "from": "2005-01-01T00:00:00Z", "to": "2007-01-01T00:00:00Z" });
    let between: Vec<_> =
        told(&client.ok("subject.accesses", between)).into_iter().map(|(what, _, _)| what).collect();
    assert_eq!(between, ["2006-01-01T00:00:00Z", "2005-01-01T00:00:00Z"]);
    let unknown = accesses(&mut client, "nobody");
    assert_eq!(unknown, json!({ "items": [], "next_cursor": null }));
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'nobody'"), "0");
    assert_eq!(
        client.err("subject.accesses", json!({ "user_id": "alice", "cursor": "x" })).field(),
        "cursor"
    );
    let backwards =
        json!({ "user_id": "alice", "from": "2007-01-01T00:00:00Z", "to": "2005-01-01T00:00:00Z" });
    assert_eq!(client.err("subject.accesses", backwards).field(), "to");
    daemon.assert_well();
}

#[test]
fn a_restricted_person_is_accounted_for_and_the_command_tells_it() {
    let world = World::new();
    let daemon = daemon(&world);
    let mut client = daemon.client();
    let set = json!({ "user_id": "alice", "preferences": {}, "context": by("bob", "care") });
    client.ok("preferences.set", set);
    world.sql("UPDATE subjects SET restricted_at = now() WHERE user_id = 'alice'");
    let config = daemon.config.to_str().unwrap().to_owned();
    let run = |more: &[&str]| {
        let mut arguments = vec!["--config", &config, "subject", "accesses", "alice"];
        arguments.extend(more);
        let done = sidekeep(&arguments);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let printed = run(&[]);
    assert!(printed.contains("preferences.set  bob (uid ") && printed.contains("  for care"), "{printed}");
    let page: Value = serde_json::from_str(&run(&["--json", "--limit", "1"])).unwrap();
    assert_eq!(page["items"][0]["what"], "subject.accesses");
    assert!(page["next_cursor"].is_string());
    daemon.assert_well();
}

#[test]
fn what_a_command_did_while_no_daemon_ran_tells_when_it_was_done() {
    let world = World::new();
    let daemon = daemon(&world);
    daemon.ok("preferences.set", json!({ "user_id": "alice", "preferences": {} }));
    let config = daemon.config.to_str().unwrap().to_owned();
    daemon.stop();
    let now = || {
        world.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
    };
    let before = now();
    let out = world.path("alice.zip");
    let done = sidekeep(&["--config", &config, "export", "alice", "--out", out.to_str().unwrap()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let after = now();
    assert_eq!(world.sql("SELECT count(*) FROM audit_staged WHERE occurred_at <= staged_at"), "1");

    let daemon = self::daemon(&world);
    let mut client = daemon.client();
    let asked = json!({ "action": "subject.export", "from": before, "to": after });
    let entry = client.ok("audit.query", asked)["items"][0].clone();
    let at = |name: &str| entry[name].as_str().unwrap().to_owned();
    assert!(
        before <= at("occurred_at") && at("occurred_at") <= after && after < at("recorded_at"),
        "{entry}"
    );
    let accesses = client.ok("subject.accesses", json!({ "user_id": "alice", "from": before, "to": after }));
    assert_eq!(accesses["items"].as_array().unwrap().len(), 1, "{accesses}");
    assert_eq!(
        (&accesses["items"][0]["id"], &accesses["items"][0]["when"]),
        (&entry["id"], &entry["occurred_at"])
    );
    // What a daemon does itself is in the log at once, and needs no other time.
    client.ok("preferences.set", json!({ "user_id": "alice", "preferences": { "a": 1 } }));
    let set = client.ok("audit.query", json!({ "action": "preferences.set", "limit": 1 }));
    assert_eq!(set["items"][0]["occurred_at"], Value::Null);
    crate::holds::assert_intact(&daemon);
}
