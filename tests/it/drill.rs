//! The drill: a dump is proved by being restored, counted and verified, and by nothing less.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sidekeep::audit::document::canonical;
use sidekeep::keyring::SigningKey;

use crate::backup::{Shelf, done, failed, files, fill, list, manifest};
use crate::support::{Cluster, Daemon, World, sidekeep, sql, wait_for};

fn newest(daemon: &Daemon) -> Value {
    list(daemon).remove(0)
}

fn sha256(path: &Path) -> String {
    let said = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(said.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Signs a manifest again that was changed, as only who has the signing key can.
pub fn sign_again(shelf: &Shelf, name: &str, change: impl FnOnce(&mut Value)) {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let path = shelf.dumps().join(name).join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut manifest["body"]);
    let key = std::fs::read_to_string(shelf.world.path("signing")).unwrap();
    let key = SigningKey::parse("signing".into(), &key).unwrap();
    manifest["signature"] = json!(encode(&key.sign(&canonical(&manifest["body"]).unwrap())));
    std::fs::write(&path, manifest.to_string()).unwrap();
}

fn left_out(shelf: &Shelf, name: &str) -> Vec<String> {
    serde_json::from_value(manifest(shelf, name)["left_out"].clone()).unwrap()
}

/// Puts another dump of the database as it is now in the place of one, with its digests in the manifest.
fn dump_again(shelf: &Shelf, name: &str, change: impl FnOnce(&mut Value)) {
    let path = shelf.dumps().join(name).join("dump");
    let without =
        left_out(shelf, name).into_iter().map(|table| format!("--exclude-table-data=sidekeep.{table}"));
    let made = Command::new("pg_dump")
        .args([&shelf.world.owner_url, "-Fc", "-n", "sidekeep"])
        .args(without)
        .arg("-f")
        .arg(&path)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (size, digest) = (path.metadata().unwrap().len(), sha256(&path));
    sign_again(shelf, name, |body| {
        for (size_of, sha256_of) in [("size", "sha256"), ("dump_size", "dump_sha256")] {
            (body[size_of], body[sha256_of]) = (json!(size), json!(digest));
        }
        change(body);
    });
}

#[test]
fn a_dump_is_proved_by_a_private_server() {
    let shelf = Shelf::new();
    let daemon = shelf.start("");
    assert!(failed(&daemon, "drill").contains("sidekeep backup"));
    fill(&daemon, 20);
    daemon.ok("subject.hold", json!({ "user_id": "u2", "reason": "a suit" }));
    daemon.ok("subject.erase", json!({ "user_id": "u3", "reason": "request" }));
    daemon.ok("audit.checkpoint", json!({}));
    let made = done(&daemon, "backup");
    // What happens later is none of its business.
    daemon.ok("subject.erase", json!({ "user_id": "u4", "reason": "request" }));
    let counts = done(&daemon, "drill");
    assert_eq!(counts["rows"], made["rows"]);
    assert!(counts["entries"].as_i64().unwrap() > 80, "{counts}");
    let item = newest(&daemon);
    let name = item["name"].as_str().unwrap();
    assert!(item["proved_at"].is_string() && shelf.files(name).contains(&"proof.json".to_owned()), "{item}");
    let first = item["proved_at"].clone();
    done(&daemon, "drill");
    assert!(newest(&daemon)["proved_at"].as_str() > first.as_str(), "a second drill is the newer proof");
    let verified = sidekeep(&["--config", daemon.config.to_str().unwrap(), "backup", "verify", name]);
    assert!(String::from_utf8(verified.stdout).unwrap().contains("proved 2"));
    daemon.assert_well();
}

#[test]
fn a_dump_is_proved_on_a_server_that_is_named() {
    let shelf = Shelf::new();
    let cluster = Cluster::shared();
    let file = shelf.world.path("drill-url");
    std::fs::write(&file, cluster.owner_url("postgres")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = shelf.start(&format!("backup.drill_url = {file:?}\n"));
    fill(&daemon, 3);
    done(&daemon, "backup");
    done(&daemon, "drill");
    assert!(newest(&daemon)["proved_at"].is_string());
    let left = "SELECT count(*) FROM pg_database WHERE datname ~ '^sidekeep_drill_'";
    assert_eq!(sql(&cluster.owner_url("postgres"), left), "0");
}

#[test]
fn a_drill_on_a_server_that_is_named_removes_what_one_that_was_killed_has_left() {
    let cluster = Cluster::own(&[]);
    let shelf = Shelf::of(World::on(&cluster));
    cluster.execute("CREATE ROLE driller LOGIN CREATEDB");
    // A URL that holds no password needs no file.
    let url = cluster.url("driller", "postgres");
    let named = format!("backup.drill_url = {url:?}\njobs.enabled = false\n");
    let daemon = shelf.start(&named);
    fill(&daemon, 3);
    done(&daemon, "backup");
    let owner = cluster.owner_url("postgres");
    let begun = daemon.ok("job.run", json!({ "name": "drill", "wait": "0s" }));
    assert_eq!(begun["state"], "running");
    let left = wait_for("a database of the drill", || {
        let name = sql(
            &owner,
            "SELECT d.datname FROM pg_database d JOIN pg_stat_activity a ON a.datid = d.oid \
            WHERE d.datname ~ '^sidekeep_drill_' LIMIT 1",
        );
        (!name.is_empty()).then_some(name)
    });
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    drop(daemon);
    wait_for("the end of what it had begun", || {
        let busy = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{left}'");
        (sql(&owner, &busy) == "0").then_some(())
    });
    // Two hours later, while somebody else is at work beside it.
    let old = |end: &str| format!("sidekeep_drill_{}_{end}", chrono::Utc::now().timestamp() - 7200);
    let busy = old("0123456789ab");
    sql(&owner, &format!("ALTER DATABASE {left} RENAME TO {}", old("ba9876543210")));
    sql(&url, &format!("CREATE DATABASE {busy}"));
    let mut working = Command::new("psql")
        .args([cluster.url("driller", &busy).as_str(), "-qc", "SELECT pg_sleep(600)"])
        .spawn()
        .unwrap();
    wait_for("somebody else", || {
        let there = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{busy}'");
        (sql(&owner, &there) == "1").then_some(())
    });
    shelf.forget_run();
    let daemon = shelf.start(&named);
    assert_eq!(newest(&daemon)["proved_at"], Value::Null);
    done(&daemon, "drill");
    assert!(newest(&daemon)["proved_at"].is_string());
    let there = "SELECT string_agg(datname, ',') FROM pg_database WHERE datname ~ '^sidekeep_drill_'";
    assert_eq!(sql(&owner, there), busy);
    working.kill().unwrap();
    working.wait().unwrap();
}

#[test]
fn a_drill_that_is_killed_leaves_what_the_next_one_removes() {
    let shelf = Shelf::new();
    let scratch = shelf.world.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let environment = format!("export TMPDIR={}", scratch.display());
    let daemon = shelf.start_after(&environment, "");
    fill(&daemon, 2);
    done(&daemon, "backup");
    assert_eq!(daemon.ok("job.run", json!({ "name": "drill", "wait": "0s" }))["state"], "running");
    let pid = wait_for("the server of the drill", || {
        let folder = files(&scratch).into_iter().find(|name| name.starts_with("sidekeep-drill-"))?;
        let found = Command::new("find")
            .arg(scratch.join(folder))
            .args(["-name", "postmaster.pid"])
            .output()
            .unwrap();
        let path = String::from_utf8(found.stdout).unwrap().lines().next()?.to_owned();
        std::fs::read_to_string(path).ok()?.lines().next()?.parse::<i32>().ok()
    });
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    drop(daemon);
    wait_for("the end of its server", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    shelf.forget_run();
    let left = files(&scratch);
    assert!(!left.is_empty());
    // A while later.
    for name in &left {
        assert!(
            Command::new("touch")
                .args(["-d", "1 hour ago"])
                .arg(scratch.join(name))
                .status()
                .unwrap()
                .success()
        );
    }
    let daemon = shelf.start_after(&environment, "");
    assert_eq!(newest(&daemon)["proved_at"], Value::Null);
    done(&daemon, "drill");
    assert!(files(&scratch).is_empty(), "{:?}", files(&scratch));
}

#[test]
fn a_dump_of_another_schema_is_migrated_or_left_to_a_later_version() {
    let shelf = Shelf::new();
    let daemon = shelf.start("");
    fill(&daemon, 2);
    done(&daemon, "backup");
    let name = newest(&daemon)["name"].as_str().unwrap().to_owned();
    daemon.stop();
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let newest_migration = files(&migrations).pop().unwrap();
    let step = |way: &str| {
        let text = std::fs::read_to_string(migrations.join(&newest_migration).join(way)).unwrap();
        shelf.world.sql(&format!("SET search_path = sidekeep, pg_catalog; {text}"));
    };
    let version = manifest(&shelf, &name)["schema_version"].as_str().unwrap().to_owned();
    step("down.sql");
    shelf.world.sql(&format!("DELETE FROM __diesel_schema_migrations WHERE version = '{version}'"));
    let older = shelf.world.sql("SELECT max(version) FROM __diesel_schema_migrations");
    assert!(older < version);
    dump_again(&shelf, &name, |body| {
        (body["tables"], body["audit"]) = (counts(&shelf, &name), heads(&shelf));
        body["schema_version"] = json!(older);
    });
    step("up.sql");
    shelf.world.sql(&format!("INSERT INTO __diesel_schema_migrations (version) VALUES ('{version}')"));
    let daemon = shelf.start("jobs.enabled = false\n");
    done(&daemon, "drill");
    assert!(newest(&daemon)["proved_at"].is_string());
    sign_again(&shelf, &name, |body| body["schema_version"] = json!("29991231000000"));
    let said = failed(&daemon, "drill");
    assert!(said.contains("a later one") && said.contains("29991231000000"), "{said}");
    sign_again(&shelf, &name, |body| body["schema_version"] = json!(version));
    assert!(failed(&daemon, "drill").contains("its schema is not the one of its manifest"));
}

#[test]
fn a_dump_that_lacks_something_is_not_proved() {
    let shelf = Shelf::new();
    let scratch = shelf.world.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let daemon = shelf.start_after(&format!("export TMPDIR={}", scratch.display()), "");
    fill(&daemon, 3);
    done(&daemon, "backup");
    done(&daemon, "drill");
    let item = newest(&daemon);
    let name = item["name"].as_str().unwrap();
    let folder = shelf.dumps().join(name);
    let whole = std::fs::read(folder.join("dump")).unwrap();
    let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
    let proof = std::fs::read(folder.join("proof.json")).unwrap();

    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (bytes, why) in
        [(flipped, "SHA-256"), (whole[..whole.len() - 1].to_vec(), "bytes"), (Vec::new(), "0 bytes")]
    {
        std::fs::write(folder.join("dump"), bytes).unwrap();
        std::fs::write(folder.join("proof.json"), &proof).unwrap();
        let said = failed(&daemon, "drill");
        assert!(said.contains(why) && said.contains(name), "{said}");
        assert_eq!(newest(&daemon)["proved_at"], Value::Null, "it is proved no more");
        let verified = sidekeep(&["--config", daemon.config.to_str().unwrap(), "backup", "verify", name]);
        assert_eq!(verified.status.code(), Some(1));
        assert!(String::from_utf8(verified.stderr).unwrap().contains(why));
    }
    std::fs::remove_file(folder.join("dump")).unwrap();
    assert!(failed(&daemon, "drill").contains("no such object"));
    std::fs::write(folder.join("dump"), &whole).unwrap();

    std::fs::write(
        folder.join("manifest.json"),
        String::from_utf8_lossy(&manifest).replace("\"test\"", "\"tset\""),
    )
    .unwrap();
    assert!(failed(&daemon, "drill").contains("signature"));
    std::fs::write(folder.join("manifest.json"), &manifest).unwrap();
    sign_again(&shelf, name, |body| body["deployment"] = json!("other"));
    assert!(failed(&daemon, "drill").contains("deployment other"));
    assert!(list(&daemon).is_empty(), "what is of another deployment is no dump of this one");
    std::fs::write(folder.join("manifest.json"), &manifest).unwrap();
    done(&daemon, "drill");
    assert!(files(&scratch).is_empty(), "nothing is left of a drill, however it ended");
}

#[test]
fn a_dump_with_a_row_removed_fails_its_drill() {
    let shelf = Shelf::new();
    let daemon = shelf.start("");
    fill(&daemon, 3);
    daemon.ok("audit.checkpoint", json!({}));
    done(&daemon, "backup");
    let item = newest(&daemon);
    let name = item["name"].as_str().unwrap();
    daemon.stop();

    shelf.world.sql(
        "DELETE FROM user_preferences WHERE subject_id = (SELECT min(subject_id) FROM user_preferences)",
    );
    dump_again(&shelf, name, |body| {
        (body["tables"], body["audit"]) = (counts(&shelf, name), heads(&shelf));
        body["tables"]["user_preferences"] = json!(3);
    });
    let drilling = shelf.start(
        "jobs.partitions.enabled = false\njobs.checkpoint.enabled = false\njobs.verify.enabled = false\n",
    );
    let said = failed(&drilling, "drill");
    assert!(said.contains("user_preferences has 2 rows, and should have 3"), "{said}");
    drilling.stop();

    // A row of the log, by somebody who has the signing key and counts again.
    let triggers = |how: &str| {
        shelf.world.sql(&format!(
            "DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT inhrelid::regclass FROM pg_inherits \
             WHERE inhparent = 'sidekeep.audit_logs'::regclass UNION SELECT 'sidekeep.audit_logs'::regclass LOOP \
             EXECUTE format('ALTER TABLE %s {how} TRIGGER USER', t); END LOOP; END $$"
        ));
    };
    shelf.world.sql("INSERT INTO user_preferences SELECT subject_id, '\\x00', 1, now(), now() FROM user_profiles ON CONFLICT DO NOTHING");
    triggers("DISABLE");
    shelf.world.sql("DELETE FROM audit_logs WHERE (stream, position) = (SELECT stream, min(position) FROM audit_logs GROUP BY stream LIMIT 1)");
    triggers("ENABLE");
    dump_again(&shelf, name, |body| (body["tables"], body["audit"]) = (counts(&shelf, name), heads(&shelf)));
    let drilling = shelf.start("jobs.enabled = false\n");
    let said = failed(&drilling, "drill");
    assert!(said.contains("its log is broken") && said.contains("position 0"), "{said}");
    assert_eq!(newest(&drilling)["proved_at"], Value::Null);
}

/// How many rows each table has whose rows are in a dump.
fn counts(shelf: &Shelf, name: &str) -> Value {
    let left_out = left_out(shelf, name).join(",");
    let counts = shelf.world.sql(&format!(
        "SELECT json_object_agg(t, n) FROM (SELECT c.relname AS t, (xpath('/row/n/text()', \
         query_to_xml(format('SELECT count(*) AS n FROM sidekeep.%I', c.relname), false, true, '')))[1]::text::bigint AS n \
         FROM pg_class c WHERE c.relnamespace = 'sidekeep'::regnamespace AND c.relkind IN ('r', 'p') \
         AND NOT c.relispartition AND c.relname <> ALL ('{{{left_out}}}')) AS x"
    ));
    serde_json::from_str(&counts).unwrap()
}

/// The heads of the log as a manifest tells them.
fn heads(shelf: &Shelf) -> Value {
    let heads = shelf.world.sql(
        "SELECT json_build_object('streams', (SELECT json_agg(json_build_object('stream', stream, 'size', size, \
         'root', encode(root, 'hex')) ORDER BY stream) FROM audit_streams), \
         'checkpoint', (SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1), \
         'staged', (SELECT count(*) FROM audit_staged))",
    );
    serde_json::from_str(&heads).unwrap()
}

#[test]
fn an_encrypted_dump_is_proved_with_a_key_alone() {
    use age::secrecy::ExposeSecret as _;
    let shelf = Shelf::new();
    let identity = age::x25519::Identity::generate();
    let file = shelf.world.path("identity");
    std::fs::write(&file, format!("# a key\n{}\n", identity.to_string().expose_secret())).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let recipients = format!("backup.recipients = [\"{}\"]\n", identity.to_public());
    let daemon = shelf.start(&recipients);
    fill(&daemon, 2);
    done(&daemon, "backup");
    let name = newest(&daemon)["name"].as_str().unwrap().to_owned();
    assert_eq!(shelf.files(&name), ["dump.age", "manifest.json"]);
    let stored = std::fs::read(shelf.dumps().join(&name).join("dump.age")).unwrap();
    assert!(stored.starts_with(b"age-encryption.org/v1"));
    let said = failed(&daemon, "drill");
    assert!(said.contains("backup.drill_identity_file"), "{said}");
    let verify = |more: &[&str]| {
        let config = daemon.config.to_str().unwrap();
        sidekeep(&[&["--config", config, "backup", "verify", &name], more].concat())
    };
    let said = String::from_utf8(verify(&[]).stdout).unwrap();
    assert!(said.contains("not opened"), "{said}");
    let said = String::from_utf8(verify(&["--identity", file.to_str().unwrap()]).stdout).unwrap();
    assert!(said.contains("pg_restore reads"), "{said}");
    let other = shelf.world.path("other");
    let somebody = age::x25519::Identity::generate();
    std::fs::write(&other, somebody.to_string().expose_secret()).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(verify(&["--identity", other.to_str().unwrap()]).status.code(), Some(1));
    daemon.stop();
    let daemon = shelf.start(&format!("{recipients}backup.drill_identity_file = {file:?}\n"));
    done(&daemon, "drill");
    assert!(newest(&daemon)["proved_at"].is_string());
}
