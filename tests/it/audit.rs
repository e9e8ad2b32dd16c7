//! The audit log through the socket: appended in order, once, provable, and by others too.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::peer::{Somebody, can_be_others};
use crate::support::{Cluster, Daemon, World, sidekeep, wait_for};

fn entry(number: usize) -> Value {
    json!({
        "id": format!("entry-{number}"), "user_id": format!("user:{}", number % 7), "action": "record.read",
        "resource_type": "document", "resource_id": format!("doc-{number}"), "ip_address": "203.0.113.7",
        "user_agent": "Mozilla/5.0", "labels": { "region": "eu-west-1" }, "metadata": { "n": number, "é": ["\u{1F600}", null] },
    })
}

/// What anybody with read access sees of the log, as the verifiers take it.
fn tables(world: &World, checkpoint: &Value) -> String {
    const ENTRIES: &str = "SELECT coalesce(json_agg(t ORDER BY stream, position), '[]') FROM (SELECT stream, position, format, id, actor_id, \
        subject_id, action, resource_type, resource_id, outcome, labels, \
        to_char(recorded_at AT TIME ZONE 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') recorded_at, \
        to_char(occurred_at AT TIME ZONE 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') occurred_at, \
        encode(sha256(client_sealed), 'hex') client_sealed_sha256, encode(sha256(metadata_sealed), 'hex') metadata_sealed_sha256, \
        encode(leaf_hash, 'hex') leaf_hash FROM audit_logs) t";
    const HEADS: &str = "SELECT coalesce(json_agg(json_build_object('at', to_char(at AT TIME ZONE 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
        'root', encode(root, 'hex'), 'size', size, 'stream', stream) ORDER BY index), '[]') FROM audit_heads";
    let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    json!({
        "entries": parse(world.sql(ENTRIES)), "heads": parse(world.sql(HEADS)), "checkpoint": checkpoint, "deployment": "test",
    })
    .to_string()
}

fn run(program: &str, script: &str, input: &str) -> String {
    let script = format!("{}/tests/it/verifiers/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut child = Command::new(program)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; install it with apt-get"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn verify(daemon: &Daemon) -> Value {
    daemon.ok("audit.verify", json!({}))
}

#[test]
fn an_entry_comes_back_as_it_was_given() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let given = json!({
        "id": "e-1", "action": "invoice.read", "user_id": "user:bob", "subject_user_id": "user:alice", "resource_type": "user",
        "resource_id": "user:alice", "outcome": "denied", "occurred_at": "2026-01-01T01:00:00+01:00", "ip_address": "203.0.113.7",
        "user_agent": "x", "labels": { "a": "b" }, "metadata": { "n": 1.0 },
    });
    let receipt = client.ok("audit.append", given.clone());
    assert_eq!(client.ok("audit.append", given.clone()), receipt);
    let shown = client.ok("audit.get", json!({ "id": "e-1" }));
    for (key, value) in given.as_object().unwrap() {
        let expected =
            if key == "occurred_at" { json!("2026-01-01T00:00:00.000000Z") } else { value.clone() };
        assert_eq!(shown[key], expected, "{key}");
    }
    assert_eq!(
        client.ok("audit.get", json!({ "stream": receipt["stream"], "position": receipt["position"] })),
        shown
    );
    assert_eq!((&shown["recorded_at"], &shown["erased"]), (&receipt["recorded_at"], &json!([])));
    assert_eq!(world.sql("SELECT resource_id FROM audit_logs WHERE id = 'e-1'"), "@subject");
    let mut other = given;
    other["action"] = json!("invoice.write");
    assert_eq!(client.err("audit.append", other).kind(), "conflict");
    assert_eq!(client.err("audit.get", json!({ "id": "none" })).kind(), "not_found");
    assert_eq!(client.err("audit.get", json!({})).field(), "id");
}

#[test]
fn what_identifies_a_person_or_is_of_no_form_is_refused_alone() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for (bad, field) in [
        (json!({ "action": "" }), "action"),
        (json!({ "action": "user:bob", "user_id": "user:bob" }), "action"),
        (json!({ "action": "x", "id": "user:bob", "user_id": "user:bob" }), "id"),
        (
            json!({ "action": "x", "resource_type": "user:bob", "subject_user_id": "user:bob" }),
            "resource_type",
        ),
        (json!({ "action": "x", "labels": { "who": "user:bob" }, "user_id": "user:bob" }), "labels"),
        (json!({ "action": "x", "labels": { "sidekeep.uid": "0" } }), "labels"),
        (json!({ "action": "x", "resource_id": "@actor" }), "resource_id"),
        (json!({ "action": "x", "occurred_at": "2999-01-01T00:00:00Z" }), "occurred_at"),
        (json!({ "action": "x", "outcome": "maybe" }), "outcome"),
    ] {
        let error = client.err("audit.append", bad.clone());
        assert_eq!((error.code, error.field()), (-32602, field), "{bad}");
    }
    let many = json!({ "entries": [{ "action": "good" }, { "action": "bad", "resource_id": "@x" }] });
    assert_eq!(client.err("audit.append_many", many).field(), "entries[1].resource_id");
    assert_eq!(client.err("audit.append_many", json!({ "entries": [] })).field(), "entries");
    let twice = json!({ "entries": [{ "action": "x", "id": "same" }, { "action": "x", "id": "same" }] });
    assert_eq!(client.err("audit.append_many", twice).field(), "entries[1].id");
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action IN ('good', 'x')"), "0");
    // Bad entries among good ones sink nobody else.
    let ids: Vec<u64> = (0..50)
        .map(|n| {
            let at = if n % 5 == 0 { json!("2999-01-01T00:00:00Z") } else { Value::Null };
            client.send_call("audit.append", json!({ "action": "mixed", "occurred_at": at }))
        })
        .collect();
    let answers: Vec<Value> = ids.iter().map(|_| client.line()).collect();
    assert_eq!(answers.iter().filter(|answer| answer.get("error").is_some()).count(), 10);
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'mixed'"), "40");
}

