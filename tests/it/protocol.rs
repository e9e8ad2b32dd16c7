//! JSON-RPC 2.0 on the socket, as interface.md §1 promises it: framing, ids, batches, notifications, names.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Client, Daemon, Session, World, wait_for};

const HEALTH: &str = r#"{"jsonrpc":"2.0","id":1,"method":"system.health"}"#;

fn health(id: u64) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "system.health" })
}

fn create(user_id: &str) -> Value {
    json!({ "user_id": user_id, "username": "u", "email": "u@mail.example" })
}

/// The lines that are answered to these bytes, as they came.
fn lines(daemon: &Daemon, bytes: &[u8]) -> Vec<String> {
    let mut client = daemon.client();
    client.send(bytes);
    client.end();
    let mut text = String::new();
    client.raw().read_to_string(&mut text).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    text.lines().map(str::to_owned).collect()
}

fn ids(answers: &[Value]) -> Vec<u64> {
    let mut ids: Vec<u64> = answers.iter().map(|answer| answer["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn the_end_of_the_input_ends_the_connection_after_the_answers() {
    let world = World::new();
    let daemon = world.start();
    for end in ["", "\n", "\r\n", " \n\n"] {
        let answers = daemon.client().exchange(format!("{HEALTH}{end}").as_bytes());
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!((&answers[0]["id"], &answers[0]["result"]["status"]), (&json!(1), &json!("ok")));
    }
    assert!(daemon.client().exchange(b"").is_empty());
    assert!(daemon.client().exchange(b" \n\t ").is_empty());

    let mut socat = Command::new("socat")
        .args(["-t60", "-", &format!("UNIX-CONNECT:{}", daemon.socket.display())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("socat");
    socat.stdin.take().unwrap().write_all(HEALTH.as_bytes()).unwrap();
    let done = socat.wait_with_output().unwrap();
    assert!(done.status.success());
    assert_eq!(serde_json::from_slice::<Value>(&done.stdout).unwrap()["result"]["status"], "ok");
}

#[test]
fn a_call_in_flight_at_the_end_of_the_input_is_answered() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("profile.create", create("held"));
    let lock = Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    client.end();
    let mut other = daemon.client();
    wait_for("the call", || (other.ok("system.status", json!({}))["calls"]["in_flight"] == 1).then_some(()));
    lock.release();
    assert_eq!(client.line()["result"], json!({ "deleted": true }));
    assert!(client.try_line().is_none());
}

#[test]
fn white_space_separates_messages_and_nothing_has_to() {
    let world = World::new();
    let daemon = world.start();
    let pretty = serde_json::to_string_pretty(&health(1)).unwrap();
    let streams = [
        format!("{pretty}\n{}\n{pretty}", health(2)),
        format!("{}{}{}", health(1), health(2), health(1)),
        format!("\n\n{}\t{}   {}\r\n", health(1), health(2), health(1)),
        format!("{}\r\n{}\r\n{}\r\n", health(1), pretty.replace('\n', "\r\n"), health(2)),
    ];
    for stream in streams {
        let answers = daemon.client().exchange(stream.as_bytes());
        assert_eq!(answers.len(), 3, "{stream}: {answers:?}");
        assert!(answers.iter().all(|answer| answer["result"]["status"] == "ok"), "{answers:?}");
    }
    let many: String = (0..500).map(|id| health(id).to_string() + "\n").collect();
    assert_eq!(ids(&daemon.client().exchange(many.as_bytes())), (0..500).collect::<Vec<_>>());
}

#[test]
fn an_answer_is_one_line_whatever_is_in_it() {
    let world = World::new();
    let daemon = world.start();
    let mut params = create("lines");
    params["metadata"] = json!({ "text": "a\nb\r\u{2028}\u{85}", "list": [1, 2] });
    let pretty = json!({ "jsonrpc": "2.0", "id": "x\ny", "method": "profile.create", "params": params });
    let lines = lines(&daemon, serde_json::to_string_pretty(&pretty).unwrap().as_bytes());
    assert_eq!(lines.len(), 1, "{lines:?}");
    let answer: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&answer["id"], &answer["result"]["metadata"]), (&json!("x\ny"), &params["metadata"]));
}

#[test]
fn an_id_comes_back_as_it_was_written() {
    let world = World::new();
    let daemon = world.start();
    let ids = [
        r#""a""#,
        r#""""#,
        r#""é漢字""#,
        r#""\u0041\n\"""#,
        r#""\u0000""#,
        "null",
        "0",
        "-0",
        "1",
        "-1",
        "1.5",
        "1.0",
        "1e3",
        "1E+3",
        "1152921504606846976",
        "9007199254740993",
        "18446744073709551615",
        "18446744073709551616",
        "123456789012345678901234567890",
        "-9223372036854775809",
    ];
    for id in ids {
        for method in ["system.health", "no.such.method", "profile.get"] {
            let sent = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}"}}"#);
            let answered = lines(&daemon, sent.as_bytes());
            assert_eq!(answered.len(), 1, "{sent}");
            assert!(answered[0].contains(&format!(r#""id":{id},"#)), "{sent}: {}", answered[0]);
            let batch = lines(&daemon, format!("[{sent}]").as_bytes());
            assert!(batch[0].contains(&format!(r#""id":{id},"#)), "{sent}: {}", batch[0]);
        }
    }
    for id in ["true", "false", "[]", "{}", "[1]"] {
        let sent = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"system.health"}}"#);
        let answers = daemon.client().exchange(sent.as_bytes());
        assert_eq!(
            (&answers[0]["error"]["code"], &answers[0]["id"]),
            (&json!(-32600), &Value::Null),
            "{sent}"
        );
    }
}

#[test]
fn the_order_of_members_does_not_matter_and_others_are_let_be() {
    let world = World::new();
    let daemon = world.start();
    for sent in [
        r#"{"params":{},"method":"system.health","id":7,"jsonrpc":"2.0"}"#,
        r#"{"id":7,"jsonrpc":"2.0","method":"system.health","trace":{"x":1}}"#,
        r#"{"id":7,"jsonrpc":"2.0","meth\u006fd":"system.h\u0065alth"}"#,
    ] {
        let answers = daemon.client().exchange(sent.as_bytes());
        assert_eq!(answers[0]["id"], 7, "{answers:?}");
        assert_eq!(answers[0]["result"]["status"], "ok", "{answers:?}");
        let members: Vec<&String> = answers[0].as_object().unwrap().keys().collect();
        assert_eq!(members.len(), 3, "{members:?}");
    }
}

#[test]
fn what_is_no_request_is_told_so() {
    let world = World::new();
    let daemon = world.start();
    let cases = [
        (r#"{"id":3,"method":"system.health"}"#, -32600, json!(3)),
        (r#"{"jsonrpc":"1.0","id":3,"method":"system.health"}"#, -32600, json!(3)),
        (r#"{"jsonrpc":2.0,"id":3,"method":"system.health"}"#, -32600, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3}"#, -32600, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":7}"#, -32600, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":"system.health","params":5}"#, -32600, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":"system.health","params":"x"}"#, -32600, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":"system.health","params":null}"#, -32600, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"id":4,"method":"system.health"}"#, -32600, Value::Null),
        (r#"{"jsonrpc":"2.0","id":3,"method":"system.health","method":"x"}"#, -32600, json!(3)),
        ("{}", -32600, Value::Null),
        ("[]", -32600, Value::Null),
        ("5", -32600, Value::Null),
        ("null", -32600, Value::Null),
        ("\"system.health\"", -32600, Value::Null),
        (r#"{"jsonrpc":"2.0","id":3,"method":"system.heath"}"#, -32601, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":""}"#, -32601, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":"SYSTEM.HEALTH"}"#, -32601, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":"system.health","params":[]}"#, -32602, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":"system.health","params":[{}]}"#, -32602, json!(3)),
        (r#"{"jsonrpc":"2.0","id":3,"method":}"#, -32700, Value::Null),
        ("{'id':3}", -32700, Value::Null),
    ];
    for (sent, code, id) in cases {
        let answers = daemon.client().exchange(format!("{sent}\n{HEALTH}\n").as_bytes());
        assert_eq!(answers.len(), 2, "{sent}: {answers:?}");
        let refused = answers.iter().find(|answer| answer.get("error").is_some()).unwrap();
        assert_eq!((&refused["error"]["code"], &refused["id"]), (&json!(code), &id), "{sent}: {refused}");
        assert_eq!(refused["error"]["data"]["kind"], Value::Null, "{refused}");
        assert!(answers.iter().any(|answer| answer["result"]["status"] == "ok"), "{sent}: {answers:?}");
    }
    let error = daemon.client().err("profile.gte", json!({}));
    assert!(error.message.contains("profile.get"), "{error:?}");
    let error = daemon.client().err("zzzzzzzz", json!({}));
    assert!(error.message.contains("rpc.discover"), "{error:?}");
}

#[test]
fn parameters_are_by_name_and_the_wrong_one_is_named() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let append =
        |message: Value| json!({ "id": "c", "messages": [{ "role": "user", "content": "x" }, message] });
    let cases = [
        ("profile.get", json!([]), "params"),
        ("profile.get", json!(["u"]), "params"),
        ("profile.get", json!({}), "user_id"),
        ("profile.get", json!({ "user_id": "u", "userid": "u" }), "userid"),
        ("profile.get", json!({ "user_id": null }), "user_id"),
        ("profile.get", json!({ "user_id": "" }), "user_id"),
        ("profile.get", json!({ "user_id": "x".repeat(256) }), "user_id"),
        ("profile.get", json!({ "user_id": "a\u{0}b" }), "user_id"),
        ("profile.update", json!({ "user_id": "u", "changes": { "emial": "x" } }), "changes.emial"),
        ("profile.update", json!({ "user_id": "u", "changes": { "email": 5 } }), "changes.email"),
        ("profile.update", json!({ "user_id": "u", "changes": [] }), "changes"),
        (
            "profile.update",
            json!({ "user_id": "u", "changes": {}, "expected_version": 1.5 }),
            "expected_version",
        ),
        ("conversation.append", append(json!({ "role": "user" })), "messages[1].content"),
        ("conversation.append", append(json!({ "role": 5, "content": "" })), "messages[1].role"),
        ("conversation.append", append(json!({ "role": "u", "content": "", "id": "" })), "messages[1].id"),
        (
            "conversation.append",
            append(json!({ "role": "u", "content": "", "created_at": "x" })),
            "messages[1].created_at",
        ),
        ("conversation.append", append(json!("x")), "messages[1]"),
        ("conversation.append", append(json!(["user", "x"])), "messages[1]"),
        (
            "conversation.append",
            append(json!({ "role": "u", "content": "", "position": null })),
            "messages[1]",
        ),
        ("conversation.append", json!({ "id": "c", "messages": {} }), "messages"),
        ("conversation.append", json!({ "id": "c", "messages": [] }), "messages"),
        ("consent.history", json!({ "user_id": "u", "limit": 0 }), "limit"),
        ("consent.history", json!({ "user_id": "u", "limit": 1001 }), "limit"),
        ("consent.history", json!({ "user_id": "u", "limit": "5" }), "limit"),
        ("consent.history", json!({ "user_id": "u", "cursor": "x" }), "cursor"),
        ("consent.check", json!({ "user_id": "u", "consent_type": "x", "at": "yesterday" }), "at"),
        ("consent.check", json!({ "user_id": "u", "consent_type": "x", "at": "0000-01-01T00:00:00Z" }), "at"),
        ("consent.check", json!({ "user_id": "u", "consent_type": "a\nb" }), "consent_type"),
        ("consent.record", json!({ "user_id": "u", "consent_type": "x", "granted": "yes" }), "granted"),
        (
            "consent.record",
            json!({ "user_id": "u", "consent_type": "x", "granted": true, "policy_sha256": "00" }),
            "policy_sha256",
        ),
        (
            "consent.record",
            json!({ "user_id": "u", "consent_type": "x", "granted": true, "id": "x".repeat(129) }),
            "id",
        ),
        ("system.health", json!({ "verbose": true }), "verbose"),
        ("system.log_level", json!({ "level": "loud" }), "level"),
        ("system.log_level", json!({ "level": "debug", "for": "soon" }), "for"),
        ("profile.get", json!({ "user_id": "u", "context": [] }), "context"),
        ("profile.get", json!({ "user_id": "u", "context": { "purpos": "x" } }), "context.purpos"),
        ("profile.get", json!({ "user_id": "u", "context": { "purpose": 5 } }), "context.purpose"),
        ("profile.get", json!({ "user_id": "u", "context": { "user_id": "" } }), "context.user_id"),
        ("profile.get", json!({ "user_id": "u", "context": { "ip_address": [] } }), "context.ip_address"),
        ("system.health", json!({ "context": { "user_id": "a\u{7}" } }), "context.user_id"),
    ];
    for (method, params, field) in cases {
        let error = client.err(method, params.clone());
        assert_eq!((error.code, error.field()), (-32602, field), "{method} {params}: {error:?}");
        assert!(error.message.contains(field), "the message names it too: {error:?}");
        assert_eq!(error.kind(), "", "{error:?}");
    }
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id IS NOT NULL"), "0");
}

#[test]
fn a_purpose_is_asked_for_where_the_deployment_says_so() {
    let world = World::new();
    let daemon =
        world.start_with("access.require_purpose = true\naccess.purposes = [\"support\", \"billing\"]\n");
    let mut client = daemon.client();
    let whose = |context: Value| json!({ "user_id": "u", "context": context });
    for params in [json!({ "user_id": "u" }), whose(json!({})), whose(json!({ "user_id": "admin" }))] {
        let error = client.err("profile.get", params);
        assert_eq!((error.code, error.field()), (-32602, "context.purpose"), "{error:?}");
    }
    let error = client.err("profile.get", whose(json!({ "purpose": "fun" })));
    assert_eq!((error.code, error.field()), (-32602, "context.purpose"), "{error:?}");
    assert_eq!(client.err("profile.get", whose(json!({ "purpose": "support" }))).kind(), "not_found");
    let mut new = create("u");
    assert_eq!(client.err("profile.create", new.clone()).field(), "context.purpose");
    new["context"] = json!({ "purpose": "billing" });
    client.ok("profile.create", new);
    client.ok("system.health", json!({}));
    client.ok("rpc.discover", json!({}));
    assert_eq!(
        client.err("system.health", json!({ "context": { "purpose": "fun" } })).field(),
        "context.purpose"
    );
}

#[test]
fn a_notification_is_done_and_never_answered() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for params in [create("silent"), create("silent"), json!({ "user_id": 5 }), json!([])] {
        let note = json!({ "jsonrpc": "2.0", "method": "profile.create", "params": params });
        client.send(format!("{note}\n").as_bytes());
    }
    client.send(b"{\"jsonrpc\":\"2.0\",\"method\":\"no.such.method\"}\n");
    let mut other = daemon.client();
    wait_for("the notification's effect", || other.call("profile.get", json!({ "user_id": "silent" })).ok());
    let answer = client.call("system.health", json!({}));
    assert!(answer.is_ok(), "the first line is the answer to the first call");
    client.end();
    assert!(client.try_line().is_none());
}

#[test]
fn a_batch_is_answered_in_one_line_in_its_order() {
    let world = World::new();
    let daemon = world.start();
    let batch = json!([
        health(1),
        { "jsonrpc": "2.0", "method": "profile.create", "params": create("batched") },
        5,
        {},
        [health(9)],
        { "jsonrpc": "2.0", "id": "two", "method": "no.such.method" },
        { "jsonrpc": "2.0", "id": null, "method": "system.health" },
        { "jsonrpc": "2.0", "method": "no.such.method" },
        { "jsonrpc": "2.0", "id": 4, "method": "profile.get", "params": ["batched"] },
        { "jsonrpc": "1.0", "id": 5, "method": "system.health" },
        health(6),
    ]);
    let lines = lines(&daemon, format!("{batch}\n").as_bytes());
    assert_eq!(lines.len(), 1, "{lines:?}");
    let answers: Vec<Value> = serde_json::from_str(&lines[0]).unwrap();
    let told: Vec<(Value, Value)> =
        answers.iter().map(|answer| (answer["id"].clone(), answer["error"]["code"].clone())).collect();
    let (none, ok) = (Value::Null, Value::Null);
    let expected = [
        (json!(1), ok.clone()),
        (none.clone(), json!(-32600)),
        (none.clone(), json!(-32600)),
        (none.clone(), json!(-32600)),
        (json!("two"), json!(-32601)),
        (none.clone(), ok.clone()),
        (json!(4), json!(-32602)),
        (json!(5), json!(-32600)),
        (json!(6), ok),
    ];
    assert_eq!(told, expected);
    daemon.ok("profile.get", json!({ "user_id": "batched" }));

    let notes = json!([{ "jsonrpc": "2.0", "method": "system.health" }, { "jsonrpc": "2.0", "method": "x" }]);
    assert!(daemon.client().exchange(format!("{notes}\n").as_bytes()).is_empty());
    let answers = daemon.client().exchange(format!("[{HEALTH},]\n{HEALTH}\n").as_bytes());
    assert_eq!(answers.iter().filter(|answer| answer["error"]["code"] == -32700).count(), 1, "{answers:?}");
    assert_eq!(answers.len(), 2, "{answers:?}");
}

#[test]
fn calls_run_side_by_side_on_a_connection_and_in_a_batch() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("profile.create", create("held"));
    let lock = Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    let blocked = client.send_call("profile.delete", json!({ "user_id": "held" }));
    assert_eq!(client.line_of("system.health"), json!("ok"), "the later call is answered first");

    let entries = json!([
        { "jsonrpc": "2.0", "id": "held", "method": "preferences.set", "params": { "user_id": "held", "preferences": {} } },
        { "jsonrpc": "2.0", "id": "free", "method": "profile.create", "params": create("free") },
    ]);
    let mut batch = daemon.client();
    batch.send(entries.to_string().as_bytes());
    let mut other = daemon.client();
    wait_for("the batch's second entry", || other.call("profile.get", json!({ "user_id": "free" })).ok());
    lock.release();
    let answer = client.line();
    assert_eq!((&answer["id"], &answer["result"]), (&json!(blocked), &json!({ "deleted": true })));
    batch.end();
    let answers = batch.line();
    assert_eq!((&answers[0]["id"], &answers[1]["id"]), (&json!("held"), &json!("free")));
    assert!(answers[0].get("result").is_some(), "{answers}");
}

impl Client {
    /// Calls while other answers are awaited; this one must come first.
    fn line_of(&mut self, method: &str) -> Value {
        let id = self.send_call(method, json!({}));
        let answer = self.line();
        assert_eq!(answer["id"], id, "{answer}");
        answer["result"]["status"].clone()
    }
}

#[test]
fn a_call_goes_on_when_its_client_goes_away() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("profile.create", create("held"));
    let lock = Session::hold(&world.owner_url, "held");
    let mut client = daemon.client();
    client.send_call("profile.delete", json!({ "user_id": "held" }));
    let mut other = daemon.client();
    wait_for("the call", || (other.ok("system.status", json!({}))["calls"]["in_flight"] == 1).then_some(()));
    drop(client);
    lock.release();
    wait_for("the call's effect", || other.call("profile.get", json!({ "user_id": "held" })).err());
    daemon.assert_well();
}

#[test]
fn what_a_client_pastes_works_a_line_at_a_time() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for line in serde_json::to_string_pretty(&health(1)).unwrap().lines() {
        client.send(line.as_bytes());
        client.send(b"\n");
    }
    let mut line = String::new();
    BufReader::new(client.raw()).read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["result"]["status"], "ok");
}
