//! Published checkpoints: right, written once, compared, and nothing signed without them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use sidekeep::audit::entry::Labels;
use sidekeep::audit::note::VerifierKey;
use sidekeep::audit::publication::{Object, Trust};
use sidekeep::audit::succession;

use crate::support::{Daemon, World, sidekeep, wait_for};

/// Publishes to a directory of the world, when it is asked to.
pub fn publishing(world: &World) -> String {
    format!(
        "audit.publish = \"file://{}\"\naudit.access = \"none\"\njobs.enabled = false\n",
        published(world).display()
    )
}

pub fn published(world: &World) -> PathBuf {
    world.path("published")
}

/// The run of the job.
pub fn checkpoint(daemon: &Daemon) -> Value {
    daemon.ok("job.run", json!({ "name": "checkpoint" }))
}

pub fn append(daemon: &Daemon, count: usize) {
    let entries: Vec<Value> =
        (0..count).map(|n| json!({ "action": "a", "resource_id": n.to_string() })).collect();
    daemon.ok("audit.append_many", json!({ "entries": entries }));
}

/// The objects, by their sizes.
pub fn objects(world: &World) -> Vec<(u64, Value)> {
    let mut found: Vec<(u64, Value)> = std::fs::read_dir(published(world))
        .into_iter()
        .flatten()
        .map(|entry| {
            let entry = entry.unwrap();
            let size = sidekeep::audit::publication::size(entry.file_name().to_str().unwrap()).unwrap();
            (size, serde_json::from_slice(&std::fs::read(entry.path()).unwrap()).unwrap())
        })
        .collect();
    found.sort_by_key(|(size, _)| *size);
    found
}

/// Waits until the log stands so to its publication.
pub fn wait_state(daemon: &Daemon, state: &str) -> Value {
    wait_for(state, || {
        let report = daemon.ok("system.status", json!({}))["publication"].clone();
        (report["state"] == state).then_some(report)
    })
}

pub fn verify(daemon: &Daemon) -> Value {
    daemon.ok("audit.verify", json!({}))
}

fn keys(daemon: &Daemon) -> Vec<VerifierKey> {
    let said = sidekeep(&["--config", daemon.config.to_str().unwrap(), "signing", "public-key"]);
    String::from_utf8(said.stdout).unwrap().lines().map(|line| VerifierKey::decode(line).unwrap()).collect()
}

