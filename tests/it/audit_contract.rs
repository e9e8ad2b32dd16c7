//! The methods of the log against what they promise: limits, ids, order, filters, and what is entered of the reading itself.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::appends::check_log;
use crate::support::{World, timed, wait_for};

fn items(page: &Value) -> &[Value] {
    page["items"].as_array().unwrap()
}

#[test]
fn every_parameter_of_an_entry_has_its_limits() {
    let world = World::new();
    let daemon = world.start_with("limits.max_record_bytes = \"64KiB\"\n");
    let mut client = daemon.client();
    let x = |n: usize| "x".repeat(n);
    let labels = |n: usize| (0..n).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>();
    for (key, longest) in [
        ("action", 128),
        ("id", 128),
        ("resource_type", 128),
        ("resource_id", 512),
        ("user_id", 255),
        ("subject_user_id", 255),
    ] {
        let mut given = json!({ "action": "limits" });
        given[key] = json!(x(longest));
        client.ok("audit.append", given.clone());
        for bad in
            [json!(x(longest + 1)), json!(""), json!("a\u{7}b"), json!("a\u{85}b"), json!(7), json!(["x"])]
        {
            given[key] = bad.clone();
            let error = client.err("audit.append", given.clone());
            assert_eq!((error.code, error.field()), (-32602, key), "{bad}");
        }
    }
    for (given, field) in [
        (json!({}), "action"),
        (json!({ "action": "a", "labels": labels(17) }), "labels"),
        (json!({ "action": "a", "labels": { x(65): "v" } }), "labels"),
        (json!({ "action": "a", "labels": { "k": x(257) } }), "labels"),
        (json!({ "action": "a", "labels": { "K": "v" } }), "labels"),
        (json!({ "action": "a", "labels": { "k": null } }), "labels"),
        (json!({ "action": "a", "labels": { "sidekeep.uid": "0" } }), "labels"),
        (json!({ "action": "a", "labels": { "bob": "v" }, "user_id": "bob" }), "labels"),
        (json!({ "action": "a", "labels": { "k": "bob" }, "subject_user_id": "bob" }), "labels"),
        (json!({ "action": "a", "resource_id": "@subject" }), "resource_id"),
        (json!({ "action": "a", "resource_type": "user", "resource_id": x(256) }), "resource_id"),
        (json!({ "action": "a", "outcome": "ok" }), "outcome"),
        (json!({ "action": "a", "occurred_at": "yesterday" }), "occurred_at"),
        (json!({ "action": "a", "unknown": 1 }), "unknown"),
    ] {
        let error = client.err("audit.append", given.clone());
        assert_eq!((error.code, error.field()), (-32602, field), "{given}");
        // The same in a list names the entry, and appends none of it.
        let many = json!({ "entries": [{ "action": "many" }, given.clone()] });
        let error = client.err("audit.append_many", many);
        assert_eq!(error.code, -32602);
        assert!(error.field().starts_with("entries[1]"), "{error:?}");
        // And in a list of one.
        let error = client.err("audit.append_many", json!({ "entries": [given] }));
        assert!(error.field().starts_with("entries[0]"), "{given} {error:?}");
    }
    client.ok(
        "audit.append",
        json!({ "action": "a", "labels": labels(16), "occurred_at": "0001-01-01T00:00:00Z" }),
    );
    client.ok("audit.append", json!({ "action": "a", "labels": { x(64): x(256) }, "user_agent": x(1024) }));
    let large = client.err("audit.append", json!({ "action": "a", "metadata": x(65_536) }));
    assert_eq!((large.kind(), &large.data["max"]), ("too_large", &json!(65_536)));
    let many = |n: usize| json!({ "entries": vec![json!({ "action": "thousand" }); n] });
    assert_eq!(client.err("audit.append_many", many(1001)).field(), "entries");
    let placed = client.ok("audit.append_many", many(1000));
    let positions: Vec<i64> = items(&placed).iter().map(|item| item["position"].as_i64().unwrap()).collect();
    assert!(positions.windows(2).all(|pair| pair[1] == pair[0] + 1), "one after another");
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'many'"), "0");
    // Of what a caller says of itself, nothing may name it in the clear.
    for key in ["purpose", "request_id"] {
        let error = client.err(
            "preferences.set",
            json!({ "user_id": "bob", "preferences": {}, "context": { key: "bob" } }),
        );
        assert_eq!(error.field(), format!("context.{key}"));
    }
    assert_eq!(world.sql("SELECT count(*) FROM user_preferences"), "0");
    check_log(&world, &daemon);
}

