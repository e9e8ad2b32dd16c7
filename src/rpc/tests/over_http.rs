//! The same messages in HTTP/1.1.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::TaskTracker;

use super::harness::{Methods, Server, request, soon};
use crate::config::Config;
use crate::rpc::http::serve_metrics;
use crate::rpc::server::Shutdown;

/// The status, and the body as text.
async fn exchange(server: &Server, text: impl AsRef<[u8]>) -> (u16, String) {
    let mut client = server.client().await;
    client.send(text).await;
    client.write = None;
    let mut answer = String::new();
    soon(client.read.read_to_string(&mut answer)).await.unwrap();
    parts(&answer)
}

fn parts(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn post(body: &str) -> String {
    format!("POST /rpc HTTP/1.1\r\nHost: s\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: s\r\n\r\n")
}

#[tokio::test]
async fn a_post_is_a_message() {
    let server = Server::start();
    let (status, body) = exchange(&server, post(&request(7, "system.health"))).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["id"], &answer["result"]["status"]), (200, &json!(7), &json!("ok")));
    let (status, body) = exchange(&server, post(r#"[{"jsonrpc":"2.0","id":-2,"method":"no.such"},1]"#)).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer[0]["id"], &answer[0]["error"]["code"]), (200, &json!(-2), &json!(-32601)));
    assert_eq!(answer[1]["error"]["code"], -32600);
}

#[tokio::test]
async fn a_notification_has_no_content() {
    let server = Server::start();
    let text = r#"{"jsonrpc":"2.0","method":"echo","params":{"n":1}}"#;
    assert_eq!(exchange(&server, post(text)).await, (204, String::new()));
    assert_eq!(server.methods.order.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn bad_bodies_are_errors_of_the_protocol() {
    let server = Server::start();
    for body in ["", "{", "{}{}", "nonsense", &"[".repeat(10_000)] {
        let (status, answer) = exchange(&server, post(body)).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["error"]["code"], &answer["id"]), (200, &json!(-32700), &Value::Null));
    }
    server.serves().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let server = Server::with(|config| config.socket.max_message_bytes = "10KiB".parse().unwrap());
    let announced = post(&"1".repeat(10 * 1024 + 1));
    let chunk = format!("2800\r\n{}\r\n", "1".repeat(0x2800));
    let chunked =
        format!("POST / HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    for text in [announced, chunked] {
        let (status, answer) = exchange(&server, text).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["error"]["data"]["max"]), (413, &json!(10 * 1024)));
    }
}

#[tokio::test]
async fn a_body_that_never_ends_is_refused() {
    let server = Server::with(|config| config.limits.read_timeout = "100ms".parse().unwrap());
    let mut client = server.client().await;
    client.send("POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 100\r\n\r\n{").await;
    let mut answer = String::new();
    soon(client.read.read_to_string(&mut answer)).await.unwrap();
    let (status, body) = parts(&answer);
    assert_eq!(status, 408);
    assert!(body.contains("not finished within 100ms"), "{body}");
}

#[tokio::test]
async fn health_and_figures_are_read_with_get() {
    let server = Server::start();
    let (status, body) = exchange(&server, get("/healthz")).await;
    assert_eq!((status, serde_json::from_str::<Value>(&body).unwrap()["status"].clone()), (200, json!("ok")));
    assert_eq!(exchange(&server, get("/metrics")).await, (200, "sidekeep_up 1\n".into()));
    assert_eq!(exchange(&server, get("/")).await.0, 404);
    assert_eq!(exchange(&server, "DELETE / HTTP/1.1\r\nHost: s\r\n\r\n").await.0, 405);
}

#[tokio::test]
async fn upgrades_are_not_taken() {
    let server = Server::start();
    let upgrade = "GET / HTTP/1.1\r\nHost: s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    assert_eq!(exchange(&server, upgrade).await.0, 404);
    let mut client = server.client().await;
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = soon(client.read.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    server.serves().await;
}

#[tokio::test]
async fn a_call_goes_on_when_its_client_goes_away() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send(post(&request(1, "hold"))).await;
    server.begun(1).await;
    drop(client);
    server.serves().await;
    server.methods.release.cancel();
    let mut ended = server.methods.ended.subscribe();
    soon(ended.wait_for(|ended| *ended == 1)).await.unwrap();
}

#[tokio::test]
async fn draining_answers_what_is_in_flight_and_closes_idle_connections() {
    let server = Server::start();
    let (mut busy, mut idle) = (server.client().await, server.client().await);
    idle.send(get("/healthz")).await;
    let mut first = [0; 12];
    idle.read.read_exact(&mut first).await.unwrap();
    busy.send(post(&request(1, "hold"))).await;
    server.begun(1).await;
    server.shutdown.drain.cancel();
    let mut rest = String::new();
    soon(idle.read.read_to_string(&mut rest)).await.unwrap();
    server.methods.release.cancel();
    let mut answer = String::new();
    soon(busy.read.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    soon(server.tasks.wait()).await;
}

#[tokio::test]
async fn the_listener_for_figures_takes_no_calls() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (methods, shutdown, tasks) =
        (Methods::new(Config::default()), Shutdown::default(), TaskTracker::new());
    tasks.spawn(serve_metrics(listener, Arc::clone(&methods), shutdown.clone()));
    tasks.close();
    for (text, expected) in [
        (get("/metrics"), 200),
        (get("/healthz"), 200),
        (get("/"), 404),
        (post(&request(1, "echo")), 404),
        ("POST /metrics HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n".into(), 405),
    ] {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(parts(&answer).0, expected, "{text}");
    }
    assert!(methods.order.lock().unwrap().is_empty());
    shutdown.drain.cancel();
    soon(tasks.wait()).await;
}
