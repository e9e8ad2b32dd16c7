//! The end of the archive's objects: they go with the months of the log that are past their period, and everything that is left
//! is proved as before; not while the archive is away, nor what names somebody who is held.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::archive::{public_key, run, verify};
use crate::objects::open;
use crate::retention::{QUIET, ago, retention, run_as_foreseen};
use crate::retention_months::{Past, assert_intact};
use crate::support::{Daemon, Fault, Passage, Proxy, Store, World, wait_for};

/// The names in the archive that end so.
fn names(store: &Store, ends: &str) -> Vec<String> {
    let listed = run(open(store).list("archive/")).unwrap();
    listed.into_iter().map(|found| found.name).filter(|name| name.ends_with(ends)).collect()
}

/// How many objects, manifests, and documents of a removal there are.
fn there(store: &Store) -> [usize; 3] {
    [".jsonl.zst", ".manifest.json", ".removed.json"].map(|ends| names(store, ends).len())
}

fn archived(daemon: &Daemon) {
    let run = daemon.run_job("archive");
    assert_eq!(run["state"], "ok", "{run}");
}

/// How many removals are recorded, and how many entries say so.
fn told(world: &World, daemon: &Daemon) -> (String, usize) {
    let page = daemon.ok("audit.query", json!({ "action": "retention", "resource_type": "audit_archive" }));
    let entries = page["items"].as_array().unwrap().len();
    (world.sql("SELECT count(*) FROM audit_archives WHERE removed_at IS NOT NULL"), entries)
}

#[test]
fn past_their_period_objects_go_with_their_months_and_manifests_stay_unless_somebody_is_held() {
    let past = Past::new();
    let world = &past.world;
    // On any day of any month each of these is of a month that is over for so long as is said below, and not for longer; the last
    // is of one that is not, so that a clock that had jumped is not suspected.
    [(94, 700), (63, 30), (32, 5), (1, 1)].into_iter().for_each(|(days, entries)| past.live(days, entries));
    past.cluster.set_clock(0);
    let stores = Store::all();
    let all: String = stores.iter().map(|store| store.config.as_str()).collect();
    let mut consistent = None;
    // A month goes into each store: what is older than so long was archived in the one before.
    for (number, (store, keep)) in stores.iter().zip(["63d", "32d", "1d"]).enumerate() {
        eprintln!("{}", store.url);
        let other = stores.iter().filter(|other| other.url != store.url);
        let others: String = other.map(|other| other.config.as_str()).collect();
        let more = format!("{QUIET}audit.access = \"none\"\n{others}{}", past.config(store, keep));
        let daemon = world.start_with(&more);
        let mut client = daemon.client();
        let consistency =
            client.ok("audit.consistency", json!({ "stream": 0, "from_size": 650, "to_size": 730 }));
        assert_eq!(consistent.get_or_insert_with(|| consistency.clone()), &consistency);
        archived(&daemon);
        assert_eq!(there(store), [1, 1, 0]);
        let object = world.sql("SELECT object FROM audit_archives ORDER BY month DESC LIMIT 1");
        assert!(object.starts_with(&store.url), "{object}");
        assert_eq!(run_as_foreseen(&daemon)["archives"], Value::Null, "past its period, and not confirmed");
        assert_eq!(Past::confirm(&daemon), keep);

        let hold = client.ok("subject.hold", json!({ "user_id": "u", "reason": "a claim" }));
        let counts = run_as_foreseen(&daemon);
        assert!(counts["audit_months"].as_i64() > Some(0) && counts["archives"] == 0, "{counts}");
        assert_eq!((there(store), told(world, &daemon)), ([1, 1, 0], (number.to_string(), number)));
        let gone: i64 = world.sql("SELECT max(size) FROM audit_dropped").parse().unwrap();
        let entry = json!({ "stream": 0, "position": gone - 1 });
        assert_eq!(client.err("audit.get", entry.clone()).data["archive"], object);

        client.ok("subject.release", json!({ "id": hold["id"], "reason": "settled" }));
        // Of somebody else the log says nothing that long ago.
        client.ok("audit.append", json!({ "action": "a", "user_id": "somebody else" }));
        let hold = client.ok("subject.hold", json!({ "user_id": "somebody else", "reason": "a claim" }));
        let counts = run_as_foreseen(&daemon);
        assert_eq!((&counts["audit_months"], &counts["archives"]), (&json!(0), &json!(1)), "{counts}");
        assert_eq!((there(store), told(world, &daemon)), ([0, 1, 1], ((number + 1).to_string(), number + 1)));
        assert_eq!(run_as_foreseen(&daemon).get("archives"), None, "none was due");
        assert_eq!(client.err("audit.get", entry).data["archive"], Value::Null);
        client.ok("subject.release", json!({ "id": hold["id"], "reason": "settled" }));

        // All that is left is proved as before.
        assert_intact(&daemon, &gone.to_string());
        let left = world.sql("SELECT id FROM audit_logs ORDER BY position LIMIT 1");
        client.ok("audit.prove", json!({ "id": left }));
        let consistency =
            client.ok("audit.consistency", json!({ "stream": 0, "from_size": 650, "to_size": 730 }));
        assert_eq!(consistent.as_ref(), Some(&consistency));
        archived(&daemon);
        assert_eq!(there(store), [0, 1, 1], "what was deleted is not archived again");
        daemon.stop();
    }

    let daemon = world.start_with(&format!("{QUIET}{all}"));
    let key = public_key(&daemon, world);
    let urls: Vec<&str> = stores.iter().map(|store| store.url.as_str()).collect();
    let verified = || verify(&urls, Some(&daemon.config), Some(&key));
    let (code, report) = verified();
    assert_eq!((code, &report["removed"], &report["months"]), (Some(0), &json!(3), &json!(3)), "{report}");
    // Without the document that says so an object is missing.
    let said = names(&stores[1], ".removed.json").remove(0);
    run(open(&stores[1]).delete(&said)).unwrap();
    let (code, report) = verified();
    assert_eq!((code, &report["breaks"][0]["what"]), (Some(1), &json!("object")), "{report}");
}

