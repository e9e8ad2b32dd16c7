//! A person whose wrapped key was damaged: nothing of the person's is read, and the person is erased all the same.

use serde_json::{Value, json};
use sidekeep::audit::document;

use crate::erasure::{SALT, commitment, fill, filled, rows};
use crate::holds::assert_intact;
use crate::support::kept::{keyring_backup, people};
use crate::support::{Client, World, wait_for};

const DAMAGE: &str = "UPDATE subjects SET wrapped_key = set_byte(wrapped_key, 20, get_byte(wrapped_key, 20) # 1) WHERE user_id = 'ada'";

fn asked() -> Value {
    json!({ "user_id": "ada", "reason": "request", "id": "gone", "salt": SALT })
}

fn tampered(client: &mut Client, method: &str, params: Value) {
    let error = client.err(method, params);
    assert_eq!((error.kind(), &error.data["at"]), ("tampered", &json!("subjects.wrapped_key")), "{method}");
}

fn entry(client: &mut Client, action: &str) -> Value {
    let page = client.ok("audit.query", json!({ "action": action, "limit": 1 }));
    page["items"][0].clone()
}

#[test]
fn a_person_whose_key_is_damaged_is_erased_with_a_right_certificate() {
    let world = World::new();
    let daemon = world.start_with(&keyring_backup(&world));
    let mut client = daemon.client();
    let before = rows(&world);
    fill(&mut client, "ada", "MARK");
    client.ok("preferences.set", json!({ "user_id": "eve", "preferences": { "a": 1 } }));
    client.ok("job.run", json!({ "name": "keyring_backup", "wait": "60s" }));
    let subject_id = world.sql("SELECT subject_id FROM subjects WHERE user_id = 'ada'");
    world.sql(DAMAGE);
    let dry = client.ok("subject.erase", json!({ "user_id": "ada", "reason": "request", "dry_run": true }));
    assert_eq!(dry["body"]["counts"], filled());
    let mut asked = asked();
    asked["context"] = json!({ "user_id": "eve", "ip_address": "192.0.2.1" });
    let certificate = client.ok("subject.erase", asked.clone());
    document::verify(&certificate).unwrap();
    let body = &certificate["body"];
    assert_eq!((&body["counts"], &body["commitment"]), (&filled(), &json!(commitment(SALT, "ada"))));
    assert_eq!(client.ok("subject.erase", asked), certificate, "repeated, it answers the same");
    wait_for("the keyring's backup", || (people(&world) == ["eve"]).then_some(()));
    assert_eq!(client.err("profile.get", json!({ "user_id": "ada" })).kind(), "not_found");
    let shown = client.ok("audit.get", json!({ "id": body["entry_id"] }));
    assert_eq!((&shown["user_id"], &shown["ip_address"]), (&json!("eve"), &json!("192.0.2.1")));
    assert_eq!(
        (&shown["erased"], &shown["labels"]["sidekeep.key"]),
        (&json!(["subject"]), &json!("damaged"))
    );
    assert_eq!(
        world.sql("SELECT DISTINCT subject_id FROM audit_logs WHERE action = 'subject.erase'"),
        subject_id
    );
    assert_intact(&daemon);
    client.ok("subject.erase", json!({ "user_id": "eve", "reason": "request" }));
    assert_eq!(rows(&world), before);
}

