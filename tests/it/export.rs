//! Export: everything that is held about one person, as a document and as an archive, or nothing at all.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use sidekeep::audit::document;
use sidekeep::subjects::selector::{Export, SCHEMA, TABLES};

use crate::support::peer::can_be_others;
use crate::support::{Client, Cluster, Daemon, Psql, World, sidekeep, wait_for};

const PERSON: &str = "mk-alice";
const OTHER: &str = "somebody-else";

/// Columns that nothing sets while a person is neither restricted nor released.
const UNSET: [&str; 2] = ["restricted_at", "wrapped_key"];

/// Words that stand in one place each.
#[derive(Default)]
struct Markers(Vec<String>);

impl Markers {
    fn next(&mut self) -> String {
        self.0.push(format!("mk{:04}x", self.0.len()));
        self.0.last().unwrap().clone()
    }
}

/// Plants a marker in every column of a person that the socket reaches.
fn plant(client: &mut Client) -> Vec<String> {
    let mut marks = Markers(vec![PERSON.to_owned()]);
    let mut m = || marks.next();
    let context = json!({ "user_id": OTHER, "purpose": m(), "request_id": m() });
    let profile = json!({ "user_id": PERSON, "username": m(), "email": m(), "full_name": m(), "metadata": { m(): [1.50, m()] }, "context": context });
    client.ok("profile.create", profile);
    client.ok("preferences.set", json!({ "user_id": PERSON, "preferences": { "theme": m() } }));
    client.ok("consent.record", json!({
        "user_id": PERSON, "id": m(), "consent_type": m(), "granted": true, "given_at": "2026-01-01T00:00:00Z",
        "expires_at": "2096-01-01T00:00:00Z", "policy_version": m(), "policy_sha256": "ab".repeat(32), "legal_basis": m(), "method": m(),
        "language": m(), "ip_address": m(), "user_agent": m(), "metadata": { "form": m() },
    }));
    let talk = m();
    client.ok(
        "conversation.create",
        json!({ "user_id": PERSON, "id": talk, "title": m(), "metadata": { "a": m() } }),
    );
    let message = json!({ "role": m(), "content": [m(), "<script>&\"'"], "id": m(), "created_at": "2026-01-02T00:00:00Z", "extra": 12345678901234567890_u64 });
    client.ok(
        "conversation.append",
        json!({ "id": talk, "messages": [message, { "role": "r", "content": m() }] }),
    );
    client.ok("audit.append", json!({
        "user_id": PERSON, "action": m(), "resource_type": m(), "resource_id": m(), "outcome": "denied", "id": m(),
        "occurred_at": "2026-01-03T00:00:00Z", "ip_address": m(), "user_agent": m(), "labels": { "mark": m() }, "metadata": { "by": m() },
    }));
    client.ok(
        "audit.append",
        json!({ "user_id": OTHER, "subject_user_id": PERSON, "action": m(), "metadata": { "about": m() } }),
    );
    client.ok(
        "audit.append",
        json!({ "user_id": PERSON, "subject_user_id": OTHER, "action": m(), "ip_address": m() }),
    );
    client.ok("subject.hold", json!({ "user_id": PERSON, "id": m(), "reason": m() }));
    let released = m();
    client.ok("subject.hold", json!({ "user_id": PERSON, "id": released, "reason": m() }));
    client.ok("subject.release", json!({ "id": released, "reason": m() }));
    let request = m();
    client.ok("request.open", json!({ "user_id": PERSON, "kind": "access", "id": request, "channel": m() }));
    client.ok("request.extend", json!({ "id": request, "reason": m() }));
    client.ok("request.close", json!({ "id": request, "outcome": m(), "reason": m() }));
    marks.0
}

