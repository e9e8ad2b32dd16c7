//! What no client should send.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::harness::{Server, codes, request};

const TOO_LARGE: i64 = -32025;

#[tokio::test]
async fn a_truncated_message_is_a_parse_error() {
    let server = Server::start();
    let whole = request(1, "system.health");
    for length in 1..whole.trim_end().len() {
        let answers = server.answers(&whole[..length]).await;
        assert_eq!(codes(&answers), [-32700], "{length}");
        assert_eq!(answers[0]["id"], Value::Null);
    }
    server.serves().await;
}

#[tokio::test]
async fn a_broken_line_leaves_the_connection_usable() {
    let server = Server::start();
    let mut client = server.client().await;
    for bad in
        ["}\n", "{\"jsonrpc\":\"2.0\",\"id\":1,}\n", "nonsense { \" [\n", "\"a\n", "\0\0\0\n", "{'a':1}\n"]
    {
        client.send(bad).await;
        let answer = client.answer().await;
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &json!(-32700)), "{bad:?}");
        client.send("\n".to_owned() + &request(5, "system.health")).await;
        assert_eq!(client.answer().await["id"], 5, "{bad:?}");
    }
}

#[tokio::test]
async fn it_is_answered_before_its_line_ends() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send("{\"a\":}").await;
    assert_eq!(client.answer().await["error"]["code"], -32700);
}

#[tokio::test]
async fn a_message_broken_over_several_lines_ends_the_connection() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send(request(1, "hold") + "{\n\"a\":}\n" + &request(2, "system.health")).await;
    server.begun(1).await;
    assert_eq!(client.answer().await["error"]["code"], -32700);
    server.methods.release.cancel();
    let answers = client.remaining().await;
    assert_eq!(answers, [json!({"jsonrpc": "2.0", "id": 1, "result": "released"})]);
}

#[tokio::test]
async fn binary_is_a_parse_error() {
    let server = Server::start();
    let bytes: Vec<u8> = (0..=255).cycle().skip(0x80).take(5000).collect();
    let answers = server.answers(&bytes).await;
    assert!(!answers.is_empty() && codes(&answers).iter().all(|code| *code == -32700), "{answers:?}");
    server.serves().await;
}

#[tokio::test]
async fn ten_thousand_levels_are_a_parse_error() {
    let server = Server::start();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let text = open.repeat(10_000) + "1" + &close.repeat(10_000) + "\n" + &request(1, "system.health");
        let answers = server.answers(text).await;
        assert_eq!(codes(&answers), [-32700, 0]);
        assert!(answers[0]["error"]["message"].as_str().unwrap().contains("128 levels"));
    }
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"system.health","params":{}1{}}}"#,
        "[".repeat(127),
        "]".repeat(127)
    );
    assert_eq!(codes(&server.answers(deep).await), [0], "127 levels of parameters pass");
}

#[tokio::test]
async fn one_byte_at_a_time_is_a_message() {
    let server = Server::start();
    let mut client = server.client().await;
    for byte in request(1, "system.health").as_bytes() {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer().await["id"], 1);
}

#[tokio::test]
async fn a_huge_message_is_too_large_and_ends_the_connection() {
    let server = Server::with(|config| config.socket.max_message_bytes = "1MiB".parse().unwrap());
    let huge = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"echo","params":["{}"]}}"#, "x".repeat(8 << 20));
    for text in [&huge, &format!("}}{huge}"), &format!("{}{huge}", request(9, "no.such"))] {
        let mut client = server.client().await;
        // The daemon may have closed before the last of it.
        let _ = client.write.as_mut().unwrap().write_all(text.as_bytes()).await;
        let answers = client.remaining().await;
        let last = answers.last().unwrap();
        assert_eq!((&last["error"]["code"], &last["id"]), (&json!(TOO_LARGE), &Value::Null), "{answers:?}");
        assert_eq!(last["error"]["data"], json!({"kind": "too_large", "retryable": false, "max": 1 << 20}));
    }
    let fits =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"echo","params":["{}"]}}"#, "x".repeat((1 << 20) - 55));
    assert_eq!(codes(&server.answers(fits).await), [0]);
}

#[tokio::test]
async fn duplicate_keys_are_an_invalid_request() {
    let server = Server::start();
    let answers = server
        .answers(r#"{"jsonrpc":"2.0","id":1,"method":"echo","method":"system.health"} {"jsonrpc":"2.0","id":1,"id":2,"method":"echo"}"#)
        .await;
    assert_eq!(codes(&answers), [-32600, -32600]);
    assert_eq!((&answers[0]["id"], &answers[1]["id"]), (&json!(1), &Value::Null));
}

#[tokio::test]
async fn invalid_utf_8_is_a_parse_error_of_that_message_alone() {
    let server = Server::start();
    let bad = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"echo\",\"params\":[\"\xff\xfe\"]}\n";
    let answers = server.answers([&bad[..], request(2, "system.health").as_bytes()].concat()).await;
    assert_eq!(codes(&answers), [-32700, 0]);
    assert_eq!(answers[0]["id"], Value::Null);
}

#[tokio::test]
async fn another_jsonrpc_is_an_invalid_request() {
    let server = Server::start();
    for version in ["\"1.0\"", "\"2\"", "2.0", "null", "\"2.0 \""] {
        let text = format!(r#"{{"jsonrpc":{version},"id":"v","method":"system.health"}}"#);
        let answers = server.answers(text).await;
        assert_eq!((codes(&answers), &answers[0]["id"]), (vec![-32600], &json!("v")), "{version}");
    }
}

#[tokio::test]
async fn ids_of_every_type_come_back() {
    let server = Server::start();
    for id in ["0", "-1", "1.25", "1e400", "123456789012345678901234567890", "\"\"", "\"\\u0000\"", "null"] {
        let mut client = server.client().await;
        client.send(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"system.health"}}"#)).await;
        client.write = None;
        let mut line = String::new();
        tokio::io::AsyncBufReadExt::read_line(&mut client.read, &mut line).await.unwrap();
        assert!(line.starts_with(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"#)), "{line}");
    }
    let answers = server.answers(r#"{"jsonrpc":"2.0","id":{},"method":"system.health"}"#).await;
    assert_eq!((codes(&answers), &answers[0]["id"]), (vec![-32600], &Value::Null));
}

#[tokio::test]
async fn batches_may_be_neither_empty_nor_endless() {
    let server = Server::start();
    let endless = format!("[{}]", vec![request(1, "echo").trim_end(); 10_000].join(","));
    let mut client = server.client().await;
    client.send("[]").await;
    assert_eq!(client.answer().await["error"]["code"], -32600);
    client.send(endless).await;
    let answer = client.answer().await;
    assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(TOO_LARGE), &Value::Null));
    assert_eq!(answer["error"]["data"]["max"], 1000);
    client.send(request(3, "system.health")).await;
    assert_eq!(client.answer().await["id"], 3, "the connection stays usable");
    assert!(server.methods.order.lock().unwrap().is_empty(), "nothing of it was run");
}
