//! `system.*` and what is read over HTTP: the daemon's own health, figures and log.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{Http, post};
use crate::support::prometheus::Figures;
use crate::support::{Daemon, World, wait_for};
use crate::tls::loopback;

fn members(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn figures(daemon: &Daemon) -> Figures {
    Figures::parse(daemon.ok("system.metrics", json!({}))["text"].as_str().unwrap())
}

#[test]
fn the_first_answer_is_not_that_nobody_has_looked_yet() {
    let world = World::new();
    for _ in 0..3 {
        let daemon = world.spawn("");
        daemon.wait_listening();
        assert_eq!(daemon.ok("system.health", json!({}))["status"], "ok");
    }
}

#[test]
fn health_and_status_say_how_the_daemon_is() {
    let world = World::new();
    let daemon = world.start();
    let health = daemon.ok("system.health", json!({}));
    assert_eq!(members(&health), ["checks", "status"]);
    assert_eq!(health["status"], "ok");
    for (name, check) in health["checks"].as_object().unwrap() {
        assert_eq!(members(check), ["message", "status"], "{name}");
        assert_eq!((&check["status"], &check["message"]), (&json!("ok"), &Value::Null), "{name}");
    }
    // Those that were asked for its health before may be on their way out.
    let status = wait_for("one connection", || {
        let status = daemon.ok("system.status", json!({}));
        (status["connections"]["open"] == 1).then_some(status)
    });
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["deployment"], "test");
    assert!(status["uptime_seconds"].as_u64().unwrap() < 60);
    assert_eq!(status["health"], health);
    assert_eq!(status["connections"], json!({ "open": 1, "max": 10_000 }));
    assert_eq!(status["calls"], json!({ "in_flight": 0, "max": 4096, "draining": false }));
    assert_eq!(status["pool"]["max"], 8);
    assert_eq!(status["queue"], json!({ "waiting": 0, "max": 16_384 }));
    let receipt = daemon.ok("audit.append", json!({ "action": "x" }));
    let written = wait_for("the stream", || {
        let streams = daemon.ok("system.status", json!({}))["streams"].clone();
        streams.as_array().unwrap().iter().find(|stream| stream["stream"] == receipt["stream"]).cloned()
    });
    assert_eq!((&written["size"], &written["epoch"]), (&json!(1), &json!(1)));
    let until = world.sql("SELECT leased_until > now() FROM audit_streams WHERE size = 1");
    assert!(until == "t" && written["leased_until"].is_string(), "{written}");
    wait_for("a look at what is staged", || {
        let lag = daemon.ok("system.status", json!({}))["lag"].clone();
        (lag["staged"] == 0 && lag["oldest_seconds"] == 0.0 && lag["age_seconds"].as_u64()? < 60)
            .then_some(())
    });
    assert!(status["database"]["version"].as_str().unwrap().parse::<u32>().unwrap() >= 140_000, "{status}");
    assert_eq!(status["database"]["in_recovery"], false);
    assert_eq!(status["kek_ids"].as_array().unwrap().len(), 1);
    assert_eq!((&status["log_level"], &status["reload_error"]), (&json!("info"), &Value::Null));
}

