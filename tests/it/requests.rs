//! The register of requests: what is due when, what was done, and what is left of it after an erasure.

use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::holds::assert_intact;
use crate::support::{Client, World, sidekeep, wait_for};

const ALICE: &str = "user:alice";

fn open(client: &mut Client, id: &str, kind: &str) -> Value {
    client.ok("request.open", json!({ "user_id": ALICE, "kind": kind, "id": id }))
}

/// PostgreSQL's idea of a time, as answers show it: a month is one of UTC.
fn at(world: &World, expression: &str) -> String {
    world.sql(&format!(
        "SET TIME ZONE 'UTC'; SELECT to_char(({expression}) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
    ))
}

#[test]
fn a_request_is_due_a_calendar_month_after_it_was_received() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let cases = [
        ("2026-01-31T23:00:00Z", "2026-02-28T23:00:00.000000Z"),
        ("2024-01-31T12:00:00+02:00", "2024-02-29T10:00:00.000000Z"),
        ("2024-12-31T23:59:59.999999Z", "2025-01-31T23:59:59.999999Z"),
        ("2026-08-31T12:00:00Z", "2026-09-30T12:00:00.000000Z"),
        ("2026-02-28T12:00:00Z", "2026-03-28T12:00:00.000000Z"),
    ];
    for (received_at, due_at) in cases {
        let given = json!({ "user_id": ALICE, "kind": "access", "received_at": received_at });
        let request = client.ok("request.open", given);
        assert_eq!(
            (&request["due_at"], &request["overdue"]),
            (&json!(due_at), &json!(true)),
            "{received_at}"
        );
    }
    // Without it, now; and a month as PostgreSQL counts it.
    let request = open(&mut client, "now", "portability");
    let received_at = request["received_at"].as_str().unwrap();
    assert_eq!(request["due_at"], at(&world, &format!("timestamptz '{received_at}' + interval '1 month'")));
    assert_eq!((&request["state"], &request["overdue"]), (&json!("open"), &json!(false)));

    let tomorrow = at(&world, "now() + interval '1 day'");
    let wrong = [
        ("received_at", json!({ "user_id": ALICE, "kind": "access", "received_at": tomorrow })),
        ("kind", json!({ "user_id": ALICE, "kind": "deletion" })),
        ("channel", json!({ "user_id": ALICE, "kind": "access", "channel": ALICE })),
        ("id", json!({ "user_id": ALICE, "kind": "access", "id": ALICE })),
    ];
    for (field, params) in wrong {
        let error = client.err("request.open", params);
        assert_eq!((error.code, error.field()), (-32602, field), "{error:?}");
    }
    assert_intact(&daemon);
}

#[test]
fn only_the_first_month_is_extended_and_once() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let aged = |client: &mut Client, id: &str, age: &str| {
        let received_at = at(&world, &format!("now() - interval '{age}'"));
        let given = json!({ "user_id": ALICE, "kind": "access", "received_at": received_at, "id": id });
        client.ok("request.open", given)
    };
    let extend = |id: &str| json!({ "id": id, "reason": "many records" });
    let late = aged(&mut client, "late", "1 month 1 minute");
    assert_eq!(late["overdue"], true);
    let error = client.err("request.extend", extend("late"));
    assert!(error.kind() == "conflict" && error.message.contains("first month"), "{error:?}");
    assert_eq!(client.ok("request.list", json!({}))["items"], json!([late]), "nothing was changed");

    let young = aged(&mut client, "young", "20 days");
    let extended = client.ok("request.extend", extend("young"));
    let received_at = young["received_at"].as_str().unwrap();
    assert_eq!(extended["due_at"], at(&world, &format!("timestamptz '{received_at}' + interval '3 months'")));
    assert_eq!(extended["extension_reason"], "many records");
    assert_eq!(client.ok("request.extend", extend("young")), extended, "a repeat");
    let again = json!({ "id": "young", "reason": "even more" });
    assert_eq!(client.err("request.extend", again).kind(), "conflict");
    assert_eq!(client.err("request.extend", extend("none")).kind(), "not_found");

    let closed = client.ok("request.close", json!({ "id": "young", "outcome": "done", "reason": "sent" }));
    assert_eq!((&closed["state"], &closed["outcome"]), (&json!("closed"), &json!("done")));
    assert_eq!((&closed["reason"], &closed["overdue"]), (&json!("sent"), &json!(false)));
    assert_eq!(client.ok("request.close", json!({ "id": "young", "outcome": "done" })), closed);
    let otherwise = json!({ "id": "young", "outcome": "refused" });
    assert_eq!(client.err("request.close", otherwise).kind(), "conflict");
    let new = open(&mut client, "new", "objection");
    client.ok("request.close", json!({ "id": "new", "outcome": "withdrawn" }));
    assert_eq!(client.err("request.extend", extend("new")).kind(), "conflict", "{new}");
    assert_intact(&daemon);
}