#[test]
fn entries_of_a_connection_keep_their_order_and_notifications_are_appended() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let lines: String = (0..150)
        .map(|n| {
            let id = if n % 3 == 0 { String::new() } else { format!("\"id\":{n},") };
            format!("{{\"jsonrpc\":\"2.0\",{id}\"method\":\"audit.append\",\"params\":{{\"action\":\"ordered\",\"resource_id\":\"{n}\"}}}}\n")
        })
        .collect();
    client.send(lines.as_bytes());
    for _ in 0..100 {
        assert!(client.line()["result"].is_object());
    }
    wait_for("the notifications", || {
        (world.sql("SELECT count(*) FROM audit_logs WHERE action = 'ordered'") == "150").then_some(())
    });
    let order = world.sql(
        "SELECT count(DISTINCT stream), bool_and(n = row) FROM (SELECT stream, resource_id::int n, \
        row_number() OVER (ORDER BY stream, position) - 1 AS row FROM audit_logs WHERE action = 'ordered') t",
    );
    assert_eq!(order, "1|t");
    assert_eq!(verify(&daemon)["verdict"], "intact");
}

#[test]
fn others_verify_the_log_and_its_proofs_in_other_languages() {
    let world = World::new();
    // No checkpoint but the one that is asked for.
    let [first, second] = [(); 2].map(|()| world.start_with("jobs.enabled = false\n"));
    thread::scope(|scope| {
        for (worker, daemon) in [&first, &second, &first, &second].into_iter().enumerate() {
            scope.spawn(move || {
                let mut client = daemon.client();
                for batch in 0..4 {
                    let base = worker * 1000 + batch * 100;
                    let entries: Vec<Value> = (base..base + 100).map(entry).collect();
                    client.ok("audit.append_many", json!({ "entries": entries }));
                    client.ok("audit.append", entry(base + 999_000));
                }
            });
        }
    });
    assert_eq!(first.ok("job.run", json!({ "name": "checkpoint" }))["state"], "ok");
    first.ok("audit.append", entry(500_000));
    let proof = first.ok("audit.prove", json!({ "id": "entry-500000" }));
    let old = second.ok("audit.prove", json!({ "id": "entry-1042" }));
    assert_eq!(old["checkpoint"], proof["checkpoint"]);
    let checkpoint = &first.ok("audit.checkpoint", json!({}))["checkpoint"];
    let log = tables(&world, checkpoint);
    let verdict = run("python3", "verify.py", &log);
    assert!(verdict.starts_with("intact: "), "{verdict}");
    assert_eq!(run("node", "verify.mjs", &log), verdict);
    assert_eq!(verify(&second)["verdict"], "intact");

    // The stand-alone verifier has the proof and the public key, and nothing else.
    let keys = sidekeep(&["--config", first.config.to_str().unwrap(), "signing", "public-key"]);
    std::fs::write(world.path("keys.pub"), &keys.stdout).unwrap();
    let standalone = |proof: &Value| {
        std::fs::write(world.path("proof.json"), proof.to_string()).unwrap();
        let arguments = [
            "verify",
            "--proof",
            world.path("proof.json").to_str().unwrap(),
            "--key",
            world.path("keys.pub").to_str().unwrap(),
        ]
        .map(str::to_owned);
        sidekeep(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).status.code()
    };
    assert_eq!((standalone(&proof), standalone(&old)), (Some(0), Some(0)));
    for (key, value) in old.as_object().unwrap() {
        let mut broken = old.clone();
        broken[key] = match value {
            Value::String(text) => json!(text.replacen('1', "2", 1)),
            Value::Number(number) => json!(number.as_i64().unwrap() + 1),
            other => json!(other.as_array().unwrap().iter().skip(1).collect::<Vec<_>>()),
        };
        if broken != old {
            assert_eq!(standalone(&broken), Some(1), "{key}");
        }
    }
    let verified = sidekeep(&["--config", first.config.to_str().unwrap(), "verify"]);
    assert!(verified.status.success() && verified.stdout.starts_with(b"intact"), "{verified:?}");
}

