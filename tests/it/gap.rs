//! A log that lost what it had published, to a restore or a fail-over: refused, then declared, never hidden.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::publication::{append, checkpoint, objects, publishing, verify, wait_state};
use crate::support::{Cluster, Daemon, Fault, Proxy, World, sidekeep, wait_for};

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// A backup of a whole cluster, to be put back over what came later.
pub struct Backup<'a> {
    cluster: &'a Cluster,
    copy: std::path::PathBuf,
}

impl<'a> Backup<'a> {
    pub fn take(cluster: &'a Cluster) -> Self {
        let copy = cluster.data().with_file_name("backup");
        let _ = std::fs::remove_dir_all(&copy);
        cluster.down();
        self::copy(&cluster.data(), &copy);
        cluster.up();
        Self { cluster, copy }
    }

    pub fn restore(&self) {
        self.cluster.down();
        std::fs::remove_dir_all(self.cluster.data()).unwrap();
        copy(&self.copy, &self.cluster.data());
        self.cluster.up();
    }
}

/// Sizes of the streams, and whether they are closed.
const STREAMS: &str = "SELECT string_agg(stream || ':' || size || CASE WHEN closed_at IS NULL THEN '' ELSE ' closed' END, \
    ', ' ORDER BY stream) FROM audit_streams";

fn recover(daemon: &Daemon, more: &[&str]) -> (Option<i32>, Value) {
    let done =
        sidekeep(&[&["--config", daemon.config.to_str().unwrap(), "--json", "recover"], more].concat());
    let told = serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    (done.status.code(), told)
}

