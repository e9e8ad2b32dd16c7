//! What is planted in the tables by whoever may write them: rows where none can be, sizes that only a table claims, times that
//! are none. Each is a break at its place, hides no other one, and keeps no verification from its end.

use serde_json::{Value, json};

use crate::support::{Daemon, World, sidekeep, sql};

const COLUMNS: &str = "format, actor_id, subject_id, resource_type, resource_id, outcome, occurred_at, labels, client_sealed, metadata_sealed";

/// A stream of twenty entries, of which one is of a person, under three heads.
fn filled(world: &World) -> Daemon {
    let daemon = world.start_with("audit.streams = 1\njobs.enabled = false\n");
    for round in 0..3 {
        let entry =
            |number| json!({ "id": format!("e-{round}-{number}"), "action": "record.read", "user_id": "u" });
        let entries: Vec<Value> = (0..7).map(entry).collect();
        daemon.ok("audit.append_many", json!({ "entries": entries }));
        daemon.ok("job.run", json!({ "name": "checkpoint" }));
    }
    daemon
}

fn verify(world: &World, more: &[&str]) -> Value {
    let (config, _) = world.configure("");
    let arguments = [&["--config", config.to_str().unwrap(), "--json", "verify"], more].concat();
    let done = sidekeep(&arguments);
    serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

/// The breaks, as stream, position and what.
fn told(report: &Value) -> Vec<(i64, i64, &str)> {
    let place = |place: &'_ Value| (place["stream"].as_i64().unwrap(), place["position"].as_i64().unwrap());
    let breaks = report["breaks"].as_array().unwrap_or_else(|| panic!("{report}"));
    breaks
        .iter()
        .map(|found| {
            let (stream, position) = place(found);
            (stream, position, found["what"].as_str().unwrap())
        })
        .collect()
}

#[test]
fn an_entry_below_the_first_place_is_told_and_never_served() {
    let world = World::new();
    let daemon = filled(&world);
    let plant = |stream: i64, position: i64| {
        format!(
            "INSERT INTO sidekeep.audit_logs (stream, position, recorded_at, id, action, leaf_hash, {COLUMNS}) SELECT {stream}, {position}, \
             now(), 'planted{stream}{position}', 'planted.act', leaf_hash, {COLUMNS} FROM sidekeep.audit_logs WHERE stream = 0 AND position = 3"
        )
    };
    let places = [(-7, 3), (-1, 0), (0, -5), (0, -1)];
    for (stream, position) in places {
        sql(&world.app_url, &plant(stream, position));
    }
    let wide = json!({ "to": "2999-01-01T00:00:00Z" });
    for report in [verify(&world, &["--full"]), verify(&world, &[]), daemon.ok("audit.verify", wide)] {
        let breaks = told(&report);
        for (stream, position) in places {
            assert!(
                breaks.iter().any(|found| (found.0, found.1) == (stream, position)),
                "{stream} {position}: {report}"
            );
        }
        assert_eq!(breaks.len(), places.len(), "{report}");
    }
    for (stream, position) in places {
        let which = json!({ "stream": stream, "position": position });
        let id = json!({ "id": format!("planted{stream}{position}") });
        for (method, which) in [("audit.get", &which), ("audit.get", &id), ("audit.prove", &which)] {
            assert_eq!(daemon.client().err(method, which.clone()).kind(), "not_found", "{method} {which}");
        }
    }
    for (method, asked) in [
        ("audit.query", json!({ "limit": 100 })),
        ("audit.tail", json!({ "after": { "0": -9, "-1": -9 }, "limit": 100 })),
        ("subject.export", json!({ "user_id": "u" })),
    ] {
        let answer = daemon.ok(method, asked).to_string();
        assert!(!answer.contains("planted.act") && answer.contains("record.read"), "{method}: {answer}");
    }
}

/// What is done to the tables, and what is told: each at its place, beside an entry that was changed.
const CLAIMS: [(&str, (i64, i64, &str)); 13] = [
    (
        "INSERT INTO audit_heads SELECT 9223372036854775807, 77, 5, root, at, leaf_hash FROM audit_heads WHERE index = 1",
        (-1, i64::MAX, "audit_heads"),
    ),
    (
        "INSERT INTO audit_heads SELECT 9007199254740991, 77, 5, root, at, leaf_hash FROM audit_heads WHERE index = 1",
        (-1, 3, "position"),
    ),
    ("UPDATE audit_streams SET size = 9223372036854775807 WHERE stream = 0", (0, i64::MAX, "head_mac")),
    (
        "UPDATE audit_streams SET size = 9007199254740000; INSERT INTO audit_logs SELECT stream, 4503599627370496, recorded_at, \
         format, 'far', actor_id, subject_id, action, resource_type, resource_id, outcome, occurred_at, labels, client_sealed, \
         metadata_sealed, leaf_hash FROM audit_logs WHERE stream = 0 AND position = 3",
        (0, 4503599627370496, "leaf_hash"),
    ),
    (
        "INSERT INTO audit_streams (stream, epoch, size, root, head_mac, frontier, leased_until) \
         SELECT 50, 1, 9223372036854775807, root, head_mac, '', now() FROM audit_streams",
        (50, 0, "size of the stream"),
    ),
    (
        "INSERT INTO audit_checkpoints SELECT 9223372036854775807, root, note, at, edge FROM audit_checkpoints WHERE size = 3",
        (-1, 3, "heads up to a checkpoint"),
    ),
    (
        "INSERT INTO audit_streams (stream, epoch, size, root, head_mac, frontier, leased_until) \
         SELECT -3, 1, 5, root, head_mac, '', now() FROM audit_streams",
        (-3, 5, "audit_streams"),
    ),
    ("UPDATE audit_heads SET at = 'infinity' WHERE index = 1", (-1, 1, "leaf_hash")),
    ("UPDATE audit_checkpoints SET at = '-infinity' WHERE size = 2", (-1, 2, "audit_checkpoints")),
    ("UPDATE audit_streams SET last_recorded_at = 'infinity'", (0, 0, "last_recorded_at")),
    ("UPDATE audit_streams SET closed_at = now()", (0, 0, "closed_at")),
    ("UPDATE audit_logs SET occurred_at = 'infinity' WHERE stream = 0 AND position = 5", (0, 5, "entry")),
    ("INSERT INTO audit_nodes SELECT 9, 64, 0, sha256('x'), ''", (9, 0, "audit_nodes")),
];

#[test]
fn what_a_table_only_claims_hides_no_break_and_keeps_no_verification_from_its_end() {
    let world = World::new();
    filled(&world).stop();
    let tables = ["audit_logs", "audit_heads", "audit_streams", "audit_checkpoints", "audit_nodes"];
    let tamper = |sql: &str| world.sql(&format!("SET session_replication_role = replica; {sql}"));
    for table in tables {
        tamper(&format!("CREATE TABLE public.{table} AS SELECT * FROM {table}"));
    }
    for (claim, (stream, position, what)) in CLAIMS {
        tamper(&format!(
            "{claim}; UPDATE audit_logs SET action = 'forged' WHERE stream = 0 AND position = 2"
        ));
        for more in [&["--full"] as &[&str], &[]] {
            let report = verify(&world, more);
            let breaks = told(&report);
            assert!(breaks.contains(&(0, 2, "leaf_hash")), "{claim}: {report}");
            let is_there = |found: &(i64, i64, &str)| {
                // Those are told at the end of the stream.
                found.2 == what && found.0 == stream && (found.1 == position || position == 0 && found.1 > 20)
            };
            assert!(breaks.iter().any(is_there), "{claim}: {report}");
            assert!(breaks.len() < 12, "{claim}: {report}");
        }
        for table in tables {
            tamper(&format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM public.{table}"));
        }
        assert_eq!(verify(&world, &["--full"])["verdict"], "intact", "after {claim}");
    }
}

#[test]
fn a_row_beside_the_log_with_a_time_that_is_none_is_a_break() {
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\n");
    daemon.ok("consent.record", json!({ "id": "c", "user_id": "u", "consent_type": "t", "granted": true }));
    daemon.ok("profile.create", json!({ "user_id": "v", "username": "v", "email": "v@b" }));
    daemon.ok("subject.erase", json!({ "user_id": "v", "reason": "request" }));
    assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact");
    world.sql("CREATE TABLE public.consents AS SELECT * FROM consent_records; CREATE TABLE public.erasures AS SELECT * FROM subject_erasures");
    for (change, what) in [
        ("consent_records SET given_at = 'infinity'", "consent_records"),
        ("consent_records SET given_at = given_at + interval '10000 years'", "consent_records"),
        ("consent_records SET expires_at = '-infinity'", "consent_records"),
        ("consent_records SET recorded_at = '294000-01-01'", "consent_records"),
        ("subject_erasures SET erased_at = '-infinity'", "subjects"),
        ("subject_erasures SET erased_at = 'infinity'", "subjects"),
    ] {
        world.sql(&format!("SET session_replication_role = replica; UPDATE {change}"));
        let report = daemon.ok("audit.verify", json!({}));
        assert!(told(&report).iter().all(|found| found.2 == what), "{change}: {report}");
        assert_eq!(report["verdict"], "broken", "{change}");
        world.sql(
            "SET session_replication_role = replica; DELETE FROM consent_records; DELETE FROM subject_erasures; \
             INSERT INTO consent_records OVERRIDING SYSTEM VALUE SELECT * FROM public.consents; INSERT INTO subject_erasures SELECT * FROM public.erasures",
        );
        assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact", "after {change}");
    }
    // What sidekeep itself stumbles over is nothing to try again.
    world.sql("ALTER TABLE audit_verified RENAME TO audit_verified_elsewhere");
    assert_eq!(daemon.client().err("audit.verify", json!({})).code, -32603);
}
