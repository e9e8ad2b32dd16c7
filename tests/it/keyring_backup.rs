//! The keyring's own backup: whoever is erased is gone from it within seconds, whatever happens, and nobody else is.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::keyring_faults::late_seconds;
use crate::support::kept::{directory, keyring_backup, people, rows};
use crate::support::{Cluster, Daemon, Fault, Proxy, World, wait_for};

/// The job runs when somebody asks for it, and when an erasure, a hold or a restriction does.
pub const NEVER: &str = "jobs.keyring_backup.schedule = \"0 0 1 1 *\"\n";

fn make(daemon: &Daemon, users: &[&str]) {
    for user in users {
        daemon.ok("preferences.set", json!({ "user_id": user, "preferences": { "of": user } }));
    }
}

fn run(daemon: &Daemon) -> Value {
    daemon.ok("job.run", json!({ "name": "keyring_backup", "wait": "60s" }))
}

fn erase(daemon: &Daemon, user: &str) {
    daemon.ok("subject.erase", json!({ "user_id": user, "reason": "request" }));
}

fn intact(daemon: &Daemon) {
    let verdict = daemon.ok("audit.verify", json!({}));
    assert_eq!((&verdict["verdict"], &verdict["breaks"]), (&json!("intact"), &json!([])));
}

/// Whether bytes are somewhere in the files below a folder.
fn holds(folder: &Path, wanted: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, wanted);
        }
        std::fs::read(path).unwrap().windows(wanted.len()).any(|window| window == wanted)
    })
}

#[test]
fn whoever_is_erased_is_gone_from_the_backup_within_seconds() {
    let world = World::new();
    // Not by its schedule.
    let daemon = world.start_with(&format!("{}{NEVER}", keyring_backup(&world)));
    make(&daemon, &["user:ada", "user:bob", "user:eve"]);
    let done = run(&daemon);
    assert_eq!(done["state"], "ok", "{done}");
    assert_eq!(people(&world), ["user:ada", "user:bob", "user:eve"]);
    assert!(!holds(&directory(&world), b"user:bob"), "no user id is there in the clear");
    let own = rows(&world, &[&world.path("kek")], "subjects");
    assert!(own.iter().any(|row| row["subject_id"] == 0), "the deployment's own key is there");

    erase(&daemon, "user:bob");
    wait_for("the erasure", || (people(&world) == ["user:ada", "user:eve"]).then_some(()));
    let tombstones = rows(&world, &[&world.path("kek")], "subject_erasures");
    assert_eq!(tombstones.len(), 1);
    assert_eq!(tombstones[0]["reason"], "request");

    // A hold and a restriction do not wait either.
    daemon.ok("subject.hold", json!({ "user_id": "user:eve", "reason": "a lawsuit" }));
    daemon.ok("subject.restrict", json!({ "user_id": "user:ada", "reason": "contested" }));
    wait_for("hold and restriction", || {
        let keys = [world.path("kek")];
        let held = rows(&world, &[&keys[0]], "legal_holds").len() == 1;
        let restricted = |row: &Value| row["user_id"] == "user:ada" && !row["restricted_at"].is_null();
        (held && rows(&world, &[&keys[0]], "subjects").iter().any(restricted)).then_some(())
    });
    let entered = "SELECT count(*) FROM audit_logs WHERE labels ->> 'sidekeep.method' = 'job.run' AND resource_id = 'keyring_backup'";
    assert_eq!(world.sql(entered), "1", "of its runs only the one that somebody asked for is in the log");
    let again = run(&daemon);
    assert_eq!(again["counts"]["shards"], 0, "what did not change is not written: {again}");
    intact(&daemon);
    daemon.assert_well();
}

#[test]
fn an_erasure_on_a_daemon_without_jobs_is_seen_by_one_that_has_them() {
    let world = World::new();
    let backup = keyring_backup(&world);
    let (runner, other) = (world.start_with(&backup), world.start_with("jobs.enabled = false\n"));
    make(&other, &["ada", "bob"]);
    run(&runner);
    erase(&other, "ada");
    wait_for("the erasure", || (people(&world) == ["bob"]).then_some(()));
    intact(&other);
    runner.assert_well();
}

