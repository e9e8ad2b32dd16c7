//! The keyring's own backup when something fails at each of its steps: nobody who was erased is in it for longer than is promised, and
//! whoever looks is told when that is broken.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::keyring_backup::NEVER;
use crate::support::kept::{keyring_backup, people, rows};
use crate::support::{Cluster, Daemon, Fault, Passage, Proxy, Store, World, wait_for};

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

/// Its run is let go, so that the next need not wait for it to be taken for dead.
fn let_go(world: &World) {
    world.sql("UPDATE job_runs SET holder = NULL WHERE state = 'running'");
}

fn all_is_stored(world: &World) {
    wait_for("the keyring's backup", || {
        let late = "SELECT (SELECT count(*) FROM keyring_shards WHERE generation > stored AND generation > 0) \
            + (SELECT count(*) FROM keyring_backups WHERE generation > stored)";
        (world.sql(late) == "0").then_some(())
    });
}

fn check(daemon: &Daemon) -> Value {
    daemon.ok("system.health", json!({}))["checks"]["keyring_backup"].clone()
}

pub fn late_seconds(daemon: &Daemon) -> f64 {
    let text = daemon.ok("system.metrics", json!({}))["text"].as_str().unwrap().to_owned();
    let line = text
        .lines()
        .find(|line| line.starts_with("sidekeep_keyring_backup_late_seconds "))
        .unwrap()
        .to_owned();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A step, and the statement that it is.
type Step = (&'static str, fn(&str) -> bool);

/// Each durable step in the database.
const STEPS: [Step; 5] = [
    ("the shard is begun", |sql| sql.contains("INSERT INTO sidekeep.keyring_writes") && sql.contains("$2")),
    ("its mark goes", |sql| sql.contains("DELETE FROM sidekeep.keyring_marks")),
    ("the shard is settled", |sql| sql.contains("SET stored = $2")),
    ("the count is raised", |sql| {
        sql.contains("UPDATE sidekeep.keyring_backups SET generation = generation + 1")
    }),
    ("the manifest is settled", |sql| sql.contains("SET stored = greatest(stored, $1)")),
];

#[test]
fn a_crash_at_any_step_in_the_database_is_gone_on_from() {
    let cluster = Cluster::shared();
    for fault in [Fault::MuteBefore, Fault::MuteAfter] {
        for (step, is_it) in STEPS {
            let what = format!("{step}, {fault:?}");
            let world = World::new();
            let backup = keyring_backup(&world);
            let proxy = Proxy::new(&cluster.socket_directory());
            let url = format!("database.url = {:?}\n", proxy.url(&world.app_url));
            // It makes each step when it is asked to, and none before the trap is set.
            let first = world.start_with(&format!("{url}{backup}jobs.enabled = false\n"));
            make(&first, &["ada", "bob"]);
            let failed = proxy.failed();
            proxy.fail(fault, is_it);
            first.client().send_call("job.run", json!({ "name": "keyring_backup" }));
            wait_for(&what, || (proxy.failed() > failed).then_some(()));
            first.signal(Signal::SIGKILL);
            drop(first);
            let_go(&world);
            let second = world.start_with(&backup);
            erase(&second, "ada");
            wait_for(&what, || (people(&world) == ["bob"]).then_some(()));
            all_is_stored(&world);
            assert_eq!(rows(&world, &[&world.path("kek")], "subject_erasures").len(), 1, "{what}");
            let verdict = second.ok("audit.verify", json!({}));
            assert_eq!(verdict["verdict"], "intact", "{what}: {verdict}");
            second.assert_well();
        }
    }
}

#[test]
fn a_crash_while_an_object_is_written_is_gone_on_from() {
    for object in ["shards/", "manifest.json"] {
        let world = World::new();
        let (store, gate) = Store::s3().gated();
        let backup = format!("{}keyring.backup = \"{}\"\n", store.config, store.url);
        let first = world.start_with(&format!("{backup}jobs.enabled = false\n"));
        make(&first, &["ada", "bob"]);
        gate.set(Passage::MuteAt(object));
        first.client().send_call("job.run", json!({ "name": "keyring_backup" }));
        wait_for(object, || (gate.muted() > 0).then_some(()));
        first.signal(Signal::SIGKILL);
        drop(first);
        gate.set(Passage::Open);
        let_go(&world);
        let second = world.start_with(&backup);
        erase(&second, "ada");
        all_is_stored(&world);
        assert_eq!(run(&second)["counts"]["shards"], 0, "{object}");
        assert!(store.files.as_ref().unwrap().join("manifest.json").exists(), "{object}");
        second.assert_well();
    }
}

#[test]
fn a_destination_that_is_away_is_told_after_a_minute_and_heals_by_itself() {
    for passage in [Passage::Refused, Passage::Mute, Passage::NoWrites(403)] {
        let world = World::new();
        let (store, gate) = Store::s3().gated();
        let backup = format!("{}keyring.backup = \"{}\"\n", store.config, store.url);
        let daemon = world.start_with(&backup);
        make(&daemon, &["ada", "bob"]);
        assert_eq!(run(&daemon)["state"], "ok", "{passage:?}");
        assert_eq!(check(&daemon)["status"], "ok", "{passage:?}");
        gate.set(passage);
        erase(&daemon, "ada");
        wait_for("the look", || (late_seconds(&daemon) > 0.0).then_some(()));
        assert_eq!(check(&daemon)["status"], "ok", "{passage:?}: the minute is not over");
        // A minute later.
        world.sql("UPDATE keyring_shards SET raised_at = raised_at - interval '70 seconds' WHERE raised_at IS NOT NULL");
        let told =
            wait_for("the alarm", || Some(check(&daemon)).filter(|check| check["status"] == "degraded"));
        assert!(
            told["message"].as_str().unwrap().contains("not in the keyring's backup"),
            "{passage:?}: {told}"
        );
        assert!(late_seconds(&daemon) > 60.0, "{passage:?}");
        // Calls go on.
        make(&daemon, &["carol"]);
        gate.set(Passage::Open);
        // A request that was never answered is given up after a minute, and the next run is twenty seconds later.
        let opened = Instant::now();
        while check(&daemon)["status"] != "ok" {
            assert!(opened.elapsed() < Duration::from_secs(300), "{passage:?}: {}", check(&daemon));
            std::thread::sleep(Duration::from_millis(50));
        }
        // What came later than the erasure is stored with it, or right after.
        wait_for("the rest", || (late_seconds(&daemon) == 0.0).then_some(()));
        assert_eq!(
            world.sql("SELECT count(*) FROM keyring_shards WHERE raised_at IS NOT NULL"),
            "0",
            "{passage:?}"
        );
    }
}

#[test]
fn a_bucket_that_keeps_versions_is_refused_before_a_key_is_in_it() {
    for store in [Store::versioned(), Store::locked()] {
        let world = World::new();
        let daemon = world.start_with(&format!("{}keyring.backup = \"{}\"\n", store.config, store.url));
        make(&daemon, &["ada"]);
        let done = run(&daemon);
        assert_eq!(done["state"], "failed", "{done}");
        assert!(
            done["error"].as_str().unwrap().contains("without versioning, object lock and retention"),
            "{done}"
        );
        assert_eq!(world.sql("SELECT count(*) FROM keyring_shards WHERE stored > 0"), "0");
        assert_eq!(world.sql("SELECT count(*) FROM keyring_writes"), "0", "nothing was begun");
        assert_eq!(daemon.ok("system.health", json!({}))["status"], "degraded");
    }
}

#[test]
fn many_erasures_go_into_few_runs_and_none_waits_long() {
    let world = World::new();
    // Not by its schedule.
    let daemon = world.start_with(&format!("{}{NEVER}", keyring_backup(&world)));
    let users: Vec<String> = (0..20).map(|n| format!("user-{n}")).collect();
    make(&daemon, &users.iter().map(String::as_str).collect::<Vec<_>>());
    make(&daemon, &["last"]);
    run(&daemon);
    let runs =
        || world.sql("SELECT count(*) FROM job_runs WHERE name = 'keyring_backup'").parse::<u32>().unwrap();
    let before = runs();
    let began = Instant::now();
    for user in &users {
        erase(&daemon, user);
    }
    let erased = began.elapsed();
    wait_for("the erasures", || (people(&world) == ["last"]).then_some(()));
    let most = 3 + u32::try_from(erased.as_secs()).unwrap() / 2;
    assert!(runs() - before <= most, "{} runs", runs() - before);
    daemon.assert_well();
}

#[test]
fn a_dump_without_a_keyring_backup_that_is_newer_is_not_listed() {
    let world = World::new();
    let (store, gate) = Store::s3().gated();
    let owner = world.path("owner-url");
    std::fs::write(&owner, &world.owner_url).unwrap();
    std::fs::set_permissions(&owner, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let more = format!(
        "{}keyring.backup = \"{}\"\nbackup.destination = \"file://{}\"\ndatabase.direct_url_file = {owner:?}\n",
        store.config,
        store.url,
        world.path("dumps").display()
    );
    let daemon = world.start_with(&more);
    make(&daemon, &["ada"]);
    run(&daemon);
    gate.set(Passage::Refused);
    make(&daemon, &["bob"]);
    let done = daemon.ok("job.run", json!({ "name": "backup", "wait": "60s" }));
    assert_eq!(done["state"], "failed", "{done}");
    assert!(done["error"].as_str().unwrap().contains("keyring.backup"), "{done}");
    assert_eq!(daemon.ok("backup.list", json!({}))["items"], json!([]));
    gate.set(Passage::Open);
    let done = daemon.ok("job.run", json!({ "name": "backup", "wait": "60s" }));
    assert_eq!(done["state"], "ok", "{done}");
    assert_eq!(daemon.ok("backup.list", json!({}))["items"].as_array().unwrap().len(), 1);
}