/// What `sidekeep verify` answers.
fn verified(daemon: &Daemon) -> Value {
    let done = sidekeep(&["--config", daemon.config.to_str().unwrap(), "--json", "verify"]);
    serde_json::from_slice(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
}

#[test]
fn a_database_of_yesterday_is_refused_until_its_loss_is_declared() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let more = format!("{}audit.streams = 1\n", publishing(&world));
    let daemon = world.start_with(&more);
    append(&daemon, 10);
    checkpoint(&daemon);
    append(&daemon, 7);
    let kept = daemon.ok("audit.append", json!({ "action": "kept" }));
    daemon.stop();
    let backup = Backup::take(&cluster);
    // Today: the stream grows, and there is another one.
    let (daemon, other) = (world.start_with(&more), world.start_with(&more));
    append(&daemon, 5);
    append(&other, 4);
    checkpoint(&daemon);
    append(&daemon, 1);
    checkpoint(&daemon);
    assert_eq!(world.sql("SELECT count(*) FROM audit_streams"), "2");
    daemon.stop();
    other.stop();
    backup.restore();

    let daemon = world.start_with(&more.replace("\"none\"", "\"all\""));
    let report = wait_state(&daemon, "behind");
    assert_eq!(report["gaps"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(daemon.ok("system.health", json!({}))["status"], "degraded");
    let mut client = daemon.client();
    for (method, params) in [
        ("audit.append", json!({ "action": "a" })),
        ("preferences.set", json!({ "user_id": "u", "preferences": {} })),
        ("preferences.get", json!({ "user_id": "u" })),
    ] {
        let refused = client.err(method, params);
        assert_eq!(refused.kind(), "unavailable", "{method}: {refused:?}");
        assert!(refused.message.contains("recover --accept-gap"), "{method}: {refused:?}");
    }
    // The run itself would be entered, so that its answer is held back too.
    assert_eq!(client.err("job.run", json!({ "name": "checkpoint" })).kind(), "unavailable");
    let error =
        world.sql("SELECT error FROM job_runs WHERE name = 'checkpoint' ORDER BY due_at DESC LIMIT 1");
    assert!(error.contains("recover --accept-gap"), "{error}");
    assert_eq!(world.sql(STREAMS), "0:18");
    let found = verified(&daemon);
    assert_eq!(found["verdict"], "broken", "a gap that nobody declared: {found}");

    let (code, told) = recover(&daemon, &[]);
    assert_eq!((code, &told["declared"]), (Some(1), &json!(false)));
    let gaps: Vec<(i64, i64, i64)> = told["gaps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gap| ["stream", "kept_size", "lost_size"].map(|key| gap[key].as_i64().unwrap()).into())
        .collect();
    assert_eq!(gaps, [(0, 18, 24), (1, 0, 4)]);
    let (code, told) = recover(&daemon, &["--accept-gap"]);
    assert_eq!(
        (code, &told["declared"], &told["publication"]["state"]),
        (Some(0), &json!(true), &json!("whole"))
    );

    // The daemon notices by itself.
    wait_state(&daemon, "whole");
    let after = client.ok("audit.append", json!({ "action": "after" }));
    assert!(after["stream"].as_i64().unwrap() > 1, "{after}");
    // What is left of the stream has no head of its own yet: it gets one.
    assert_eq!(client.ok("audit.prove", json!({ "id": kept["id"] }))["size"], 18);
    assert_eq!(checkpoint(&daemon)["state"], "ok");
    assert!(world.sql(STREAMS).starts_with("0:18 closed, 1:0 closed, 2:"), "{}", world.sql(STREAMS));
    let told = client.ok("audit.query", json!({ "action": "log.gap" }))["items"].clone();
    let told: Vec<(&Value, &Value)> = told
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (&e["resource_id"], &e["labels"]["sidekeep.lost_size"]))
        .collect();
    assert!(
        told.contains(&(&json!("0"), &json!("24"))) && told.contains(&(&json!("1"), &json!("4"))),
        "{told:?}"
    );
    for report in [verify(&daemon), verified(&daemon)] {
        assert_eq!((&report["verdict"], &report["gaps"]), (&json!("intact"), &json!(2)), "{report}");
    }
    // What is left of the stream is signed, and proved.
    for entry in [&kept, &after] {
        let proof = client.ok("audit.prove", json!({ "id": entry["id"] }));
        assert_eq!(proof["position"], entry["position"]);
    }
    assert_eq!(recover(&daemon, &[]).0, Some(0));
    // The publication goes on from where it was.
    let published = objects(&world);
    let pairs = published.windows(2);
    assert!(pairs.into_iter().all(|pair| pair[1].1["from"] == pair[0].0), "{published:?}");
}

#[test]
fn what_is_restored_twice_is_declared_twice() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let more = format!("{}audit.streams = 1\naudit.on_gap = \"record\"\n", publishing(&world));
    let daemon = world.start_with(&more);
    append(&daemon, 3);
    checkpoint(&daemon);
    let backup = Backup::take(&cluster);
    for round in 1..=2 {
        append(&daemon, 3);
        checkpoint(&daemon);
        // The daemon goes on while the server is another one.
        backup.restore();
        wait_for("the gap", || {
            let report = daemon.ok("system.status", json!({}))["publication"].clone();
            let gaps = world.sql("SELECT count(*) FROM audit_streams WHERE closed_at IS NOT NULL");
            (report["state"] == "whole" && gaps == round.to_string()).then_some(())
        });
        append(&daemon, 1);
        assert_eq!(checkpoint(&daemon)["state"], "ok");
        let report = verify(&daemon);
        assert_eq!((&report["verdict"], &report["gaps"]), (&json!("intact"), &json!(round)), "{report}");
    }
    // No number is given twice: each that was published is still that stream's.
    let published: BTreeSet<i64> = objects(&world)
        .iter()
        .flat_map(|(_, object)| object["heads"].as_array().unwrap().clone())
        .map(|head| {
            serde_json::from_str::<Value>(head.as_str().unwrap()).unwrap()["stream"].as_i64().unwrap()
        })
        .collect();
    let known = world.sql("SELECT string_agg(stream::text, ',' ORDER BY stream) FROM audit_streams");
    let known: BTreeSet<i64> = known.split(',').map(|number| number.parse().unwrap()).collect();
    assert!(published.is_subset(&known), "{published:?} of {known:?}");
}

#[test]
fn heads_that_are_missing_without_entries_are_taken_over() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let daemon = world.start_with(&publishing(&world));
    append(&daemon, 3);
    daemon.stop();
    let backup = Backup::take(&cluster);
    let daemon = world.start_with(&publishing(&world));
    checkpoint(&daemon);
    let note = daemon.ok("audit.checkpoint", json!({}))["checkpoint"].clone();
    daemon.stop();
    backup.restore();
    assert_eq!(world.sql("SELECT count(*) FROM audit_heads"), "0");
    let daemon = world.start_with(&publishing(&world));
    wait_state(&daemon, "whole");
    assert_eq!(daemon.ok("audit.checkpoint", json!({}))["checkpoint"], note);
    assert_eq!(world.sql("SELECT count(*) FROM audit_streams WHERE closed_at IS NOT NULL"), "0");
    append(&daemon, 1);
    checkpoint(&daemon);
    let report = verify(&daemon);
    assert_eq!((&report["verdict"], &report["gaps"]), (&json!("intact"), &json!(0)), "{report}");
}