#[test]
fn no_role_changes_or_removes_an_entry() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("audit.append", entry(1));
    daemon.ok("job.run", json!({ "name": "checkpoint" }));
    let month = world.sql("SELECT tableoid::regclass::text FROM audit_logs LIMIT 1");
    for url in [&world.owner_url, &world.app_url] {
        for table in [
            "sidekeep.audit_logs",
            &format!("sidekeep.{}", month.trim_start_matches("sidekeep.")),
            "sidekeep.audit_heads",
            "sidekeep.audit_checkpoints",
        ] {
            for statement in [
                format!("DELETE FROM {table}"),
                format!("TRUNCATE {table}"),
                format!("UPDATE {table} SET at = now()"),
                format!("UPDATE {table} SET action = 'x'"),
            ] {
                let done = Command::new("psql")
                    .args([url.as_str(), "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", &statement])
                    .output()
                    .unwrap();
                assert!(!done.status.success(), "{statement}");
            }
        }
    }
    let staged = world.sql("SELECT count(*) FROM audit_staged");
    assert_eq!(staged, "0");
    assert_eq!(verify(&daemon)["verdict"], "intact");
}

#[test]
fn tampering_with_the_triggers_off_is_found_wherever_it_is() {
    type Tamper = (&'static str, &'static str);
    let tampers: [Tamper; 9] = [
        ("UPDATE audit_logs SET action = 'forged' WHERE stream = 0 AND position = 3", "leaf_hash"),
        (
            "UPDATE audit_logs SET action = 'forged', leaf_hash = sha256('x') WHERE stream = 0 AND position = 3",
            "leaf_hash",
        ),
        ("DELETE FROM audit_logs WHERE stream = 0 AND position = 2", "position"),
        (
            "DELETE FROM audit_logs WHERE stream = 0 AND position = (SELECT max(position) FROM audit_logs WHERE stream = 0)",
            "size of the stream",
        ),
        (
            "UPDATE audit_logs SET position = 1000000 - position WHERE stream = 0 AND position IN (1, 2); \
          UPDATE audit_logs SET position = CASE position WHEN 999999 THEN 2 ELSE 1 END WHERE stream = 0 AND position > 900000",
            "leaf_hash",
        ),
        ("UPDATE audit_streams SET root = sha256('x') WHERE stream = 0", "root of the stream"),
        ("UPDATE audit_streams SET head_mac = sha256('x') WHERE stream = 0", "head_mac"),
        ("UPDATE audit_heads SET root = sha256('x') WHERE index = 0", "root at a head"),
        (
            "INSERT INTO audit_logs SELECT 7, position, recorded_at, format, id || 'x', actor_id, subject_id, action, resource_type, resource_id, outcome, occurred_at, labels, client_sealed, metadata_sealed, leaf_hash FROM audit_logs WHERE stream = 0 AND position = 0",
            "stream",
        ),
    ];
    for (tamper, found) in tampers {
        let world = World::new();
        let daemon = world.start_with("audit.streams = 1\njobs.enabled = false\n");
        let entries: Vec<Value> = (0..20).map(entry).collect();
        daemon.ok("audit.append_many", json!({ "entries": entries }));
        daemon.ok("job.run", json!({ "name": "checkpoint" }));
        daemon.stop();
        world.sql(&format!("SET session_replication_role = replica; {tamper}"));
        let (config, _) = world.configure("");
        let done = sidekeep(&["--config", config.to_str().unwrap(), "--json", "verify"]);
        let report: Value =
            serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
        assert_eq!((done.status.code(), &report["verdict"]), (Some(1), &json!("broken")), "{tamper}");
        let whats: Vec<&str> = report["breaks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|place| place["what"].as_str().unwrap())
            .collect();
        assert!(whats.contains(&found), "{tamper}: {whats:?}");
    }
}

#[test]
fn a_planted_staged_row_is_not_taken_in_and_is_reported() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("audit.append", entry(1));
    world.sql("INSERT INTO audit_staged (staged_at, id, action, mac) VALUES (now() - interval '1 hour', 'planted', 'forged', sha256('x'))");
    wait_for("the report", || daemon.log().contains("was not staged by a daemon").then_some(()));
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE id = 'planted'"), "0");
    let (config, _) = world.configure("");
    let done = sidekeep(&["--config", config.to_str().unwrap(), "verify"]);
    assert!(String::from_utf8_lossy(&done.stdout).contains("audit_staged"), "{done:?}");
}

