//! `subject.erase` through the socket: what goes, what stays, and what can be shown of it afterwards.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sidekeep::audit::document;
use sidekeep::audit::merkle::Hash;
use sidekeep::subjects::selector::{Erasure, TABLES};
use sidekeep::values::jcs;

use crate::support::{Client, Psql, World, sidekeep, wait_for};

pub const SALT: &str = "CwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCwsLCws=";
const OTHER_SALT: &str = "DAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw=";

/// Everything that can be stored about a person.
pub fn fill(client: &mut Client, user_id: &str, mark: &str) {
    client.ok("profile.create", json!({ "user_id": user_id, "username": mark, "email": format!("{mark}@x.example"), "full_name": mark, "metadata": { mark: mark } }));
    client.ok("preferences.set", json!({ "user_id": user_id, "preferences": { mark: mark } }));
    for granted in [true, false] {
        client.ok("consent.record", json!({ "user_id": user_id, "consent_type": "t", "granted": granted, "policy_version": "7", "ip_address": mark, "user_agent": mark, "metadata": mark }));
    }
    client.ok("conversation.create", json!({ "user_id": user_id, "title": mark, "metadata": mark, "messages": [{ "role": "user", "content": mark, "name": mark }, { "role": "assistant", "content": mark }] }));
    client.ok("audit.append", json!({ "user_id": user_id, "action": "login", "ip_address": mark, "user_agent": mark, "metadata": mark }));
    client.ok("audit.append", json!({ "subject_user_id": user_id, "action": "read", "metadata": mark, "resource_type": "user", "resource_id": user_id }));
}

/// How many rows a person has who was filled.
pub fn filled() -> Value {
    json!({ "profile": 1, "preferences": 1, "consents": 2, "conversations": 1, "messages": 2 })
}

fn erase(user_id: &str) -> Value {
    json!({ "user_id": user_id, "reason": "request", "id": format!("erase-{}", user_id.len()), "salt": SALT })
}

/// The rows of tables that an erasure empties.
pub fn rows(world: &World) -> String {
    let tables = TABLES.iter().filter(|table| !matches!(table.erasure, Erasure::Outlives | Erasure::Nothing));
    let counts: Vec<String> = tables
        .map(|table| {
            let real = if table.name == "subjects" { "WHERE subject_id > 0" } else { "" };
            format!("SELECT '{0} ' || count(*) FROM {0} {real}", table.name)
        })
        .collect();
    world.sql(&format!("SELECT * FROM ({}) r ORDER BY 1", counts.join(" UNION ALL ")))
}