#[test]
fn a_gap_is_believed_of_a_daemon_alone() {
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\naudit.streams = 1\n");
    append(&daemon, 5);
    checkpoint(&daemon);
    let root = world.sql("SELECT encode(root, 'hex') FROM audit_heads");
    // An application cannot write these labels, and what looks like it without them declares nothing.
    let labels = json!({ "sidekeep.kept_size": "3", "sidekeep.lost_size": "5", "sidekeep.lost_root": root });
    let mut client = daemon.client();
    let gap = json!({ "action": "log.gap", "resource_type": "stream", "resource_id": "0" });
    let mut forged = gap.clone();
    forged["labels"] = labels;
    assert_eq!(client.err("audit.append", forged).field(), "labels");
    client.ok("audit.append", gap);
    daemon.stop();
    world.sql(
        "SET session_replication_role = replica; DELETE FROM audit_logs WHERE position IN (3, 4); \
         UPDATE audit_streams SET closed_at = now()",
    );
    let (config, _) = world.configure("");
    let done = sidekeep(&["--config", config.to_str().unwrap(), "--json", "verify"]);
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&report["verdict"], &report["gaps"]), (&json!("broken"), &json!(0)), "{report}");
}

/// Waits until a standby has everything that was committed before.
pub fn caught_up(world: &World, owner_of_standby: &str) {
    let lsn = world.sql("SELECT pg_current_wal_lsn()");
    let query = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
    wait_for("the standby", || {
        let done = Command::new("psql").args([owner_of_standby, "-XqAtc", &query]).output().unwrap();
        (done.stdout == b"t\n").then_some(())
    });
}

#[test]
fn a_fail_over_that_lost_entries_is_declared_and_gone_on_with() {
    let cluster = Cluster::own(&[]);
    let mut world = World::on(&cluster);
    let standby = cluster.standby();
    let host = |cluster: &Cluster| cluster.socket_directory().display().to_string().replace('/', "%2F");
    let (user, rest) = world.app_url.split_once("@/").unwrap();
    let database = rest.split_once('?').unwrap().0;
    world.app_url = format!("{user}@{},{}/{database}", host(&cluster), host(&standby));
    let more = format!("{}audit.streams = 2\naudit.on_gap = \"record\"\n", publishing(&world));
    let owner_of_standby = world.owner_url.replace(
        &cluster.socket_directory().display().to_string(),
        &standby.socket_directory().display().to_string(),
    );
    let on_standby = |query: &str| crate::support::sql(&owner_of_standby, query);
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| standby.up());
        let daemon = world.start_with(&more);
        append(&daemon, 6);
        checkpoint(&daemon);
        caught_up(&world, &owner_of_standby);
        // From now on it hears nothing, and the primary knows nothing of it.
        on_standby("ALTER SYSTEM SET primary_conninfo = ''");
        on_standby("SELECT pg_reload_conf()");
        wait_for("its silence", || {
            (on_standby("SELECT count(*) FROM pg_stat_wal_receiver") == "0").then_some(())
        });
        let lost = daemon.ok("audit.append", json!({ "action": "lost" }));
        checkpoint(&daemon);
        cluster.crash();
        on_standby("SELECT pg_promote()");
        starting.join().unwrap();
        wait_for("the fail-over", || {
            let report = daemon.ok("system.status", json!({}))["publication"].clone();
            let closed = on_standby("SELECT count(*) FROM audit_streams WHERE closed_at IS NOT NULL");
            (report["state"] == "whole" && closed == "1").then_some(())
        });
        let entry =
            wait_for("an append", || daemon.client().call("audit.append", json!({ "action": "a" })).ok());
        assert_ne!(entry["stream"], lost["stream"]);
        assert_eq!(checkpoint(&daemon)["state"], "ok");
        assert_eq!(daemon.client().err("audit.get", json!({ "id": lost["id"] })).kind(), "not_found");
        let report = verify(&daemon);
        assert_eq!((&report["verdict"], &report["gaps"]), (&json!("intact"), &json!(1)), "{report}");
        daemon.stop();
    });
}

