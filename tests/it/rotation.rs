//! Replacing the key-encryption key while calls go on: nothing fails, nothing is left behind, and nothing becomes unreadable.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Client, Daemon, Session, World, sidekeep, wait_for};

fn key_files(files: &[&Path]) -> String {
    format!("keyring.key_files = {files:?}\n")
}

/// The id that a key file tells of itself.
fn id(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
}

fn kek_ids(daemon: &Daemon) -> Value {
    daemon.ok("system.status", json!({}))["kek_ids"].clone()
}

/// Writes other key files into a daemon's configuration, and tells it.
fn tell(daemon: &Daemon, files: &[&Path]) {
    let text = std::fs::read_to_string(&daemon.config).unwrap();
    let others = text.lines().filter(|line| !line.starts_with("keyring.key_files"));
    let text: String = others.map(|line| format!("{line}\n")).collect();
    std::fs::write(&daemon.config, key_files(files) + &text).unwrap();
    daemon.signal(Signal::SIGHUP);
}

/// Gives a daemon other key files, and waits until it has taken them.
fn give(daemon: &Daemon, files: &[&Path]) {
    let reloads = || daemon.log().matches("the configuration was reloaded").count();
    let before = reloads();
    tell(daemon, files);
    let expected = json!(files.iter().map(|file| id(file)).collect::<Vec<_>>());
    wait_for("the reload", || {
        let status = daemon.ok("system.status", json!({}));
        (status["kek_ids"] == expected && status["reload_error"].is_null()).then_some(())
    });
    // It is done when the file was read to its end, and not only the keys.
    wait_for("its line in the log", || (reloads() > before).then_some(()));
}

/// Makes so many people.
fn people(daemon: &Daemon, beginning: &str, count: usize) {
    let mut client = daemon.client();
    for from in (0..count).step_by(1000) {
        let entries: Vec<Value> = (from..count.min(from + 1000))
            .map(|n| json!({ "action": "seen", "user_id": format!("{beginning}{n}"), "ip_address": "203.0.113.7" }))
            .collect();
        client.ok("audit.append_many", json!({ "entries": entries }));
    }
}

/// The entry by which a person was made is read with the person's key.
fn opens(daemon: &Daemon, user: &str) {
    let found = daemon.ok("audit.query", json!({ "user_id": user, "action": "seen", "limit": 1000 }));
    let items = found["items"].as_array().unwrap();
    assert!(items.iter().any(|entry| entry["ip_address"] == "203.0.113.7"), "{user}: {found}");
}

fn under(world: &World, file: &Path) -> u64 {
    world.sql(&format!("SELECT count(*) FROM subjects WHERE kek_id = '{}'", id(file))).parse().unwrap()
}

fn rotate(daemon: &Daemon, wait: &str) -> Value {
    daemon.ok("keyring.rotate", json!({ "wait": wait }))
}

fn intact(daemon: &Daemon) {
    let verdict = daemon.ok("audit.verify", json!({}));
    assert_eq!((&verdict["verdict"], &verdict["breaks"]), (&json!("intact"), &json!([])));
    daemon.assert_well();
}

/// Writes, reads and appends about old and new people until told to stop; answers how many people it made. Any error fails.
fn work(daemon: &Daemon, name: &str, stop: &AtomicBool) -> usize {
    let mut client: Client = daemon.client();
    client.ok("conversation.create", json!({ "id": name, "user_id": name }));
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        let user = format!("{name}-{made}");
        client.ok("profile.create", json!({ "user_id": user, "username": user, "email": "e@example.org" }));
        made += 1;
        client.ok("profile.update", json!({ "user_id": user, "changes": { "email": "f@example.org" } }));
        let old = format!("old{}", made % 500);
        client.ok("preferences.set", json!({ "user_id": old, "preferences": { "by": name } }));
        client.ok("preferences.get", json!({ "user_id": old }));
        client.ok(
            "audit.append",
            json!({ "action": "seen", "user_id": old, "subject_user_id": user, "metadata": { "n": made } }),
        );
        client.ok(
            "conversation.append",
            json!({ "id": name, "messages": [{ "role": "user", "content": "x" }] }),
        );
    }
    for number in 0..made {
        let user = format!("{name}-{number}");
        assert_eq!(client.ok("profile.get", json!({ "user_id": user }))["username"], json!(user));
    }
    assert_eq!(client.ok("conversation.get", json!({ "id": name }))["message_count"], json!(made));
    made
}