#[test]
fn every_call_about_a_person_is_entered_once() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let context = json!({ "user_id": "admin", "purpose": "support", "request_id": "r-1", "ip_address": "203.0.113.9",
                "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" });
    client.ok(
        "profile.create",
        json!({ "user_id": "u", "username": "x", "email": "x@y.example", "context": context }),
    );
    client.ok("profile.get", json!({ "user_id": "u", "context": context }));
    client.err("profile.get", json!({ "user_id": "nobody", "context": { "user_id": "stranger" } }));
    client.err("profile.create", json!({ "user_id": "u", "username": "x", "email": "x@y.example" }));
    let consent =
        client.ok("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": true }));
    client.ok("system.health", json!({}));
    let items = client.ok("audit.query", json!({ "subject_user_id": "u" }))["items"].clone();
    let seen: Vec<(&str, &str)> = items
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["action"].as_str().unwrap(), item["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(seen.len(), 4, "{seen:?}");
    for expected in [
        ("profile.create", "success"),
        ("profile.get", "success"),
        ("profile.create", "failure"),
        ("consent.record", "success"),
    ] {
        assert!(seen.contains(&expected), "{expected:?} in {seen:?}");
    }
    let by_admin =
        client.ok("audit.query", json!({ "user_id": "admin", "action": "profile.*" }))["items"].clone();
    let by_admin = by_admin.as_array().unwrap();
    assert_eq!(by_admin.len(), 2);
    assert_eq!(
        by_admin[0]["labels"],
        json!({ "purpose": "support", "request_id": "r-1",
                "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "sidekeep.method": "profile.get", "sidekeep.uid": "0" })
    );
    assert_eq!(
        (&by_admin[0]["ip_address"], &by_admin[0]["resource_id"]),
        (&json!("203.0.113.9"), &json!("u"))
    );
    let told = client.ok("audit.query", json!({ "resource_type": "consent", "resource_id": consent["id"] }))
        ["items"][0]
        .clone();
    assert_eq!(told["labels"]["sidekeep.row_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id IN ('nobody', 'stranger')"), "0");
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action LIKE 'system.%'"), "0");
    assert_eq!(verify(&daemon)["verdict"], "intact");
}

#[test]
fn a_tail_gives_each_position_once() {
    let world = World::new();
    let daemon = world.start_with("audit.access = \"writes\"\njobs.enabled = false\n");
    let mut client = daemon.client();
    for number in 0..25 {
        daemon.ok("audit.append", entry(number));
    }
    let (mut after, mut seen) = (Value::Null, Vec::new());
    loop {
        let page = client.ok("audit.tail", json!({ "after": after, "limit": 4, "action": "record.*" }));
        let items = page["items"].as_array().unwrap();
        if items.is_empty() {
            break;
        }
        seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        after = page["after"].clone();
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 25);
    client.send_call("audit.tail", json!({ "after": after, "wait": "20s" }));
    daemon.ok("audit.append", json!({ "action": "late" }));
    let late = client.line();
    assert_eq!(late["result"]["items"][0]["action"], "late");
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_when_daemons_are_killed() {
    let world = World::new();
    let mut daemon = world.start();
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let mut client = daemon.client();
        // So few that neither side waits for the other to read.
        for number in 0..50 {
            client.send_call("audit.append", entry(round * 1000 + number));
            client.send_call(
                "preferences.set",
                json!({ "user_id": format!("p{number}"), "preferences": round }),
            );
        }
        for _ in 0..60 {
            if let Some(id) = client.line()["result"]["id"].as_str() {
                acknowledged.push(id.to_owned());
            }
        }
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
        daemon = daemon.start_again();
        // What was under way is sent again.
        let mut client = daemon.client();
        for number in 0..50 {
            client.ok("audit.append", entry(round * 1000 + number));
        }
    }
    assert_eq!(
        world.sql("SELECT count(*), count(DISTINCT id) FROM audit_logs WHERE action = 'record.read'"),
        "400|400"
    );
    assert!(!acknowledged.is_empty());
    // What the killed ones had staged is taken in by the living.
    world.drained();
    assert_eq!(world.sql("SELECT (SELECT count(*) FROM audit_logs WHERE action = 'preferences.set') = (SELECT sum(version) FROM user_preferences)"), "t");
    assert_eq!(verify(&daemon)["verdict"], "intact");
}

#[test]
fn refused_calls_are_entered_with_a_count() {
    if !can_be_others() {
        return;
    }
    let world = World::new();
    world.open();
    let daemon = world.start_with("socket.mode = \"0666\"\n");
    let request = |id: usize| {
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"profile.get\",\"params\":{{\"user_id\":\"u\"}}}}\n"
        )
    };
    let input: String = (0..5).map(request).collect();
    let answers = Somebody::new(65_534, 65_534, &[]).sends(&daemon.socket, input.as_bytes());
    assert_eq!(answers.lines().filter(|line| line.contains("-32022")).count(), 5, "{answers}");
    daemon.stop();
    let entered =
        world.sql("SELECT outcome, labels ->> 'sidekeep.count' FROM audit_logs WHERE action = 'profile.get'");
    assert_eq!(entered, "denied|5");
}

#[test]
fn a_refusal_creates_nobody() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.ok("consent.record", json!({ "user_id": "a", "consent_type": "t", "granted": true, "id": "c" }));
    client.ok("conversation.create", json!({ "user_id": "a", "id": "v" }));
    assert_eq!(
        client
            .err("consent.record", json!({ "user_id": "b", "consent_type": "t", "granted": true, "id": "c" }))
            .kind(),
        "conflict"
    );
    assert_eq!(client.err("conversation.create", json!({ "user_id": "b", "id": "v" })).kind(), "conflict");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'b'"), "0");
}