#[test]
fn a_writer_that_stalls_puts_nobody_back_who_is_erased_meanwhile() {
    let world = World::new();
    let backup = keyring_backup(&world);
    let (daemon, other) = (world.start_with(&backup), world.start_with("jobs.enabled = false\n"));
    make(&daemon, &["ada", "bob"]);
    run(&daemon);
    // It has read the database, and waits for whoever else writes there.
    let lock = std::fs::File::create(directory(&world).join(".lock")).unwrap();
    lock.lock().unwrap();
    let shard = world.sql("SELECT shard_of(subject_id) FROM subjects WHERE user_id = 'ada'");
    daemon.ok("subject.restrict", json!({ "user_id": "ada", "reason": "contested" }));
    let begun = format!(
        "SELECT count(*) > 1 FROM keyring_writes WHERE object = 'shards/' || lpad(to_hex({shard}), 2, '0')"
    );
    wait_for("the stalled writer", || (world.sql(&begun) == "t").then_some(()));
    wait_for("its wait for the lock", || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let pid = daemon.pid().to_string();
        locks
            .lines()
            .any(|line| line.contains("-> FLOCK") && line.split_whitespace().any(|w| w == pid))
            .then_some(())
    });
    let waits = "SELECT count(*) FROM job_runs WHERE name = 'keyring_backup' AND state = 'running'";
    assert_eq!(world.sql(waits), "1");
    erase(&other, "ada");
    lock.unlock().unwrap();
    wait_for("the erasure", || (people(&world) == ["bob"]).then_some(()));
    wait_for("the run's end", || (world.sql(waits) == "0").then_some(()));
    assert_eq!(world.sql("SELECT count(*) FROM keyring_shards WHERE stored <> generation"), "0");
    assert_eq!(people(&world), ["bob"]);
    intact(&daemon);
    daemon.assert_well();
}

#[test]
fn a_writer_that_dies_after_its_write_leaves_what_the_next_one_finds() {
    let cluster = Cluster::shared();
    let world = World::new();
    let backup = keyring_backup(&world);
    let proxy = Proxy::new(&cluster.socket_directory());
    let url = format!("database.url = {:?}\n", proxy.url(&world.app_url));
    // Before the trap is set, nothing is written.
    let first = world.start_with(&format!("{url}{backup}jobs.enabled = false\n"));
    make(&first, &["ada", "bob"]);
    proxy.fail(Fault::MuteBefore, |sql| sql.contains("SET stored = $2"));
    let mut client = first.client();
    client.send_call("job.run", json!({ "name": "keyring_backup" }));
    wait_for("a write that is not settled", || (proxy.failed() == 1).then_some(()));
    first.signal(Signal::SIGKILL);
    drop(first);
    // Its run is let go, so that the next need not wait for it to be taken for dead.
    world.sql("UPDATE job_runs SET holder = NULL WHERE state = 'running'");
    let second = world.start_with(&backup);
    erase(&second, "ada");
    wait_for("the erasure", || (people(&world) == ["bob"]).then_some(()));
    intact(&second);
    second.assert_well();
}

#[test]
fn a_database_that_was_restored_does_not_put_its_people_back() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let more = keyring_backup(&world);
    let daemon = world.start_with(&more);
    make(&daemon, &["ada", "bob"]);
    run(&daemon);
    daemon.stop();
    let before = crate::gap::Backup::take(&cluster);
    let daemon = world.start_with(&more);
    erase(&daemon, "ada");
    wait_for("the erasure", || (people(&world) == ["bob"]).then_some(()));
    wait_for("the run's end", || {
        (world.sql("SELECT count(*) FROM job_runs WHERE name = 'keyring_backup' AND state = 'running'")
            == "0")
            .then_some(())
    });
    daemon.stop();
    before.restore();
    let daemon = world.spawn(&format!("{more}jobs.keyring_backup.schedule = \"* * * * * *\"\n"));
    daemon.wait_listening();
    let refused = daemon.client().err("preferences.get", json!({ "user_id": "ada" }));
    assert!(refused.message.contains("recover --accept-gap"), "{refused:?}");
    let told = wait_for("the run that fails", || {
        let told =
            world.sql("SELECT max(error) FROM job_runs WHERE name = 'keyring_backup' AND state = 'failed'");
        (!told.is_empty()).then_some(told)
    });
    assert!(told.contains("sidekeep recover"), "{told}");
    assert_eq!(people(&world), ["bob"], "what a later state wrote is not replaced");
    assert_eq!(daemon.ok("system.health", json!({}))["checks"]["keyring_backup"]["status"], "unavailable");
}

