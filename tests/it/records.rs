//! The records through the socket: what is written is read, sealed in between, and nothing is lost by doing it twice.

use std::thread;

use serde_json::{Value, json};

use crate::support::World;

#[test]
fn a_profile_goes_round() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let create = json!({ "user_id": "user:alice", "username": "alice", "email": "a@mail.example", "metadata": { "n": 1.0, "deep": [null] } });
    let profile = client.ok("profile.create", create.clone());
    assert_eq!(profile["version"], 1);
    assert_eq!(profile["full_name"], Value::Null);
    assert_eq!(profile["metadata"], json!({ "n": 1.0, "deep": [null] }));
    assert_eq!(client.err("profile.create", create).kind(), "conflict");
    assert_eq!(client.ok("profile.get", json!({ "user_id": "user:alice" })), profile);

    let update = json!({ "user_id": "user:alice", "changes": { "full_name": "Alice É", "metadata": { "deep": null, "x": { "y": 2 } } }, "expected_version": 1 });
    let updated = client.ok("profile.update", update.clone());
    assert_eq!(updated["metadata"], json!({ "n": 1.0, "x": { "y": 2 } }));
    assert_eq!((&updated["version"], &updated["full_name"]), (&json!(2), &json!("Alice É")));
    let stale = client.err("profile.update", update);
    assert_eq!((stale.kind(), &stale.data["current_version"]), ("conflict", &json!(2)));
    let removed =
        client.err("profile.update", json!({ "user_id": "user:alice", "changes": { "email": null } }));
    assert_eq!((removed.code, removed.field()), (-32602, "changes.email"));

    assert_eq!(client.ok("profile.delete", json!({ "user_id": "user:alice" })), json!({ "deleted": true }));
    assert_eq!(client.ok("profile.delete", json!({ "user_id": "user:alice" })), json!({ "deleted": false }));
    assert_eq!(client.err("profile.get", json!({ "user_id": "user:alice" })).kind(), "not_found");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'user:alice'"), "1");
}

#[test]
fn a_read_or_a_refusal_about_an_unknown_person_creates_nobody() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let nobody = json!({ "user_id": "nobody" });
    assert_eq!(client.err("profile.get", nobody.clone()).kind(), "not_found");
    assert_eq!(client.err("preferences.get", nobody.clone()).kind(), "not_found");
    assert_eq!(
        client.err("profile.update", json!({ "user_id": "nobody", "changes": {} })).kind(),
        "not_found"
    );
    assert_eq!(
        client.err("preferences.update", json!({ "user_id": "nobody", "changes": {} })).kind(),
        "not_found"
    );
    assert_eq!(client.ok("profile.delete", nobody.clone()), json!({ "deleted": false }));
    assert_eq!(client.ok("preferences.delete", nobody.clone()), json!({ "deleted": false }));
    assert_eq!(
        client.ok("consent.check", json!({ "user_id": "nobody", "consent_type": "x" })),
        json!({ "granted": false, "consent": null })
    );
    assert_eq!(client.ok("consent.current", nobody.clone()), json!({ "items": [] }));
    assert_eq!(client.ok("consent.history", nobody.clone()), json!({ "items": [], "next_cursor": null }));
    assert_eq!(client.ok("conversation.list", nobody.clone()), json!({ "items": [], "next_cursor": null }));
    assert_eq!(
        client.ok("conversation.search", json!({ "user_id": "nobody", "query": "x" })),
        json!({ "items": [] })
    );
    assert_eq!(client.err("conversation.get", json!({ "id": "none" })).kind(), "not_found");
    assert_eq!(
        client
            .err(
                "conversation.append",
                json!({ "id": "none", "messages": [{ "role": "user", "content": "x" }] })
            )
            .kind(),
        "not_found"
    );
    assert_eq!(client.ok("conversation.delete", json!({ "id": "none" })), json!({ "deleted": false }));
    assert_eq!(
        client.err("profile.create", json!({ "user_id": "nobody", "username": "x" })).field(),
        "email"
    );
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id IS NOT NULL"), "0");
}