/// What belongs to somebody else, in entries that the person is named in as well.
fn plant_others(client: &mut Client) -> Vec<String> {
    client.ok("audit.append", json!({
        "user_id": OTHER, "subject_user_id": PERSON, "action": "seen", "ip_address": "other-address", "resource_id": OTHER, "resource_type": "x",
    }));
    client.ok("audit.append", json!({
        "user_id": PERSON, "subject_user_id": OTHER, "action": "seeing", "metadata": { "x": "other-matter" }, "resource_id": OTHER, "resource_type": "y",
    }));
    client.ok("audit.query", json!({ "subject_user_id": PERSON, "user_id": OTHER }));
    client.ok("audit.query", json!({ "subject_user_id": OTHER, "user_id": PERSON }));
    [OTHER, "other-address", "other-matter"].map(str::to_owned).to_vec()
}

fn exported(client: &mut Client) -> Value {
    client.ok("subject.export", json!({ "user_id": PERSON }))
}

fn start(world: &World) -> Daemon {
    std::fs::write(world.path("notice"), "How we use <your> data.").unwrap();
    world.start_with(&format!("deployment.notice_file = {:?}\n", world.path("notice")))
}

fn command(daemon: &Daemon, user: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidekeep"));
    command.args([
        "--config",
        daemon.config.to_str().unwrap(),
        "export",
        user,
        "--out",
        out.to_str().unwrap(),
    ]);
    command.args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn export(daemon: &Daemon, user: &str, out: &Path, more: &[&str]) -> Output {
    command(daemon, user, out, more).output().unwrap()
}

fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A directory of its own for the files of a test.
fn directory(world: &World) -> PathBuf {
    let path = world.path("exports");
    std::fs::create_dir(&path).unwrap();
    path
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The files of an archive, checked against its manifest.
fn unzip(path: &Path) -> BTreeMap<String, String> {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut files = BTreeMap::new();
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert!(files.insert(file.name().unwrap().into_owned(), text).is_none());
    }
    let manifest: Value = serde_json::from_str(&files["manifest.json"]).unwrap();
    document::verify(&manifest).unwrap();
    let listed = manifest["body"]["files"].as_array().unwrap();
    assert_eq!(listed.len() + 1, files.len());
    for file in listed {
        let text = &files[file["name"].as_str().unwrap()];
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            (file["sha256"].as_str(), file["bytes"].as_u64()),
            (Some(hex.as_str()), Some(text.len() as u64))
        );
    }
    for (part, items) in manifest["body"]["counts"].as_object().unwrap() {
        let data: Value = serde_json::from_str(&files[&format!("data/{part}.json")]).unwrap();
        let found = data.as_array().map_or(usize::from(!data.is_null()), Vec::len);
        assert_eq!(items.as_u64(), Some(found as u64), "{part}");
    }
    files
}

#[test]
fn everything_in_every_column_of_a_person_is_in_the_document_and_nobody_else_is() {
    let world = World::new();
    let daemon = start(&world);
    let mut client = daemon.client();
    let marks = plant(&mut client);
    let others = plant_others(&mut client);
    let document = exported(&mut client);
    let text = document.to_string();
    for mark in &marks {
        assert!(text.contains(mark.as_str()), "{mark} is not in {document:#}");
    }
    for other in &others {
        assert!(!text.contains(other.as_str()), "{other} is in {document:#}");
    }
    // The planting itself forgets no column of no table.
    let subject = world.sql(&format!("SELECT subject_id FROM subjects WHERE user_id = '{PERSON}'"));
    for table in TABLES.iter().filter(|table| table.export != Export::Never) {
        let condition = table.condition().unwrap().replace("$1", &subject);
        for (column, _) in table.columns().filter(|(column, _)| !UNSET.contains(column)) {
            let found = world.sql(&format!(
                "SELECT count(*) FROM {SCHEMA}.{} WHERE {condition} AND \"{column}\" IS NOT NULL",
                table.name
            ));
            assert_ne!(found, "0", "nothing is planted in {}.{column}", table.name);
        }
    }
    let number = world.sql(&format!("SELECT subject_id FROM subjects WHERE user_id = '{OTHER}'"));
    assert!(!text.contains(&number), "the number of somebody else");
    document::verify(&document).unwrap();
    let mut changed = document.clone();
    changed["body"]["profile"]["email"] = json!("x");
    document::verify(&changed).unwrap_err();
    let body = &document["body"];
    assert_eq!(body["notice"], "How we use <your> data.");
    assert_eq!(
        (&body["user_id"], &body["scope"], &body["holds"][0]["released_at"]),
        (&json!(PERSON), &json!("access"), &Value::Null)
    );
    let messages = body["conversations"][0]["messages"].as_array().unwrap();
    assert_eq!((messages.len(), &messages[0]["position"]), (2, &json!(0)));
    assert_eq!(body["person"]["restricted_at"], Value::Null);
    let created = body["accesses"]
        .as_array()
        .unwrap()
        .iter()
        .find(|access| access["what"] == "profile.create")
        .unwrap();
    assert_eq!(
        (&created["who"], &created["across_people"], &created["purpose"]),
        (&json!("other"), &json!(false), &json!(marks[1]))
    );
    assert!(created["service"].as_str().unwrap().contains("uid "), "{created}");
    let seeing =
        body["audit_entries"].as_array().unwrap().iter().find(|entry| entry["action"] == "seeing").unwrap();
    assert_eq!(
        (&seeing["user_id"], &seeing["subject_user_id"], &seeing["resource_id"]),
        (&json!(PERSON), &json!("other"), &json!("other"))
    );
    assert_eq!((&seeing["metadata"], &seeing["withheld"]), (&Value::Null, &json!(["metadata"])));
    daemon.assert_well();
}