#[test]
fn what_needs_no_key_is_done_and_what_needs_it_stays_refused() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "ada", "MARK");
    world.sql(DAMAGE);
    client.ok("profile.delete", json!({ "user_id": "ada", "context": { "ip_address": "192.0.2.1" } }));
    let deleted = "SELECT count(*) FROM user_profiles";
    assert_eq!(world.sql(deleted), "0");
    let reason = json!({ "user_id": "ada", "reason": "contested" });
    assert_eq!(client.ok("subject.restrict", reason.clone()), json!({ "restricted": true }));
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE restricted_at IS NOT NULL"), "1");
    // Nothing was sealed for a person whom nothing can be sealed for, nor under another key.
    let sealed = "SELECT DISTINCT concat_ws(' ', labels ->> 'sidekeep.key', client_sealed IS NULL, metadata_sealed IS NULL) \
        FROM audit_logs WHERE action IN ('profile.delete', 'subject.restrict')";
    wait_for("the entries", || (world.sql(sealed) == "damaged t t").then_some(()));
    tampered(&mut client, "subject.hold", reason.clone());
    tampered(&mut client, "subject.unrestrict", reason);
    tampered(&mut client, "subject.export", json!({ "user_id": "ada" }));
    tampered(&mut client, "preferences.get", json!({ "user_id": "ada" }));
    tampered(&mut client, "preferences.set", json!({ "user_id": "ada", "preferences": {} }));
    tampered(&mut client, "audit.append", json!({ "user_id": "ada", "action": "x" }));
    tampered(&mut client, "audit.append", json!({ "subject_user_id": "ada", "action": "x", "metadata": 1 }));
    tampered(&mut client, "audit.query", json!({ "subject_user_id": "ada" }));
    // Whoever acts must be somebody whose key opens.
    let other = json!({ "user_id": "eve", "preferences": {}, "context": { "user_id": "ada" } });
    tampered(&mut client, "preferences.set", other);
    client.ok("subject.erase", asked());
    assert_eq!(entry(&mut client, "subject.erase")["erased"], json!(["subject"]));
    assert_intact(&daemon);
}

#[test]
fn a_hold_keeps_a_person_whose_key_is_damaged() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "ada", "MARK");
    client.ok("subject.hold", json!({ "user_id": "ada", "reason": "a lawsuit" }));
    world.sql(DAMAGE);
    assert_eq!(client.err("subject.erase", asked()).kind(), "held");
    let mut dry = asked();
    dry["dry_run"] = true.into();
    assert_eq!(client.err("subject.erase", dry).kind(), "held");
    assert_eq!(client.err("profile.delete", json!({ "user_id": "ada" })).kind(), "held");
    let denied = "SELECT count(*) FROM audit_logs WHERE outcome = 'denied' AND labels ->> 'sidekeep.key' = 'damaged' \
        AND subject_id = (SELECT subject_id FROM subjects WHERE user_id = 'ada')";
    assert_eq!(world.sql(denied), "3");
    assert_intact(&daemon);
}

#[test]
fn nobody_is_erased_in_the_place_of_another() {
    // What somebody who owns the tables does with the rows of two persons, and with one of them alone.
    let swaps = [
        "UPDATE subjects s SET wrapped_key = o.wrapped_key FROM subjects o \
            WHERE s.subject_id <> o.subject_id AND s.user_id IN ('ada', 'bob') AND o.user_id IN ('ada', 'bob')",
        "UPDATE subjects SET wrapped_key = (SELECT wrapped_key FROM subjects WHERE user_id = 'bob') WHERE user_id = 'ada'",
        "UPDATE subjects SET user_id = 'x' WHERE user_id = 'ada'; UPDATE subjects SET user_id = 'ada' WHERE user_id = 'bob'; \
            UPDATE subjects SET user_id = 'bob' WHERE user_id = 'x'",
    ];
    for swap in swaps {
        let world = World::new();
        let daemon = world.start();
        let mut client = daemon.client();
        for user in ["ada", "bob"] {
            fill(&mut client, user, "MARK");
        }
        world.sql(swap);
        let before = rows(&world);
        let mut dry = asked();
        dry["dry_run"] = true.into();
        tampered(&mut client, "subject.erase", dry);
        tampered(&mut client, "subject.erase", asked());
        tampered(&mut client, "profile.delete", json!({ "user_id": "ada" }));
        tampered(&mut client, "subject.restrict", json!({ "user_id": "ada", "reason": "r" }));
        assert_eq!(rows(&world), before, "{swap}");
        daemon.assert_well();
    }
}