#[test]
fn concurrent_patches_lose_no_update() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    first.ok("preferences.set", json!({ "user_id": "u", "preferences": { "theme": "dark" } }));
    thread::scope(|scope| {
        for worker in 0..8 {
            let daemon = if worker % 2 == 0 { &first } else { &second };
            scope.spawn(move || {
                let mut client = daemon.client();
                for round in 0..10 {
                    let changes = json!({ format!("k{worker}_{round}"): round });
                    client.ok("preferences.update", json!({ "user_id": "u", "changes": changes }));
                }
            });
        }
    });
    let preferences = first.ok("preferences.get", json!({ "user_id": "u" }));
    assert_eq!(preferences["preferences"].as_object().unwrap().len(), 81);
    assert_eq!(preferences["version"], 81);
}

#[test]
fn a_consent_stands_as_of_a_time() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let record = |more: Value| {
        let mut record = json!({ "user_id": "u", "consent_type": "marketing", "granted": true });
        record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        record
    };
    client.ok("consent.record", record(json!({ "given_at": "2026-01-01T00:00:00Z", "ip_address": "203.0.113.77", "user_agent": "Mozilla", "metadata": { "form": 1 } })));
    client.ok("consent.record", record(json!({ "given_at": "2026-02-01T00:00:00+01:00", "granted": false })));
    client.ok(
        "consent.record",
        record(json!({ "given_at": "2026-03-01T00:00:00Z", "expires_at": "2026-04-01T00:00:00Z" })),
    );
    let far = "9999-01-01T00:00:00Z";
    client.ok("consent.record", record(json!({ "given_at": far })));
    let mut granted = |at: Option<&str>| {
        let mut check = json!({ "user_id": "u", "consent_type": "marketing" });
        if let Some(at) = at {
            check["at"] = json!(at);
        }
        let checked = client.ok("consent.check", check);
        (checked["granted"].as_bool().unwrap(), checked["consent"]["given_at"].as_str().map(str::to_owned))
    };
    let given = |at: &str| Some(at.to_owned());
    assert_eq!(granted(Some("2025-12-31T23:59:59.999999Z")), (false, None));
    assert_eq!(granted(Some("2026-01-01T00:00:00Z")), (true, given("2026-01-01T00:00:00.000000Z")));
    assert_eq!(granted(Some("2026-01-31T23:00:00Z")), (false, given("2026-01-31T23:00:00.000000Z")));
    assert_eq!(granted(Some("2026-03-31T23:59:59.999999Z")), (true, given("2026-03-01T00:00:00.000000Z")));
    assert_eq!(granted(Some("2026-04-01T00:00:00Z")), (false, given("2026-03-01T00:00:00.000000Z")));
    assert_eq!(granted(None), (false, given("2026-03-01T00:00:00.000000Z")));
    assert_eq!(granted(Some("9999-06-01T00:00:00Z")), (true, given("9999-01-01T00:00:00.000000Z")));

    // Of two at one time, the later recorded counts.
    client.ok(
        "consent.record",
        json!({ "user_id": "u", "consent_type": "t", "granted": true, "given_at": "2026-01-01T00:00:00Z" }),
    );
    client.ok(
        "consent.record",
        json!({ "user_id": "u", "consent_type": "t", "granted": false, "given_at": "2026-01-01T00:00:00Z" }),
    );
    assert_eq!(client.ok("consent.check", json!({ "user_id": "u", "consent_type": "t" }))["granted"], false);
    let current = client.ok("consent.current", json!({ "user_id": "u" }));
    let types: Vec<_> = current["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (&item["consent_type"], &item["given_at"]))
        .collect();
    assert_eq!(
        types,
        [
            (&json!("marketing"), &json!("2026-03-01T00:00:00.000000Z")),
            (&json!("t"), &json!("2026-01-01T00:00:00.000000Z"))
        ]
    );
}

