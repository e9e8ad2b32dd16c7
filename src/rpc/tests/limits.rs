//! What may grow, and how far.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::{Server, codes, request, soon, with_params};

#[tokio::test]
async fn a_client_that_never_finishes_is_told_and_closed() {
    let server = Server::with(|config| config.limits.read_timeout = "200ms".parse().unwrap());
    for beginning in ["{\"jsonrpc\":", "} the rest of this line"] {
        let mut client = server.client().await;
        client.send(beginning).await;
        let answers = client.remaining().await;
        assert_eq!(codes(&answers).last(), Some(&-32700));
        let message = answers.last().unwrap()["error"]["message"].as_str().unwrap();
        assert!(message.contains("not finished within 200ms"), "{message}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_left_open() {
    let server = Server::with(|config| config.limits.read_timeout = "50ms".parse().unwrap());
    let (mut fresh, mut used) = (server.client().await, server.client().await);
    used.send(request(1, "system.health")).await;
    used.answer().await;
    // Another connection's timeout shows that the time is over.
    let mut other = server.client().await;
    other.send("{").await;
    assert_eq!(codes(&other.remaining().await), [-32700]);
    for client in [&mut fresh, &mut used] {
        client.send(request(2, "system.health")).await;
        assert_eq!(client.answer().await["id"], 2);
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_closed_and_its_calls_go_on() {
    let server = Server::with(|config| {
        config.limits.write_timeout = "200ms".parse().unwrap();
        config.limits.calls_per_connection = 8;
    });
    let mut client = server.client().await;
    client.send(request(0, "hold")).await;
    server.begun(1).await;
    let text: String = (1..200).map(|id| with_params(id, "big", &json!({"bytes": 100_000}))).collect();
    client.send(text).await;
    server.serves().await;
    // The daemon closes: what is in the socket can be read, and then there is an end.
    let mut bytes = Vec::new();
    let closed = client.write.as_ref().unwrap().ready(tokio::io::Interest::PRIORITY);
    assert!(soon(closed).await.unwrap().is_read_closed());
    let _ = soon(client.read.read_to_end(&mut bytes)).await;
    assert!(bytes.len() < 4 << 20, "{} bytes were held for it", bytes.len());
    server.methods.release.cancel();
    let mut ended = server.methods.ended.subscribe();
    soon(ended.wait_for(|ended| *ended == 1)).await.unwrap();
}

#[tokio::test]
async fn a_connection_at_its_cap_is_not_read() {
    let server = Server::with(|config| config.limits.calls_per_connection = 3);
    let mut client = server.client().await;
    let text: String = (0..3).map(|id| request(id, "hold")).collect();
    client.send(text + &request(9, "system.health") + "{\"a\":}").await;
    server.begun(3).await;
    server.serves().await;
    assert!(tokio::time::timeout(Duration::from_millis(50), client.answer()).await.is_err());
    server.methods.release.cancel();
    let answers = client.rest().await;
    assert_eq!(codes(&answers), [0, 0, 0, 0, -32700]);
    assert_eq!(answers[3]["id"], 9);
}

#[tokio::test]
async fn a_connection_over_the_bound_is_told_and_closed() {
    let server = Server::with(|config| config.limits.connections = 2);
    let mut first = server.client().await;
    first.send(request(1, "hold")).await;
    let mut second = server.client().await;
    second.send(request(1, "hold")).await;
    server.begun(2).await;
    let answers = server.client().await.remaining().await;
    assert_eq!(codes(&answers), [-32026]);
    assert_eq!(answers[0]["error"]["data"]["retryable"], true);
    server.methods.release.cancel();
    assert_eq!(codes(&first.rest().await), [0]);
    assert_eq!(codes(&second.rest().await), [0]);
}

#[tokio::test]
async fn memory_is_bounded_over_all_connections() {
    let server = Server::with(|config| {
        config.limits.buffered_bytes = "1MiB".parse().unwrap();
        config.limits.read_timeout = "6s".parse().unwrap();
    });
    let (mut first, mut second) = (server.client().await, server.client().await);
    let part = format!("[\"{}", "x".repeat(900 * 1024));
    first.send(&part).await;
    server.serves().await;
    // Nobody reads what finds no room, so this need not get through.
    let _ = second.write.as_mut().unwrap().write_all(part.as_bytes()).await;
    let answers = second.remaining().await;
    assert_eq!(codes(&answers), [-32026]);
    assert_eq!(answers[0]["error"]["data"]["kind"], "overloaded");
    let big = server.answers(with_params(1, "echo", &json!(["x".repeat(90 * 1024)]))).await;
    assert_eq!(codes(&big), [0], "what the second had came back");
    first.send("\"]").await;
    assert_eq!(first.answer().await[0]["error"]["code"], -32600);
    let big = server.answers(with_params(1, "echo", &json!(["x".repeat(900 * 1024)]))).await;
    assert_eq!(codes(&big), [0], "what the first had came back");
}

#[tokio::test]
async fn two_thousand_connections_at_once_are_served() {
    let server = Server::start();
    let mut clients = Vec::new();
    for id in 0..2000 {
        let mut client = server.client().await;
        client.send(request(id, "system.health")).await;
        clients.push(client);
    }
    for (id, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.answer().await["id"], id);
    }
    for client in &mut clients {
        client.send(request(7, "no.such")).await;
    }
    for client in clients {
        assert_eq!(codes(&client.rest().await), [-32601]);
    }
}

#[tokio::test]
async fn large_answers_come_whole() {
    let server = Server::start();
    let mut client = server.client().await;
    let text: String = (0..20).map(|id| with_params(id, "big", &json!({"bytes": 300_000 + id}))).collect();
    client.send(text).await;
    for id in 0..20 {
        let answer = client.answer().await;
        let Value::String(result) = &answer["result"] else { panic!("{}", answer["error"]) };
        assert_eq!((answer["id"].as_u64(), result.len()), (Some(id), 300_000 + usize::try_from(id).unwrap()));
    }
}