/// A daemon that has archived a month which is over, and may remove it.
fn with_an_archive(past: &Past, store: &Store) -> Daemon {
    past.live(62, 700);
    past.cluster.set_clock(0);
    let daemon = past.world.start_with(&format!("{QUIET}{}", past.config(store, "1d")));
    archived(&daemon);
    Past::confirm(&daemon);
    daemon
}

#[test]
fn an_archive_that_is_away_keeps_nothing_else_and_nothing_of_it_is_said_to_be_gone() {
    let past = Past::new();
    let world = &past.world;
    let (store, gate) = Store::s3().gated();
    let daemon = with_an_archive(&past, &store);
    let mut due = 0;
    // Refusing, read-only, full.
    for passage in [Passage::Refused, Passage::NoWrites(403), Passage::NoWrites(507)] {
        let messages = json!([{ "role": "user", "content": "hello", "created_at": ago(100) }]);
        daemon.ok(
            "conversation.create",
            json!({ "user_id": "u", "messages": messages, "created_at": ago(100) }),
        );
        let months = retention(&daemon, true)["counts"]["audit_months"].as_i64().unwrap();
        gate.set(passage);
        let begun = daemon.ok("job.run", json!({ "name": "retention", "wait": "0s" }));
        let run = daemon.ended_run("retention", &begun);
        gate.set(Passage::Open);
        assert_eq!(run["state"], "failed", "{passage:?}: {run}");
        assert!(run["error"].as_str().unwrap().contains("archive.destination"), "{passage:?}: {run}");
        let counts = &run["counts"];
        let counted =
            ["conversations", "audit_months", "archives"].map(|kind| counts[kind].as_i64().unwrap());
        assert_eq!(counted, [1, months, 0], "{passage:?}: {run}");
        assert_eq!((there(&store), told(world, &daemon)), ([1, 1, 0], ("0".into(), 0)), "{passage:?}");
        due += months;
    }
    assert!(due > 0);
    gate.set(Passage::Slow(5));
    assert_eq!(run_as_foreseen(&daemon)["archives"], 1);
    assert_eq!((there(&store), told(world, &daemon)), ([0, 1, 1], ("1".into(), 1)));
    assert_intact(&daemon, &world.sql("SELECT max(size) FROM audit_dropped"));
}

