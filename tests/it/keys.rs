//! Keys and database that do not belong together are found before anything is served, and no key is ever told.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use crate::support::{Client, World, wait_for};

/// Starts a daemon that must refuse, and answers what it says. It served nobody, and shows nothing of any key.
fn refused(world: &World, more: &str) -> String {
    let mut daemon = world.spawn(more);
    let code = daemon.wait();
    let said = daemon.log();
    assert_eq!(code, Some(78), "{said}");
    assert!(Client::try_connect(&daemon.socket).is_err());
    for file in std::fs::read_dir(world.path("")).unwrap().flatten() {
        let text = std::fs::read_to_string(file.path()).unwrap_or_default();
        for line in text.lines().filter_map(|line| line.strip_prefix("sidekeep-kek-1:")) {
            assert!(!said.contains(line.trim_end_matches('=')), "{said}");
        }
    }
    said
}

fn key_files(files: &[&Path]) -> String {
    format!("keyring.key_files = {files:?}\n")
}

#[test]
fn a_key_file_that_is_no_key_is_refused() {
    let world = World::new();
    let garbage = world.path("garbage");
    std::fs::write(&garbage, "planted-garbage\n").unwrap();
    std::fs::set_permissions(&garbage, std::fs::Permissions::from_mode(0o600)).unwrap();
    let said = refused(&world, &key_files(&[&garbage]));
    assert!(said.contains("garbage: holds no key-encryption key") && !said.contains("planted"), "{said}");

    let missing = world.path("missing");
    let said = refused(&world, &key_files(&[&missing]));
    assert!(said.contains("keyring.key_files") && said.contains("missing"), "{said}");

    let open = world.add_key("open");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = refused(&world, &key_files(&[&open]));
    assert!(said.contains("open") && said.contains("0644"), "{said}");

    let kek = world.path("kek");
    let copy = world.path("copy");
    std::fs::copy(&kek, &copy).unwrap();
    let said = refused(&world, &key_files(&[&kek, &copy]));
    assert!(said.contains("copy: holds the same key"), "{said}");
    assert!(refused(&world, "keyring.key_files = []\n").contains("key"));
    assert_eq!(world.sql("SELECT count(*) FROM subjects"), "0", "nothing was made");
}

#[test]
fn the_key_of_another_deployment_is_refused() {
    let world = World::new();
    let daemon = world.start();
    for n in 0..3 {
        daemon.ok("preferences.set", json!({ "user_id": format!("u{n}"), "preferences": {} }));
    }
    let id = daemon.ok("system.status", json!({}))["kek_ids"][0].as_str().unwrap().to_owned();
    daemon.stop();
    let other = world.add_key("other");
    let said = refused(&world, &key_files(&[&other]));
    assert!(said.contains("4 data key(s)") && said.contains(&id), "{said}");

    let said = refused(&world, "deployment.name = \"other\"\n");
    assert!(said.contains(r#"belongs to the deployment \"test\""#), "{said}");
    assert_eq!(world.sql("SELECT name FROM deployment"), "test");

    world.start().ok("preferences.get", json!({ "user_id": "u1" }));
}

#[test]
fn a_key_in_front_wraps_new_people_and_the_one_behind_opens_old_ones() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("preferences.set", json!({ "user_id": "old", "preferences": { "a": 1 } }));
    daemon.stop();
    let (first, second) = (world.path("kek"), world.add_key("second"));
    let daemon = world.start_with(&key_files(&[&second, &first]));
    daemon.ok("preferences.set", json!({ "user_id": "new", "preferences": { "b": 2 } }));
    assert_eq!(daemon.ok("preferences.get", json!({ "user_id": "old" }))["preferences"], json!({ "a": 1 }));
    let ids = daemon.ok("system.status", json!({}))["kek_ids"].clone();
    let of = |user: &str| world.sql(&format!("SELECT kek_id FROM subjects WHERE user_id = '{user}'"));
    assert_eq!(ids, json!([of("new"), of("old")]));
    daemon.stop();
    // Taken away while it is in use.
    let said = refused(&world, &key_files(&[&second]));
    assert!(said.contains("2 data key(s)") && said.contains(&of("old")), "{said}");
    let said = refused(&world, &key_files(&[&first]));
    assert!(said.contains("1 data key(s)") && said.contains(&of("new")), "{said}");
}

#[test]
fn daemons_that_start_at_once_make_one_deployment() {
    let world = World::new();
    let daemons = [(); 4].map(|()| world.spawn(""));
    daemons.iter().for_each(crate::support::Daemon::wait_ready);
    for (n, daemon) in daemons.iter().enumerate() {
        wait_for("health", || (daemon.ok("system.health", json!({}))["status"] == "ok").then_some(()));
        daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": { "n": n } }));
    }
    assert_eq!(world.sql("SELECT count(*) FROM deployment"), "1");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id IS NULL AND subject_id = 0"), "1");
    assert_eq!(world.sql("SELECT count(*) FROM subjects"), "2");
}

#[test]
fn another_deployments_row_for_this_ones_key_is_found() {
    let world = World::new();
    world.start().stop();
    world.sql("UPDATE subjects SET wrapped_key = set_byte(wrapped_key, 20, get_byte(wrapped_key, 20) # 1) WHERE subject_id = 0");
    let mut daemon = world.spawn("");
    assert_eq!(daemon.wait(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("own data key does not open"), "{}", daemon.log());
}

#[test]
fn the_log_tells_nothing_personal_and_no_key_however_much_it_tells() {
    let world = World::new();
    let daemon = world.start_with("log.level = \"trace\"\n");
    let mut client = daemon.client();
    let (user, text) = ("planted-user-qzxwvk", "planted-text-7302");
    client.ok("profile.create", json!({ "user_id": user, "username": text, "email": "planted-mail-7303@mail.example", "metadata": { text: text } }));
    client.err("profile.create", json!({ "user_id": user, "username": text, "email": text }));
    client.err("profile.update", json!({ "user_id": user, "changes": { text: text } }));
    client.ok("preferences.set", json!({ "user_id": user, "preferences": { text: text } }));
    client.ok("consent.record", json!({ "user_id": user, "consent_type": "c", "granted": true, "ip_address": "203.0.113.73", "user_agent": text }));
    let conversation = client.ok("conversation.create", json!({ "user_id": user, "title": text }));
    client.ok(
        "conversation.append",
        json!({ "id": conversation["id"], "messages": [{ "role": "user", "content": text }] }),
    );
    client.ok("conversation.search", json!({ "user_id": user, "query": text }));
    client.send(format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"profile.get\",\"params\":{{\"user_id\":\"{user}\",{text}\n").as_bytes());
    client.line();
    // What PostgreSQL says of a row that it refuses has the row's values.
    world.sql(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'a fault of the test''s' USING DETAIL = 'planted-detail-7304'; END $$; \
         CREATE TRIGGER fail BEFORE INSERT ON user_profiles FOR EACH ROW EXECUTE FUNCTION fail()",
    );
    let error = client
        .err("profile.create", json!({ "user_id": "planted-user-7305", "username": text, "email": text }));
    assert_eq!((error.code, error.message.as_str()), (-32603, "internal error"));
    let log = daemon.log();
    assert!(log.contains("\"TRACE\"") || log.contains("\"DEBUG\""), "it tells much: {log}");
    let key = std::fs::read_to_string(world.path("kek")).unwrap();
    let key = key.lines().last().unwrap().split_once(':').unwrap().1.trim_end_matches('=').to_owned();
    // No digits: a time has any four of them now and then.
    for secret in ["planted-", "qzxwvk", "203.0.113.73", &key] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