#[test]
fn what_describes_a_person_is_sealed_and_comes_back_as_it_was_sent() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let metadata =
        r#"{"z":1.0,"a":1e2,"n":12345678901234567890,"t":"needle","l":[null,true,{}],"é":"\u20ac"}"#;
    for (id, user_id, subject) in [
        ("both", json!("needle-a"), json!("needle-b")),
        ("actor", json!("needle-a"), Value::Null),
        ("nobody", Value::Null, Value::Null),
    ] {
        let line = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"audit.append","params":{{"id":"{id}","action":"seal","user_id":{user_id},"subject_user_id":{subject},"ip_address":"needle-ip","user_agent":"needle-agent","resource_id":{},"metadata":{metadata}}}}}"#,
            if user_id.is_null() { json!("r") } else { user_id.clone() }
        );
        client.send(format!("{line}\n").as_bytes());
        assert!(client.line()["result"].is_object());
        let shown = client.ok("audit.get", json!({ "id": id }));
        assert_eq!(
            (&shown["ip_address"], &shown["user_agent"]),
            (&json!("needle-ip"), &json!("needle-agent"))
        );
        assert_eq!((&shown["user_id"], &shown["subject_user_id"]), (&user_id, &subject));
        assert_eq!(shown["metadata"]["t"], "needle");
        client.send(
            format!(
                "{}\n",
                json!({ "jsonrpc": "2.0", "id": 2, "method": "audit.get", "params": { "id": id } })
            )
            .as_bytes(),
        );
        let text = client.raw_line();
        assert!(text.contains(r#""z":1.0,"a":1e2,"n":12345678901234567890"#), "{text}");
    }
    for table in ["audit_logs", "audit_staged", "audit_heads"] {
        assert_eq!(
            world.sql(&format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%needle%'")),
            "0",
            "{table}"
        );
    }
    assert_eq!(world.sql("SELECT resource_id FROM audit_logs WHERE id = 'both'"), "@actor");
    assert_eq!(items(&client.ok("audit.query", json!({ "resource_id": "needle-a" }))).len(), 2);
    check_log(&world, &daemon);
}

#[test]
fn pages_are_in_order_and_whole_whatever_is_asked_for() {
    let world = World::new();
    let [daemon, other] =
        [(); 2].map(|()| world.start_with("audit.access = \"writes\"\njobs.enabled = false\n"));
    let entry = |n: usize| {
        json!({
            "action": (["doc.read", "doc.write", "docs"][n % 3]), "user_id": format!("u{}", n % 4), "subject_user_id": format!("s{}", n % 5),
            "resource_type": "doc", "resource_id": format!("d{}", n % 6), "outcome": (["success", "denied"][n % 2]),
            "labels": { "parity": (n % 2).to_string(), "all": "x" }, "occurred_at": format!("2026-01-{:02}T00:00:00Z", n % 28 + 1),
        })
    };
    for (daemon, from) in [(&daemon, 0), (&other, 60)] {
        let entries: Vec<Value> = (from..from + 60).map(entry).collect();
        daemon.ok("audit.append_many", json!({ "entries": entries }));
    }
    let mut client = daemon.client();
    type Matches = fn(usize) -> bool;
    let cases: [(Value, Matches); 12] = [
        (json!({}), |_| true),
        (json!({ "action": "doc.read" }), |n| n % 3 == 0),
        (json!({ "action": "doc.*" }), |n| n % 3 < 2),
        (json!({ "action": "doc*" }), |_| true),
        (json!({ "action": "do_.*" }), |_| false),
        (json!({ "user_id": "u1" }), |n| n % 4 == 1),
        (json!({ "user_id": "u1", "subject_user_id": "s2" }), |n| n % 4 == 1 && n % 5 == 2),
        (json!({ "resource_type": "doc", "resource_id": "d3" }), |n| n % 6 == 3),
        (json!({ "outcome": "denied", "labels": { "parity": "1" } }), |n| n % 2 == 1),
        (json!({ "labels": { "parity": "1", "all": "y" } }), |_| false),
        (json!({ "from": "2026-01-05T00:00:00Z", "to": "2026-01-07T00:00:00Z" }), |n| {
            (4..6).contains(&(n % 28))
        }),
        (json!({ "user_id": "stranger" }), |_| false),
    ];
    for (filter, matches) in cases {
        let (mut seen, mut cursor) = (Vec::new(), Value::Null);
        loop {
            let mut query = filter.clone();
            query["limit"] = json!(7);
            query["cursor"] = cursor;
            let page = client.ok("audit.query", query);
            seen.extend(items(&page).iter().map(|item| {
                (
                    item["recorded_at"].as_str().unwrap().to_owned(),
                    item["stream"].as_i64(),
                    item["position"].as_i64(),
                )
            }));
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "{filter}: newest first, each once");
        assert_eq!(seen.len(), (0..120).filter(|n| matches(*n)).count(), "{filter}");
        // The same by tailing, each position once, in the order of its stream.
        let (mut tailed, mut after) = (Vec::new(), json!({}));
        loop {
            let mut tail = filter.clone();
            tail["limit"] = json!(11);
            tail["after"] = after;
            let page = client.ok("audit.tail", tail);
            after = page["after"].clone();
            if items(&page).is_empty() {
                break;
            }
            tailed
                .extend(items(&page).iter().map(|item| (item["stream"].as_i64(), item["position"].as_i64())));
        }
        let mut sorted = tailed.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), seen.len(), "{filter}");
        assert_eq!(tailed, sorted, "{filter}: in order");
    }
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'stranger'"), "0");
    for (params, field) in [
        (json!({ "limit": 0 }), "limit"),
        (json!({ "limit": 1001 }), "limit"),
        (json!({ "cursor": "x" }), "cursor"),
        (json!({ "unknown": 1 }), "unknown"),
        (json!({ "from": "x" }), "from"),
        (json!({ "from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z" }), "to"),
    ] {
        assert_eq!(client.err("audit.query", params).field(), field);
    }
    let turned = json!({ "from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z" });
    assert_eq!(client.err("audit.verify", turned).field(), "to", "nothing is in it, which is no verdict");
    assert_eq!(client.err("audit.tail", json!({ "after": { "x": 1 } })).field(), "after");
    check_log(&world, &daemon);
}

