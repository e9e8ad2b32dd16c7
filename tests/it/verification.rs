//! Verification: what the hourly job finds, what leads from entries to rows beside the log, how long work is followed, and
//! how little a proof reads.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Daemon, Session, World, sidekeep, wait_for};

/// More than one block of 4,096, so that there is something that was verified before.
const ENTRIES: usize = 9000;

fn fill(daemon: &Daemon, entries: usize) {
    let mut client = daemon.client();
    let entry = |number: usize| {
        json!({ "id": format!("entry-{number}"), "action": "record.read", "resource_id": format!("doc-{number}"),
                "user_id": format!("user:{}", number % 7) })
    };
    for first in (0..entries).step_by(1000) {
        let some: Vec<Value> = (first..(first + 1000).min(entries)).map(entry).collect();
        client.ok("audit.append_many", json!({ "entries": some }));
    }
}

/// What a run of the job finds: whether it succeeded, and what it says is broken.
fn job(daemon: &Daemon) -> (String, String) {
    let before = daemon.log().len();
    let run = daemon.ok("job.run", json!({ "name": "verify", "wait": "25s" }));
    (run["state"].as_str().unwrap().to_owned(), daemon.log().split_off(before))
}

#[test]
fn the_job_finds_tampering_in_what_it_had_verified_before() {
    let world = World::new();
    let daemon = world.start_with("audit.streams = 1\njobs.enabled = false\n");
    fill(&daemon, ENTRIES);
    daemon.ok("job.run", json!({ "name": "checkpoint" }));
    assert_eq!(job(&daemon).0, "ok");
    assert_eq!(world.sql("SELECT blocks FROM audit_verified WHERE stream = 0"), "2");
    world.sql(
        "CREATE TABLE public.kept AS SELECT * FROM audit_logs; CREATE TABLE public.nodes AS SELECT * FROM audit_nodes; \
         CREATE TABLE public.heads AS SELECT * FROM audit_heads; CREATE TABLE public.verified AS SELECT * FROM audit_verified",
    );
    const LEAF: &str = "sha256('\\x00' || convert_to('forged', 'UTF8'))";
    let at = |position: usize| format!("WHERE stream = 0 AND position = {position}");
    let tampers = [
        ("changed", format!("UPDATE audit_logs SET action = 'forged' {}", at(3)), "leaf_hash"),
        ("changed with its hash", format!("UPDATE audit_logs SET leaf_hash = {LEAF} {}", at(3)), "leaf_hash"),
        ("sealed part", format!("UPDATE audit_logs SET client_sealed = 'x' {}", at(5000)), "leaf_hash"),
        ("time", format!("UPDATE audit_logs SET occurred_at = now() {}", at(70)), "leaf_hash"),
        ("label", format!("UPDATE audit_logs SET labels = '{{\"a\": \"b\"}}' {}", at(71)), "leaf_hash"),
        ("no form", format!("UPDATE audit_logs SET labels = '[1]' {}", at(72)), "an entry of format 1"),
        ("removed", format!("DELETE FROM audit_logs {}", at(4200)), "position"),
        ("a block removed", "DELETE FROM audit_logs WHERE stream = 0 AND position < 4096".into(), "position"),
        (
            "swapped",
            "UPDATE audit_logs SET position = 100002 WHERE stream = 0 AND position = 1; UPDATE audit_logs SET position = 1 WHERE \
             stream = 0 AND position = 2; UPDATE audit_logs SET position = 2 WHERE stream = 0 AND position = 100002".into(),
            "leaf_hash",
        ),
        (
            "re-ordered with their hashes",
            "UPDATE audit_logs SET leaf_hash = (SELECT leaf_hash FROM public.kept k WHERE k.stream = 0 AND k.position = 9 - \
             audit_logs.position) WHERE stream = 0 AND position IN (4, 5)".into(),
            "leaf_hash",
        ),
        (
            "doubled",
            "INSERT INTO audit_logs SELECT stream, position, recorded_at + interval '1 microsecond', format, 'twice', actor_id, \
             subject_id, action, resource_type, resource_id, outcome, occurred_at, labels, client_sealed, metadata_sealed, leaf_hash \
             FROM public.kept WHERE stream = 0 AND position = 8".into(),
            "position",
        ),
        (
            "appended",
            "INSERT INTO audit_logs SELECT stream, 900000, recorded_at, format, 'more', actor_id, subject_id, action, resource_type, \
             resource_id, outcome, occurred_at, labels, client_sealed, metadata_sealed, leaf_hash FROM public.kept \
             WHERE stream = 0 AND position = 8".into(),
            "size of the stream",
        ),
        (
            "a planted stream",
            "INSERT INTO audit_logs SELECT 7, position, recorded_at, format, 'planted', actor_id, subject_id, action, resource_type, \
             resource_id, outcome, occurred_at, labels, client_sealed, metadata_sealed, leaf_hash FROM public.kept \
             WHERE stream = 0 AND position = 0".into(),
            "a stream of audit_streams",
        ),
        ("a changed head", "UPDATE audit_heads SET root = sha256('x') WHERE index = 0".into(), "leaf_hash"),
        (
            "a planted head",
            "INSERT INTO audit_heads SELECT 1000, 0, 77, sha256('x'), at, sha256('x') FROM public.heads WHERE index = 0".into(),
            "heads up to a checkpoint",
        ),
        ("a tile", "UPDATE audit_nodes SET hash = sha256('x') WHERE stream = 0 AND level = 4 AND index = 9".into(), "audit_nodes"),
        (
            "the tile of tiles",
            "UPDATE audit_nodes SET children = repeat('x', 512)::bytea WHERE stream = 0 AND level = 8 AND index = 3".into(),
            "audit_nodes",
        ),
        ("a tile removed", "DELETE FROM audit_nodes WHERE stream = 0 AND level = 12 AND index = 1".into(), "audit_nodes"),
        ("a planted tile", "INSERT INTO audit_nodes SELECT 0, 16, 5, hash, children FROM public.nodes LIMIT 1".into(), "no such subtree"),
        ("how far it was", "UPDATE audit_verified SET blocks = 1 WHERE stream = 0".into(), "audit_verified"),
        ("a person", "DELETE FROM subjects WHERE user_id = 'user:3'".into(), "subjects"),
    ];
    // What the daemon itself has entered since is left as it is.
    let restore = "DELETE FROM audit_logs l WHERE stream = 7 OR position = 900000 OR EXISTS (SELECT FROM public.kept k WHERE \
         (k.stream, k.position) = (l.stream, l.position)); INSERT INTO audit_logs SELECT * FROM public.kept; \
         DELETE FROM audit_nodes l WHERE (level, index) = (16, 5) OR EXISTS (SELECT FROM public.nodes k WHERE (k.stream, k.level, \
         k.index) = (l.stream, l.level, l.index)); INSERT INTO audit_nodes SELECT * FROM public.nodes; \
         DELETE FROM audit_heads WHERE index = 1000 OR index IN (SELECT index FROM public.heads); \
         INSERT INTO audit_heads SELECT * FROM public.heads; \
         INSERT INTO subjects SELECT * FROM public.persons ON CONFLICT DO NOTHING";
    world.sql("CREATE TABLE public.persons AS SELECT * FROM subjects");
    for (name, tamper, told) in &tampers {
        world.sql(&format!("SET session_replication_role = replica; {tamper}"));
        let (state, log) = job(&daemon);
        assert_eq!(state, "failed", "{name}");
        assert!(log.contains("the audit log is broken") && log.contains(told), "{name}: {told}: {log}");
        world.sql(&format!("SET session_replication_role = replica; {restore}"));
        let (state, log) = job(&daemon);
        assert_eq!(state, "ok", "after {name}: {log}");
    }
}