#[test]
fn consents_are_append_only_and_idempotent_by_id() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    let record = json!({ "user_id": "u", "consent_type": "x", "granted": true, "id": "c-1", "given_at": "2026-01-01T01:00:00+01:00", "metadata": { "a": 1, "b": 2 } });
    let stored = first.ok("consent.record", record.clone());
    assert_eq!(second.ok("consent.record", record.clone()), stored);
    for field in ["id", "consent_type", "policy_version", "legal_basis", "method", "language"] {
        let mut identifying = record.clone();
        identifying[field] = json!("u");
        assert_eq!(first.client().err("consent.record", identifying).field(), field);
    }
    // Each parameter that is given counts, and the order of keys does not.
    assert_eq!(second.ok("consent.record", json!({ "user_id": "u", "consent_type": "x", "granted": true, "id": "c-1", "metadata": { "b": 2, "a": 1 } })), stored);
    for other in [
        json!({ "user_id": "u", "consent_type": "x", "granted": false, "id": "c-1" }),
        json!({ "user_id": "u", "consent_type": "y", "granted": true, "id": "c-1" }),
        json!({ "user_id": "other", "consent_type": "x", "granted": true, "id": "c-1" }),
        json!({ "user_id": "u", "consent_type": "x", "granted": true, "id": "c-1", "method": "paper" }),
        json!({ "user_id": "u", "consent_type": "x", "granted": true, "id": "c-1", "metadata": {} }),
    ] {
        assert_eq!(second.client().err("consent.record", other.clone()).kind(), "conflict", "{other}");
    }
    assert_eq!(world.sql("SELECT count(*) FROM consent_records"), "1");
    let refused = std::process::Command::new("psql")
        .args([&world.owner_url, "-XqAt", "-c", "UPDATE sidekeep.consent_records SET granted = false"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("append-only"), "{refused:?}");
}

