//! Archiving while the archive or the daemon fails: nothing half is ever taken for whole, nothing is overwritten, and what is
//! tried again ends as if nothing had happened.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::archive::{Past, archive, archiving, run, verify};
use crate::objects::open;
use crate::support::{Daemon, Fault, Passage, Proxy, Store, World, wait_for};

fn recorded(world: &World) -> String {
    world.sql("SELECT count(*) FROM audit_archives")
}

/// The names in the archive, with their contents.
fn contents(store: &Store) -> Vec<(String, Vec<u8>)> {
    let objects = open(store);
    let listed = run(objects.list("archive/")).unwrap();
    let names = listed.into_iter().map(|found| found.name);
    names.map(|name| (name.clone(), run(objects.get(&name, 64 << 20)).unwrap().0.to_vec())).collect()
}

fn assert_whole(past: &Past, store: &Store, daemon: &Daemon) {
    let run = archive(daemon);
    assert_eq!(run["state"], "ok", "{run}");
    assert_eq!(recorded(&past.world), "6");
    let (code, report) = verify(&[&store.url], Some(&daemon.config), None);
    assert_eq!((code, &report["months"]), (Some(0), &json!(6)), "{report}");
    assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact");
}

#[test]
fn an_archive_that_cannot_be_written_fails_the_run_with_the_reason() {
    let past = Past::new();
    for store in [Store::s3(), Store::gs()] {
        past.forget();
        let (store, gate) = store.gated();
        let daemon = past.start(&store);
        // Full, read-only, refusing, losing what is sent, and saying that all is well without keeping anything.
        let passages = [
            Passage::NoWrites(507),
            Passage::NoWrites(403),
            Passage::Refused,
            Passage::CutAfter(2000),
            Passage::NoWrites(200),
        ];
        for passage in passages {
            gate.set(passage);
            let run = archive(&daemon);
            assert_eq!(run["state"], "failed", "{passage:?}: {run}");
            let why = run["error"].as_str().unwrap();
            assert!(why.contains("archive.destination") && !why.contains("secret"), "{passage:?}: {why}");
            assert_eq!(recorded(&past.world), "0", "{passage:?}");
            assert_eq!(daemon.ok("system.health", json!({}))["checks"]["database"]["status"], "ok");
        }
        gate.set(Passage::Slow(20));
        assert_whole(&past, &store, &daemon);
        daemon.stop();
    }

    // A directory whose disk is not there, and one that is full.
    past.forget();
    let store = Store::directory();
    let path = store.files.clone().unwrap();
    std::fs::write(&path, "").unwrap();
    let daemon = past.start(&store);
    let run = archive(&daemon);
    assert_eq!(run["state"], "failed", "{run}");
    assert!(run["error"].as_str().unwrap().contains("archive.destination"), "{run}");
    std::fs::remove_file(&path).unwrap();
    assert_whole(&past, &store, &daemon);
}

#[test]
fn a_daemon_that_is_killed_at_any_step_leaves_nothing_half() {
    let past = Past::new();
    for store in [Store::s3(), Store::gs()] {
        // In the middle of an object, at the end of it, and before its manifest.
        for (step, left) in [("partNumber", 0), (".jsonl.zst?uploadId", 0), (".manifest.json", 1)] {
            past.forget();
            let (store, gate) = bucket_beside(&store).gated();
            let daemon = past.start(&store);
            gate.set(Passage::MuteAt(step));
            let begun = daemon.ok("job.run", json!({ "name": "archive", "wait": "0s" }));
            wait_for(step, || (gate.muted() > 0).then_some(()));
            daemon.signal(Signal::SIGKILL);
            drop(daemon);
            gate.set(Passage::Open);
            let there = contents(&store);
            assert_eq!(
                there.len(),
                left,
                "{step}: {:?}",
                there.iter().map(|(name, _)| name).collect::<Vec<_>>()
            );
            let next = gone_on_with(&past, &store, &begun);
            assert_whole(&past, &store, &next);
            let after = contents(&store);
            assert!(there.iter().all(|object| after.contains(object)), "{step}: what was whole is taken up");
            assert_eq!(after.len(), 12, "{step}");
            next.stop();
        }
    }
}

/// Another daemon, which has gone on with a run under the same row, and has counted what either has done, once.
fn gone_on_with(past: &Past, store: &Store, begun: &Value) -> Daemon {
    let daemon = past.world.start_with(&archiving(store).replace("jobs.enabled = false\n", ""));
    past.world.sql("UPDATE job_runs SET heartbeat_at = now() - interval '1 minute' WHERE state = 'running'");
    let run = daemon.ended_run("archive", begun);
    let sums = past.world.sql("SELECT count(*), sum(entries), sum(size) FROM audit_archives");
    let counts = &run["counts"];
    let counted = format!("{}|{}|{}", counts["months"], counts["entries"], counts["bytes"]);
    assert_eq!((&run["state"], &counted), (&json!("ok"), &sums), "{run}");
    let id = begun["run"].as_str().unwrap();
    assert_eq!(past.world.sql(&format!("SELECT epoch FROM job_runs WHERE run = '{id}'")), "2");
    daemon
}

