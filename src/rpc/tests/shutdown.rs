//! Draining and aborting.

use serde_json::Value;
use tokio::net::UnixStream;

use super::harness::{Server, codes, request, soon};

#[tokio::test]
async fn draining_answers_what_is_in_flight() {
    let server = Server::start();
    let mut busy = server.client().await;
    busy.send(request(1, "hold") + "{\"half\":").await;
    server.begun(1).await;
    let (fresh, mut used) = (server.client().await, server.client().await);
    used.send(request(2, "system.health")).await;
    used.answer().await;
    server.shutdown.drain.cancel();
    assert!(fresh.remaining().await.is_empty());
    assert!(used.remaining().await.is_empty());
    assert!(UnixStream::connect(&server.path).await.is_err());
    assert!(!server.path.exists());
    server.methods.release.cancel();
    assert_eq!(codes(&busy.remaining().await), [0]);
    soon(server.tasks.wait()).await;
}

#[tokio::test]
async fn who_was_accepted_before_may_still_make_a_call() {
    let server = Server::start();
    let mut busy = server.client().await;
    busy.send(request(1, "hold")).await;
    let mut fresh = server.client().await;
    let mut used = server.client().await;
    used.send(request(2, "system.health")).await;
    used.answer().await;
    server.begun(1).await;
    server.shutdown.drain.cancel();
    fresh.send(request(3, "system.health")).await;
    assert_eq!(codes(&fresh.remaining().await), [0]);
    assert!(used.remaining().await.is_empty(), "who had a turn is let go");
    server.methods.release.cancel();
    assert_eq!(codes(&busy.remaining().await), [0]);
}

#[tokio::test]
async fn what_was_sent_before_is_answered() {
    let server = Server::start();
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = server.client().await;
        client.send(request(1, "system.health")).await;
        client.answer().await;
        clients.push(client);
    }
    for client in &mut clients {
        client.send(request(2, "system.health")).await;
    }
    server.shutdown.drain.cancel();
    for client in clients {
        assert_eq!(codes(&client.remaining().await), [0]);
    }
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_and_answered() {
    let server = Server::with(|config| config.socket.drain = "50ms".parse().unwrap());
    let mut client = server.client().await;
    client.send(request(1, "hold")).await;
    server.begun(1).await;
    server.shutdown.drain.cancel();
    assert_eq!(codes(&client.remaining().await), [-32027]);
    soon(server.tasks.wait()).await;
}

#[tokio::test]
async fn messages_that_wait_in_the_daemon_are_run_while_it_drains() {
    let server = Server::with(|config| config.limits.calls_per_connection = 1);
    let mut client = server.client().await;
    client.send(request(1, "hold") + &request(2, "system.health")).await;
    server.begun(1).await;
    server.shutdown.drain.cancel();
    server.methods.release.cancel();
    assert_eq!(client.remaining().await.iter().map(|answer| &answer["id"]).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn aborting_ends_at_once() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send(request(1, "hold")).await;
    server.begun(1).await;
    server.shutdown.drain.cancel();
    server.shutdown.abort.cancel();
    soon(server.tasks.wait()).await;
    assert_eq!(client.answer().await, Value::Null);
}