#[test]
fn an_object_goes_only_where_its_manifest_is_and_what_cannot_be_read_may_name_who_is_held() {
    let past = Past::new();
    let world = &past.world;
    let store = Store::directory();
    let daemon = with_an_archive(&past, &store);
    let file = |column: &str| {
        let url = world.sql(&format!("SELECT {column} FROM audit_archives"));
        PathBuf::from(url.strip_prefix("file://").unwrap())
    };
    let (manifest, object, root) = (file("manifest"), file("object"), store.files.clone().unwrap());
    let (said, bytes) = (std::fs::read(&manifest).unwrap(), std::fs::read(&object).unwrap());
    let fails = |told: &str| {
        let run = retention(&daemon, false);
        assert_eq!((&run["state"], &run["counts"]["archives"]), (&json!("failed"), &json!(0)), "{run}");
        assert!(run["error"].as_str().unwrap().contains(told), "{told}: {run}");
        assert_eq!(world.sql("SELECT count(*) FROM audit_archives WHERE removed_at IS NOT NULL"), "0");
    };
    // The disk is not mounted; nothing is there but its folder.
    let elsewhere = root.with_extension("elsewhere");
    std::fs::rename(&root, &elsewhere).unwrap();
    fails("the archive is not there");
    let _ = std::fs::remove_dir_all(&root);
    std::fs::write(&root, "").unwrap();
    fails("archive.destination");
    std::fs::remove_file(&root).unwrap();
    std::fs::rename(&elsewhere, &root).unwrap();
    // Another deployment's, and none at all.
    let mut other: Value = serde_json::from_slice(&said).unwrap();
    other["body"]["deployment"] = json!("other");
    for (wrong, told) in
        [(serde_json::to_vec(&other).unwrap(), "manifest.json"), (b"{}".to_vec(), "cannot be read")]
    {
        std::fs::write(&manifest, wrong).unwrap();
        fails(told);
        assert!(object.exists(), "{told}");
    }
    std::fs::write(&manifest, &said).unwrap();

    // Whom a damaged object names nobody can say, as long as somebody is held.
    daemon.ok("audit.append", json!({ "action": "a", "user_id": "somebody else" }));
    let hold = daemon.ok("subject.hold", json!({ "user_id": "somebody else", "reason": "a claim" }));
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    for damaged in [&flipped[..], &bytes[..bytes.len() / 2], &[]] {
        std::fs::write(&object, damaged).unwrap();
        assert_eq!(run_as_foreseen(&daemon)["archives"], 0);
        assert!(object.exists());
    }
    assert!(daemon.log().contains("they name who is held"));
    std::fs::write(&object, &bytes).unwrap();
    assert_eq!(run_as_foreseen(&daemon)["archives"], 1);
    assert_eq!((there(&store), told(world, &daemon)), ([0, 1, 1], ("1".into(), 1)));
    daemon.ok("subject.release", json!({ "id": hold["id"], "reason": "settled" }));
    assert_intact(&daemon, &world.sql("SELECT max(size) FROM audit_dropped"));
}

#[test]
fn a_hold_is_placed_before_an_object_goes_or_after_and_never_while_it_does() {
    let past = Past::new();
    let world = &past.world;
    let (store, gate) = Store::s3().gated();
    let mut removing = with_an_archive(&past, &store);
    let other = world.start_with("limits.call_timeout = \"1s\"\njobs.enabled = false\n");
    let hold = json!({ "user_id": "u", "reason": "a claim" });

    // The deletion is on its way.
    gate.set(Passage::MuteAt("?delete"));
    removing.ok("job.run", json!({ "name": "retention", "wait": "0s" }));
    wait_for("the deletion", || (gate.muted() > 0).then_some(()));
    let refused = other.client().err("subject.hold", hold.clone());
    assert_eq!(refused.kind(), "unavailable", "{refused:?}");
    assert_eq!(world.sql("SELECT count(*) FROM legal_holds"), "0");
    // Whoever deletes is gone, and did not.
    removing.signal(Signal::SIGKILL);
    removing.wait();
    wait_for("the hold", || other.client().call("subject.hold", hold.clone()).ok());
    gate.set(Passage::Open);
    other.stop();
    let daemon = world.start_with(&past.config(&store, "1d"));
    world.sql("UPDATE job_runs SET heartbeat_at = now() - interval '1 minute' WHERE state = 'running'");
    wait_for("the end of the run", || {
        (world.sql("SELECT count(*) FROM job_runs WHERE state = 'running'") == "0").then_some(())
    });
    assert_eq!(names(&store, ".jsonl.zst").len(), 1);
    assert_eq!(told(world, &daemon), ("0".into(), 0));
}