#[test]
fn an_entry_that_no_standby_has_is_no_success() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let daemon = world.start_with("limits.call_timeout = \"20s\"\njobs.enabled = false\n");
    daemon.ok("audit.append", json!({ "action": "before" }));
    cluster.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    cluster.execute("SELECT pg_reload_conf()");
    world.commits_wait();
    let mut client = daemon.client();
    client.send_call("audit.append", json!({ "action": "alone", "id": "alone" }));
    // Each wait for the standby is cancelled: the batch's, and that of whatever asks for its outcome.
    let answer = std::thread::scope(|scope| {
        let waiting = scope.spawn(move || client.line());
        wait_for("an answer", || {
            world.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()");
            waiting.is_finished().then_some(())
        });
        waiting.join().unwrap()
    });
    assert_eq!(answer["error"]["data"]["kind"], "unknown_outcome", "{answer}");
    cluster.execute("ALTER SYSTEM RESET synchronous_standby_names");
    cluster.execute("SELECT pg_reload_conf()");
    let receipt = daemon.ok("audit.append", json!({ "action": "alone", "id": "alone" }));
    assert_eq!(daemon.ok("audit.get", json!({ "id": "alone" }))["position"], receipt["position"]);
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE id = 'alone'"), "1");
    assert_eq!(verify(&daemon)["verdict"], "intact");
}