/// What a crash happens at; the flag is for what must come before.
type Step = (&'static str, fn(&str, &AtomicBool) -> bool);

fn inserts(sql: &str, table: &str) -> bool {
    sql.contains("INSERT INTO") && sql.contains(table)
}

/// Whether this is the commit of the transaction that inserts into this table.
fn commits(sql: &str, table: &str, seen: &AtomicBool) -> bool {
    seen.fetch_or(inserts(sql, table), Ordering::Relaxed) && sql == "COMMIT"
}

/// Each durable step of a checkpoint and its publication in the database; the object is written between the last two.
const PUBLISHING: [Step; 3] = [
    ("the heads", |sql, _| inserts(sql, "\"audit_heads\"")),
    ("the commit of the checkpoint", |sql, seen| commits(sql, "\"audit_checkpoints\"", seen)),
    ("the record of the publication", |sql, _| inserts(sql, "audit_publications AS p")),
];

/// Each durable step of declaring a gap.
const DECLARING: [Step; 6] = [
    ("the missing heads", |sql, _| inserts(sql, "\"audit_heads\"")),
    ("the newest note", |sql, _| inserts(sql, "\"audit_checkpoints\"")),
    ("closing the stream", |sql, _| sql.starts_with("UPDATE") && sql.contains("\"closed_at\"")),
    ("the entry", |sql, _| inserts(sql, "\"audit_staged\"")),
    ("the commit of the declaration", |sql, seen| commits(sql, "\"audit_staged\"", seen)),
    ("taking the entry in", |sql, _| sql.contains("DELETE FROM sidekeep.audit_staged")),
];

/// Waits until a step is reached, and kills the daemon there.
fn kill_at(daemon: &Daemon, proxy: &Proxy, step: &str, failed: u32) {
    wait_for(step, || (proxy.failed() > failed).then_some(()));
    daemon.signal(Signal::SIGKILL);
}

/// Sets the trap; answers how often one has sprung before.
fn fail_at(proxy: &Proxy, (_, what): Step, fault: Fault) -> u32 {
    let seen = AtomicBool::new(false);
    proxy.fail(fault, move |sql| what(sql, &seen));
    proxy.failed()
}

#[test]
fn a_crash_at_any_step_of_publication_is_gone_on_from() {
    for fault in [Fault::MuteBefore, Fault::MuteAfter] {
        for step in PUBLISHING {
            let mut world = World::new();
            let proxy = Proxy::new(&Cluster::shared().socket_directory());
            world.app_url = proxy.url(&world.app_url);
            let daemon = world.start_with(&publishing(&world));
            append(&daemon, 2);
            let failed = fail_at(&proxy, step, fault);
            daemon.client().send_call("job.run", json!({ "name": "checkpoint" }));
            kill_at(&daemon, &proxy, step.0, failed);
            drop(daemon);
            // Its run is let go, so that the next need not wait for it to be taken for dead.
            world.sql("UPDATE job_runs SET holder = NULL WHERE state = 'running'");
            let daemon = world.start_with(&publishing(&world));
            append(&daemon, 1);
            let what = format!("{}, {fault:?}", step.0);
            let run = checkpoint(&daemon);
            assert_eq!(run["state"], "ok", "{what}: {run}");
            let newest = objects(&world).last().map(|(size, _)| size.to_string());
            assert_eq!(newest, Some(world.sql("SELECT count(*) FROM audit_heads")), "{what}");
            let report = verify(&daemon);
            assert_eq!(
                (&report["verdict"], &report["gaps"]),
                (&json!("intact"), &json!(0)),
                "{what}: {report}"
            );
            wait_state(&daemon, "whole");
        }
    }
}

#[test]
fn a_crash_at_any_step_of_a_declaration_leaves_all_of_it_or_nothing() {
    let cluster = Cluster::own(&[]);
    let mut world = World::on(&cluster);
    let more = format!("{}audit.streams = 1\n", publishing(&world));
    let daemon = world.start_with(&more);
    append(&daemon, 3);
    checkpoint(&daemon);
    daemon.stop();
    let backup = Backup::take(&cluster);
    let daemon = world.start_with(&more);
    append(&daemon, 2);
    checkpoint(&daemon);
    daemon.stop();
    let proxy = Proxy::new(&cluster.socket_directory());
    world.app_url = proxy.url(&world.app_url);
    let more = format!("{more}audit.on_gap = \"record\"\n");
    for fault in [Fault::MuteBefore, Fault::MuteAfter] {
        for step in DECLARING {
            let what = format!("{}, {fault:?}", step.0);
            backup.restore();
            let failed = fail_at(&proxy, step, fault);
            let daemon = world.spawn(&more);
            kill_at(&daemon, &proxy, step.0, failed);
            drop(daemon);
            let daemon = world.start_with(&more);
            wait_state(&daemon, "whole");
            daemon.ok("audit.append", json!({ "action": "a" }));
            world.drained();
            assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'log.gap'"), "1", "{what}");
            let report = verify(&daemon);
            assert_eq!(
                (&report["verdict"], &report["gaps"]),
                (&json!("intact"), &json!(1)),
                "{what}: {report}"
            );
            daemon.stop();
        }
    }
}