#[test]
fn figures_are_in_prometheus_format_and_count_the_calls() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let calls = |figures: &Figures, method: &str, outcome: &str| {
        figures.value("sidekeep_calls_total", &[("method", method), ("outcome", outcome)]).unwrap_or(0.0)
    };
    let before = figures(&daemon);
    for _ in 0..7 {
        client.err("profile.get", json!({ "user_id": "nobody" }));
    }
    client.ok("consent.check", json!({ "user_id": "nobody", "consent_type": "x" }));
    client.err("profile.get", json!({}));
    client.err("no.such.method\"\n{}", json!({}));
    // Those that were asked before may be on their way out.
    let after = wait_for("two connections", || {
        Some(figures(&daemon)).filter(|after| after.value("sidekeep_connections", &[]) == Some(2.0))
    });
    assert_eq!(calls(&after, "profile.get", "not_found") - calls(&before, "profile.get", "not_found"), 7.0);
    assert_eq!(calls(&after, "profile.get", "invalid"), 1.0);
    assert_eq!(calls(&after, "consent.check", "ok"), 1.0);
    assert_eq!(calls(&after, "(unknown)", "not_found"), 1.0);
    assert_eq!(after.value("sidekeep_call_duration_seconds_count", &[("method", "profile.get")]), Some(8.0));
    assert_eq!(after.value("sidekeep_calls_in_flight", &[]), Some(0.0));
    assert_eq!(after.value("sidekeep_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    assert!(after.value("process_resident_memory_bytes", &[]).unwrap() > 1e6);
    assert!(after.value("process_cpu_seconds_total", &[]).is_some());
    let expected = BTreeMap::from([
        ("sidekeep_calls_total", "counter"),
        ("sidekeep_call_duration_seconds", "histogram"),
        ("sidekeep_transactions_total", "counter"),
        ("sidekeep_connections", "gauge"),
    ]);
    for (name, kind) in expected {
        assert_eq!(after.types.get(name).map(String::as_str), Some(kind), "{name}");
    }
}

#[test]
fn http_and_json_rpc_are_on_the_same_socket() {
    let world = World::new();
    let daemon = world.start();
    let mut http = Http::connect(&daemon.socket);
    let health = http.get("/healthz");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
    assert_eq!(health.header("content-type"), Some("application/json"));
    let metrics = http.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    assert!(Figures::parse(&metrics.body).types.contains_key("sidekeep_calls_total"));

    let call = r#"{"jsonrpc":"2.0","id":"é\n","method":"system.health"}"#;
    let answer = http.post(call);
    assert_eq!((answer.status, answer.json()["id"].as_str()), (200, Some("é\n")));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let batch = http.post(&format!("[{call},{{\"jsonrpc\":\"2.0\",\"method\":\"x\"}},7]"));
    assert_eq!((batch.status, batch.json().as_array().unwrap().len()), (200, 2));
    let note = http.post(
        r#"{"jsonrpc":"2.0","method":"profile.create","params":{"user_id":"n","username":"n","email":"n"}}"#,
    );
    assert_eq!((note.status, note.body.as_str()), (204, ""));
    assert_eq!(daemon.ok("profile.get", json!({ "user_id": "n" }))["username"], "n");
    for (path, status) in [("/", 404), ("/nothing", 404), ("/healthz/x", 404)] {
        assert_eq!(http.get(path).status, status, "{path}");
    }
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS"] {
        http.send(format!("{method} / HTTP/1.1\r\nHost: s\r\nContent-Length: 0\r\n\r\n"));
        let refused = http.response();
        assert_eq!(refused.status, 405, "{method}");
        assert!(refused.header("allow").is_some_and(|allow| allow.contains("POST")), "{method}");
    }
    http.send(format!(
        "POST / HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        &call[..5],
        call.len() - 5,
        &call[5..]
    ));
    assert_eq!(http.response().json()["result"]["status"], "ok");
    http.send(post(call).repeat(3));
    for _ in 0..3 {
        assert_eq!(
            http.response().json()["result"]["status"],
            "ok",
            "pipelined, on a connection that stays open"
        );
    }
    http.send("GET /healthz HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n");
    assert_eq!(http.response().status, 200);
    assert!(http.is_closed());
    daemon.assert_well();
}