#[test]
fn portability_is_what_the_person_provided_and_the_unknown_are_not_found() {
    let world = World::new();
    let daemon = start(&world);
    let mut client = daemon.client();
    plant(&mut client);
    let body =
        client.ok("subject.export", json!({ "user_id": PERSON, "scope": "portability" }))["body"].clone();
    let counts: Vec<&String> = body["counts"].as_object().unwrap().keys().collect();
    assert_eq!(counts, ["consents", "conversations", "messages", "preferences", "profile"]);
    for absent in ["audit_entries", "accesses", "holds", "requests", "person"] {
        assert!(body.get(absent).is_none(), "{absent}");
    }
    assert_eq!(client.err("subject.export", json!({ "user_id": "nobody" })).kind(), "not_found");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'nobody'"), "0");
    // Restricted: the person's own data are still given to the person.
    client.ok("subject.restrict", json!({ "user_id": PERSON, "reason": "disputed" }));
    assert!(exported(&mut client)["body"]["person"]["restricted_at"].is_string());
    // The export is entered, with the request that it answers.
    client.ok("request.open", json!({ "user_id": PERSON, "kind": "access", "id": "rq-2" }));
    client.ok("subject.export", json!({ "user_id": PERSON, "request_id": "rq-2" }));
    let last = exported(&mut client);
    assert!(last["body"]["requests"].to_string().contains("subject.export"), "{last:#}");
    assert!(last["body"]["accesses"].to_string().contains("\"what\":\"subject.export\""), "{last:#}");
    assert_eq!(
        client.err("subject.export", json!({ "user_id": PERSON, "request_id": "none" })).kind(),
        "not_found"
    );
    daemon.assert_well();
}

#[test]
fn what_does_not_fit_or_does_not_open_is_not_exported_in_part() {
    let world = World::new();
    let daemon =
        world.start_with("limits.max_record_bytes = \"64KiB\"\nlimits.max_answer_bytes = \"72KiB\"\n");
    let mut client = daemon.client();
    client.ok("preferences.set", json!({ "user_id": PERSON, "preferences": "x".repeat(60_000) }));
    client.ok(
        "conversation.create",
        json!({ "user_id": PERSON, "title": "y".repeat(1000), "metadata": "z".repeat(60_000) }),
    );
    let error = client.err("subject.export", json!({ "user_id": PERSON }));
    assert_eq!((error.kind(), &error.data["max"]), ("too_large", &json!(73_728)));
    assert!(error.message.contains("sidekeep export"), "{error:?}");
    let directory = directory(&world);
    assert_ok(&export(&daemon, PERSON, &directory.join("large.zip"), &[]));
    client.ok("preferences.set", json!({ "user_id": PERSON, "preferences": "small" }));
    world.sql("UPDATE user_preferences SET preferences_sealed = set_byte(preferences_sealed, 20, 255 - get_byte(preferences_sealed, 20))");
    let error = client.err("subject.export", json!({ "user_id": PERSON }));
    assert_eq!(
        (error.kind(), &error.data["at"]),
        ("tampered", &json!("user_preferences.preferences_sealed"))
    );
    let failed = export(&daemon, PERSON, &directory.join("tampered.zip"), &[]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("user_preferences.preferences_sealed"));
    assert_eq!(names(&directory), ["large.zip"]);
}