fn python(world: &World) -> String {
    let script = format!("{}/tests/it/verifiers/publication.py", env!("CARGO_MANIFEST_DIR"));
    let done = Command::new("python3").arg(script).arg(published(world)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[test]
fn checkpoints_are_published_once_and_others_verify_them() {
    let world = World::new();
    let (first, second) = (world.start_with(&publishing(&world)), world.start_with(&publishing(&world)));
    for round in 0..4 {
        append(&first, 3);
        append(&second, 5);
        let run = checkpoint(if round % 2 == 0 { &first } else { &second });
        assert_eq!((&run["state"], &run["counts"]["checkpoints"]), (&json!("ok"), &json!(1)), "{run}");
    }
    let before = objects(&world);
    assert_eq!(before.len(), 4);
    let heads = world.sql("SELECT count(*) FROM audit_heads");
    assert_eq!(before.last().unwrap().0.to_string(), heads);
    let entries =
        world.sql("SELECT sum(size) FROM (SELECT max(size) AS size FROM audit_heads GROUP BY stream) t");
    assert_eq!(python(&world), format!("intact: {heads} heads in 4 objects, {entries} entries"));

    let trust = Trust { origin: "sidekeep/test".into(), keys: keys(&first) };
    let names: Vec<PathBuf> =
        std::fs::read_dir(published(&world)).unwrap().map(|e| e.unwrap().path()).collect();
    for path in names {
        let bytes = std::fs::read(&path).unwrap();
        let size = sidekeep::audit::publication::size(path.file_name().unwrap().to_str().unwrap()).unwrap();
        Object::decode(&bytes, size, &trust).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    }
    let newest = first.ok("audit.checkpoint", json!({}))["checkpoint"].clone();
    assert_eq!(before.last().unwrap().1["checkpoint"], newest);

    // What others have published is known too, and nothing new is nothing to publish.
    let report = wait_state(&second, "whole");
    assert_eq!(report["size"].to_string(), heads, "{report}");
    assert!(report["age_seconds"].as_u64().unwrap() < 60 && report["gaps"] == json!([]), "{report}");
    let run = checkpoint(&first);
    assert_eq!(run["state"], "ok");
    let metrics = first.ok("system.metrics", json!({}))["text"].as_str().unwrap().to_owned();
    for line in [
        "sidekeep_publication{state=\"whole\"} 1".to_owned(),
        "sidekeep_publication{state=\"forked\"} 0".to_owned(),
        format!("sidekeep_published_heads {}", objects(&world).last().unwrap().0),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    assert_eq!(
        (verify(&first)["verdict"].clone(), verify(&second)["gaps"].clone()),
        (json!("intact"), json!(0))
    );
    first.assert_well();
}

#[test]
fn checkpoints_from_before_are_published_together() {
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\n");
    for _ in 0..5 {
        append(&daemon, 1);
        checkpoint(&daemon);
    }
    assert_eq!(daemon.ok("system.status", json!({}))["publication"]["state"], "off");
    daemon.stop();
    let daemon = world.start_with(&publishing(&world));
    append(&daemon, 1);
    checkpoint(&daemon);
    let published = objects(&world);
    assert_eq!(published.len(), 2, "those from before, and the new one");
    assert!(python(&world).starts_with("intact: "));
    // As many daemons as there are publish at the same time.
    let other = world.start_with(&publishing(&world));
    std::thread::scope(|scope| {
        for daemon in [&daemon, &other] {
            scope.spawn(move || {
                for _ in 0..10 {
                    let entry = daemon.ok("audit.append", json!({ "action": "a" }));
                    daemon.ok("audit.prove", json!({ "id": entry["id"] }));
                }
            });
        }
    });
    for daemon in [&daemon, &other] {
        assert_eq!(checkpoint(daemon)["state"], "ok");
        assert_eq!(verify(daemon)["verdict"], "intact");
    }
}

#[test]
fn without_its_publication_nothing_is_signed_and_all_else_goes_on() {
    let world = World::new();
    std::fs::create_dir(world.path("mount")).unwrap();
    let in_the_way = world.path("mount/disk");
    std::fs::write(&in_the_way, "").unwrap();
    let more =
        format!("audit.publish = \"file://{}/published\"\njobs.enabled = false\n", in_the_way.display());
    let daemon = world.start_with(&more);
    append(&daemon, 3);
    wait_state(&daemon, "unreachable");
    let health = daemon.ok("system.health", json!({}));
    assert_eq!(
        (&health["status"], &health["checks"]["publication"]["status"]),
        (&json!("degraded"), &json!("degraded"))
    );
    let run = checkpoint(&daemon);
    assert_eq!(run["state"], "failed");
    assert!(run["error"].as_str().unwrap().contains("nothing is signed: audit.publish"), "{run}");
    assert_eq!(daemon.client().err("audit.checkpoint", json!({})).kind(), "unavailable");
    append(&daemon, 3);
    assert_eq!(world.sql("SELECT count(*) FROM audit_checkpoints"), "0");

    std::fs::remove_file(&in_the_way).unwrap();
    wait_state(&daemon, "whole");
    assert_eq!(checkpoint(&daemon)["state"], "ok");
    let size = wait_state(&daemon, "whole")["size"].clone();
    let signed = world.sql("SELECT count(*) FROM audit_checkpoints");

    // A directory that is missing later is one that is not mounted: it is not made again.
    let elsewhere = world.path("elsewhere");
    for begin in [|_: &PathBuf| (), |path: &PathBuf| std::fs::create_dir_all(path.join("published")).unwrap()]
    {
        std::fs::rename(&in_the_way, &elsewhere).unwrap();
        begin(&in_the_way);
        append(&daemon, 1);
        assert_eq!(checkpoint(&daemon)["state"], "failed");
        let report = wait_state(&daemon, "unreachable");
        assert!(report["message"].as_str().unwrap().contains("put its objects back"), "{report}");
        assert_eq!(
            (&report["size"], world.sql("SELECT count(*) FROM audit_checkpoints")),
            (&size, signed.clone())
        );
        // Whoever verifies meanwhile is told what that does not find.
        let report = verify(&daemon);
        assert_eq!((&report["verdict"], &report["breaks"]), (&json!("intact"), &json!([])), "{report}");
        assert!(report["not_compared"].as_str().unwrap().contains("put its objects back"), "{report}");
        let run = daemon.ok("job.run", json!({ "name": "verify" }));
        assert!(run["error"].as_str().unwrap().contains("could not be compared"), "{run}");
        let done = sidekeep(&["--config", daemon.config.to_str().unwrap(), "verify", "--full"]);
        assert_eq!(done.status.code(), Some(2), "{done:?}");
        assert!(String::from_utf8_lossy(&done.stderr).contains("was not compared"), "{done:?}");
        let _ = std::fs::remove_dir_all(&in_the_way);
        std::fs::rename(&elsewhere, &in_the_way).unwrap();
        wait_state(&daemon, "whole");
        assert_eq!(verify(&daemon)["not_compared"], Value::Null);
        assert_eq!(daemon.ok("job.run", json!({ "name": "verify" }))["state"], "ok");
    }
    // So is one whose newest object cannot be read.
    let newest =
        in_the_way.join("published").join(sidekeep::audit::publication::name(size.as_u64().unwrap()));
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::remove_file(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(checkpoint(&daemon)["state"], "failed");
    std::fs::write(&newest, &bytes).unwrap();
    assert_eq!(checkpoint(&daemon)["state"], "ok");
}

#[test]
fn a_log_that_was_rewritten_from_end_to_end_is_found_by_its_publication() {
    let world = World::new();
    let daemon = world.start_with(&format!("{}audit.streams = 1\n", publishing(&world)));
    append(&daemon, 5);
    checkpoint(&daemon);
    daemon.stop();
    // By the owner of the tables, with the keys: another history, as long and as well sealed and signed as the first.
    world.sql(
        "SET session_replication_role = replica; TRUNCATE audit_logs, audit_heads, audit_checkpoints, audit_nodes, \
         audit_streams, audit_publications",
    );
    let forger = world.start_with("jobs.enabled = false\naudit.streams = 1\n");
    append(&forger, 5);
    checkpoint(&forger);
    assert_eq!(verify(&forger)["verdict"], "intact", "nothing in the database tells");
    forger.stop();

    let daemon = world.start_with(&publishing(&world));
    let report = wait_state(&daemon, "forked");
    assert!(report["message"].as_str().unwrap().contains("contradicts its publication"), "{report}");
    assert_eq!(daemon.ok("system.health", json!({}))["checks"]["publication"]["status"], "degraded");
    let signed = world.sql("SELECT count(*) FROM audit_checkpoints");
    append(&daemon, 1);
    let run = checkpoint(&daemon);
    assert!(run["error"].as_str().unwrap().contains("nothing is signed"), "{run}");
    assert_eq!((objects(&world).len(), world.sql("SELECT count(*) FROM audit_checkpoints")), (1, signed));
    let report = verify(&daemon);
    assert_eq!(
        (&report["verdict"], &report["breaks"][0]["what"]),
        (&json!("broken"), &json!("publication")),
        "{report}"
    );
    let metrics = daemon.ok("system.metrics", json!({}))["text"].as_str().unwrap().to_owned();
    assert!(metrics.contains("sidekeep_publication{state=\"forked\"} 1"));
    for command in [&["verify"][..], &["recover", "--accept-gap"]] {
        let done = sidekeep(&[&["--config", daemon.config.to_str().unwrap()], command].concat());
        assert_eq!(done.status.code(), Some(1), "{done:?}");
    }
    assert_eq!(world.sql("SELECT count(*) FROM audit_streams WHERE closed_at IS NOT NULL"), "0");
}

#[test]
fn published_heads_that_are_gone_are_told_and_then_taken_over_again() {
    let world = World::new();
    let daemon = world.start_with(&publishing(&world));
    append(&daemon, 5);
    checkpoint(&daemon);
    world.sql(
        "SET session_replication_role = replica; DELETE FROM audit_checkpoints; DELETE FROM audit_heads; \
         DELETE FROM audit_nodes WHERE stream = -1",
    );
    let report = verify(&daemon);
    let told = &report["breaks"][0];
    assert_eq!((&report["verdict"], &told["what"]), (&json!("broken"), &json!("publication")), "{report}");
    assert_eq!((&told["found"], &told["position"]), (&json!("0"), &json!(0)), "{report}");
    append(&daemon, 1);
    let run = checkpoint(&daemon);
    assert_eq!(run["state"], "ok", "{run}");
    assert_eq!(verify(&daemon)["verdict"], "intact");
}

#[test]
fn a_program_publishes_as_a_directory_does() {
    let world = World::new();
    let store = published(&world);
    std::fs::create_dir(&store).unwrap();
    let program = world.path("publish");
    let script = "#!/bin/sh\nset -eu\ncd \"$1\"\ncase $2 in\n\
        put) test ! -e \"$3\"; cat > .new; mv .new \"$3\" ;;\n\
        get) cat \"$3\" ;;\n\
        newest) ls | tail -n 1 ;;\nesac\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let more = format!("audit.publish_command = [{program:?}, {store:?}]\njobs.enabled = false\n");
    let daemon = world.start_with(&more);
    for _ in 0..3 {
        append(&daemon, 2);
        assert_eq!(checkpoint(&daemon)["state"], "ok");
    }
    assert_eq!(objects(&world).len(), 3);
    assert!(python(&world).starts_with("intact: "));
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::rename(&program, world.path("gone")).unwrap();
    append(&daemon, 1);
    let run = checkpoint(&daemon);
    assert!(run["error"].as_str().unwrap().contains("`newest`"), "{run}");
    std::fs::rename(world.path("gone"), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(checkpoint(&daemon)["state"], "ok");

    let both = world.configure(&format!("{more}audit.publish = \"file:///nowhere\"\n")).0;
    let checked = sidekeep(&["--config", both.to_str().unwrap(), "config", "check"]);
    assert_eq!(checked.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&checked.stderr).contains("audit.publish is set too"), "{checked:?}");
}

#[test]
fn another_signing_key_is_entered_signed_by_both() {
    let world = World::new();
    let daemon = world.start_with(&publishing(&world));
    append(&daemon, 2);
    checkpoint(&daemon);
    daemon.stop();
    let (old, new) = (world.path("signing"), world.add_signing_key("signing-2"));
    let alone = world.start_with(&format!("{}signing.key_files = [{new:?}]\n", publishing(&world)));
    append(&alone, 1);
    let run = checkpoint(&alone);
    assert_eq!(run["state"], "failed", "it cannot read what the other key has signed: {run}");
    alone.stop();

    let daemon = world.start_with(&format!("{}signing.key_files = [{new:?}, {old:?}]\n", publishing(&world)));
    append(&daemon, 1);
    assert_eq!(checkpoint(&daemon)["state"], "ok");
    let told = daemon.ok("audit.query", json!({ "action": "log.signing_key" }))["items"].clone();
    assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
    let keys = sidekeep(&["--config", daemon.config.to_str().unwrap(), "signing", "public-key"]);
    let keys: Vec<String> = String::from_utf8(keys.stdout).unwrap().lines().map(str::to_owned).collect();
    let labels = &told[0]["labels"];
    assert_eq!(
        (&labels["sidekeep.new_key"], &labels["sidekeep.old_key"]),
        (&json!(keys[0]), &json!(keys[1]))
    );
    let read = |labels: &Value| {
        Labels::of(
            labels.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())),
        )
    };
    assert!(!succession::read("sidekeep/test", &read(labels)).unwrap().declared);
    append(&daemon, 1);
    assert_eq!(checkpoint(&daemon)["state"], "ok");
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'log.signing_key'"), "1");
    assert_eq!((verify(&daemon)["verdict"].clone(), objects(&world).len()), (json!("intact"), 3));
    assert!(python(&world).starts_with("intact: "));
    daemon.stop();

    // The log itself leads from the new key to what the old one has signed: its file can be destroyed.
    let daemon = world.start_with(&format!("{}signing.key_files = [{new:?}]\n", publishing(&world)));
    append(&daemon, 1);
    assert_eq!(checkpoint(&daemon)["state"], "ok");
    assert_eq!(verify(&daemon)["verdict"], "intact");
    daemon.stop();
    let stranger = world.add_signing_key("signing-3");
    let daemon = world.start_with(&format!("jobs.enabled = false\nsigning.key_files = [{stranger:?}]\n"));
    assert_eq!(verify(&daemon)["verdict"], "broken", "a key that followed none of them");
    daemon.assert_well();

    // Without a publication to read, the last note in the database tells who signed last.
    let world = World::new();
    let daemon = world.start_with("jobs.enabled = false\n");
    append(&daemon, 1);
    checkpoint(&daemon);
    daemon.stop();
    let new = world.add_signing_key("signing-2");
    let daemon = world.start_with(&format!("jobs.enabled = false\nsigning.key_files = [{new:?}]\n"));
    append(&daemon, 1);
    let run = checkpoint(&daemon);
    assert!(run["error"].as_str().unwrap().contains("name it behind the new one"), "{run}");
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'log.signing_key'"), "0");
}

#[test]
fn a_signing_key_that_is_lost_is_followed_by_one_that_declares_it() {
    let world = World::new();
    let kept = format!("file://{}", world.path("kept").display());
    let shared = format!("{}keyring.backup = {kept:?}\n", publishing(&world));
    let daemon = world.start_with(&shared);
    append(&daemon, 2);
    checkpoint(&daemon);
    daemon.ok("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": true }));
    let certificate = daemon.ok("subject.erase", json!({ "user_id": "u", "reason": "request" }));
    assert_eq!(daemon.ok("job.run", json!({ "name": "keyring_backup" }))["state"], "ok");
    let lost = keys(&daemon).remove(0).encode();
    daemon.stop();
    std::fs::remove_file(world.path("signing")).unwrap();

    // A new key alone does not get far, and is told what is missing.
    let new = world.add_signing_key("signing-2");
    let alone = format!("{shared}signing.key_files = [{new:?}]\n");
    let daemon = world.start_with(&alone);
    append(&daemon, 1);
    let run = checkpoint(&daemon);
    assert!(run["error"].as_str().unwrap().contains("signing.lost_keys"), "{run}");
    // What it has signed names its public half.
    let document = world.path("certificate.json");
    std::fs::write(&document, certificate.to_string()).unwrap();
    let config = daemon.config.to_str().unwrap();
    let said = sidekeep(&["--config", config, "signing", "public-key", "--of", document.to_str().unwrap()]);
    assert_eq!(String::from_utf8(said.stdout).unwrap().trim(), lost);
    daemon.stop();

    let daemon = world.start_with(&format!("{alone}signing.lost_keys = [{lost:?}]\n"));
    append(&daemon, 1);
    for job in ["checkpoint", "keyring_backup"] {
        let run = daemon.ok("job.run", json!({ "name": job }));
        assert_eq!(run["state"], "ok", "{run}");
    }
    let told = daemon.ok("audit.query", json!({ "action": "log.signing_key" }))["items"].clone();
    let labels = told[0]["labels"].as_object().unwrap();
    let read = Labels::of(labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())));
    let change = succession::read("sidekeep/test", &read).unwrap();
    assert!(change.declared && change.old.encode() == lost && change.new == keys(&daemon)[0], "{change:?}");
    append(&daemon, 1);
    assert_eq!(checkpoint(&daemon)["state"], "ok");
    assert_eq!(verify(&daemon)["verdict"], "intact");
    daemon.stop();

    // Without its public half nothing of before verifies: no entry leads to a key that has not signed it.
    let daemon = world.start_with(&format!("jobs.enabled = false\nsigning.key_files = [{new:?}]\n"));
    assert_eq!(verify(&daemon)["verdict"], "broken");
    daemon.stop();

    for (wrong, code) in [("sidekeep/other+", 78), ("nonsense+", 78)] {
        let key = lost.replace("sidekeep/test+", wrong);
        let wrong = world.configure(&format!("{alone}signing.lost_keys = [{key:?}]\n")).0;
        let served = sidekeep(&["--config", wrong.to_str().unwrap(), "serve"]);
        assert_eq!(served.status.code(), Some(code), "{served:?}");
        assert!(String::from_utf8_lossy(&served.stderr).contains("lost_keys"), "{served:?}");
    }
}