/// Ends what works, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_documented_order_replaces_a_key_while_two_daemons_serve() {
    let world = World::new();
    let (old, new) = (world.path("kek"), world.add_key("new"));
    let daemons = [world.start(), world.start()];
    people(&daemons[0], "old", 2000);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = Stop(&stop);
        let working: Vec<_> = daemons
            .iter()
            .zip(["a", "b"])
            .flat_map(|(daemon, name)| [(daemon, format!("{name}1")), (daemon, format!("{name}2"))])
            .map(|(daemon, name)| {
                scope.spawn({
                    let stop = &stop;
                    move || work(daemon, &name, stop)
                })
            })
            .collect();
        daemons.iter().for_each(|daemon| give(daemon, &[&old, &new]));
        daemons.iter().for_each(|daemon| give(daemon, &[&new, &old]));
        let begun = rotate(&daemons[0], "20s");
        // One that is asked for again once this has ended finds nothing to do.
        let run = wait_for("the rotation", || {
            let runs = daemons[0].ok("job.history", json!({ "name": "keyring.rotate" }))["items"].clone();
            let run = runs.as_array().unwrap().iter().find(|run| run["run"] == begun["run"]).cloned();
            run.filter(|run| run["state"] != "running")
        });
        assert_eq!((&run["state"], &run["error"]), (&json!("ok"), &Value::Null), "{run}");
        assert!(run["counts"]["rewrapped"].as_u64().unwrap() >= 2000, "{run}");
        assert_eq!(under(&world, &old), 0, "and nobody wraps under it any more");
        daemons.iter().for_each(|daemon| give(daemon, &[&new]));
        std::fs::remove_file(&old).unwrap();
        drop(stopping);
        for thread in working {
            assert!(thread.join().unwrap() > 0);
        }
    });
    assert_eq!(world.sql("SELECT count(DISTINCT kek_id) FROM subjects"), "1");
    assert_eq!(world.sql(&format!("SELECT kek_id = '{}' FROM subjects WHERE subject_id = 0", id(&new))), "t");
    intact(&daemons[1]);
    for daemon in daemons {
        daemon.stop();
    }
    let daemon = world.start_with(&key_files(&[&new]));
    opens(&daemon, "old7");
    intact(&daemon);
}

#[test]
fn a_rotation_that_was_killed_is_gone_on_with() {
    let world = World::new();
    let (old, new) = (world.path("kek"), world.add_key("new"));
    let first = world.start();
    people(&first, "p", 5000);
    first.stop();
    let files = key_files(&[&new, &old]);
    let (mut killed, other) = (world.start_with(&files), world.start_with(&files));
    // As long as somebody holds this row it cannot end.
    let held = Session::hold(&world.owner_url, "p77");
    let run = rotate(&killed, "0s");
    assert_eq!(run["state"], "running", "{run}");
    wait_for("some keys", || (under(&world, &new) > 100).then_some(()));
    killed.signal(Signal::SIGKILL);
    killed.wait();
    assert!(under(&world, &old) >= 1);
    for n in [0, 77, 4999] {
        opens(&other, &format!("p{n}"));
    }
    world.sql("UPDATE job_runs SET heartbeat_at = now() - interval '1 minute' WHERE state = 'running'");
    wait_for("the other daemon", || {
        (world.sql("SELECT epoch, state FROM job_runs WHERE name = 'keyring.rotate'") == "2|running")
            .then_some(())
    });
    wait_for("all but one", || (under(&world, &old) == 1).then_some(()));
    other.ok("preferences.set", json!({ "user_id": "p78", "preferences": {} }));
    held.release();
    let id = run["run"].as_str().unwrap();
    wait_for("the end", || {
        (world.sql("SELECT run, epoch, state FROM job_runs WHERE name = 'keyring.rotate'")
            == format!("{id}|2|ok"))
        .then_some(())
    });
    assert_eq!((under(&world, &old), under(&world, &new)), (0, 5001));
    let history = other.ok("job.history", json!({ "name": "keyring.rotate" }));
    assert_eq!(
        (history["items"].as_array().unwrap().len(), &history["items"][0]["counts"]["left"]),
        (1, &json!(0))
    );
    opens(&other, "p77");
    intact(&other);
}