#[test]
fn reading_the_log_is_entered_with_what_was_looked_for() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.ok(
        "audit.append",
        json!({ "id": "e", "action": "x", "user_id": "needle-a", "subject_user_id": "needle-b" }),
    );
    let number = |name: &str| {
        world
            .sql(&format!("SELECT subject_id FROM subjects WHERE user_id = '{name}'"))
            .parse::<i64>()
            .unwrap()
    };
    let (a, b) = (number("needle-a"), number("needle-b"));
    let cases = [
        (
            "audit.query",
            json!({ "user_id": "needle-a", "subject_user_id": "needle-b", "action": "x*" }),
            json!({ "user_id": a, "subject_user_id": b, "action": "x*" }),
            Some("needle-b"),
        ),
        (
            "audit.query",
            json!({ "user_id": "needle-a", "limit": 3 }),
            json!({ "user_id": a }),
            Some("needle-a"),
        ),
        ("audit.query", json!({ "user_id": "needle-stranger" }), json!({ "user_id": "@unknown" }), None),
        (
            "audit.query",
            json!({ "resource_type": "user", "resource_id": "needle-a" }),
            json!({ "resource_type": "user", "resource_id": a }),
            Some("needle-a"),
        ),
        (
            "audit.tail",
            json!({ "subject_user_id": "needle-b" }),
            json!({ "subject_user_id": b }),
            Some("needle-b"),
        ),
        ("audit.get", json!({ "id": "e" }), json!({ "id": "e" }), Some("needle-b")),
    ];
    for (method, params, told, subject) in cases {
        client.ok(method, params);
        let newest = client.ok(
            "audit.query",
            json!({ "action": method, "limit": if method == "audit.query" { 1 } else { 2 } }),
        );
        let entry = &items(&newest)[0];
        assert_eq!(
            (&entry["metadata"]["filter"], &entry["subject_user_id"]),
            (&told, &json!(subject)),
            "{method}"
        );
    }
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs t WHERE t::text LIKE '%needle%'"), "0");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id LIKE '%stranger%'"), "0");
    check_log(&world, &daemon);
}

