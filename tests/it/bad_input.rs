//! What no client should send. After each the daemon answers as the interface says, and serves the next caller.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::thread;

use serde_json::{Value, json};

use crate::discover;
use crate::support::json_schema::{Schemas, TYPES, is};
use crate::support::{Client, Daemon, World};

fn health(id: u64) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"system.health\"}}\n")
}

fn create(user_id: &str, metadata: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"profile.create","params":{{"user_id":{user_id},"username":"u","email":"e","metadata":{metadata}}}}}"#
    )
}

fn code(answer: &Value) -> i64 {
    answer["error"]["code"].as_i64().unwrap_or_default()
}

/// Everything that comes, if the daemon closes before all was sent, too.
fn exchange(daemon: &Daemon, bytes: &[u8]) -> Vec<Value> {
    answer_lines(daemon, bytes).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The same as text: an id such as 1e999 is given back, and no number of Rust's holds it.
fn answer_lines(daemon: &Daemon, bytes: &[u8]) -> Vec<String> {
    let mut client = daemon.client();
    let mut sending = client.raw().try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            // The daemon may have closed before it has read everything.
            let _ = sending.write_all(bytes).and_then(|()| sending.shutdown(std::net::Shutdown::Write));
        });
        let reader = BufReader::new(client.raw());
        reader.lines().map_while(Result::ok).collect()
    })
}

#[test]
fn what_ends_too_early_is_a_parse_error() {
    let world = World::new();
    let daemon = world.start();
    let whole = create(r#""u""#, "[1,{\"a\":null}]");
    for end in (1..whole.len()).step_by(7) {
        let answers = exchange(&daemon, &whole.as_bytes()[..end]);
        assert_eq!(answers.len(), 1, "{}: {answers:?}", &whole[..end]);
        assert_eq!((code(&answers[0]), &answers[0]["id"]), (-32700, &Value::Null), "{}", &whole[..end]);
    }
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id IS NOT NULL"), "0");
    daemon.assert_well();
}

#[test]
fn what_is_no_json_is_a_parse_error_and_the_next_line_is_read() {
    let world = World::new();
    let daemon = world.start();
    let cases: [&[u8]; 14] = [
        b"\x00\x01\x02\x03",
        b"\xff\xfe\xfd",
        b"\x1f\x8b\x08\x00",
        b"\x16\x03\x01\x02\x00",
        b"\xef\xbb\xbf{}",
        b"<xml/>",
        b"nonsense",
        b"{\"jsonrpc\":\"2.0\",}",
        b"{\"jsonrpc\" \"2.0\"}",
        b"[1 2]",
        b"{]",
        b"tru",
        b"+1",
        b"\"\x01\"",
    ];
    for case in cases {
        let mut bytes = case.to_vec();
        bytes.push(b'\n');
        bytes.extend(health(7).as_bytes());
        let answers = exchange(&daemon, &bytes);
        assert_eq!(code(&answers[0]), -32700, "{case:?}: {answers:?}");
        assert_eq!(answers[0]["id"], Value::Null, "{case:?}");
        let last = answers.last().unwrap();
        assert_eq!(
            (&last["id"], &last["result"]["status"]),
            (&json!(7), &json!("ok")),
            "{case:?}: {answers:?}"
        );
    }
    daemon.assert_well();
}

#[test]
fn invalid_utf_8_is_a_parse_error_of_its_message_alone() {
    let world = World::new();
    let daemon = world.start();
    for invalid in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf"] {
        let mut bytes =
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"profile.get\",\"params\":{\"user_id\":\"".to_vec();
        bytes.extend(invalid);
        bytes.extend(b"\"}}\n");
        bytes.extend(health(2).as_bytes());
        let answers = exchange(&daemon, &bytes);
        assert_eq!(answers.len(), 2, "{invalid:?}: {answers:?}");
        assert!(answers.iter().any(|answer| code(answer) == -32700 && answer["id"].is_null()), "{answers:?}");
        assert!(
            answers.iter().any(|answer| answer["id"] == 2 && answer["result"]["status"] == "ok"),
            "{answers:?}"
        );
    }
    daemon.assert_well();
}