/// A fresh bucket of the same kind.
fn bucket_beside(store: &Store) -> Store {
    if store.url.starts_with("s3") { Store::s3() } else { Store::gs() }
}

#[test]
fn a_manifest_without_its_row_is_verified_again_and_recorded() {
    let past = Past::new();
    let proxy = Proxy::new(&past.cluster.socket_directory());
    let store = Store::directory();
    let more = format!("{}database.url = {:?}\n", archiving(&store), proxy.url(&past.world.app_url));
    // After a cut it tries again, and so is kept from ending the run before it is killed.
    let cases: [&[Fault]; 3] =
        [&[Fault::CutBefore, Fault::MuteBefore], &[Fault::MuteBefore], &[Fault::MuteAfter]];
    for faults in cases {
        past.forget();
        let before = contents_or_none(&store);
        let daemon = past.world.start_with(&more);
        let all = proxy.failed() + u32::try_from(faults.len()).unwrap();
        for fault in faults {
            proxy.then_fail(*fault, |sql| sql.contains("INSERT INTO sidekeep.audit_archives"));
        }
        let begun = daemon.ok("job.run", json!({ "name": "archive", "wait": "0s" }));
        wait_for("the fault", || (proxy.failed() == all).then_some(()));
        daemon.signal(Signal::SIGKILL);
        drop(daemon);
        let next = gone_on_with(&past, &store, &begun);
        assert_whole(&past, &store, &next);
        let after = contents_or_none(&store);
        assert!(before.iter().all(|object| after.contains(object)), "{faults:?}");
        assert_eq!(after.len(), 12, "{faults:?}");
        next.stop();
    }
}

fn contents_or_none(store: &Store) -> Vec<(String, Vec<u8>)> {
    if store.files.as_ref().is_some_and(|path| path.exists()) { contents(store) } else { Vec::new() }
}

#[test]
fn what_is_there_already_and_differs_is_never_overwritten() {
    let past = Past::new();
    let store = Store::directory();
    let daemon = past.start(&store);
    assert_eq!(archive(&daemon)["state"], "ok");
    let name = past.world.sql("SELECT manifest FROM audit_archives ORDER BY month, stream LIMIT 1 OFFSET 3");
    let manifest = name.strip_prefix("file://").unwrap().to_owned();
    let whole = std::fs::read(&manifest).unwrap();
    let object = past.world.sql("SELECT object FROM audit_archives ORDER BY month, stream LIMIT 1 OFFSET 3");
    let object = object.strip_prefix("file://").unwrap().to_owned();
    let bytes = std::fs::read(&object).unwrap();

    let others = past.world.sql("SELECT manifest FROM audit_archives ORDER BY month, stream LIMIT 1");
    let others = std::fs::read(others.strip_prefix("file://").unwrap()).unwrap();
    let mut changed = bytes.clone();
    changed[2000] ^= 1;
    let replaced = |path: &str, bytes: &[u8]| {
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    for (path, other, good) in [(&manifest, &others, &whole), (&object, &changed, &bytes)] {
        replaced(path, other);
        past.forget();
        let before = contents(&store);
        let run = archive(&daemon);
        assert_eq!(run["state"], "failed", "{run}");
        assert!(run["error"].as_str().unwrap().contains("archive.destination: archive/"), "{run}");
        assert_eq!(contents(&store), before, "nothing was touched");
        assert_eq!(recorded(&past.world), "5", "the others are archived all the same");
        replaced(path, good);
    }
    assert_whole(&past, &store, &daemon);
}

#[test]
fn entries_that_were_tampered_with_are_not_archived() {
    let past = Past::new();
    let store = Store::directory();
    let daemon = past.start(&store);
    past.world.sql(
        "SET session_replication_role = replica; UPDATE audit_logs SET action = 'forged' WHERE stream = 1 AND position = 900",
    );
    let run = archive(&daemon);
    assert_eq!(run["state"], "failed", "{run}");
    assert!(run["error"].as_str().unwrap().contains("stream 1 position 900"), "{run}");
    assert_eq!(recorded(&past.world), "5");
    let (code, report) = verify(&[&store.url], None, None);
    assert_eq!((code, &report["breaks"][0]["what"]), (Some(1), &json!("gap")), "{report}");
}
