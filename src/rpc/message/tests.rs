//! Envelopes of every kind.

use jsonrpsee::types::{ErrorCode, ErrorObject};
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use super::{Entry, Message, Reply};

fn single(text: &str) -> Entry {
    match Message::parse(text.as_bytes(), 10) {
        Message::Single(entry) => entry,
        Message::Batch(_) => panic!("{text} is a batch"),
    }
}

/// The code and the id that the text is refused with.
fn refused(bytes: &[u8]) -> (i64, Value) {
    match Message::parse(bytes, 10) {
        Message::Single(Entry::Refused(line)) => {
            let answer: Value = serde_json::from_str(&line).unwrap();
            (answer["error"]["code"].as_i64().unwrap(), answer["id"].clone())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn ids_of_every_type_come_back_as_they_were_sent() {
    for id in [
        "1",
        "0",
        "-1",
        "1.5",
        "1e3",
        "-0",
        "18446744073709551615",
        "18446744073709551616",
        "9007199254740993",
        "\"\"",
        "\"a\"",
        "\"1\"",
        "\"\\u00e9\"",
        "\"\\ud800\"",
        "\"\\\"\\\\\"",
        "\"漢\"",
        "null",
    ] {
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#);
        let Entry::Call(request, reply) = single(&text) else { panic!("{text}") };
        let line = reply.line(Ok(to_raw_value("r").unwrap())).unwrap();
        assert_eq!(line, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"r"}}"#));
        let line = reply.line(Err(ErrorObject::from(ErrorCode::MethodNotFound))).unwrap();
        assert!(
            line.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601"#)),
            "{line}"
        );
        assert_eq!(Entry::Call(request, reply).id(), Some(id));
    }
}

#[test]
fn ids_of_other_types_are_refused_without_an_id() {
    for id in ["true", "false", "[]", "[1]", "{}", "{\"a\":1}"] {
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"m"}}"#);
        assert_eq!(refused(text.as_bytes()), (-32600, Value::Null), "{id}");
    }
}

#[test]
fn a_null_result_keeps_its_place_and_a_notification_has_no_answer() {
    let null = || Ok(to_raw_value(&()).unwrap());
    let line = Reply::To("-7".into()).line(null());
    assert_eq!(line.as_deref(), Some(r#"{"jsonrpc":"2.0","id":-7,"result":null}"#));
    assert_eq!(Reply::Silence.line(null()), None);
}

#[test]
fn a_request_without_an_id_is_a_notification() {
    let Entry::Call(request, reply) = single(r#"{"jsonrpc":"2.0","method":"m","params":{"a":1}}"#) else {
        panic!("refused")
    };
    assert_eq!(reply, Reply::Silence);
    assert_eq!(request.params.as_ref().map(|params| params.get()), Some(r#"{"a":1}"#));
}

#[test]
fn what_is_not_a_request_is_refused_with_its_id() {
    for (text, id) in [
        (r#"{"jsonrpc":"1.0","id":7,"method":"m"}"#, json!(7)),
        (r#"{"id":7,"method":"m"}"#, json!(7)),
        (r#"{"jsonrpc":2.0,"id":"x","method":"m"}"#, json!("x")),
        (r#"{"jsonrpc":"2.0","id":7}"#, json!(7)),
        (r#"{"jsonrpc":"2.0","id":7,"method":1}"#, json!(7)),
        (r#"{"jsonrpc":"2.0","id":7,"method":"m","params":1}"#, json!(7)),
        (r#"{"jsonrpc":"2.0","id":7,"method":"m","params":null}"#, json!(7)),
        (r#"{"jsonrpc":"2.0","id":7,"method":"m","method":"n"}"#, json!(7)),
        (r#"{"jsonrpc":"2.0","id":7,"id":8,"method":"m"}"#, Value::Null),
        (r#"{"jsonrpc":"2.0","id":7,"\u0069d":8,"method":"m"}"#, Value::Null),
        (r#"{"jsonrpc":"2.0","method":"m","params":"p"}"#, Value::Null),
        (r#"{"jsonrpc":"2.0","method":1}"#, Value::Null),
        ("{}", Value::Null),
        ("1", Value::Null),
        ("\"text\"", Value::Null),
        ("null", Value::Null),
        ("[]", Value::Null),
    ] {
        assert_eq!(refused(text.as_bytes()), (-32600, id), "{text}");
    }
}

#[test]
fn unknown_members_are_let_be() {
    let text = r#"{"jsonrpc":"2.0","id":1,"method":"m","meta":{"x":[1]},"meta":2}"#;
    assert!(matches!(single(text), Entry::Call(..)));
}

#[test]
fn bytes_that_are_not_utf_8_are_not_json() {
    assert_eq!(refused(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\"}"), (-32700, Value::Null));
    assert_eq!(refused(b"[\"\xc3\"]"), (-32700, Value::Null));
}

#[test]
fn a_batch_keeps_its_order_and_refuses_each_bad_entry() {
    let text = r#"[{"jsonrpc":"2.0","id":1,"method":"a"}, 5, {"jsonrpc":"2.0","method":"b"}, ["2.0",1,"m"]]"#;
    let Message::Batch(entries) = Message::parse(text.as_bytes(), 4) else { panic!("not a batch") };
    assert!(matches!(
        entries[..],
        [Entry::Call(_, Reply::To(_)), Entry::Refused(_), Entry::Call(_, Reply::Silence), Entry::Refused(_)]
    ));
}

#[test]
fn a_batch_over_its_limit_is_refused_whole() {
    let batch = |count: usize| format!("[{}]", vec!["{}"; count].join(","));
    assert!(
        matches!(Message::parse(batch(10).as_bytes(), 10), Message::Batch(entries) if entries.len() == 10)
    );
    assert_eq!(refused(batch(11).as_bytes()).0, -32025);
    assert_eq!(refused(batch(200_000).as_bytes()).0, -32025);
}