#[test]
fn ten_thousand_levels_are_refused() {
    let world = World::new();
    let daemon = world.start();
    let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(10_000), close.repeat(10_000));
    let (lists, objects) = (deep("[", "]"), deep("{\"a\":", "}"));
    for value in [&lists, &objects, &"[".repeat(10_000), &"{\"a\":".repeat(10_000)] {
        let answers = exchange(&daemon, value.as_bytes());
        assert!([-32700, -32600].contains(&code(&answers[0])), "{answers:?}");
    }
    for value in [&lists, &objects] {
        let answers = exchange(&daemon, create(r#""deep""#, value).as_bytes());
        assert!([-32700, -32602].contains(&code(&answers[0])), "{answers:?}");
    }
    let kept = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    let answers = exchange(&daemon, create(r#""flat""#, &kept).as_bytes());
    assert_eq!(answers[0]["result"]["metadata"].to_string(), kept);
    daemon.assert_well();
}

#[test]
fn a_message_may_come_a_byte_at_a_time() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for byte in create(r#""slow \ud83d\ude00 é""#, "{ \"n\": 1.50 }").bytes() {
        client.send(&[byte]);
    }
    client.send(b"\n");
    assert_eq!(client.line()["result"]["user_id"], "slow 😀 é");
}

#[test]
fn a_huge_message_is_too_large_and_ends_its_connection() {
    let world = World::new();
    let daemon = world.start();
    let text = "x".repeat(5 << 20);
    for message in [
        create(r#""huge""#, &format!("\"{text}\"")),
        format!("\"{text}"),
        "1".repeat(5 << 20),
        "[".to_owned() + &"1,".repeat(3 << 20),
    ] {
        let answers = exchange(&daemon, (message + "\n" + &health(2)).as_bytes());
        assert_eq!(answers.len(), 1, "{answers:?}");
        let error = &answers[0]["error"];
        assert_eq!(
            (&error["data"]["kind"], &error["data"]["max"]),
            (&json!("too_large"), &json!(4 << 20)),
            "{error}"
        );
        assert_eq!((&error["code"], &answers[0]["id"]), (&json!(-32025), &Value::Null));
    }
    daemon.assert_well();
}

#[test]
fn a_key_that_is_there_twice_is_refused() {
    let world = World::new();
    let daemon = world.start();
    let cases = [
        (r#"{"user_id":"a","user_id":"b"}"#, "user_id"),
        (r#"{"user_id":"a","\u0075ser_id":"b"}"#, "user_id"),
        (r#"{"user_id":"a","username":"u","email":"e","metadata":{"x":1,"x":2}}"#, "metadata"),
        (r#"{"user_id":"a","username":"u","email":"e","metadata":[{"y":{"x":1,"\u0078":1}}]}"#, "metadata"),
        (
            r#"{"user_id":"a","username":"u","email":"e","context":{"purpose":"a","purpose":"b"}}"#,
            "context.purpose",
        ),
        (r#"{"user_id":"a","username":"u","email":"e","context":{},"context":{}}"#, "context"),
    ];
    for (params, field) in cases {
        let sent = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"profile.create","params":{params}}}"#);
        let answers = exchange(&daemon, sent.as_bytes());
        assert_eq!(
            (code(&answers[0]), &answers[0]["error"]["data"]["field"]),
            (-32602, &json!(field)),
            "{answers:?}"
        );
    }
    daemon.assert_well();
}

#[test]
fn a_nul_is_refused_in_names_and_kept_in_sealed_json() {
    let world = World::new();
    let daemon = world.start();
    let answers = exchange(&daemon, create(r#""x\u0000y""#, "{}").as_bytes());
    assert_eq!((code(&answers[0]), &answers[0]["error"]["data"]["field"]), (-32602, &json!("user_id")));
    let metadata = r#"{"a\u0000b":"c\u0000d"}"#;
    let answers = exchange(&daemon, create(r#""nul""#, metadata).as_bytes());
    assert_eq!(answers[0]["result"]["metadata"], json!({ "a\u{0}b": "c\u{0}d" }));
    assert_eq!(
        daemon.ok("profile.get", json!({ "user_id": "nul" }))["metadata"],
        json!({ "a\u{0}b": "c\u{0}d" })
    );
    daemon.assert_well();
}

#[test]
fn json_comes_back_digit_by_digit_or_is_refused() {
    let world = World::new();
    let daemon = world.start();
    let kept = [
        "9007199254740993",
        "-9007199254740993",
        "18446744073709551616",
        "123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        "1.0",
        "1e2",
        "1E+2",
        "-0",
        "-0.0",
        "1e-400",
        r#""\u00e9\/\ud83d\ude00""#,
        r#"{"b":1,"a":2,"":3}"#,
        "[]",
        "{}",
        "null",
        "false",
    ];
    let mut number = 0;
    for value in kept {
        number += 1;
        let wrapped = format!("[{value}]");
        let user = format!("\"n{number}\"");
        let line = |bytes: &str| {
            let mut client = daemon.client();
            client.send(bytes.as_bytes());
            client.end();
            let mut text = String::new();
            client.raw().read_to_string(&mut text).unwrap();
            text
        };
        let created = line(&create(&user, &wrapped));
        if created.contains("\"error\"") {
            assert!(created.contains("-32602") && created.contains("metadata"), "{value}: {created}");
            continue;
        }
        let read = line(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"profile.get","params":{{"user_id":{user}}}}}"#
        ));
        for answer in [created, read] {
            assert!(answer.contains(&format!("\"metadata\":{wrapped}")), "{value}: {answer}");
        }
    }
    for refused in ["1e400", "-1e999", r#""\ud800""#, r#""\udc00x""#] {
        let answers = exchange(&daemon, create(r#""refused""#, refused).as_bytes());
        assert_eq!(
            (code(&answers[0]), &answers[0]["error"]["data"]["field"]),
            (-32602, &json!("metadata")),
            "{refused}: {answers:?}"
        );
    }
    daemon.assert_well();
}

#[test]
fn batches_may_be_neither_empty_nor_endless() {
    let world = World::new();
    let daemon = world.start();
    let answers = exchange(&daemon, b"[]\n[ ]\n");
    assert_eq!(answers.iter().map(code).collect::<Vec<_>>(), [-32600, -32600]);
    let entry = health(1).trim_end().to_owned();
    let batch = |count: usize| format!("[{}]\n", vec![entry.clone(); count].join(","));
    let answers = exchange(&daemon, batch(10_000).as_bytes());
    let error = &answers[0]["error"];
    assert_eq!(
        (&error["data"]["kind"], &error["data"]["max"]),
        (&json!("too_large"), &json!(1000)),
        "{answers:?}"
    );
    let answers = exchange(&daemon, (batch(1000) + &health(2)).as_bytes());
    assert_eq!(answers.len(), 2);
    let whole = answers.iter().find_map(Value::as_array).unwrap();
    assert!(whole.len() == 1000 && whole.iter().all(|answer| answer["result"]["status"] == "ok"));
    daemon.assert_well();
}

/// Values of every type, and of some types several that are unlike each other.
fn values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(7),
        json!(-1),
        json!(1.5),
        json!("MARKER, expected x"),
        json!([]),
        json!([null]),
        json!(["MARKER"]),
        json!({}),
        json!({ "x": "MARKER" }),
    ]
}

#[test]
fn a_parameter_of_a_wrong_type_is_named() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let document = discover::document();
    let schemas = Schemas::of(&document);
    let mut refused = 0;
    for method in discover::methods(&document) {
        let name = method["name"].as_str().unwrap();
        for param in method["params"].as_array().unwrap() {
            let field = param["name"].as_str().unwrap();
            let example = discover::example(method);
            let nullable = schemas.types(&param["schema"]).into_iter().any(|one| one == "null");
            if param["required"] == json!(true) && !nullable {
                let mut params = example.clone();
                params[field] = Value::Null;
                let error = client.err(name, params);
                assert_eq!((error.code, error.field()), (-32602, field), "{name}: {error:?}");
            }
            refused += try_types(&mut client, &schemas, (name, &example), field, &param["schema"]);
            let Some(members) = schemas.member(&param["schema"], "properties").and_then(Value::as_object)
            else {
                continue;
            };
            for (member, schema) in members {
                let field = format!("{field}.{member}");
                refused +=
                    try_types(&mut client, &schemas, (name, &discover::example(method)), &field, schema);
            }
        }
        let mut unknown = discover::example(method);
        unknown["no_such_parameter"] = Value::Null;
        let error = client.err(name, unknown);
        assert_eq!((error.code, error.field()), (-32602, "no_such_parameter"), "{name}: {error:?}");
        for param in
            method["params"].as_array().unwrap().iter().filter(|param| param["required"] == json!(true))
        {
            let mut missing = discover::example(method);
            missing.as_object_mut().unwrap().remove(param["name"].as_str().unwrap());
            let error = client.err(name, missing);
            assert_eq!(
                (error.code, error.field()),
                (-32602, param["name"].as_str().unwrap()),
                "{name}: {error:?}"
            );
        }
    }
    assert!(refused > 500, "{refused}");
    daemon.assert_well();
}

/// Sends every value that the schema does not allow; answers how many there were.
fn try_types<'a>(
    client: &mut Client,
    schemas: &Schemas<'a>,
    (method, example): (&str, &Value),
    field: &str,
    schema: &'a Value,
) -> usize {
    let allowed: BTreeSet<&str> = schemas.types(schema).into_iter().collect();
    assert!(allowed.iter().all(|one| TYPES.contains(one) || *one == "integer"), "{allowed:?}");
    let mut refused = 0;
    // A parameter that is null is as good as none.
    let wrong = |value: &Value| {
        (field.contains('.') || !value.is_null()) && !allowed.iter().any(|one| is(value, one))
    };
    for value in values().into_iter().filter(wrong) {
        let mut params = example.clone();
        match field.split_once('.') {
            None => params[field] = value,
            Some((outer, inner)) => params[outer] = json!({ inner: value }),
        }
        let error = client.err(method, params.clone());
        assert_eq!(error.code, -32602, "{method} {params}: {error:?}");
        assert_eq!(error.field(), field, "{method} {params}: {error:?}");
        assert!(!format!("{error:?}").contains("MARKER"), "what was sent is not quoted: {error:?}");
        refused += 1;
    }
    refused
}

/// SplitMix64 (Steele, Lea, Flood 2014), for a sequence that is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }
}

const TOKENS: [&[u8]; 24] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b"null",
    b"true",
    b"-",
    b"1e999",
    b"\x00",
    b"\xff",
    b"\\u0000",
    b"\\ud800",
    b"9007199254740993",
    b"\"id\":",
    b"\"params\":",
    b"[[[[[[",
    b"\"\"",
    b" ",
    b"\xc3\xa9",
    b"\r",
];

fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut line = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(line.len());
        let until = (at + random.below(12)).min(line.len());
        match random.below(6) {
            0 => drop(line.drain(at..until)),
            1 => line.truncate(at),
            2 => drop(line.splice(at..at, TOKENS[random.below(TOKENS.len())].iter().copied())),
            3 => drop(line.splice(at..until, TOKENS[random.below(TOKENS.len())].iter().copied())),
            4 if at < line.len() => line[at] ^= 1 << random.below(8),
            _ => {
                let other = &corpus[random.below(corpus.len())];
                line.truncate(at);
                line.extend(&other[random.below(other.len())..]);
            }
        }
    }
    line.push(b'\n');
    line
}

#[test]
fn mutated_lines_hurt_nobody() {
    let world = World::new();
    let daemon = world.start_with("limits.read_timeout = \"5s\"\n");
    let document = discover::document();
    let corpus: Vec<Vec<u8>> = discover::methods(&document)
        .filter(|method| method["name"] != "system.log_level")
        .map(|method| {
            let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method["name"], "params": discover::example(method) });
            request.to_string().into_bytes()
        })
        .collect();
    let round = |seed: u64| {
        thread::scope(|scope| {
            for worker in 0..4 {
                let (daemon, corpus) = (&daemon, &corpus);
                scope.spawn(move || {
                    let mut random = Random(seed * 4 + worker);
                    for _ in 0..50 {
                        let lines: Vec<u8> = (0..50).flat_map(|_| mutate(&mut random, corpus)).collect();
                        for answer in answer_lines(daemon, &lines) {
                            assert!(answer.starts_with(['{', '[']), "{answer}");
                            assert!(!answer.contains("\"error\":{\"code\":-32603"), "{answer}");
                        }
                    }
                });
            }
        });
        daemon.wait_for_no_connections();
        daemon.memory_kib("VmRSS")
    };
    let first = round(1);
    let second = round(2);
    assert!(second < first + (8 << 10), "resident memory went from {first} KiB to {second} KiB");
    daemon.assert_well();
}