/// Where the daemon that removes an object is stopped.
enum Step {
    /// Its request with this in its first line is never answered.
    Store(&'static str),
    /// A statement of it.
    Database(Fault),
    /// The commit of the record of it.
    Commit(Fault),
}

#[test]
fn a_daemon_that_is_killed_while_an_object_goes_is_gone_on_with_and_it_is_counted_once() {
    let past = Past::new();
    let world = &past.world;
    let (store, gate) = Store::s3().gated();
    let quiet = format!("{QUIET}{}", past.config(&store, "1d"));
    let daemon = with_an_archive(&past, &store);
    let hold = daemon.ok("subject.hold", json!({ "user_id": "u", "reason": "a claim" }));
    assert_eq!(run_as_foreseen(&daemon)["archives"], 0, "the month alone");
    daemon.ok("subject.release", json!({ "id": hold["id"], "reason": "settled" }));
    daemon.stop();
    let object = names(&store, ".jsonl.zst").remove(0);
    let (bytes, _) = run(open(&store).get(&object, 64 << 20)).unwrap();
    let proxy = Proxy::new(&past.cluster.socket_directory());
    let steps = [
        Step::Store(".removed.json"),
        // How an object of S3 is deleted.
        Step::Store("?delete"),
        Step::Database(Fault::MuteBefore),
        Step::Database(Fault::MuteAfter),
        Step::Commit(Fault::MuteBefore),
        Step::Commit(Fault::MuteAfter),
    ];
    for (number, step) in steps.into_iter().enumerate() {
        world.sql("UPDATE audit_archives SET removed_at = NULL");
        names(&store, ".removed.json").iter().for_each(|said| run(open(&store).delete(said)).unwrap());
        let _ = run(open(&store).create(&object, bytes.clone()));
        assert_eq!(there(&store), [1, 1, 0]);
        let mut killed =
            world.start_with(&format!("{quiet}database.url = {:?}\n", proxy.url(&world.app_url)));
        let (muted, failed) = (gate.muted(), proxy.failed());
        match step {
            Step::Store(name) => gate.set(Passage::MuteAt(name)),
            Step::Database(fault) => proxy.fail(fault, |sql| sql.contains("SET \"removed_at\"")),
            Step::Commit(fault) => proxy.then_fail_commit(fault, "audit_staged"),
        }
        let begun = killed.ok("job.run", json!({ "name": "retention", "wait": "0s" }));
        wait_for("the step", || (gate.muted() > muted || proxy.failed() > failed).then_some(()));
        killed.signal(Signal::SIGKILL);
        killed.wait();
        gate.set(Passage::Open);
        let other = world.start_with(&past.config(&store, "1d"));
        world.sql("UPDATE job_runs SET heartbeat_at = now() - interval '1 minute' WHERE state = 'running'");
        let run = other.ended_run("retention", &begun);
        assert_eq!((&run["state"], &run["counts"]["archives"]), (&json!("ok"), &json!(1)), "{number}: {run}");
        let id = begun["run"].as_str().unwrap();
        assert_eq!(world.sql(&format!("SELECT epoch FROM job_runs WHERE run = '{id}'")), "2", "{number}");
        assert_eq!((there(&store), told(world, &other)), ([0, 1, 1], ("1".into(), number + 1)), "{number}");
        other.stop();
    }
    let daemon = world.start_with(&quiet);
    assert_intact(&daemon, &world.sql("SELECT max(size) FROM audit_dropped"));
    let (code, report) = verify(&[&store.url], Some(&daemon.config), None);
    assert_eq!((code, &report["removed"]), (Some(0), &json!(1)), "{report}");
}