#[test]
fn the_archive_holds_the_same_for_programs_and_for_people() {
    let world = World::new();
    let daemon = start(&world);
    let mut client = daemon.client();
    let marks = plant(&mut client);
    let others = plant_others(&mut client);
    let directory = directory(&world);
    let out = directory.join("alice.zip");
    let done = export(&daemon, PERSON, &out, &["--json", "--purpose", "request"]);
    assert_ok(&done);
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(summary["counts"]["messages"], 2);
    assert_eq!(out.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let files = unzip(&out);
    let all = |beginning: &str| -> String {
        files.iter().filter(|(name, _)| name.starts_with(beginning)).map(|(_, text)| text.as_str()).collect()
    };
    let (data, pages) = (all("data/"), all("pages/"));
    for mark in &marks {
        assert!(data.contains(mark.as_str()) && pages.contains(mark.as_str()), "{mark}");
    }
    for other in &others {
        assert!(!data.contains(other.as_str()) && !pages.contains(other.as_str()), "{other}");
    }
    assert!(pages.contains("&lt;script&gt;&amp;&quot;&#39;") && !pages.contains("<script"));
    let index = &files["index.html"];
    assert!(index.contains("How we use &lt;your&gt; data.") && index.contains(PERSON), "{index}");
    for link in index.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(files.contains_key(link), "{link}");
    }
    // A file is not replaced; a user id may come where nobody sees it.
    assert_eq!(export(&daemon, PERSON, &out, &[]).status.code(), Some(1));
    let mut child = command(&daemon, "-", &directory.join("second.zip"), &[]).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("{PERSON}\n").as_bytes()).unwrap();
    assert_ok(&child.wait_with_output().unwrap());
    unzip(&directory.join("second.zip"));
    let unknown = export(&daemon, "nobody", &directory.join("third.zip"), &[]);
    assert_eq!(unknown.status.code(), Some(1));
    let mut found = names(&directory);
    found.sort();
    assert_eq!(found, ["alice.zip", "second.zip"]);
    // Each delivered export is an entry, and no other.
    let entries = wait_for("the entries", || {
        let page = client.ok("audit.query", json!({ "action": "subject.export", "subject_user_id": PERSON }));
        (page["items"].as_array().unwrap().len() >= 2).then_some(page)
    });
    assert_eq!(entries["items"].as_array().unwrap().len(), 2);
    assert_eq!(entries["items"][1]["labels"]["purpose"], "request");
    daemon.assert_well();
}

#[test]
fn a_person_who_is_erased_meanwhile_is_not_found_and_nothing_is_delivered() {
    let world = World::new();
    let daemon = start(&world);
    let mut client = daemon.client();
    client.ok("preferences.set", json!({ "user_id": PERSON, "preferences": {} }));
    let directory = directory(&world);
    let mut eraser = Psql::open(&world.owner_url);
    eraser.run("BEGIN");
    eraser.run(&format!("SELECT 1 FROM subjects WHERE user_id = '{PERSON}' FOR UPDATE"));
    // Both have read all, and wait to enter it.
    let archive = command(&daemon, PERSON, &directory.join("x.zip"), &[]).spawn().unwrap();
    client.send_call("subject.export", json!({ "user_id": PERSON }));
    wait_for("both to wait", || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        (world.sql(waiting) == "2").then_some(())
    });
    eraser.run(&format!("DELETE FROM subjects WHERE user_id = '{PERSON}'"));
    eraser.run("COMMIT");
    assert_eq!(client.line()["error"]["data"]["kind"], "not_found");
    let done = archive.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stderr).contains("no such subject"), "{done:?}");
    assert_eq!(names(&directory), Vec::<String>::new());
    assert_eq!(
        world.sql("SELECT count(*) FROM audit_logs WHERE action = 'subject.export' AND outcome = 'success'"),
        "0"
    );
}