#[test]
fn a_tail_is_entered_when_it_begins_and_wakes_for_others_alone() {
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\n");
    daemon.ok("audit.append", json!({ "action": "first" }));
    let mut client = daemon.client();
    let after = client.ok("audit.tail", json!({}))["after"].clone();
    let entered = "SELECT count(*) FROM audit_logs WHERE action = 'audit.tail'";
    let before: u32 = world.sql(entered).parse().unwrap();
    // Nothing new but what following the log enters itself: it waits as long as it may.
    let (idle, took) = timed(|| client.ok("audit.tail", json!({ "after": after, "wait": "700ms" })));
    assert!(items(&idle).is_empty() && took >= Duration::from_millis(500), "{took:?} {idle}");
    client.send_call("audit.tail", json!({ "after": idle["after"], "wait": "20s" }));
    wait_for("its entry", || (world.sql(entered) == (before + 2).to_string()).then_some(()));
    daemon.ok("audit.append", json!({ "action": "other" }));
    let (line, took) = timed(|| client.line());
    let told: Vec<&str> =
        items(&line["result"]).iter().map(|item| item["action"].as_str().unwrap()).collect();
    assert!(told.contains(&"other") && took < Duration::from_secs(15), "{took:?} {told:?}");
    // What was held back comes with it or next, and each once.
    let mut ids: Vec<String> = items(&line["result"]).iter().map(|item| item["id"].to_string()).collect();
    daemon.ok("audit.append", json!({ "action": "more" }));
    let rest = client.ok("audit.tail", json!({ "after": line["result"]["after"] }));
    ids.extend(items(&rest).iter().map(|item| item["id"].to_string()));
    let all = world.sql("SELECT count(*) FROM audit_logs").parse::<usize>().unwrap();
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "each once");
    // Of the first tail's page came the first entry and its own begin; everything else has come since.
    assert!(count + 2 >= all, "{count} of {all}");
    check_log(&world, &daemon);
}

#[test]
fn proofs_and_sizes_are_what_was_asked_for_or_an_error_that_says_why() {
    let world = World::new();
    let daemon = world.start_with("audit.streams = 1\naudit.access = \"none\"\njobs.enabled = false\n");
    let mut client = daemon.client();
    assert_eq!(client.err("audit.checkpoint", json!({})).kind(), "not_found");
    let mut sizes = Vec::new();
    for n in [1, 2, 4, 250, 3, 257] {
        let entries = vec![json!({ "action": "x" }); n];
        client.ok("audit.append_many", json!({ "entries": entries }));
        client.ok("job.run", json!({ "name": "checkpoint" }));
        sizes.push(world.sql("SELECT size FROM audit_streams").parse::<i64>().unwrap());
    }
    let last = *sizes.last().unwrap();
    for position in [0, 1, 2, 6, 7, 255, 256, 257, 259, 260, last - 1] {
        let proof = client.ok("audit.prove", json!({ "stream": 0, "position": position }));
        assert_eq!(proof["position"], position);
        assert!(proof["size"].as_i64().unwrap() > position, "the first head that has it");
    }
    for from in sizes.iter().copied().chain([0]) {
        for to in sizes.iter().copied().filter(|to| *to >= from) {
            let path =
                client.ok("audit.consistency", json!({ "stream": 0, "from_size": from, "to_size": to }));
            assert_eq!(
                path["path"].as_array().unwrap().is_empty(),
                from == 0 || from == to,
                "{from} to {to}"
            );
        }
    }
    client.ok("audit.consistency", json!({ "from_size": 1 }));
    for (params, field) in [
        (json!({ "from_size": -1 }), "from_size"),
        (json!({ "from_size": 7, "to_size": 5 }), "from_size"),
        (json!({ "from_size": 1, "to_size": 7 }), "to_size"),
        (json!({ "from_size": 1, "to_size": -7 }), "to_size"),
        (json!({ "stream": 0, "from_size": 1, "to_size": last + 1 }), "to_size"),
    ] {
        assert_eq!(client.err("audit.consistency", params.clone()).field(), field, "{params}");
    }
    assert_eq!(client.err("audit.consistency", json!({ "stream": 9, "from_size": 0 })).kind(), "not_found");
    for missing in [
        json!({ "id": "none" }),
        json!({ "stream": 0, "position": last }),
        json!({ "stream": 5, "position": 0 }),
    ] {
        assert_eq!(client.err("audit.prove", missing.clone()).kind(), "not_found", "{missing}");
        assert_eq!(client.err("audit.get", missing).kind(), "not_found");
    }
    for unclear in [json!({}), json!({ "stream": 0 }), json!({ "id": "x", "stream": 0, "position": 0 })] {
        assert_eq!(client.err("audit.prove", unclear).code, -32602);
    }
    check_log(&world, &daemon);
}

#[test]
fn a_notification_is_appended_and_a_bad_one_does_no_harm() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for params in [
        r#"{"action":"told","id":"n1"}"#,
        r#"{"action":""}"#,
        r#"{}"#,
        r#"["told"]"#,
        r#"{"action":"told","id":"n1"}"#,
    ] {
        client.send(
            format!("{{\"jsonrpc\":\"2.0\",\"method\":\"audit.append\",\"params\":{params}}}\n").as_bytes(),
        );
    }
    let receipt = client.ok("audit.append", json!({ "action": "told", "id": "n1" }));
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'told'"), "1");
    assert_eq!(client.ok("audit.get", json!({ "id": "n1" }))["position"], receipt["position"]);
    check_log(&world, &daemon);
}

