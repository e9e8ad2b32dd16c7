//! Requests, notifications, batches and their order.

use serde_json::json;

use super::harness::{Server, codes, request, with_params};

#[tokio::test]
async fn a_call_is_answered_after_half_close() {
    let server = Server::start();
    let answers = server.answers(request(7, "system.health")).await;
    let uid = nix::unistd::geteuid().as_raw();
    assert_eq!(answers, [json!({"jsonrpc": "2.0", "id": 7, "result": {"status": "ok", "uid": uid}})]);
    let unended = server.answers(request(7, "system.health").trim_end()).await;
    assert_eq!(unended, answers, "a newline at the end is not needed");
}

#[tokio::test]
async fn what_is_in_flight_at_half_close_is_answered() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send(request(1, "hold")).await;
    client.write = None;
    server.begun(1).await;
    server.methods.release.cancel();
    assert_eq!(client.remaining().await, [json!({"jsonrpc": "2.0", "id": 1, "result": "released"})]);
}

#[tokio::test]
async fn compact_and_pretty_printed_messages_may_follow_each_other() {
    let server = Server::start();
    let pretty = serde_json::to_string_pretty(
        &json!({"jsonrpc": "2.0", "id": 2, "method": "echo", "params": {"a": [1, 2]}}),
    );
    let text =
        format!("\n\n {}{}\t{}", request(1, "system.health"), pretty.unwrap(), request(3, "system.health"));
    let answers = server.answers(text).await;
    assert_eq!(answers.iter().map(|answer| answer["id"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(answers[1]["result"], json!({"a": [1, 2]}));
}

#[tokio::test]
async fn calls_of_a_connection_run_concurrently() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send(request(1, "hold") + &request(2, "hold") + &request(3, "system.health")).await;
    assert_eq!(client.answer().await["id"], 3);
    server.begun(2).await;
    server.methods.release.cancel();
    assert_eq!(client.rest().await.len(), 2);
}

#[tokio::test]
async fn calls_begin_in_the_order_sent() {
    let server = Server::start();
    let text: String = (0..500).map(|id| with_params(id, "echo", &json!({"n": id}))).collect();
    assert_eq!(server.answers(text).await.len(), 500);
    let expected: Vec<_> = (0..500).map(|id| json!({"n": id}).to_string()).collect();
    assert_eq!(*server.methods.order.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_notification_is_run_and_not_answered() {
    let server = Server::start();
    let text = r#"{"jsonrpc":"2.0","method":"echo","params":{"n":1}} {"jsonrpc":"2.0","method":"no.such"}"#;
    assert_eq!(server.answers(text).await.len(), 0);
    assert_eq!(*server.methods.order.lock().unwrap(), [r#"{"n":1}"#]);
}

#[tokio::test]
async fn a_call_goes_on_when_its_client_goes_away() {
    let server = Server::start();
    let mut client = server.client().await;
    client.send(request(1, "hold")).await;
    server.begun(1).await;
    drop(client);
    server.serves().await;
    server.methods.release.cancel();
    let mut ended = server.methods.ended.subscribe();
    super::harness::soon(ended.wait_for(|ended| *ended == 1)).await.unwrap();
}

#[tokio::test]
async fn a_batch_is_answered_in_one_line_in_its_order() {
    let server = Server::start();
    let text = r#"[{"jsonrpc":"2.0","id":"h","method":"hold"},{"jsonrpc":"2.0","method":"echo","params":{}},5,
        {"jsonrpc":"2.0","id":-1.50,"method":"system.health"},{"jsonrpc":"2.0","id":null,"method":"no.such"}]"#;
    let mut client = server.client().await;
    client.send(text).await;
    server.begun(1).await;
    server.methods.release.cancel();
    let answers = client.rest().await;
    let [batch] = &answers[..] else { panic!("{answers:?}") };
    let batch = batch.as_array().unwrap();
    assert_eq!(codes(batch), [0, -32600, 0, -32601]);
    assert_eq!(batch[0]["result"], "released");
    assert_eq!(batch[2]["id"].to_string(), "-1.5");
}

#[tokio::test]
async fn a_batch_of_notifications_is_not_answered() {
    let server = Server::start();
    let text = r#"[{"jsonrpc":"2.0","method":"echo","params":{}},{"jsonrpc":"2.0","method":"no.such"}]"#;
    assert_eq!(server.answers(text).await.len(), 0);
    assert_eq!(server.methods.order.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_batch_answers_no_more_than_fits() {
    let server = Server::with(|config| config.limits.max_answer_bytes = "10KiB".parse().unwrap());
    let entries: Vec<_> = (0..40)
        .map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "big", "params": {"bytes": 4096}}))
        .collect();
    let answers = server.answers(json!(entries).to_string()).await;
    let batch = answers[0].as_array().unwrap();
    assert_eq!(batch.len(), 40);
    assert!(batch.iter().enumerate().all(|(at, answer)| answer["id"] == at));
    assert_eq!(codes(batch).last(), Some(&-32025));
    assert!(answers[0].to_string().len() < 100 * 1024);
}