#[test]
fn a_daemon_without_the_key_is_named_and_nothing_it_cannot_open_is_made() {
    let world = World::new();
    let (old, new) = (world.path("kek"), world.add_key("new"));
    let lacking = world.start();
    people(&lacking, "p", 10);
    let ready = world.start_with(&key_files(&[&new, &old]));
    let status = ready.ok("keyring.status", json!({}));
    assert_eq!(status["active"], json!(id(&new)));
    let name = status["waiting_for"][0].as_str().unwrap().to_owned();
    assert!(name.contains(&format!(" {} ", lacking.pid())), "{status}");
    assert_eq!(status["waiting_for"].as_array().unwrap().len(), 1);
    // What all have wraps, until all have the other one.
    ready.ok("preferences.set", json!({ "user_id": "meanwhile", "preferences": { "a": 1 } }));
    assert_eq!(
        lacking.ok("preferences.get", json!({ "user_id": "meanwhile" }))["preferences"],
        json!({ "a": 1 })
    );
    let run = rotate(&ready, "0s");
    assert_eq!(run["state"], "running");
    let failed = wait_for("the end", || {
        let run = ready.ok("keyring.status", json!({}))["rotation"].clone();
        (run["state"] == "failed").then_some(run)
    });
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains(&name) && error.contains(&id(&new)) && error.contains("SIGHUP"), "{error}");
    assert_eq!((under(&world, &old), under(&world, &new)), (12, 0));

    give(&lacking, &[&old, &new]);
    let ready_wraps = || ready.ok("keyring.status", json!({}))["daemons"].clone();
    wait_for("the daemons", || {
        let daemons = ready_wraps();
        let of =
            |daemon: &Value| (daemon["kek_ids"].as_array().unwrap().len(), daemon["wraps_under"].clone());
        let daemons: Vec<_> = daemons.as_array().unwrap().iter().map(of).collect();
        (daemons == [(2, json!(id(&old))), (2, json!(id(&new)))]).then_some(())
    });
    give(&lacking, &[&new, &old]);
    assert_eq!(rotate(&ready, "20s")["state"], "ok");
    assert_eq!((under(&world, &old), under(&world, &new)), (0, 12));
    intact(&lacking);
    let failures = world.sql("SELECT count(*) FROM job_runs WHERE state = 'failed'");
    assert_eq!(failures, "1");
}

#[test]
fn a_key_in_use_cannot_be_taken_away() {
    let world = World::new();
    let (old, new) = (world.path("kek"), world.add_key("new"));
    let daemon = world.start();
    people(&daemon, "p", 3);
    give(&daemon, &[&new, &old]);
    tell(&daemon, &[&new]);
    let why = wait_for("the refusal", || {
        daemon.ok("system.status", json!({}))["reload_error"].as_str().map(str::to_owned)
    });
    assert!(why.contains("4 data key(s)") && why.contains(&id(&old)) && why.contains("rotate"), "{why}");
    assert_eq!(kek_ids(&daemon), json!([id(&new), id(&old)]), "the old ones stay");
    daemon.ok("preferences.set", json!({ "user_id": "p1", "preferences": {} }));
    let mut refused = world.spawn(&key_files(&[&new]));
    assert_eq!(refused.wait(), Some(78));
    let said = refused.log();
    assert!(said.contains(&id(&old)) && said.contains("keyring rotate"), "{said}");
    assert_eq!(world.sql("SELECT count(*) FROM daemons"), "1", "who does not serve is not waited for");

    assert_eq!(rotate(&daemon, "20s")["state"], "ok");
    give(&daemon, &[&new]);
    daemon.ok("preferences.get", json!({ "user_id": "p1" }));
    world.start_with(&key_files(&[&new])).stop();
    intact(&daemon);
}