#[test]
fn a_repeated_call_answers_the_same_and_another_is_a_conflict() {
    let world = World::new();
    let (left, right) = (world.start(), world.start());
    let given = json!({ "user_id": ALICE, "kind": "erasure", "id": "r1", "channel": "email" });
    let answers: Vec<Value> = thread::scope(|scope| {
        let calls: Vec<_> = (0..16)
            .map(|n| if n % 2 == 0 { &left } else { &right })
            .map(|daemon| scope.spawn(|| daemon.ok("request.open", given.clone())))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let mut client = left.client();
    let others = [
        ("user_id", "user:bob"),
        ("kind", "access"),
        ("channel", "phone"),
        ("received_at", "2026-01-01T00:00:00Z"),
    ];
    for (field, other) in others {
        let mut params = given.clone();
        params[field] = other.into();
        assert_eq!(client.err("request.open", params).kind(), "conflict", "{field}");
    }
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'user:bob'"), "0");
    // Two who extend at once, from two daemons: one reason stands.
    let reasons: Vec<_> = thread::scope(|scope| {
        let calls: Vec<_> = [(&left, "a"), (&right, "b")]
            .into_iter()
            .map(|(daemon, reason)| {
                scope.spawn(move || {
                    daemon.client().call("request.extend", json!({ "id": "r1", "reason": reason }))
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let done: Vec<_> = reasons.iter().filter_map(|answer| answer.as_ref().ok()).collect();
    assert_eq!(done.len(), 1, "{reasons:?}");
    assert_eq!(client.ok("request.list", json!({}))["items"], json!([done[0]]));
    assert_intact(&left);
    right.stop();
}

#[test]
fn the_register_is_listed_by_state_and_by_what_is_due() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for (number, received_at) in ["2026-01-10", "2026-02-10", "2026-03-10"].into_iter().enumerate() {
        let given = json!({ "user_id": format!("u{number}"), "kind": "access", "id": format!("r{number}"),
            "received_at": format!("{received_at}T00:00:00Z") });
        client.ok("request.open", given);
    }
    client.ok("request.close", json!({ "id": "r1", "outcome": "done" }));
    let ids = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap().iter();
        items.map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    };
    let mut list = |params: Value| client.ok("request.list", params);
    assert_eq!(ids(&list(json!({}))), ["r2", "r1", "r0"]);
    assert_eq!(ids(&list(json!({ "state": "open" }))), ["r2", "r0"]);
    assert_eq!(ids(&list(json!({ "state": "closed" }))), ["r1"]);
    assert_eq!(ids(&list(json!({ "due_before": "2026-03-10T00:00:00Z" }))), ["r0"]);
    assert_eq!(ids(&list(json!({ "due_before": "2026-03-10T00:00:00.000001Z" }))), ["r1", "r0"]);
    assert_eq!(ids(&list(json!({ "user_id": "u2" }))), ["r2"]);
    assert_eq!(ids(&list(json!({ "user_id": "nobody" }))), Vec::<String>::new());
    let page = list(json!({ "limit": 2 }));
    assert_eq!(ids(&page), ["r2", "r1"]);
    let rest = list(json!({ "limit": 2, "cursor": page["next_cursor"] }));
    assert_eq!((ids(&rest), &rest["next_cursor"]), (vec!["r0".to_owned()], &Value::Null));
}

#[test]
fn after_an_erasure_it_says_what_was_done_and_not_for_whom() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    open(&mut client, "r1", "restriction");
    open(&mut client, "r2", "erasure");
    client.ok("request.extend", json!({ "id": "r2", "reason": "marker of the extension" }));
    let restrict = json!({ "user_id": ALICE, "reason": "asked for", "request_id": "r1" });
    client.ok("subject.restrict", restrict.clone());
    let bobs = json!({ "user_id": "user:bob", "reason": "asked for", "request_id": "r1" });
    assert_eq!(client.err("subject.restrict", bobs).kind(), "conflict");
    let unknown = json!({ "user_id": ALICE, "reason": "r", "request_id": "none" });
    assert_eq!(client.err("subject.unrestrict", unknown).kind(), "not_found");
    assert_eq!(
        client.ok("subject.status", json!({ "user_id": ALICE }))["restricted"],
        true,
        "all or nothing"
    );
    let closed =
        client.ok("request.close", json!({ "id": "r1", "outcome": "done", "reason": "marker of the close" }));
    assert_eq!(closed["results"][0]["method"], "subject.restrict", "{closed}");
    assert_eq!((closed["results"].as_array().unwrap().len(), &closed["results"][0]["id"]), (1, &Value::Null));
    assert_eq!(client.err("subject.restrict", restrict).kind(), "conflict", "a closed request takes no more");

    client.ok("subject.erase", json!({ "user_id": ALICE, "reason": "request" }));
    let reason = "nothing was kept";
    let after = client.ok("request.close", json!({ "id": "r2", "outcome": "done", "reason": reason }));
    assert_eq!((&after["user_id"], &after["kind"]), (&Value::Null, &json!("erasure")));
    assert_eq!((&after["extension_reason"], &after["reason"]), (&Value::Null, &json!(reason)));
    assert_eq!(client.ok("request.close", json!({ "id": "r2", "outcome": "done", "reason": reason })), after);
    let items = client.ok("request.list", json!({}))["items"].clone();
    assert_eq!(items[0], after);
    assert_eq!((&items[1]["user_id"], &items[1]["reason"]), (&Value::Null, &Value::Null));
    assert_eq!(items[1]["results"], closed["results"]);
    // The same name is a new person, whose requests those are not.
    let new = open(&mut client, "r3", "access");
    assert_eq!(client.ok("request.list", json!({ "user_id": ALICE }))["items"], json!([new]));
    assert_eq!(
        client.err("request.open", json!({ "user_id": ALICE, "kind": "erasure", "id": "r2" })).kind(),
        "conflict"
    );
    let dump = Command::new("pg_dump").args(["--data-only", &world.owner_url]).output().unwrap();
    assert!(!String::from_utf8_lossy(&dump.stdout).contains("marker of"));
    assert_intact(&daemon);
}

#[test]
fn what_presses_is_in_status_and_figures() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let counted = |client: &mut Client, expected: [i64; 3]| {
        let [open, due_soon, overdue] = expected;
        let expected = json!({ "open": open, "due_soon": due_soon, "overdue": overdue });
        wait_for("the counts", || {
            (client.ok("system.status", json!({}))["requests"] == expected).then_some(())
        });
        let text = client.ok("system.metrics", json!({}))["text"].as_str().unwrap().to_owned();
        for (state, count) in [("open", open), ("due_soon", due_soon), ("overdue", overdue)] {
            let line = format!("sidekeep_requests{{state=\"{state}\"}} {count}");
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    };
    counted(&mut client, [0, 0, 0]);
    let ages = [("old", "2 months"), ("soon", "1 month - 2 days"), ("new", "0 days")];
    for (id, age) in ages {
        let received_at = at(&world, &format!("now() - (interval '{}')", age.replace(" - ", " -")));
        client.ok(
            "request.open",
            json!({ "user_id": ALICE, "kind": "access", "id": id, "received_at": received_at }),
        );
    }
    counted(&mut client, [3, 1, 1]);
    client.ok("request.close", json!({ "id": "old", "outcome": "done" }));
    counted(&mut client, [2, 1, 0]);
    client.ok("request.extend", json!({ "id": "soon", "reason": "r" }));
    counted(&mut client, [2, 0, 0]);
}

#[test]
fn every_command_does_what_its_method_does() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.ok("profile.create", json!({ "user_id": ALICE, "username": "alice", "email": "a@mail.example" }));
    let socket = daemon.socket.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let done = sidekeep(&[arguments, &["--socket", socket]].concat());
        let said = String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap();
        (done.status.code(), said)
    };
    let shown = |arguments: &[&str]| -> Value {
        let (code, said) = run(&[arguments, &["--json"]].concat());
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
    };
    let held = shown(&["subject", "hold", ALICE, "--reason", "case 7", "--id", "h1"]);
    assert_eq!(client.ok("subject.holds", json!({}))["items"], json!([held]));
    assert_eq!(shown(&["subject", "holds", ALICE])["items"], json!([held]));
    let (code, said) = run(&["subject", "holds"]);
    assert!(code == Some(0) && said.contains("h1") && said.contains("stands"), "{said}");
    assert!(shown(&["subject", "release", "h1", "--reason", "over"])["released_at"].is_string());
    assert_eq!(run(&["subject", "find", "--email", "A@mail.example"]), (Some(0), format!("{ALICE}\n")));
    assert_eq!(shown(&["subject", "find", "--username", "nobody"]), json!({ "items": [] }));
    assert_eq!(run(&["subject", "find"]).0, Some(2));

    let opened =
        shown(&["request", "open", ALICE, "--kind", "restriction", "--id", "r1", "--channel", "letter"]);
    assert_eq!((&opened["kind"], &opened["channel"]), (&json!("restriction"), &json!("letter")));
    let done = run(&["subject", "restrict", ALICE, "--reason", "asked for", "--request", "r1"]);
    assert_eq!(done, (Some(0), "restricted\n".into()));
    assert_eq!(shown(&["subject", "unrestrict", ALICE, "--reason", "over"]), json!({ "restricted": false }));
    assert!(shown(&["request", "extend", "r1", "--reason", "holidays"])["extended_at"].is_string());
    let (code, said) = run(&["request", "list", "--state", "open"]);
    assert!(code == Some(0) && said.contains("r1") && said.contains("due "), "{said}");
    let closed = shown(&["request", "close", "r1", "--outcome", "done"]);
    assert_eq!(closed["results"][0]["method"], "subject.restrict");
    assert_eq!(shown(&["request", "list", "--state", "closed"])["items"], json!([closed]));
    let (code, said) = run(&["request", "close", "none", "--outcome", "done"]);
    assert!(code == Some(1) && said.contains("not_found"), "{said}");
    for number in 0..5 {
        let id = format!("more{number}");
        run(&["request", "open", ALICE, "--kind", "access", "--id", &id]);
    }
    let (_, said) = run(&["request", "list", "--limit", "2"]);
    assert_eq!(said.lines().count(), 6, "all pages: {said}");
    assert_intact(&daemon);
}