#[test]
fn the_same_id_from_many_at_once_is_one_record() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    let answers: Vec<Value> = thread::scope(|scope| {
        let calls: Vec<_> = (0..16)
            .map(|caller| {
                let daemon = if caller % 2 == 0 { &first } else { &second };
                scope.spawn(move || daemon.ok("conversation.create", json!({ "user_id": "new-person", "id": "chat", "title": "T", "messages": [{ "role": "user", "content": "hello" }] })))
            })
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    assert_eq!(world.sql("SELECT count(*) FROM conversations"), "1");
    assert_eq!(world.sql("SELECT count(*) FROM conversation_messages"), "1");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'new-person'"), "1");
    assert_eq!(
        first
            .client()
            .err("conversation.create", json!({ "user_id": "new-person", "id": "chat", "title": "U" }))
            .kind(),
        "conflict"
    );
    assert_eq!(
        first
            .client()
            .err("conversation.create", json!({ "user_id": "else", "id": "chat", "title": "T" }))
            .kind(),
        "conflict"
    );
}

#[test]
fn messages_come_back_as_they_were_sent() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let sent = json!([
        { "role": "user", "content": "hello world", "extra": { "n": 1 } },
        { "role": "assistant", "content": [{ "type": "text", "text": "Straße" }], "id": "m-1", "created_at": "2026-01-01T00:00:00+02:00" },
    ]);
    let chat = client.ok(
        "conversation.create",
        json!({ "user_id": "u", "title": "T", "messages": sent, "metadata": { "x": 1 } }),
    );
    let id = chat["id"].clone();
    assert_eq!((&chat["message_count"], &chat["version"]), (&json!(2), &json!(1)));
    let again = json!({ "id": id, "messages": [{ "content": [{ "type": "text", "text": "Straße" }], "role": "assistant", "id": "m-1", "created_at": "2026-01-01T00:00:00+02:00" }, { "role": "user", "content": "third", "id": "m-2" }] });
    assert_eq!(client.ok("conversation.append", again.clone())["message_count"], 3);
    assert_eq!(client.ok("conversation.append", again)["message_count"], 3);
    let other = client.err(
        "conversation.append",
        json!({ "id": id, "messages": [{ "role": "user", "content": "other", "id": "m-2" }] }),
    );
    assert_eq!(other.kind(), "conflict");
    assert_eq!(client.err("conversation.append", json!({ "id": id, "messages": [] })).field(), "messages");

    let whole = client.ok("conversation.get", json!({ "id": id }));
    let messages = whole["messages"].as_array().unwrap();
    assert_eq!(
        messages.iter().map(|message| message["position"].as_i64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert_eq!(messages[0]["extra"], json!({ "n": 1 }));
    assert_eq!(messages[1]["created_at"], "2026-01-01T00:00:00+02:00");
    assert!(messages[0]["created_at"].as_str().unwrap().ends_with('Z'));
    let mut pages = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let page = client.ok("conversation.messages", json!({ "id": id, "limit": 2, "cursor": cursor }));
        pages.extend(page["items"].as_array().unwrap().clone());
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(&pages, messages);

    let found = |client: &mut crate::support::Client, query: &str| {
        let found = client.ok("conversation.search", json!({ "user_id": "u", "query": query }));
        found["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|hit| hit["position"].as_i64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(found(&mut client, "HELLO world"), [0]);
    assert_eq!(found(&mut client, "STRASSE"), [1]);
    assert_eq!(found(&mut client, "hello third"), Vec::<i64>::new());

    let version = whole["version"].as_i64().unwrap();
    let changes = json!({ "title": null, "archived": true, "metadata": { "x": null, "y": 2 }, "messages": [{ "role": "system", "content": "anew" }] });
    let updated = client
        .ok("conversation.update", json!({ "id": id, "changes": changes, "expected_version": version }));
    assert_eq!(
        (&updated["title"], &updated["archived"], &updated["message_count"]),
        (&Value::Null, &json!(true), &json!(1))
    );
    assert_eq!(updated["metadata"], json!({ "y": 2 }));
    assert_eq!(
        client
            .err("conversation.update", json!({ "id": id, "changes": {}, "expected_version": version }))
            .kind(),
        "conflict"
    );
    assert_eq!(client.ok("conversation.get", json!({ "id": id }))["messages"][0]["content"], "anew");
    assert_eq!(
        client.ok("conversation.list", json!({ "user_id": "u", "archived": false }))["items"],
        json!([])
    );
    assert_eq!(client.ok("conversation.delete", json!({ "id": id })), json!({ "deleted": true }));
    assert_eq!(world.sql("SELECT count(*) FROM conversation_messages"), "0");
}

#[test]
fn concurrent_appends_leave_no_gap() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    first.ok("conversation.create", json!({ "user_id": "u", "id": "c" }));
    thread::scope(|scope| {
        for worker in 0..8 {
            let daemon = if worker % 2 == 0 { &first } else { &second };
            scope.spawn(move || {
                let mut client = daemon.client();
                for round in 0..10 {
                    client.ok("conversation.append", json!({ "id": "c", "messages": [{ "role": "user", "content": round, "id": format!("{worker}-{round}") }] }));
                }
            });
        }
    });
    assert_eq!(
        world.sql("SELECT count(*), min(position), max(position) FROM conversation_messages"),
        "80|0|79"
    );
    assert_eq!(world.sql("SELECT message_count FROM conversations"), "80");
}

#[test]
fn lists_page_by_keyset_the_newest_first() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for number in 0..25 {
        // Some share a time, so that the key's second half is needed.
        let at = format!("2026-01-{:02}T00:00:00Z", number / 3 + 1);
        client.ok(
            "conversation.create",
            json!({ "user_id": "u", "created_at": at, "title": number.to_string() }),
        );
        client.ok("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": true, "given_at": at, "policy_version": number.to_string() }));
    }
    for (method, key) in [("conversation.list", "created_at"), ("consent.history", "given_at")] {
        let whole = client.ok(method, json!({ "user_id": "u" }))["items"].clone();
        let (mut paged, mut cursor) = (Vec::new(), Value::Null);
        loop {
            let page = client.ok(method, json!({ "user_id": "u", "limit": 4, "cursor": cursor }));
            paged.extend(page["items"].as_array().unwrap().clone());
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert_eq!(json!(paged), whole, "{method}");
        assert_eq!(paged.len(), 25);
        assert!(paged.is_sorted_by(|a, b| a[key].as_str() >= b[key].as_str()), "{method}");
        for limit in [json!(0), json!(1001), json!(-1), json!("5"), json!(1.5)] {
            assert_eq!(
                client.err(method, json!({ "user_id": "u", "limit": limit })).field(),
                "limit",
                "{method} {limit}"
            );
        }
        assert_eq!(
            client.err(method, json!({ "user_id": "u", "cursor": "x" })).field(),
            "cursor",
            "{method}"
        );
    }
}

#[test]
fn a_cursor_leads_on_in_its_own_list_alone() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for (user, number) in [("u", 1), ("u", 2), ("v", 3), ("v", 4)] {
        client.ok("conversation.create", json!({ "user_id": user, "messages": [] }));
        let consent = json!({ "user_id": user, "consent_type": "t", "granted": true, "policy_version": number.to_string() });
        client.ok("consent.record", consent);
    }
    let lists = [
        ("consent.history", json!({ "user_id": "u" })),
        ("consent.history", json!({ "user_id": "v" })),
        ("consent.history", json!({ "user_id": "u", "consent_type": "t" })),
        ("conversation.list", json!({ "user_id": "u" })),
        ("conversation.list", json!({ "user_id": "u", "archived": false })),
        ("audit.query", json!({ "subject_user_id": "u" })),
        ("subject.accesses", json!({ "user_id": "u" })),
    ];
    for (own, (method, params)) in lists.iter().enumerate() {
        let asked = |params: &Value, more: Value| {
            let mut asked = params.clone();
            asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            asked
        };
        let cursor = client.ok(method, asked(params, json!({ "limit": 1 })))["next_cursor"].clone();
        assert!(cursor.is_string(), "{method} {params}");
        for (other, (next, others)) in lists.iter().enumerate() {
            let asked = asked(others, json!({ "cursor": cursor }));
            if own == other {
                client.ok(next, asked);
            } else {
                assert_eq!(
                    client.err(next, asked).field(),
                    "cursor",
                    "{method} {params}, then {next} {others}"
                );
            }
        }
    }
}

