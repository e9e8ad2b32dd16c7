//! `subject.find`: people are found by what their profiles say, and nothing that finds them can be read.

use std::process::Command;

use serde_json::{Value, json};

use crate::holds::assert_intact;
use crate::support::{Client, World, wait_for};

fn profile(client: &mut Client, user_id: &str, username: &str, email: &str) {
    client.ok("profile.create", json!({ "user_id": user_id, "username": username, "email": email }));
}

fn found(client: &mut Client, by: &str, text: &str) -> Value {
    client.ok("subject.find", json!({ by: text }))["items"].clone()
}

#[test]
fn people_are_found_by_address_in_any_case_and_by_their_exact_name() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    profile(&mut client, "u2", "Alice", "Änne@Mail.Example");
    profile(&mut client, "u1", "alice", "änne@mail.example");
    profile(&mut client, "u3", "carol", "carol@mail.example");
    assert_eq!(found(&mut client, "email", "ÄNNE@MAIL.EXAMPLE"), json!(["u1", "u2"]));
    assert_eq!(found(&mut client, "email", " änne@mail.example"), json!([]));
    assert_eq!(found(&mut client, "username", "alice"), json!(["u1"]));
    assert_eq!(found(&mut client, "username", "ALICE"), json!([]));
    // A name is no address.
    assert_eq!(found(&mut client, "username", "carol@mail.example"), json!([]));
    assert_eq!(client.err("subject.find", json!({})).field(), "email");
    assert_eq!(client.err("subject.find", json!({ "email": "a", "username": "b" })).field(), "username");

    let change = json!({ "user_id": "u3", "changes": { "email": "c@mail.example", "username": "caro" } });
    client.ok("profile.update", change);
    assert_eq!(found(&mut client, "email", "carol@mail.example"), json!([]));
    assert_eq!(found(&mut client, "email", "C@mail.example"), json!(["u3"]));
    assert_eq!(found(&mut client, "username", "caro"), json!(["u3"]));
    client.ok("profile.delete", json!({ "user_id": "u3" }));
    assert_eq!(found(&mut client, "email", "c@mail.example"), json!([]));
    client.ok("subject.erase", json!({ "user_id": "u1", "reason": "request" }));
    assert_eq!(found(&mut client, "email", "änne@mail.example"), json!(["u2"]));

    let entry = client.ok("audit.query", json!({ "action": "subject.find", "limit": 1 }))["items"][0].clone();
    assert_eq!(entry["subject_user_id"], "u2", "one person who is found is whom it concerned");
    let dump = Command::new("pg_dump").args(["--data-only", &world.owner_url]).output().unwrap();
    let dump = String::from_utf8_lossy(&dump.stdout).to_lowercase();
    assert!(!dump.contains("mail.example") && !dump.contains("änne"), "{dump}");
    assert_intact(&daemon);
}

#[test]
fn profiles_from_before_are_made_ready_and_until_then_nobody_is_said_to_be_absent() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for number in 0..250 {
        profile(
            &mut client,
            &format!("u{number}"),
            &format!("name {number}"),
            &format!("{number}@mail.example"),
        );
    }
    daemon.stop();
    let times = "SELECT md5(string_agg(updated_at::text, ',' ORDER BY subject_id)) FROM user_profiles";
    let before = world.sql(times);
    world.sql("UPDATE user_profiles SET username_digest = NULL, email_digest = NULL");
    // One that does not open keeps nobody else from being found.
    world.sql("UPDATE user_profiles SET email_sealed = 'broken' WHERE subject_id = (SELECT subject_id FROM subjects WHERE user_id = 'u7')");
    let daemon = world.start();
    let mut client = daemon.client();
    let items = wait_for("the digests", || {
        match client.call("subject.find", json!({ "email": "249@mail.example" })) {
            Ok(found) => Some(found["items"].clone()),
            Err(error) => {
                assert_eq!(
                    (error.kind(), &error.data["retryable"]),
                    ("unavailable", &json!(true)),
                    "{error:?}"
                );
                None
            }
        }
    });
    assert_eq!(items, json!(["u249"]));
    assert_eq!(found(&mut client, "username", "name 0"), json!(["u0"]));
    assert_eq!(found(&mut client, "email", "7@mail.example"), json!([]));
    assert_eq!(client.err("profile.get", json!({ "user_id": "u7" })).kind(), "tampered");
    let others = times.replace("user_profiles", "user_profiles WHERE email_sealed <> 'broken'");
    let now = world.sql(&others);
    assert_ne!(before, "");
    world.sql(
        "UPDATE user_profiles SET username_digest = NULL, email_digest = NULL WHERE email_sealed <> 'broken'",
    );
    assert_eq!(world.sql(&others), now, "to make a digest is no change of the profile");
}

#[test]
fn a_digest_that_was_moved_finds_nobody_else() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    profile(&mut client, "u1", "one", "one@mail.example");
    profile(&mut client, "u2", "two", "two@mail.example");
    world.sql(
        "UPDATE user_profiles SET email_digest = (SELECT email_digest FROM user_profiles p JOIN subjects s USING (subject_id) WHERE user_id = 'u1') \
         WHERE subject_id = (SELECT subject_id FROM subjects WHERE user_id = 'u2')",
    );
    assert_eq!(client.err("subject.find", json!({ "email": "one@mail.example" })).kind(), "tampered");
}

#[test]
fn a_new_key_encryption_key_changes_no_digest() {
    let world = World::new();
    let daemon = world.start();
    profile(&mut daemon.client(), "u1", "one", "one@mail.example");
    daemon.stop();
    let keys = format!("keyring.key_files = [{:?}, {:?}]\n", world.add_key("kek2"), world.path("kek"));
    let daemon = world.start_with(&keys);
    let mut client = daemon.client();
    assert_eq!(found(&mut client, "email", "one@mail.example"), json!(["u1"]));
    profile(&mut client, "u2", "two", "ONE@mail.example");
    assert_eq!(found(&mut client, "email", "one@mail.example"), json!(["u1", "u2"]));
    assert_intact(&daemon);
}