pub fn commitment(salt: &str, user_id: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(salt).unwrap());
    let mac = hmac::sign(&key, user_id.as_bytes());
    mac.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_erasure_deletes_the_person_and_leaves_what_shows_it() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let before = rows(&world);
    fill(&mut client, "user:u", "MARK");
    client.ok("profile.create", json!({ "user_id": "dpo", "username": "d", "email": "d@x.example" }));
    let subject_id = world.sql("SELECT subject_id FROM subjects WHERE user_id = 'user:u'");
    let status = client.ok("subject.status", json!({ "user_id": "user:u" }));
    let mut counts = filled();
    counts["audit_entries"] = status["counts"]["audit_entries"].clone();
    assert_eq!(status, json!({ "restricted": false, "holds": [], "counts": counts }));
    assert_eq!(counts["audit_entries"], 7);

    let mut asked = erase("user:u");
    asked["note"] = "by letter".into();
    asked["context"] =
        json!({ "user_id": "dpo", "purpose": "gdpr-17", "ip_address": "192.0.2.1", "request_id": "r-1" });
    let certificate = client.ok("subject.erase", asked);
    let body = &certificate["body"];
    assert_eq!(certificate["salt"], SALT);
    assert_eq!(body["commitment"], commitment(SALT, "user:u"));
    assert_eq!((&body["counts"], &body["kept"]), (&filled(), &json!({ "consents": 0 })));
    assert_eq!((&body["deployment"], &body["reason"]), (&json!("test"), &json!("request")));
    assert_eq!(
        (&body["backups_gone_after"], &body["physical_copies_gone_after"]),
        (&json!(null), &json!("unknown"))
    );
    assert!(!certificate.to_string().contains("user:u"));
    document::verify(&certificate).unwrap();

    // Only the other person is left.
    client.ok("profile.delete", json!({ "user_id": "dpo" }));
    world.sql("DELETE FROM subjects WHERE user_id = 'dpo'");
    assert_eq!(rows(&world), before);
    assert_eq!(client.err("profile.get", json!({ "user_id": "user:u" })).kind(), "not_found");
    assert_eq!(client.err("subject.status", json!({ "user_id": "user:u" })).kind(), "not_found");
    let stored = world.sql("SELECT subject_id, reason, entry_id, certificate_id FROM subject_erasures");
    assert_eq!(stored, format!("{subject_id}|request|{}|erase-6", body["entry_id"].as_str().unwrap()));
    let mut without = certificate.clone();
    without.as_object_mut().unwrap().remove("salt");
    assert_eq!(client.ok("subject.certificate", json!({ "id": "erase-6" })), without);

    let entry = client.ok("audit.get", json!({ "id": body["entry_id"] }));
    assert_eq!(
        (&entry["action"], &entry["outcome"], &entry["resource_id"]),
        (&json!("subject.erase"), &json!("success"), &json!("erase-6"))
    );
    assert_eq!(entry["labels"]["sidekeep.row_sha256"], Hash::of(&[&jcs(body).unwrap()]).hex());
    assert_eq!(
        world.sql("SELECT subject_id FROM audit_logs WHERE action = 'subject.erase'"),
        subject_id,
        "the entry bears the number that the person had"
    );
}

#[test]
fn the_log_goes_on_without_the_erased_and_verifies() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "user:u", "MARK");
    client.ok(
        "audit.append",
        json!({ "id": "seen", "user_id": "user:u", "action": "a", "ip_address": "192.0.2.1", "metadata": 1 }),
    );
    client.ok("subject.erase", erase("user:u"));
    let seen = client.ok("audit.get", json!({ "id": "seen" }));
    assert_eq!((&seen["erased"], &seen["anonymized"]), (&json!(["actor"]), &json!(true)));
    assert_eq!(
        (&seen["user_id"], &seen["ip_address"], &seen["metadata"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let all = client.ok("audit.query", json!({ "limit": 1000 }));
    assert!(!all.to_string().contains("MARK") && !all.to_string().contains("user:u"), "{all}");
    assert_eq!(client.ok("audit.query", json!({ "user_id": "user:u" }))["items"], json!([]));
    assert_eq!(world.sql("SELECT user_id, action FROM audit_log_entries WHERE id = 'seen'"), "anonymized|a");
    // The view has all that the table has.
    let left = "SELECT count(*) FROM (SELECT attname FROM pg_attribute WHERE attrelid = 'audit_logs'::regclass AND attnum > 0 \
        EXCEPT SELECT attname FROM pg_attribute WHERE attrelid = 'audit_log_entries'::regclass) AS lacking";
    assert_eq!(world.sql(left), "0");
    let report = client.ok("audit.verify", json!({}));
    assert_eq!((&report["verdict"], &report["erased_subjects"]), (&json!("intact"), &json!(1)), "{report}");
}

#[test]
fn a_person_who_erases_themselves_leaves_no_address_behind() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "u", "MARK");
    let mut asked = erase("u");
    asked["context"] = json!({ "user_id": "u", "ip_address": "192.0.2.1", "user_agent": "x" });
    client.ok("subject.erase", asked);
    wait_for("the entry", || {
        let found = world.sql("SELECT client_sealed IS NULL, actor_id = subject_id FROM audit_logs WHERE action = 'subject.erase'");
        (found == "t|t").then_some(())
    });
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE subject_id > 0"), "0", "nobody was created");
}