/// A user id in the place of another id is the commonest of mistakes.
#[test]
fn a_user_id_that_was_taken_for_another_id_does_not_outlive_its_person() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let person = "needle-person";
    client.ok("preferences.set", json!({ "user_id": person, "preferences": {} }));
    let before = world.sql("SELECT count(*) FROM subjects");
    for id in [person, "v-none"] {
        client.err("conversation.get", json!({ "id": id }));
        client.err("subject.certificate", json!({ "id": id }));
        client.err("audit.get", json!({ "id": id }));
        client.ok("conversation.delete", json!({ "id": id }));
    }
    check_log(&world, &daemon);
    let kept = "SELECT string_agg(action, ' ' ORDER BY action) FROM audit_logs WHERE resource_id = ";
    assert_eq!(world.sql(&format!("{kept}'v-none'")), "conversation.get subject.certificate");
    assert_eq!(world.sql(&format!("{kept}'{person}'")), "");
    assert_eq!(world.sql("SELECT count(*) FROM subjects"), before, "nobody was created");
    let accesses = client.ok("subject.accesses", json!({ "user_id": person }));
    for method in ["conversation.get", "subject.certificate", "audit.get"] {
        assert!(items(&accesses).iter().any(|access| access["what"] == method), "{method}: {accesses}");
    }
    client.ok("subject.erase", json!({ "user_id": person, "reason": "request" }));
    let all = client.ok("audit.query", json!({ "limit": 1000 }));
    assert!(!all.to_string().contains(person), "{all}");
    check_log(&world, &daemon);
}

#[test]
fn an_id_that_stands_for_something_else_is_named_among_many() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.ok("audit.append", json!({ "action": "first", "id": "e-1" }));
    let many = |action: &str| json!({ "entries": [{ "action": "new", "id": "e-2" }, { "action": action, "id": "e-1" }] });
    let other = client.err("audit.append_many", many("second"));
    assert!(
        other.kind() == "conflict" && other.message.contains("entries[1].id: another entry"),
        "{other:?}"
    );
    assert_eq!(client.err("audit.get", json!({ "id": "e-2" })).kind(), "not_found");
    // One that stands for the same is answered, and what is new beside it appended.
    let both = client.ok("audit.append_many", many("first"));
    assert_eq!(client.ok("audit.get", json!({ "id": "e-1" }))["position"], items(&both)[1]["position"]);
    assert_eq!(client.ok("audit.get", json!({ "id": "e-2" }))["position"], items(&both)[0]["position"]);
    let both = client.err("audit.get", json!({ "id": "e-1", "stream": 0, "position": 0 }));
    assert!(both.message.contains("without stream and position"), "{both:?}");
}

#[test]
fn what_the_log_does_of_itself_leaves_an_entry_when_it_fails() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let entry = client.ok("audit.append", json!({ "action": "first", "id": "e-1", "user_id": "ada" }));
    client.ok("audit.prove", json!({ "id": "e-1" }));
    client.ok("audit.consistency", json!({ "stream": entry["stream"], "from_size": 1 }));
    client.ok("audit.checkpoint", json!({}));
    client.ok("job.list", json!({}));
    let all = "SELECT string_agg(action || ' ' || coalesce(outcome, ''), ', ' ORDER BY recorded_at, stream, position) FROM audit_logs \
        WHERE labels ? 'sidekeep.method' AND NOT labels ? 'sidekeep.run'";
    assert_eq!(world.sql(all), "");
    let by = json!({ "user_id": "ada", "purpose": "test" });
    client.err("audit.append", json!({ "action": "second", "id": "e-1", "context": by }));
    client
        .err("audit.append_many", json!({ "entries": [{ "action": "second", "id": "e-1" }], "context": by }));
    client.err("audit.prove", json!({ "id": "nobody's", "context": by }));
    client.err("audit.consistency", json!({ "stream": 99, "from_size": 1, "context": by }));
    let told = client.ok("audit.query", json!({ "user_id": "ada" }));
    let told: Vec<_> = items(&told)
        .iter()
        .map(|entry| (entry["action"].as_str().unwrap(), entry["outcome"].clone()))
        .collect();
    for method in ["audit.append", "audit.append_many", "audit.prove", "audit.consistency"] {
        assert!(told.contains(&(method, json!("failure"))), "{method}: {told:?}");
    }
    check_log(&world, &daemon);
}