/// A person with so much that an export takes a while.
fn plant_much(client: &mut Client) {
    let entry = json!({ "action": "much", "user_id": PERSON, "metadata": { "text": "x y z".repeat(20) } });
    for _ in 0..15 {
        client.ok("audit.append_many", json!({ "entries": vec![&entry; 1000] }));
    }
}

/// Starts an export, and waits until something of it is written.
fn begin_export(daemon: &Daemon, out: &Path) -> Child {
    let child = command(daemon, PERSON, out, &[]).spawn().unwrap();
    let fds = format!("/proc/{}/fd", child.id());
    let out = out.parent().unwrap().to_owned();
    wait_for("something to be written", || {
        std::fs::read_dir(&fds).ok()?.flatten().find(|fd| {
            std::fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(&out))
                && fd.path().metadata().is_ok_and(|file| file.len() > 0)
        })
    });
    child
}

#[test]
fn an_export_that_is_killed_or_loses_postgresql_leaves_nothing() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let daemon = start(&world);
    plant_much(&mut daemon.client());
    let directory = directory(&world);
    let mut killed = begin_export(&daemon, &directory.join("killed.zip"));
    killed.kill().unwrap();
    assert!(!killed.wait().unwrap().success());
    assert_eq!(names(&directory), Vec::<String>::new());
    let lost = begin_export(&daemon, &directory.join("lost.zip"));
    cluster.crash();
    let lost = lost.wait_with_output().unwrap();
    assert_eq!(lost.status.code(), Some(2), "{}", String::from_utf8_lossy(&lost.stderr));
    assert_eq!(names(&directory), Vec::<String>::new());
    // A server that was only restarted is asked again: the export is whole.
    cluster.up();
    daemon.wait_ready();
    daemon.ok("audit.append", json!({ "action": "one more", "user_id": PERSON }));
    assert_ok(&export(&daemon, PERSON, &directory.join("whole.zip"), &[]));
    let files = unzip(&directory.join("whole.zip"));
    assert!(files["pages/audit_entries-000015.html"].contains("Next page"), "a page leads to the next");
    assert!(!files["pages/audit_entries-000016.html"].contains("Next page"));
}

#[test]
fn a_full_disk_fails_the_export_and_leaves_nothing() {
    if !can_be_others() {
        return;
    }
    let world = World::new();
    let daemon = start(&world);
    plant_much(&mut daemon.client());
    let directory = directory(&world);
    let script = format!(
        "mount -t tmpfs -o size=256k none {0} && {1} --config {2} export {PERSON} --out {0}/x.zip; echo \"code $?\"; ls -A {0}",
        directory.display(),
        env!("CARGO_BIN_EXE_sidekeep"),
        daemon.config.display()
    );
    let done = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    let (printed, told) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    if told.contains("unshare") || told.contains("mount:") {
        eprintln!("not run: there are no mount namespaces here");
        return;
    }
    assert_eq!(printed, "code 1\n", "{told}");
    assert!(told.contains("No space left"), "{told}");
    assert_eq!(world.sql("SELECT count(*) FROM audit_staged WHERE action = 'subject.export'"), "0");
}

#[test]
fn wrong_usage_is_told_before_anything_is_read() {
    let world = World::new();
    let daemon = world.start_with("access.require_purpose = true\n");
    let config = daemon.config.to_str().unwrap();
    let missing = sidekeep(&["--config", config, "export", PERSON, "--out", "/nowhere/x"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--purpose"));
    let nowhere = sidekeep(&["--config", config, "export", PERSON, "--out", "/nowhere/x", "--purpose", "p"]);
    assert_eq!(nowhere.status.code(), Some(1));
}