#[test]
fn an_erasure_is_repeated_with_its_id_and_its_salt_alone() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "u", "MARK");
    fill(&mut client, "v", "MARK");
    assert_eq!(
        client.err("subject.erase", json!({ "user_id": "u", "reason": "request", "id": "u" })).field(),
        "id"
    );
    let first = client.ok("subject.erase", erase("u"));
    assert_eq!(client.ok("subject.erase", erase("u")), first);
    for (field, value) in [
        ("salt", json!(OTHER_SALT)),
        ("salt", Value::Null),
        ("user_id", json!("v")),
        ("user_id", json!("nobody")),
        ("reason", json!("objection")),
        ("note", json!("another")),
    ] {
        let mut other = erase("u");
        other[field] = value.clone();
        assert_eq!(client.err("subject.erase", other).kind(), "conflict", "{field} {value}");
    }
    for params in [
        json!({ "user_id": "u", "reason": "request" }),
        json!({ "user_id": "u", "reason": "request", "id": "new" }),
    ] {
        assert_eq!(client.err("subject.erase", params).kind(), "not_found");
    }
    // The person has come back as another: a late repetition does not erase that one.
    fill(&mut client, "u", "MARK");
    assert_eq!(client.ok("subject.erase", erase("u")), first);
    assert_eq!(client.ok("profile.get", json!({ "user_id": "u" }))["username"], "MARK");
    assert_eq!(world.sql("SELECT count(*) FROM subject_erasures"), "1");
}

#[test]
fn a_held_person_is_not_erased_and_the_refusal_is_entered() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "u", "MARK");
    let before = rows(&world);
    let hold = client.ok("subject.hold", json!({ "user_id": "u", "reason": "lawsuit", "id": "h-1" }));
    for dry_run in [false, true] {
        let mut asked = erase("u");
        asked["dry_run"] = dry_run.into();
        let error = client.err("subject.erase", asked);
        assert_eq!((error.kind(), error.code, &error.data["holds"]), ("held", -32023, &json!([hold["id"]])));
    }
    assert_eq!(client.ok("subject.status", json!({ "user_id": "u" }))["holds"], json!(["h-1"]));
    assert_eq!(rows(&world).replace("legal_holds 1", "legal_holds 0"), before);
    let entered = client.ok("audit.query", json!({ "subject_user_id": "u", "action": "subject.erase" }));
    let outcomes: Vec<&Value> = entered["items"].as_array().unwrap().iter().map(|e| &e["outcome"]).collect();
    assert_eq!(outcomes, ["denied", "denied"]);
    client.ok("subject.release", json!({ "id": "h-1", "reason": "settled" }));
    client.ok("subject.erase", erase("u"));
    assert_eq!(world.sql("SELECT count(*) FROM legal_holds"), "0", "a released hold goes with the person");
}

#[test]
fn a_dry_run_counts_and_changes_nothing() {
    let world = World::new();
    let daemon = world.start_with("erasure.consents = \"keep\"\nsigning.key_files = []\n");
    let mut client = daemon.client();
    fill(&mut client, "u", "MARK");
    let before = rows(&world);
    let mut asked = erase("u");
    asked["dry_run"] = true.into();
    let foreseen = client.ok("subject.erase", asked.clone());
    assert_eq!(
        foreseen,
        json!({ "dry_run": true, "body": { "reason": "request", "counts": filled(), "kept": { "consents": 2 } } })
    );
    assert_eq!(
        (rows(&world), world.sql("SELECT count(*) FROM subject_erasures").as_str()),
        (before.clone(), "0")
    );
    asked["user_id"] = "nobody".into();
    assert_eq!(client.err("subject.erase", asked).kind(), "not_found");
    // This daemon signs nothing, so it erases nobody.
    let error = client.err("subject.erase", erase("u"));
    assert!(error.kind() == "conflict" && error.message.contains("signing.key_files"), "{error:?}");
    assert_eq!(rows(&world), before);
}

