//! Dumps in every kind of destination: made, proved and verified there; and what a destination that fails, or a daemon that is
//! killed at it, leaves of them.

use bytes::Bytes;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sidekeep::objects::Objects;

use crate::archive::run as wait;
use crate::backup::{Shelf, done, failed, fill, list};
use crate::objects::open;
use crate::support::{Daemon, Passage, Store, sidekeep, wait_for};

/// The folders of dumps, finished or not.
fn folders(objects: &Objects) -> Vec<String> {
    wait(objects.folders("dumps")).unwrap()
}

/// The names of the dumps that are listed, the oldest first.
fn listed(daemon: &Daemon) -> Vec<String> {
    list(daemon).iter().rev().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

fn put(objects: &Objects, name: &str, bytes: &[u8]) {
    wait(objects.delete(name)).unwrap();
    wait(objects.create(name, Bytes::copy_from_slice(bytes))).unwrap();
}

fn verify(daemon: &Daemon, name: &str) -> (Option<i32>, String) {
    let said = sidekeep(&["--config", daemon.config.to_str().unwrap(), "backup", "verify", name]);
    (said.status.code(), String::from_utf8([said.stdout, said.stderr].concat()).unwrap())
}

fn keeps_what_it_is_given(store: Store) {
    let shelf = Shelf::at(&store);
    let daemon = shelf.start("");
    fill(&daemon, 3);
    let counts = done(&daemon, "backup");
    let item = list(&daemon).remove(0);
    let name = item["name"].as_str().unwrap();
    assert_eq!(item["size"], counts["bytes"]);
    let objects = open(&store);
    let there: Vec<_> =
        wait(objects.list(&format!("dumps/{name}/"))).unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(json!(there), item["objects"]);
    done(&daemon, "drill");
    let proved = |daemon: &Daemon| list(daemon)[0]["proved_at"].clone();
    assert!(proved(&daemon).is_string());
    let (code, said) = verify(&daemon, name);
    assert!(code == Some(0) && said.contains("pg_restore reads") && said.contains("proved 2"), "{said}");

    let object = format!("dumps/{name}/dump");
    let whole = wait(objects.get(&object, 64 << 20)).unwrap().0.to_vec();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (bytes, why) in [(&[][..], "0 bytes"), (&whole[..middle], "bytes"), (&flipped, "SHA-256")] {
        put(&objects, &object, bytes);
        assert_eq!(proved(&daemon).is_string(), bytes.len() == whole.len(), "{why}");
        let said = failed(&daemon, "drill");
        assert!(said.contains(why) && said.contains(name), "{said}");
        assert_eq!(proved(&daemon), Value::Null);
        let (code, said) = verify(&daemon, name);
        assert!(code == Some(1) && said.contains(why), "{said}");
        put(&objects, &object, &whole);
        done(&daemon, "drill");
    }
    wait(objects.delete(&object)).unwrap();
    assert!(failed(&daemon, "drill").contains("no such object"));
    put(&objects, &object, &whole);
    done(&daemon, "drill");
    assert!(proved(&daemon).is_string());

    let (other, _) = shelf.world.configure(&format!("deployment.name = \"other\"\n{}", shelf.config));
    let said = sidekeep(&["--config", other.to_str().unwrap(), "backup", "verify", name]);
    let why = String::from_utf8(said.stderr).unwrap();
    assert!(said.status.code() == Some(1) && why.contains("deployment test"), "{why}");
    assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact");
}

#[test]
fn a_directory_keeps_what_it_is_given() {
    keeps_what_it_is_given(Store::directory());
}

#[test]
fn a_bucket_of_s3_keeps_what_it_is_given() {
    keeps_what_it_is_given(Store::s3());
}

#[test]
fn a_bucket_of_google_keeps_what_it_is_given() {
    keeps_what_it_is_given(Store::gs());
}

fn fails_and_has_nothing_half(store: Store) {
    let direct = open(&store);
    let (store, gate) = store.gated();
    let shelf = Shelf::at(&store);
    let daemon = shelf.start("");
    fill(&daemon, 3);
    // Full, read-only, refusing, losing what is sent, and saying that all is well without keeping anything.
    let passages = [
        Passage::NoWrites(507),
        Passage::NoWrites(403),
        Passage::Refused,
        Passage::CutAfter(20_000),
        Passage::NoWrites(200),
    ];
    for passage in passages {
        gate.set(passage);
        let said = failed(&daemon, "backup");
        assert!(said.contains(&store.url) && !said.contains("sidekeep-tests"), "{passage:?}: {said}");
        assert!(folders(&direct).is_empty(), "{passage:?}");
        assert_eq!(daemon.ok("system.health", json!({}))["status"], "degraded");
    }
    gate.set(Passage::Slow(20));
    done(&daemon, "backup");
    assert_eq!(folders(&direct), listed(&daemon));
    gate.set(Passage::Open);
    done(&daemon, "drill");
    daemon.assert_well();
}

#[test]
fn a_bucket_of_s3_that_fails_has_nothing_half() {
    fails_and_has_nothing_half(Store::s3());
}

#[test]
fn a_bucket_of_google_that_fails_has_nothing_half() {
    fails_and_has_nothing_half(Store::gs());
}

fn a_daemon_is_killed_at_each_step(store: Store) {
    let direct = open(&store);
    let (store, gate) = store.gated();
    let shelf = Shelf::at(&store);
    // The upload begins, a part of it is sent, it ends, and the manifest makes it a dump.
    for (made, step) in ["dump?uploads", "partNumber=", "dump?uploadId", "manifest"].into_iter().enumerate() {
        let daemon = shelf.start("");
        fill(&daemon, usize::from(made == 0));
        let before = (listed(&daemon), gate.muted());
        gate.set(Passage::MuteAt(step));
        assert_eq!(daemon.ok("job.run", json!({ "name": "backup", "wait": "0s" }))["state"], "running");
        wait_for(step, || (gate.muted() > before.1).then_some(()));
        daemon.signal(Signal::SIGKILL);
        drop(daemon);
        gate.set(Passage::Open);
        shelf.forget_run();
        let daemon = shelf.start("");
        assert_eq!(listed(&daemon), before.0, "{step}");
        done(&daemon, "backup");
        let there = listed(&daemon);
        assert_eq!(
            (there.len(), folders(&direct)),
            (made + 1, there),
            "{step}: nothing is left of the other"
        );
        daemon.stop();
    }
    let daemon = shelf.start("");
    done(&daemon, "drill");
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_half_in_a_bucket_of_s3() {
    a_daemon_is_killed_at_each_step(Store::s3());
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_half_in_a_bucket_of_google() {
    a_daemon_is_killed_at_each_step(Store::gs());
}

#[test]
fn a_daemon_ends_in_time_though_its_destination_never_answers() {
    let (store, gate) = Store::s3().gated();
    let shelf = Shelf::at(&store);
    let daemon = shelf.start("socket.drain = \"100ms\"\n");
    fill(&daemon, 1);
    gate.set(Passage::Mute);
    assert_eq!(daemon.ok("job.run", json!({ "name": "backup", "wait": "0s" }))["state"], "running");
    daemon.stop();
    gate.set(Passage::Open);
    let daemon = shelf.start("");
    wait_for("the run that was let go", || (listed(&daemon).len() == 1).then_some(()));
}