#[test]
fn a_post_with_a_bad_body_is_an_error_of_the_protocol() {
    let world = World::new();
    let daemon = world.start();
    let mut http = Http::connect(&daemon.socket);
    for (body, code) in [
        ("", -32700),
        (" ", -32700),
        ("{", -32700),
        ("nonsense", -32700),
        ("{}{}", -32700),
        ("[]", -32600),
        ("{}", -32600),
        (r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#, -32601),
        (r#"{"jsonrpc":"2.0","id":1,"method":"profile.get"}"#, -32602),
    ] {
        let answer = http.post(body);
        assert_eq!(answer.json()["error"]["code"], code, "{body}: {answer:?}");
    }
    let mut large = Http::connect(&daemon.socket);
    large.send("POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 5000000\r\n\r\n");
    let refused = large.response();
    assert_eq!((refused.status, &refused.json()["error"]["data"]["kind"]), (413, &json!("too_large")));
    assert!(large.is_closed());
    let mut half = Http::connect(&daemon.socket);
    half.send("POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 50\r\n\r\n{");
    half.end();
    let status = half.response().status;
    assert_eq!(status, 400);
    let mut nonsense = Http::connect(&daemon.socket);
    nonsense.send("GARBAGE\r\n\r\n");
    assert_eq!(nonsense.response().status, 400);
    daemon.assert_well();
}

#[test]
fn curl_works_as_the_manual_says() {
    let world = World::new();
    let daemon = world.start();
    let curl = |arguments: &[&str]| {
        let done = Command::new("curl")
            .args(["-sS", "-w", "\n%{http_code}", "--unix-socket", daemon.socket.to_str().unwrap()])
            .args(arguments)
            .output()
            .expect("curl");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"system.health"}"#;
    for kind in ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"] {
        let answer = curl(&["-H", &format!("Content-Type: {kind}"), "-d", call, "http://sidekeep/"]);
        assert!(answer.contains(r#""status":"ok""#) && answer.ends_with("\n200"), "{kind}: {answer}");
    }
    assert!(curl(&["-d", call, "http://sidekeep/any/path"]).ends_with("\n200"));
    assert!(curl(&["http://sidekeep/healthz"]).ends_with("\n200"));
    assert!(curl(&["-I", "http://sidekeep/healthz"]).ends_with("\n200"));
    assert!(curl(&["-H", "Transfer-Encoding: chunked", "-d", call, "http://sidekeep/"]).ends_with("\n200"));
    // More than a kilobyte: curl asks first whether to go on.
    let padded = format!("{call}{}", " ".repeat(100_000));
    assert!(curl(&["-H", "Expect: 100-continue", "-d", &padded, "http://sidekeep/"]).ends_with("\n200"));
    let upgraded = curl(&["--http2", "-d", call, "http://sidekeep/"]);
    assert!(upgraded.ends_with("\n200"), "{upgraded}");
}

#[test]
fn health_over_http_says_503_without_postgresql() {
    let world = World::new();
    let daemon = world.spawn("database.url = \"postgresql://sidekeep_app@/none?host=/nonexistent\"\n");
    daemon.wait_listening();
    let mut http = Http::connect(&daemon.socket);
    let health = http.get("/healthz");
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("unavailable")));
    assert_eq!(http.get("/metrics").status, 200);
}

#[test]
fn a_listener_for_figures_takes_no_calls() {
    let world = World::new();
    // Nobody else takes a port of this address meanwhile.
    let address = std::net::TcpListener::bind((loopback(), 0)).unwrap().local_addr().unwrap();
    let _daemon = world.start_with(&format!("metrics.listen = \"{address}\"\n"));
    let curl = |arguments: &[&str]| {
        let done =
            Command::new("curl").args(["-sS", "-w", "\n%{http_code}"]).args(arguments).output().unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    let base = format!("http://{address}");
    let metrics = curl(&[&format!("{base}/metrics")]);
    Figures::parse(metrics.trim_end_matches("200"));
    assert!(curl(&[&format!("{base}/healthz")]).ends_with("\n200"));
    let call = curl(&["-d", r#"{"jsonrpc":"2.0","id":1,"method":"rpc.discover"}"#, &format!("{base}/")]);
    assert!(call.ends_with("\n404"), "{call}");
}

#[test]
fn the_log_level_is_set_and_falls_back() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let level =
        |client: &mut crate::support::Client| client.ok("system.status", json!({}))["log_level"].clone();
    client.ok("system.log_level", json!({ "level": "debug" }));
    client.err("profile.get", json!({ "user_id": "MARKER", "context": { "user_id": "MARKER" } }));
    client.err("profile.get", json!({ "MARKER": "MARKER" }));
    client.send(b"{\"MARKER\":}\n");
    assert_eq!(client.line()["error"]["code"], -32700);
    assert_eq!(level(&mut client), "debug");
    let of_calls = |log: &str| log.matches("\"method\":\"profile.get\"").count();
    let log = daemon.log();
    assert!(of_calls(&log) > 0 && log.contains("not_found"), "{log}");
    client.ok("system.log_level", json!({ "level": "info" }));
    let began = Instant::now();
    let set = client.ok("system.log_level", json!({ "level": "debug", "for": "1s" }));
    assert_eq!(set, json!({ "level": "debug", "previous": "info" }));
    wait_for("the level to fall back", || (level(&mut client) == "info").then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(1));
    let entered = client.ok("audit.query", json!({ "action": "system.log_level" }));
    assert_eq!(entered["items"][0]["resource_id"], "debug", "{entered}");
    assert!(entered["items"][0]["labels"]["sidekeep.uid"].is_string(), "{entered}");
    let logged = of_calls(&daemon.log());
    client.err("profile.get", json!({ "user_id": "MARKER" }));
    assert_eq!(of_calls(&daemon.log()), logged, "nothing of a call is logged at info");

    client.ok("system.log_level", json!({ "level": "trace" }));
    client.ok(
        "profile.create",
        json!({ "user_id": "MARKER", "username": "MARKER", "email": "MARKER", "metadata": ["MARKER"] }),
    );
    client.ok("profile.get", json!({ "user_id": "MARKER" }));
    client.err("conversation.get", json!({ "id": "MARKER" }));
    assert_eq!(level(&mut client), "trace");
    let log = daemon.log();
    assert!(!log.contains("MARKER"), "no parameter is ever logged: {log}");
    assert_eq!(client.err("system.log_level", json!({ "level": "debug", "for": "0s" })).field(), "for");
    daemon.assert_well();
}

/// How much of the program's text is mapped into a daemon, in KiB.
fn mapped_text(daemon: &Daemon) -> u64 {
    let program = std::fs::canonicalize(env!("CARGO_BIN_EXE_sidekeep")).unwrap();
    let mappings = std::fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
    let mut lines = mappings.lines();
    let is_text = |line: &&str| line.contains(" r-xp ") && line.ends_with(program.to_str().unwrap());
    lines.find(is_text).unwrap_or_else(|| panic!("{mappings}"));
    let resident = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    resident.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn what_only_the_start_needed_of_the_program_is_let_go_and_comes_back_when_it_is_called() {
    let world = World::new();
    // A machine that stands still while the daemon becomes ready sees it when it has happened: then once more.
    let let_go = (0..5).find_map(|_| {
        let daemon = world.start_with("jobs.enabled = false\n");
        let at_start = mapped_text(&daemon);
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if mapped_text(&daemon) < at_start / 4 * 3 {
                return Some(daemon);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon.stop();
        None
    });
    let daemon = let_go.expect("a daemon that lets its text go");
    // What serves is mapped again, and so is what had not been called before.
    let before = mapped_text(&daemon);
    daemon.ok("profile.create", json!({ "user_id": "u", "username": "u", "email": "e" }));
    daemon.ok("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": true }));
    assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact");
    assert!(daemon.ok("subject.export", json!({ "user_id": "u" })).is_object());
    assert_eq!(
        daemon.ok("subject.erase", json!({ "user_id": "u", "reason": "request" }))["body"]["reason"],
        "request"
    );
    assert!(mapped_text(&daemon) > before, "nothing came back");
    daemon.assert_well();
    daemon.stop();
}