#[test]
fn consents_that_are_kept_are_those_of_a_number_that_leads_nowhere() {
    let world = World::new();
    let daemon = world.start_with("erasure.consents = \"keep\"\n");
    let mut client = daemon.client();
    for user_id in ["u", "vv"] {
        client.ok("consent.record", json!({ "user_id": user_id, "id": "same", "consent_type": "t", "granted": true, "policy_version": "7", "ip_address": "192.0.2.1" }));
        let certificate = client.ok("subject.erase", erase(user_id));
        assert_eq!(certificate["body"]["kept"], json!({ "consents": 1 }));
    }
    assert_eq!(world.sql("SELECT count(*) FROM consent_records"), "0");
    assert_eq!(
        world.sql("SELECT c.consent_type, c.granted, c.policy_version, e.certificate_id FROM consent_evidence c JOIN subject_erasures e USING (subject_id) ORDER BY 4"),
        "t|t|7|erase-1\nt|t|7|erase-2"
    );
}

#[test]
fn whoever_was_erased_is_refused_for_as_long_as_it_is_said() {
    let world = World::new();
    let (daemon, other) = (world.start_with("keyring.refuse_again = \"30d\"\n"), world.start());
    let mut client = daemon.client();
    fill(&mut client, "u", "MARK");
    client.ok("subject.erase", erase("u"));
    for daemon in [&daemon, &other] {
        let mut client = daemon.client();
        for (method, params) in [
            ("profile.create", json!({ "user_id": "u", "username": "x", "email": "x@x.example" })),
            ("consent.record", json!({ "user_id": "u", "consent_type": "t", "granted": true })),
            ("audit.append", json!({ "user_id": "u", "action": "login" })),
            (
                "audit.append_many",
                json!({ "entries": [{ "action": "a" }, { "subject_user_id": "u", "action": "b" }] }),
            ),
            (
                "preferences.set",
                json!({ "user_id": "somebody", "preferences": {}, "context": { "user_id": "u" } }),
            ),
        ] {
            let error = client.err(method, params);
            assert!(error.kind() == "conflict" && error.message.contains("user_id"), "{method}: {error:?}");
        }
        // A read says nothing of whoever is named in its context.
        assert!(
            client.ok("job.list", json!({ "context": { "user_id": "u" } }))["items"][0]["name"].is_string()
        );
        assert_eq!(
            client.ok("consent.current", json!({ "user_id": "u", "context": { "user_id": "u" } }))["items"],
            json!([])
        );
    }
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'u'"), "0");
    world.sql("UPDATE subject_refusals SET refused_until = now()");
    client.ok("profile.create", json!({ "user_id": "u", "username": "x", "email": "x@x.example" }));
    assert_eq!(client.ok("audit.verify", json!({}))["verdict"], "intact");
}

#[test]
fn whoever_waits_for_an_erasure_finds_its_refusal() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    let mut erasing = Psql::open(&world.owner_url);
    erasing.run("BEGIN");
    erasing.run("INSERT INTO subject_refusals VALUES ('\\x01', now() + interval '1 day')");
    erasing.run("DELETE FROM subjects WHERE user_id = 'u'");
    let mut creating = Psql::open(&world.owner_url);
    creating
        .begin("SELECT create_subjects('{77}', '{u}', ARRAY['\\x02'::bytea], ARRAY['\\x01'::bytea], 'k')");
    wait_for("the insert", || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'SELECT create_subjects%'";
        (world.sql(waiting) == "1").then_some(())
    });
    erasing.run("COMMIT");
    assert_eq!(creating.finish(), "u");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE subject_id > 0"), "0");
}