#[test]
fn json_comes_back_exactly_as_it_was_sent() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let text = r#"{"big":9007199254740993,"bigger":123456789012345678901234567890,"one":1.0,"e":1E5,"z":-0,"s":"a\u0000b\u00e9é","deep":[[[{}]]],"empty":{}}"#;
    client.send(format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"preferences.set\",\"params\":{{\"user_id\":\"u\",\"preferences\":\n {text} }}}}\n").as_bytes());
    assert!(client.line()["result"].is_object());
    client.send(
        b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"preferences.get\",\"params\":{\"user_id\":\"u\"}}\n",
    );
    client.end();
    let mut answer = String::new();
    std::io::Read::read_to_string(client.raw(), &mut answer).unwrap();
    assert!(answer.contains(&format!("\"preferences\":{text},")), "{answer}");
    let mut client = daemon.client();
    for bad in [r#"{"a":1,"a":2}"#, r#""\ud800""#, "1e999"] {
        client.send(format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"preferences.set\",\"params\":{{\"user_id\":\"u\",\"preferences\":{bad}}}}}\n").as_bytes());
        let answer = client.line();
        assert_eq!(
            (&answer["error"]["code"], &answer["error"]["data"]["field"]),
            (&json!(-32602), &json!("preferences")),
            "{bad}"
        );
    }
}

#[test]
fn what_is_too_large_is_refused_and_what_is_long_is_paged() {
    let world = World::new();
    let daemon =
        world.start_with("limits.max_record_bytes = \"64KiB\"\nlimits.max_answer_bytes = \"256KiB\"\n");
    let mut client = daemon.client();
    let large = "x".repeat(70 * 1024);
    for (method, params) in [
        ("preferences.set", json!({ "user_id": "u", "preferences": large })),
        (
            "profile.create",
            json!({ "user_id": "u", "username": "x", "email": "x@y.example", "metadata": large }),
        ),
        (
            "conversation.create",
            json!({ "user_id": "u", "messages": [{ "role": "user", "content": large }] }),
        ),
    ] {
        let error = client.err(method, params);
        assert_eq!((error.kind(), &error.data["max"]), ("too_large", &json!(65536)), "{method}");
    }
    // A patch cannot make larger what may not be sent.
    client.ok("preferences.set", json!({ "user_id": "u", "preferences": { "a": "x".repeat(60_000) } }));
    let changes = json!({ "b": "x".repeat(10_000) });
    let error = client.err("preferences.update", json!({ "user_id": "u", "changes": changes }));
    assert_eq!(error.kind(), "too_large");
    client.ok("conversation.create", json!({ "user_id": "u", "id": "c" }));
    for _ in 0..10 {
        client.ok(
            "conversation.append",
            json!({ "id": "c", "messages": [{ "role": "user", "content": "y".repeat(50_000) }] }),
        );
    }
    let error = client.err("conversation.get", json!({ "id": "c" }));
    let message = "the conversation is over its limit of 262144; use conversation.messages";
    assert_eq!((error.kind(), &*error.message), ("too_large", message));
    let (mut count, mut cursor) = (0, Value::Null);
    loop {
        let page = client.ok("conversation.messages", json!({ "id": "c", "cursor": cursor }));
        let items = page["items"].as_array().unwrap().len();
        assert!((1..10).contains(&items), "{items} on a page");
        count += items;
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(count, 10);
}
