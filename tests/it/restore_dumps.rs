//! Dumps that are not quite of here and now: encrypted, of an older schema, or of a newer one, or of a deployment that goes on.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::restore::{Dumped, WAITS, made_to_wait, run, untouched};
use crate::support::{sidekeep, sql, wait_for};

#[test]
fn an_encrypted_dump_is_restored_with_its_key_alone() {
    use age::secrecy::ExposeSecret as _;
    let identity = age::x25519::Identity::generate();
    let dumped = Dumped::with(&format!("backup.recipients = [\"{}\"]\n", identity.to_public()));
    let write = |name: &str, identity: &age::x25519::Identity| {
        let file = dumped.world.path(name);
        std::fs::write(&file, identity.to_string().expose_secret()).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (file, other) = (write("identity", &identity), write("other", &age::x25519::Identity::generate()));
    let stored = std::fs::read(dumped.world.path("dumps").join("dumps").join(&dumped.name).join("dump.age"));
    assert!(stored.unwrap().starts_with(b"age-encryption.org/v1"));
    dumped.go_on();
    let into = dumped.empty();
    dumped.restore(&into, &[]).refused("--identity");
    dumped.restore(&into, &["--identity", &other]).refused(&dumped.name);
    untouched(&into);
    let done = dumped.restore(&into, &["--identity", &file]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(done.told["restored"]["erased_again"], 1, "{done:?}");
    let daemon = dumped.serve(&into);
    assert_eq!(daemon.ok("profile.get", json!({ "user_id": "eve" }))["email"], "eve@example.org");
}

#[test]
fn a_dump_of_an_older_schema_is_brought_up_to_date_and_one_of_a_newer_is_refused() {
    let mut dumped = Dumped::new();
    let newest = |dumped: &Dumped| {
        run(&dumped.daemon, "backup");
        let listed = dumped.daemon.ok("backup.list", json!({}));
        // Of two in one second the names do not tell which is the newer.
        let newest = listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .max_by_key(|item| item["created_at"].as_str().unwrap().to_owned());
        newest.unwrap()["name"].as_str().unwrap().to_owned()
    };
    // As it was before this migration.
    let down = include_str!("../../migrations/2026-11-21-000161_deployment_key_stays/down.sql");
    dumped.world.sql(down);
    dumped.world.sql("DELETE FROM __diesel_schema_migrations WHERE version = '20261121000161'");
    dumped.name = newest(&dumped);
    dumped.world.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('20991231000000')");
    let later = newest(&dumped);
    dumped.go_on();
    let into = dumped.empty();
    dumped.restore_this(&later, &into, &[]).refused("install that version or a later one");
    untouched(&into);
    let done = dumped.restore(&into, &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let there =
        "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'subjects'::regclass AND tgname = 'deployment'";
    assert_eq!(sql(&into, there), "1");
    let daemon = dumped.serve(&into);
    assert_eq!(daemon.client().err("profile.get", json!({ "user_id": "bob" })).kind(), "not_found");
    assert_eq!(daemon.ok("profile.get", json!({ "user_id": "eve" }))["email"], "eve@example.org");
}

#[test]
fn who_is_erased_while_a_dump_is_restored_is_in_it_whole_until_that_is_recovered() {
    let dumped = Dumped::new();
    let into = dumped.empty();
    let (mut holder, mut restoring) = made_to_wait(&dumped, &into);
    // Keys are in the tables, and tombstones not yet.
    dumped.daemon.ok("subject.erase", json!({ "user_id": "ada", "reason": "request" }));
    dumped.backed_up();
    holder.run("SELECT pg_advisory_unlock(7)");
    assert_eq!(restoring.wait().unwrap().code(), Some(0));
    assert_eq!(holder.run(&format!("SELECT count(*) {WAITS}")), "0");
    sql(&into, "DROP EVENT TRIGGER wait; DROP FUNCTION public.wait()");
    let both = "SELECT count(*) FROM sidekeep.subjects JOIN sidekeep.subject_erasures USING (subject_id)";
    assert_eq!(sql(&into, both), "0");
    // It tells that it is behind, and that is made good.
    let config = dumped.config_of(&into);
    let recover = |more: &[&str]| sidekeep(&[&["--config", &config, "recover"], more].concat());
    assert_eq!(recover(&[]).status.code(), Some(1));
    let done = recover(&["--accept-gap"]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(sql(&into, "SELECT string_agg(user_id, ',' ORDER BY user_id) FROM subjects"), "bob,eve");
    let daemon = dumped.serve(&into);
    let mut client = daemon.client();
    let gone = wait_for("it to serve", || {
        let error = client.err("profile.get", json!({ "user_id": "ada" }));
        (error.kind() != "unavailable").then_some(error)
    });
    assert_eq!(gone.kind(), "not_found");
    assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact");
}