#[test]
fn a_certificate_is_checked_without_a_daemon_and_not_one_byte_may_differ() {
    let world = World::new();
    let daemon = world.start();
    fill(&mut daemon.client(), "user:u", "MARK");
    let (config, _) = world.configure("");
    let public = sidekeep(&["--config", config.to_str().unwrap(), "signing", "public-key"]).stdout;
    let (keys, other_keys) = (world.path("keys"), world.path("other-keys"));
    std::fs::write(&keys, &public).unwrap();
    let mut wrong = String::from_utf8(public).unwrap();
    wrong = wrong.replace("sidekeep/test", "sidekeep/other");
    std::fs::write(&other_keys, wrong).unwrap();
    let socket = daemon.socket.to_str().unwrap().to_owned();
    let done = sidekeep(&[
        "subject",
        "erase",
        "user:u",
        "--reason",
        "objection",
        "--id",
        "c-1",
        "--socket",
        &socket,
    ]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let certificate: Value = serde_json::from_slice(&done.stdout).unwrap();
    let file = world.path("certificate.json");
    let verify = |certificate: &Value, more: &[&str]| {
        std::fs::write(&file, certificate.to_string()).unwrap();
        let mut arguments = vec!["certificate", "verify", file.to_str().unwrap()];
        arguments.extend(more);
        sidekeep(&arguments).status.code()
    };
    let keys = keys.to_str().unwrap();
    assert_eq!(verify(&certificate, &[]), Some(0));
    assert_eq!(verify(&certificate, &["--key", keys, "--user", "user:u"]), Some(0));
    assert_eq!(verify(&certificate, &["--user", "user:v"]), Some(1));
    assert_eq!(verify(&certificate, &["--user", "user:u", "--salt", OTHER_SALT]), Some(1));
    assert_eq!(verify(&certificate, &["--key", other_keys.to_str().unwrap()]), Some(2));
    let mut resalted = certificate.clone();
    resalted["salt"] = SALT.into();
    assert_eq!(verify(&resalted, &["--user", "user:u"]), Some(1));
    let mut changed = certificate.clone();
    changed["body"]["counts"]["messages"] = 3.into();
    assert_eq!(verify(&changed, &[]), Some(1));
    assert_eq!(verify(&json!({ "body": {} }), &[]), Some(1));
    let twice = certificate.to_string().replacen("\"reason\":", "\"reason\":\"other\",\"reason\":", 1);
    std::fs::write(&file, twice).unwrap();
    assert_eq!(sidekeep(&["certificate", "verify", file.to_str().unwrap()]).status.code(), Some(1));

    let signed = json!({ "body": certificate["body"], "key": certificate["key"], "signature": certificate["signature"] });
    document::verify(&signed).unwrap();
    let text = signed.to_string().into_bytes();
    for at in 0..text.len() {
        let mut other = text.clone();
        other[at] ^= 1;
        if let Ok(read) = serde_json::from_slice::<Value>(&other)
            && read != signed
        {
            assert!(document::verify(&read).is_err(), "byte {at} of {signed}");
        }
    }
}

#[test]
fn the_data_map_tells_of_every_column() {
    let world = World::new();
    let (config, _) = world.configure("keyring.key_files = [\"/nowhere\"]\n");
    let config = config.to_str().unwrap();
    let printed = sidekeep(&["--config", config, "--json", "data-map"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let map: Value = serde_json::from_slice(&printed.stdout).unwrap();
    let tables = map["tables"].as_array().unwrap();
    let columns = tables.iter().map(|table| table["columns"].as_array().unwrap().len()).sum::<usize>();
    let catalogue = "SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'sidekeep'::regnamespace \
        AND relkind IN ('r', 'p') AND NOT relispartition AND attnum > 0 AND NOT attisdropped AND relname <> '__diesel_schema_migrations'";
    assert_eq!(columns.to_string(), world.sql(catalogue));
    let profile = tables.iter().find(|table| table["table"] == "user_profiles").unwrap();
    let email = profile["columns"].as_array().unwrap().iter().find(|c| c["name"] == "email_sealed").unwrap();
    assert_eq!(
        email,
        &json!({ "name": "email_sealed", "class": "sealed", "holds": "e-mail address", "opened_by": "the person's key" })
    );
    let markdown = sidekeep(&["--config", config, "data-map"]).stdout;
    let markdown = String::from_utf8(markdown).unwrap();
    assert_eq!(markdown.lines().filter(|line| line.starts_with("## ")).count(), tables.len());
    assert!(markdown.contains("| email_sealed | sealed | e-mail address | the person's key |"), "{markdown}");
}