#[test]
fn a_tail_that_is_taken_back_with_its_head_was_verified_before() {
    let world = World::new();
    let daemon = world.start_with("audit.streams = 1\njobs.enabled = false\n");
    daemon.ok("audit.append", json!({ "action": "first" }));
    let config = daemon.config.clone();
    daemon.stop();
    world.sql("CREATE TABLE public.older AS SELECT * FROM audit_streams");
    let daemon = world.start_with("audit.streams = 1\njobs.enabled = false\n");
    fill(&daemon, 5000);
    assert_eq!(job(&daemon).0, "ok");
    daemon.stop();
    // Its seal is genuine: nobody but who has seen more can tell.
    world.sql(
        "SET session_replication_role = replica; DELETE FROM audit_logs WHERE position >= (SELECT size FROM public.older); \
         DELETE FROM audit_nodes; DELETE FROM audit_streams; INSERT INTO audit_streams SELECT * FROM public.older",
    );
    let done = sidekeep(&["--config", config.to_str().unwrap(), "--json", "verify"]);
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["breaks"][0]["what"], "what was verified before", "{report}");
    assert_eq!(done.status.code(), Some(1));
}

#[test]
fn what_entries_say_of_rows_and_persons_is_compared() {
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\n");
    let consent = |id: &str| json!({ "id": id, "user_id": "u", "consent_type": "t", "granted": true });
    for id in ["c1", "c2"] {
        daemon.ok("consent.record", consent(id));
    }
    // An id that is the user id of whoever acts would stand in no entry, and no row be found by it.
    let mut boss = consent("boss");
    boss["context"] = json!({ "user_id": "boss" });
    assert_eq!(daemon.client().err("consent.record", boss).data["field"], "id");
    let verdict = || daemon.ok("audit.verify", json!({}));
    let whats = |report: &Value| -> Vec<String> {
        report["breaks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|place| place["what"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(verdict()["verdict"], "intact");
    let tamper = |sql: &str| world.sql(&format!("SET session_replication_role = replica; {sql}"));
    tamper("UPDATE consent_records SET granted = false WHERE id = 'c1'");
    let report = verdict();
    assert_eq!(whats(&report), ["consent_records"], "{report}");
    assert_ne!(report["breaks"][0]["found"], report["breaks"][0]["expected"]);
    tamper(
        "UPDATE consent_records SET granted = true WHERE id = 'c1'; DELETE FROM consent_records WHERE id = 'c2'",
    );
    let report = verdict();
    assert_eq!(
        (whats(&report), &report["breaks"][0]["found"]),
        (vec!["consent_records".into()], &json!("nothing"))
    );

    // A tombstone is not enough, and an entry that an application has made counts for nothing.
    let person = world.sql("SELECT subject_id FROM subjects WHERE user_id = 'u'");
    daemon.ok(
        "audit.append",
        json!({ "id": "forged", "action": "subject.erase", "subject_user_id": "u", "resource_type": "subject" }),
    );
    tamper(&format!(
        "INSERT INTO subject_erasures VALUES ({person}, now(), 'request', 'forged', 'c', '{{}}', NULL); \
         DELETE FROM consent_records; DELETE FROM subjects WHERE subject_id = {person}"
    ));
    let report = verdict();
    assert_eq!((&report["erased_subjects"], &report["verdict"]), (&json!(1), &json!("broken")));
    assert!(whats(&report).iter().all(|what| what == "subjects"), "{report}");
    assert!(report["breaks"][0]["found"].as_str().unwrap().contains(&person));
}

#[test]
fn a_tombstone_that_was_changed_covers_nobody() {
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\n");
    daemon.ok("profile.create", json!({ "user_id": "u", "username": "u", "email": "u@b" }));
    daemon.ok("subject.erase", json!({ "user_id": "u", "reason": "request", "id": "c" }));
    let verdict = || daemon.ok("audit.verify", json!({}))["verdict"].clone();
    assert_eq!(verdict(), "intact");
    world.sql("CREATE TABLE public.kept AS SELECT * FROM subject_erasures");
    for change in [
        "reason = 'retention'",
        "erased_at = erased_at - interval '1 day'",
        "certificate_id = 'd'",
        "certificate = jsonb_set(certificate, '{body,counts,messages}', '7')",
        "certificate = jsonb_set(certificate, '{body,reason}', '\"retention\"'), reason = 'retention'",
        "certificate = '{}'",
    ] {
        world.sql(&format!("SET session_replication_role = replica; UPDATE subject_erasures SET {change}"));
        assert_eq!(verdict(), "broken", "{change}");
        if change.starts_with("certificate =") {
            let error = daemon.client().err("subject.certificate", json!({ "id": "c" }));
            assert_eq!(error.kind(), "tampered", "{change}");
        }
        world.sql(
            "SET session_replication_role = replica; DELETE FROM subject_erasures; \
             INSERT INTO subject_erasures SELECT * FROM public.kept",
        );
        assert_eq!(verdict(), "intact");
    }
}

/// Whoever is restored from a backup is erased again where there is a tombstone.
#[test]
fn a_tombstone_that_no_erasure_has_left_is_told() {
    let world = World::new();
    let daemon = world.start();
    for person in ["user:ada", "user:bob"] {
        daemon.ok("preferences.set", json!({ "user_id": person, "preferences": {} }));
    }
    daemon.ok("subject.erase", json!({ "user_id": "user:ada", "reason": "request" }));
    let verify = || daemon.ok("audit.verify", json!({}));
    assert_eq!(verify()["verdict"], "intact");
    for (person, found) in [
        ("(SELECT subject_id FROM subjects WHERE user_id = 'user:bob')", "in both"),
        ("12345", "no entry planted"),
    ] {
        world.sql(&format!(
            "INSERT INTO subject_erasures SELECT {person}, erased_at, reason, 'planted', 'planted', certificate, note_sealed \
             FROM subject_erasures"
        ));
        let report = verify();
        let told = report["breaks"].as_array().unwrap();
        let about = |place: &&Value| place["found"].as_str().unwrap().contains(found);
        let place = told.iter().find(about).unwrap_or_else(|| panic!("{found}: {report}"));
        assert_eq!((&report["verdict"], &place["what"]), (&json!("broken"), &json!("subject_erasures")));
        world.sql(
            "SET session_replication_role = replica; DELETE FROM subject_erasures WHERE entry_id = 'planted'",
        );
        assert_eq!(verify()["verdict"], "intact");
    }
}

#[test]
fn a_verification_that_takes_longer_than_its_caller_waits_is_followed() {
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\n");
    fill(&daemon, 3000);
    let mut lock = Session::begin(&world.owner_url);
    lock.run("LOCK TABLE subject_erasures IN ACCESS EXCLUSIVE MODE");
    let run = daemon.ok("audit.verify", json!({ "wait": "0s" }));
    assert_eq!((&run["name"], &run["state"]), (&json!("audit.verify"), &json!("running")), "{run}");
    lock.release();
    let ended = wait_for("the run's end", || {
        let runs = daemon.ok("job.history", json!({ "name": "audit.verify" }));
        let followed =
            runs["items"].as_array().unwrap().iter().find(|item| item["run"] == run["run"]).cloned();
        followed.filter(|run| run["state"] != "running")
    });
    assert_eq!((&ended["state"], &ended["counts"]["verdict"]), (&json!("ok"), &json!("intact")), "{ended}");

    let entries = world.sql("SELECT count(*) FROM audit_logs WHERE action = 'record.read'");
    let first = world.sql("SELECT min(recorded_at) FROM audit_logs WHERE action = 'record.read'");
    let ranged = daemon.ok("audit.verify", json!({ "from": first.replace(' ', "T") + ":00" }));
    assert!(ranged["entries"].as_u64().unwrap() >= entries.parse().unwrap(), "{ranged}");
    assert_eq!(daemon.ok("audit.verify", json!({ "to": "2001-01-01T00:00:00Z" }))["entries"], 0);
    world.sql("SET session_replication_role = replica; UPDATE audit_logs SET action = 'forged' WHERE id = 'entry-1'");
    let broken = daemon.ok("audit.verify", json!({ "from": "2001-01-01T00:00:00Z" }));
    assert_eq!((&broken["verdict"], &broken["more_breaks"]), (&json!("broken"), &json!(0)), "{broken}");
    world.sql("SET session_replication_role = replica; UPDATE audit_logs SET action = 'forged' WHERE id LIKE 'entry-1%'");
    let broken = daemon.ok("audit.verify", json!({}));
    assert_eq!(broken["breaks"].as_array().unwrap().len(), 100);
    assert_eq!(broken["more_breaks"], 1011, "{broken}");
}

#[test]
fn how_far_the_log_is_verified_is_shown() {
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\n");
    assert_eq!(daemon.ok("system.status", json!({}))["verification"]["entries"], Value::Null);
    fill(&daemon, 10);
    assert_eq!(job(&daemon).0, "ok");
    let shown = daemon.ok("system.status", json!({}))["verification"].clone();
    assert!(
        shown["entries"].as_u64().unwrap() >= 10 && shown["age_seconds"].as_u64().unwrap() < 60,
        "{shown}"
    );
    let figures = daemon.ok("system.metrics", json!({}))["text"].as_str().unwrap().to_owned();
    for name in ["sidekeep_verified_age_seconds", "sidekeep_verified_entries"] {
        assert!(figures.contains(name), "{name}");
    }
}

#[test]
fn a_proof_reads_few_rows() {
    const PROOFS: u64 = 40;
    let world = World::new();
    let daemon = world.start_with("audit.streams = 1\njobs.enabled = false\n");
    fill(&daemon, 4000);
    for number in 0..20 {
        daemon.ok("audit.append", json!({ "action": "one more", "id": format!("more-{number}") }));
        daemon.ok("job.run", json!({ "name": "checkpoint" }));
    }
    world.sql("ANALYZE audit_logs, audit_nodes, audit_heads, audit_checkpoints, audit_streams");
    // A table of twenty rows is read whole, which says nothing of one with a million.
    world.sql("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET enable_seqscan = off', current_database()); END $$");
    let read = || {
        let rows = world.sql(
            "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables WHERE relname IN \
             ('audit_nodes', 'audit_heads', 'audit_checkpoints') OR relname LIKE 'audit\\_logs\\_%'",
        );
        rows.parse::<u64>().unwrap()
    };
    // A session tells what it has read when it ends, at the latest.
    let ended = |daemon: Daemon| {
        daemon.stop();
        const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
        wait_for("the sessions' end", || (world.sql(OTHERS) == "0").then_some(()));
        read()
    };
    let start = || world.start_with("audit.streams = 1\njobs.enabled = false\n");
    let before = ended(daemon);
    // What a daemon reads by itself is not the proofs'.
    let daemon = start();
    daemon.ok("audit.checkpoint", json!({}));
    let before = ended(daemon) + (read() - before);
    let daemon = start();
    let mut client = daemon.client();
    for number in 0..PROOFS {
        let id = if number < 20 { format!("more-{number}") } else { format!("entry-{}", number * 97) };
        client.ok("audit.prove", json!({ "id": id }));
    }
    let read = ended(daemon) - before;
    assert!((PROOFS..=PROOFS * 20).contains(&read), "{read} rows for {PROOFS} proofs");
}

#[test]
fn the_published_vectors_are_right_in_other_languages_too_and_wrong_ones_are_not() {
    let file = |name: &str| -> Value {
        let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let names = ["canonical", "heads", "merkle", "note"];
    let all: Value =
        names.iter().map(|name| ((*name).to_owned(), file(name))).collect::<serde_json::Map<_, _>>().into();
    let run = |program: &str, script: &str, input: &Value| {
        let script = format!("{}/tests/it/verifiers/{script}", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(program)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; install it with apt-get"));
        child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        (done.status.success(), String::from_utf8([done.stdout, done.stderr].concat()).unwrap())
    };
    let wrong = [
        ("/canonical/vectors/2/canonical", json!("7b7d")),
        ("/canonical/vectors/8/columns/labels/z", json!("2")),
        ("/canonical/vectors/3/columns/position", json!(7)),
        ("/heads/vectors/1/leaf_hash", json!("00")),
        ("/merkle/roots/5", json!("00")),
        ("/merkle/inclusion/9/path/0", json!("00")),
        ("/merkle/consistency/34/path/0", json!("00")),
        ("/note/vectors/0/checkpoint/size", json!(9)),
        ("/note/vectors/1/checkpoint", json!({ "size": 9, "root": "00" })),
    ];
    for (program, script) in [("python3", "vectors.py"), ("node", "vectors.mjs")] {
        assert_eq!(run(program, script, &all), (true, "105 vectors\n".to_owned()));
        for (place, value) in &wrong {
            let mut all = all.clone();
            *all.pointer_mut(place).unwrap_or_else(|| panic!("{place}")) = value.clone();
            assert!(!run(program, script, &all).0, "{program}: {place}");
        }
    }
}