#[test]
fn two_rotations_at_once_are_one() {
    let world = World::new();
    let (old, new) = (world.path("kek"), world.add_key("new"));
    let first = world.start();
    people(&first, "p", 100);
    first.stop();
    let daemons = [(); 2].map(|()| world.start_with(&key_files(&[&new, &old])));
    let held = Session::hold(&world.owner_url, "p7");
    let running = "SELECT count(*) FROM job_runs WHERE name = 'keyring.rotate' AND state = 'running'";
    thread::scope(|scope| {
        let both: Vec<_> = daemons.iter().map(|daemon| scope.spawn(|| rotate(daemon, "20s"))).collect();
        wait_for("the run", || (world.sql(running) == "1" && under(&world, &old) == 1).then_some(()));
        held.release();
        let runs: Vec<Value> = both.into_iter().map(|thread| thread.join().unwrap()).collect();
        // Who came second waited for the first, and had nothing left to do.
        let ended: Vec<_> = runs.iter().map(|run| (&run["state"], run["counts"]["left"].clone())).collect();
        assert_eq!(ended, [(&json!("ok"), json!(0)), (&json!("ok"), json!(0))], "{runs:?}");
        let rewrapped: i64 = runs.iter().map(|run| run["counts"]["rewrapped"].as_i64().unwrap()).sum();
        assert_eq!(rewrapped, 101);
    });
    let again = rotate(&daemons[1], "20s");
    assert_eq!((&again["state"], &again["counts"]), (&json!("ok"), &json!({ "rewrapped": 0, "left": 0 })));
    assert_eq!((under(&world, &old), under(&world, &new)), (0, 101));
    intact(&daemons[0]);
}

#[test]
fn a_key_that_does_not_open_is_told_and_the_others_go_on() {
    let world = World::new();
    let (old, new) = (world.path("kek"), world.add_key("new"));
    let daemon = world.start();
    people(&daemon, "p", 50);
    give(&daemon, &[&new, &old]);
    world.sql("UPDATE subjects SET wrapped_key = set_byte(wrapped_key, 20, get_byte(wrapped_key, 20) # 1) WHERE user_id = 'p7'");
    let subject = world.sql("SELECT subject_id FROM subjects WHERE user_id = 'p7'");
    let run = rotate(&daemon, "20s");
    let error = run["error"].as_str().unwrap_or_else(|| panic!("{run}"));
    assert!(error.contains("1 person(s)") && error.contains(&subject) && !error.contains("p7"), "{error}");
    assert_eq!((under(&world, &old), under(&world, &new)), (1, 50));
    assert!(daemon.log().contains("a wrapped key does not open"));
    opens(&daemon, "p8");
    let error = daemon.client().err("preferences.set", json!({ "user_id": "p7", "preferences": {} }));
    assert_eq!(error.kind(), "tampered", "{error:?}");
}

#[test]
fn the_register_has_who_lives() {
    let world = World::new();
    let (daemon, other, mut killed) = (world.start(), world.start(), world.start());
    let listed = || daemon.ok("keyring.status", json!({}))["daemons"].as_array().unwrap().len();
    assert_eq!(listed(), 3);
    other.stop();
    assert_eq!(listed(), 2);
    killed.signal(Signal::SIGKILL);
    killed.wait();
    world.sql(&format!(
        "UPDATE daemons SET seen_at = now() - interval '1 minute' WHERE daemon LIKE '% {} %'",
        killed.pid()
    ));
    assert_eq!(listed(), 1);
    let another = world.start();
    assert_eq!(world.sql("SELECT count(*) FROM daemons"), "2", "the dead one is off the list");
    another.stop();
    // One that was taken for dead, and lives, is back with its next sign.
    world.sql("DELETE FROM daemons");
    wait_for("its own line", || (world.sql("SELECT count(*) FROM daemons") == "1").then_some(()));
}