#[test]
fn a_key_that_the_backup_needs_is_not_called_unused_and_a_rotation_leaves_none() {
    let world = World::new();
    let (old, new) = (world.path("kek"), world.add_key("new"));
    let backup = keyring_backup(&world);
    let daemon = world.start_with(&backup);
    make(&daemon, &["ada"]);
    run(&daemon);
    daemon.stop();
    let daemon = world.start_with(&format!("{backup}keyring.key_files = [{new:?}, {old:?}]\n"));
    let of = |status: &Value, file: &Path| {
        let reports = status["keks"].as_array().unwrap();
        reports.iter().find(|report| report["file"] == file.to_str().unwrap()).unwrap().clone()
    };
    let status = daemon.ok("keyring.status", json!({}));
    assert!(of(&status, &old)["shards"].as_i64().unwrap() > 0, "{status}");
    let done = daemon.ok("keyring.rotate", json!({ "wait": "30s" }));
    assert_eq!(done["state"], "ok", "{done}");
    let status = daemon.ok("keyring.status", json!({}));
    assert_eq!(
        (&of(&status, &old)["shards"], &of(&status, &old)["keys"]),
        (&json!(0), &json!(0)),
        "{status}"
    );
    assert!(rows(&world, &[&new], "subjects").iter().any(|row| row["user_id"] == "ada"));
    intact(&daemon);
    daemon.assert_well();
}

#[test]
fn what_is_gone_is_written_again_and_what_is_not_ours_is_not_replaced() {
    let world = World::new();
    let daemon = world.start_with(&keyring_backup(&world));
    make(&daemon, &["ada", "bob"]);
    run(&daemon);
    std::fs::remove_dir_all(directory(&world).join("shards")).unwrap();
    std::fs::remove_file(directory(&world).join("manifest.json")).unwrap();
    let done = run(&daemon);
    assert_eq!((&done["state"], people(&world).len()), (&json!("ok"), 2), "{done}");
    assert!(directory(&world).join("manifest.json").exists());

    let shard = world
        .sql("SELECT lpad(to_hex(shard_of(subject_id)::int), 2, '0') FROM subjects WHERE user_id = 'ada'");
    let path = directory(&world).join("shards").join(shard);
    let sound = std::fs::read(&path).unwrap();
    std::fs::write(&path, b"something else\n").unwrap();
    daemon.ok("subject.restrict", json!({ "user_id": "ada", "reason": "contested" }));
    wait_for("the run that fails", || {
        let failed = "SELECT max(error) FROM job_runs WHERE name = 'keyring_backup' AND state = 'failed'";
        world.sql(failed).contains("is not replaced").then_some(())
    });
    assert_eq!(std::fs::read(&path).unwrap(), b"something else\n");
    std::fs::write(&path, sound).unwrap();
    wait_for("a run that succeeds", || (run(&daemon)["state"] == "ok").then_some(()));
    intact(&daemon);
    daemon.assert_well();
}

/// A disk that was not mounted for a while, and is again.
#[test]
fn a_destination_that_comes_back_as_it_was_forgets_who_was_erased_meanwhile() {
    let world = World::new();
    let daemon = world.start_with(&format!("{}{NEVER}", keyring_backup(&world)));
    make(&daemon, &["ada", "bob"]);
    assert_eq!(run(&daemon)["state"], "ok");
    let (mounted, away) = (directory(&world), world.path("away"));
    std::fs::rename(&mounted, &away).unwrap();
    // Of long ago: as if the shards had not changed for a month.
    world.sql("UPDATE keyring_writes SET begun_at = begun_at - interval '30 days'");
    erase(&daemon, "bob");
    wait_for("the backup in another folder of that name", || {
        mounted.join("manifest.json").exists().then(|| run(&daemon)).filter(|done| done["state"] == "ok")
    });
    assert_eq!(people(&world), ["ada"]);
    // The daemon has seen that nobody waits, and so begins no run by itself.
    wait_for("rest", || {
        let running = "SELECT count(*) FROM job_runs WHERE name = 'keyring_backup' AND state = 'running'";
        (late_seconds(&daemon) == 0.0 && world.sql(running) == "0").then_some(())
    });

    std::fs::remove_dir_all(&mounted).unwrap();
    std::fs::rename(&away, &mounted).unwrap();
    assert_eq!(people(&world), ["ada", "bob"], "the disk is as it was");
    let done = run(&daemon);
    assert_eq!(done["state"], "ok", "{done}");
    assert_eq!(people(&world), ["ada"], "{done}");
    let again = run(&daemon);
    assert_eq!((&again["state"], &again["counts"]["shards"]), (&json!("ok"), &json!(0)), "{again}");
    intact(&daemon);
    daemon.assert_well();
}

#[test]
fn without_a_destination_the_job_is_off_and_says_what_to_set() {
    let world = World::new();
    let daemon = world.start();
    let refused = daemon.client().err("job.run", json!({ "name": "keyring_backup" }));
    assert!(refused.message.contains("keyring.backup"), "{refused:?}");
    let listed = daemon.ok("job.list", json!({}));
    let job = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["name"] == "keyring_backup")
        .unwrap()
        .clone();
    assert_eq!((&job["enabled"], &job["next_due"]), (&json!(false), &Value::Null));
    daemon.assert_well();
}