fn with(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut all = vec!["--config", daemon.config.to_str().unwrap()];
    all.extend(arguments);
    let done = sidekeep(&all);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (done.status.code(), text(&done.stdout), text(&done.stderr))
}

#[test]
fn the_commands_rotate_and_show_it() {
    let world = World::new();
    let (old, new) = (world.path("kek"), world.add_key("new"));
    let daemon = world.start();
    people(&daemon, "p", 20);
    let (code, printed, _) = with(&daemon, &["keyring", "status"]);
    assert_eq!(code, Some(0));
    assert!(printed.contains(&format!("{}  first", id(&old))) && printed.contains("21 keys"), "{printed}");
    give(&daemon, &[&new, &old]);
    let (code, printed, said) = with(&daemon, &["keyring", "rotate"]);
    assert_eq!((code, printed.as_str()), (Some(0), "ok, 21 keys re-wrapped, 0 left\n"), "{said}");
    let (code, printed, _) = with(&daemon, &["--json", "keyring", "rotate"]);
    let run: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, &run["state"]), (Some(0), &json!("ok")));
    let (_, printed, _) = with(&daemon, &["--json", "keyring", "status"]);
    let status: Value = serde_json::from_str(&printed).unwrap();
    let of = |file: &PathBuf| {
        let mut keks = status["keks"].as_array().unwrap().iter();
        let kek = keks.find(|kek| kek["kek_id"] == json!(id(file))).unwrap().clone();
        assert_eq!(kek["file"], json!(file));
        kek
    };
    assert_eq!(
        (&of(&old)["keys"], &of(&old)["oldest"], &of(&new)["keys"]),
        (&json!(0), &Value::Null, &json!(21))
    );
    world.sql("UPDATE subjects SET wrapped_key = '\\x00', kek_id = 'unknown' WHERE user_id = 'p7'");
    let (code, printed, said) = with(&daemon, &["keyring", "rotate"]);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.starts_with("failed: ") && said.contains("may be run again"), "{printed}{said}");
}

#[test]
fn a_new_key_has_a_copy_that_its_recipients_open() {
    let world = World::new();
    let identities = [(); 2].map(|()| age::x25519::Identity::generate());
    let public: Vec<String> = identities.iter().map(|one| one.to_public().to_string()).collect();
    let (flagged, configured) = (world.path("flagged"), world.path("configured"));
    let done = sidekeep(&[
        "keyring",
        "generate",
        "--out",
        flagged.to_str().unwrap(),
        "--escrow-to",
        &public[0],
        "--escrow-to",
        &public[1],
    ]);
    assert!(done.status.success(), "{done:?}");
    let (config, _) = world.configure(&format!("keyring.escrow_recipients = [{:?}]\n", public[0]));
    let config = config.to_str().unwrap();
    let generate = ["--config", config, "keyring", "generate", "--out", configured.to_str().unwrap()];
    assert!(sidekeep(&generate).status.success());
    for (file, openers) in [(&flagged, 2), (&configured, 1)] {
        let copy = std::fs::read(file.with_extension("age")).unwrap();
        let opened: Vec<_> =
            identities.iter().filter_map(|identity| age::decrypt(identity, &copy).ok()).collect();
        assert_eq!(opened, vec![std::fs::read(file).unwrap(); openers]);
    }
    // Neither a key nor a copy is overwritten, and without its copy no key is made.
    assert_eq!(sidekeep(&generate).status.code(), Some(2));
    std::fs::remove_file(&configured).unwrap();
    assert_eq!(sidekeep(&generate).status.code(), Some(2));
    assert!(!configured.exists());
    let wrong = sidekeep(&["keyring", "generate", "--out", "x", "--escrow-to", "age1nobody"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("public key of age"), "{wrong:?}");
}
