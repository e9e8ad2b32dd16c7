//! `sidekeep doctor`: each fault that can be seen is found by its own check, a healthy installation has none, and looking
//! changes nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::dev::Dev;
use crate::support::{Cluster, Pooler, World, libfaketime, sql, timed, wait_for};

/// What the checks of one run said.
struct Ran {
    code: Option<i32>,
    report: Value,
    said: String,
}

impl Ran {
    fn of(mut command: Command, config: &Path) -> Self {
        command.arg("--config").arg(config).args(["--json", "doctor"]).stdin(Stdio::null());
        let done = command.output().unwrap();
        let said = String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap();
        let line = said.lines().next().unwrap_or_default();
        let report = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {said}"));
        Self { code: done.status.code(), report, said }
    }

    fn check(&self, name: &str) -> &Value {
        let checks = self.report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}"))
    }

    /// The names of the checks that ended so.
    fn names(&self, status: &str) -> Vec<&str> {
        let checks = self.report["checks"].as_array().unwrap().iter();
        checks
            .filter(|check| check["status"] == status)
            .map(|check| check["name"].as_str().unwrap())
            .collect()
    }

    /// The check has failed, for this reason, and says what to do.
    fn assert_fails(&self, name: &str, why: &str, advice: &str) {
        let check = self.check(name);
        assert_eq!(check["status"], "fail", "{check}");
        assert!(check["why"].as_str().unwrap().contains(why), "{why:?}: {check}");
        assert!(check["advice"].as_str().unwrap().contains(advice), "{advice:?}: {check}");
    }
}

fn sidekeep() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sidekeep"))
}

fn doctor(world: &World, more: &str) -> Ran {
    Ran::of(sidekeep(), &world.configure(more).0)
}

/// In a mount namespace of its own, after a shell has done this there. Needs root.
fn doctor_after(world: &World, shell: &str, more: &str) -> Ran {
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "sh",
        "-c",
        &format!("{shell} && exec \"$@\""),
        "sh",
        env!("CARGO_BIN_EXE_sidekeep"),
    ]);
    Ran::of(command, &world.configure(more).0)
}

fn alter(cluster: &Cluster, world: &World, name: &str, value: &str) {
    cluster.execute(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    cluster.execute("SELECT pg_reload_conf()");
    let shown = || sql(&cluster.owner_url("postgres"), &format!("SHOW {name}"));
    wait_for("the setting", || (shown() == value).then_some(()));
    assert!(!world.owner_url.is_empty());
}

/// One fault: how it is made, with the run that has to find it; the check that has to fail, why, and with what advice.
type Fault = (&'static str, fn(&Cluster) -> Option<Ran>, &'static str, &'static str, &'static str);

/// A database of its own on the cluster that is hurt.
fn world(cluster: &Cluster) -> World {
    World::on(cluster)
}

const FAULTS: [Fault; 22] = [
    (
        "unreachable",
        |cluster| {
            let mut world = world(cluster);
            world.app_url =
                world.app_url.replace(cluster.socket_directory().to_str().unwrap(), "/nonexistent");
            Some(doctor(&world, ""))
        },
        "database.reach",
        "not reached",
        "is it running",
    ),
    (
        "no TLS",
        |cluster| {
            let mut world = world(cluster);
            let database = world.app_url.split(['/', '?']).nth(3).unwrap().to_owned();
            world.app_url = format!("postgresql://sidekeep_app@db.test/{database}?hostaddr={}", address());
            let authority = rcgen::generate_simple_self_signed(vec!["db.test".to_owned()]).unwrap();
            let file = world.path("ca.pem");
            std::fs::write(&file, authority.cert.pem()).unwrap();
            Some(doctor(&world, &format!("database.ca_file = {file:?}\n")))
        },
        "database.tls",
        "no TLS",
        "ssl = on",
    ),
    (
        "superuser",
        |cluster| {
            let mut world = world(cluster);
            world.app_url.clone_from(&world.owner_url);
            Some(doctor(&world, ""))
        },
        "role.attributes",
        "superuser",
        "sidekeep setup",
    ),
    (
        "old pg_dump",
        |cluster| {
            let world = world(cluster);
            let fake = world.path("pg_dump");
            std::fs::write(&fake, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n").unwrap();
            std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
            let mounts = each_pg_dump().map(|real| format!("mount --bind {} {real}", fake.display()));
            let (dumps, keyring) = (world.path("dumps"), world.path("keyring"));
            let more = format!(
                "backup.destination = \"file://{}\"\nkeyring.backup = \"file://{}\"\n",
                dumps.display(),
                keyring.display()
            );
            Some(doctor_after(&world, &mounts.collect::<Vec<_>>().join(" && "), &more))
        },
        "backup.programs",
        "9.6.24",
        "install the client programs",
    ),
    (
        "retry interval with synchronous replication",
        |cluster| {
            let world = world(cluster);
            alter(cluster, &world, "synchronous_standby_names", "nobody");
            let ran = doctor(&world, "");
            alter(cluster, &world, "synchronous_standby_names", "");
            Some(ran)
        },
        "replication.retry_interval",
        "is 5s",
        "500ms",
    ),
    (
        "no synchronous standby",
        |cluster| {
            let world = world(cluster);
            alter(cluster, &world, "synchronous_standby_names", "nobody");
            let ran = doctor(&world, "");
            alter(cluster, &world, "synchronous_standby_names", "");
            Some(ran)
        },
        "replication.standby",
        "every write hangs",
        "start the standby",
    ),
    (
        "synchronous_standby_names empty with a fail-over in the URL",
        |cluster| {
            let mut world = world(cluster);
            world.app_url.push_str("&host=/nonexistent");
            Some(doctor(&world, ""))
        },
        "replication.standby",
        "several hosts",
        "after a promotion",
    ),
    (
        "pooler in transaction mode",
        |cluster| {
            let mut world = world(cluster);
            let pooler = Pooler::start(cluster, "transaction")?;
            world.app_url = pooler.url(&world.app_url, cluster);
            Some(doctor(&world, ""))
        },
        "database.pooler",
        "transaction mode",
        "PostgreSQL itself",
    ),
    (
        "disk",
        |cluster| {
            let world = world(cluster);
            let dumps = world.path("dumps");
            std::fs::create_dir(&dumps).unwrap();
            let mount = format!("mount -t tmpfs -o size=256k tmpfs {}", dumps.display());
            Some(doctor_after(
                &world,
                &mount,
                &format!("archive.destination = \"file://{}\"\n", dumps.display()),
            ))
        },
        "destination.archive",
        "256.0 KiB",
        "make room",
    ),
    (
        "a disk that takes no writes",
        |cluster| {
            let world = world(cluster);
            let dumps = world.path("dumps");
            std::fs::create_dir(&dumps).unwrap();
            let mount = format!("mount -t tmpfs -o ro tmpfs {}", dumps.display());
            Some(doctor_after(
                &world,
                &mount,
                &format!("archive.destination = \"file://{}\"\n", dumps.display()),
            ))
        },
        "destination.archive",
        "written",
        "read-only",
    ),
    (
        "key mode",
        |cluster| {
            let world = world(cluster);
            std::fs::set_permissions(world.path("kek"), std::fs::Permissions::from_mode(0o644)).unwrap();
            Some(doctor(&world, ""))
        },
        "keyring.files",
        "0644",
        "chmod 0640",
    ),
    (
        "signing key's mode",
        |cluster| {
            let world = world(cluster);
            std::fs::set_permissions(world.path("signing"), std::fs::Permissions::from_mode(0o604)).unwrap();
            Some(doctor(&world, ""))
        },
        "signing.files",
        "signing.key_files: ",
        "chmod 0640",
    ),
    (
        "clock skew",
        |cluster| {
            let world = world(cluster);
            let mut command = sidekeep();
            command
                .env("LD_PRELOAD", libfaketime())
                .env("FAKETIME", "-2m")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            Some(Ran::of(command, &world.configure("").0))
        },
        "clock",
        "ahead of",
        "NTP",
    ),
    (
        "missing role",
        |cluster| {
            let mut world = world(cluster);
            world.app_url = world.app_url.replace("sidekeep_app", "sidekeep_gone");
            Some(doctor(&world, ""))
        },
        "database.role",
        "role \"sidekeep_gone\" does not exist",
        "CREATE ROLE",
    ),
    (
        "pending migration",
        |cluster| {
            let world = world(cluster);
            world.sql("DELETE FROM __diesel_schema_migrations WHERE version = (SELECT max(version) FROM __diesel_schema_migrations)");
            Some(doctor(&world, ""))
        },
        "schema.migrations",
        "lacks 1 migration",
        "sidekeep migrate",
    ),
    (
        "a trigger switched off on one month",
        |cluster| {
            let world = world(cluster);
            world.sql(&format!("ALTER TABLE {} DISABLE TRIGGER append_only", month(&world)));
            Some(doctor(&world, ""))
        },
        "schema.triggers",
        "append_only is switched off",
        "verify --full",
    ),
    (
        "a trigger dropped",
        |cluster| {
            let world = world(cluster);
            world.sql("DROP TRIGGER held ON subjects");
            Some(doctor(&world, ""))
        },
        "schema.triggers",
        "subjects: held is missing",
        "migrations",
    ),
    (
        "a trigger that lets pass",
        |cluster| {
            let world = world(cluster);
            world.sql(
                "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            );
            Some(doctor(&world, ""))
        },
        "schema.triggers",
        "refuses nothing",
        "verify --full",
    ),
    (
        "a role that can do more than it should",
        |cluster| {
            let world = world(cluster);
            world.sql(&format!("GRANT UPDATE (action) ON {} TO sidekeep_app", month(&world)));
            Some(doctor(&world, ""))
        },
        "role.grants",
        "UPDATE on audit_logs_2",
        "REVOKE",
    ),
    (
        "a role that owns a table",
        |cluster| {
            let world = world(cluster);
            world.sql("ALTER TABLE audit_heads OWNER TO sidekeep_app");
            Some(doctor(&world, ""))
        },
        "role.ownership",
        "audit_heads",
        "REASSIGN OWNED",
    ),
    (
        "no month for the next entries",
        |cluster| {
            let world = world(cluster);
            world.sql("DO $$ BEGIN EXECUTE 'DROP TABLE audit_logs_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM'); END $$");
            Some(doctor(&world, ""))
        },
        "schema.months",
        "no entry can be written",
        "partitions",
    ),
    (
        "a crash would lose what was answered",
        |cluster| {
            let world = world(cluster);
            Some(doctor(&world, ""))
        },
        "database.durability",
        "fsync",
        "ALTER SYSTEM",
    ),
];

/// An address of this process's own, so that the port is free.
fn address() -> String {
    let pid = std::process::id();
    format!("127.{}.{}.{}", 16 + (pid >> 16) % 32, (pid >> 8) & 255, pid & 255)
}

fn month(world: &World) -> String {
    world.sql("SELECT 'audit_logs_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')")
}

fn each_pg_dump() -> impl Iterator<Item = String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    versions
        .map(|entry| entry.path().join("bin/pg_dump"))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
}

#[test]
fn each_fault_is_found_by_its_check() {
    let cluster = Cluster::own(&[("listen_addresses", &address())]);
    for (fault, make, check, why, advice) in FAULTS {
        let Some(ran) = make(&cluster) else { continue };
        eprintln!("{fault}: {}", ran.check(check));
        ran.assert_fails(check, why, advice);
        // Unreachable is a word of its own for scripts: nothing is known then.
        let code = if fault == "unreachable" { 2 } else { 1 };
        assert_eq!(ran.code, Some(code), "{fault}: {}", ran.said);
        assert_eq!(ran.report["status"], "fail");
    }
}

#[test]
fn a_healthy_installation_has_no_fault_and_stays_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let folder = directory.path().join("dev");
    let dev = Dev::start(&folder);
    let config = folder.join("sidekeep.toml");
    let ran = Ran::of(sidekeep(), &config);
    assert_eq!((ran.names("fail"), ran.names("warn")), (vec![], vec![]), "{}", ran.said);
    assert_eq!((ran.code, &ran.report["status"]), (Some(0), &json!("ok")), "{}", ran.said);
    assert!(ran.names("skipped").is_empty(), "{}", ran.said);
    // Nothing is made by looking: the first write makes them.
    for name in ["archive", "dumps"] {
        assert!(!folder.join(name).exists(), "{name}");
    }
    let shape: Vec<_> = ran.check("config").as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(shape, ["advice", "name", "status", "why"]);
    let counted = ["ok", "warnings", "failed", "skipped"].map(|name| ran.report[name].as_u64().unwrap());
    assert_eq!(
        counted.iter().sum::<u64>(),
        u64::try_from(ran.report["checks"].as_array().unwrap().len()).unwrap()
    );

    let told = sidekeep().arg("--config").arg(&config).arg("doctor").output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("\nok    database.reach") && told.contains(" 0 failed, 0 skipped\n"), "{told}");
    drop(dev);

    // The daemon and its PostgreSQL were killed: one is missed at its socket, the other at its own.
    let ran = Ran::of(sidekeep(), &config);
    ran.assert_fails("daemon", "nobody listens", "systemctl start sidekeep");
    ran.assert_fails("database.reach", "not reached", "is it running");
    assert_eq!(ran.code, Some(2), "{}", ran.said);
    let check = ran.check("schema.triggers");
    assert_eq!(
        (&check["status"], check["why"].as_str().unwrap().contains("no connection")),
        (&json!("skipped"), true)
    );
}

#[test]
fn looking_makes_nothing_in_a_database_that_no_daemon_has_used() {
    let world = World::new();
    let (archive, dumps, keyring) = (world.path("archive"), world.path("dumps"), world.path("keyring"));
    let more = format!(
        "archive.destination = \"file://{}\"\nbackup.destination = \"file://{}\"\nkeyring.backup = \"file://{}\"\n",
        archive.display(),
        dumps.display(),
        keyring.display()
    );
    let ran = doctor(&world, &more);
    assert_eq!(ran.names("fail"), ["database.durability", "backup.role"], "{}", ran.said);
    assert_eq!(ran.check("keyring.database")["why"], "no daemon has used this database yet");
    assert_eq!(ran.check("daemon")["status"], "warn");
    let rows = "SELECT (SELECT count(*) FROM deployment) + (SELECT count(*) FROM subjects) + (SELECT count(*) FROM daemons) \
        + (SELECT count(*) FROM job_runs)";
    assert_eq!(world.sql(rows), "0");
    assert!(!archive.exists() && !dumps.exists() && !keyring.exists());
}

#[test]
fn a_job_without_a_destination_is_off_and_it_is_said() {
    let ran = doctor(&World::new(), "");
    for (check, key) in [
        ("job.archive", "archive.destination"),
        ("job.backup", "backup.destination"),
        ("job.drill", "backup.destination"),
        ("job.keyring_backup", "keyring.backup"),
    ] {
        let found = ran.check(check);
        assert_eq!(
            (&found["status"], &found["why"]),
            (&json!("warn"), &json!(format!("off: {key} is not set")))
        );
        assert!(found["advice"].as_str().unwrap().contains(key));
    }
}

#[test]
fn a_wrong_configuration_is_a_failed_check_with_its_place() {
    let world = World::new();
    let (file, _) = world.configure("database.pol = 3\n");
    let ran = Ran::of(sidekeep(), &file);
    ran.assert_fails("config", ".toml:", "config check");
    ran.assert_fails("config", "database.pol: unknown key", "config check");
    assert_eq!((ran.code, ran.names("fail")), (Some(1), vec!["config"]));
    assert_eq!(ran.check("database.reach")["status"], "skipped");
}

#[test]
fn keys_that_are_not_the_database_s_are_found() {
    let world = World::new();
    world.start().stop();
    let other = world.add_key("other");
    let ran = doctor(&world, &format!("keyring.key_files = [{other:?}]\n"));
    ran.assert_fails("keyring.database", "is in none of keyring.key_files", "no daemon serves");
    let ran = doctor(&world, "deployment.name = \"another\"\n");
    ran.assert_fails("keyring.database", "belongs to the deployment \"test\"", "no daemon serves");
}

#[test]
fn a_run_that_failed_is_told_with_its_reason() {
    let world = World::new();
    let daemon = world.start();
    daemon.ok("job.run", json!({ "name": "partitions" }));
    world.sql("UPDATE job_runs SET state = 'failed', error = 'no room' WHERE name = 'partitions'");
    let ran = Ran::of(sidekeep(), &daemon.config);
    ran.assert_fails("job.partitions", "no room", "job.history");
    assert_eq!(ran.check("daemon")["status"], "ok", "{}", ran.said);
}

#[test]
fn no_secret_is_told() {
    let mut world = World::new();
    let file = world.path("url");
    world.app_url = world.app_url.replace("sidekeep_app@", "sidekeep_gone:hunter2@");
    std::fs::write(&file, format!("{}\n", world.app_url)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (config, _) = world.configure(&format!("database.url_file = {file:?}\n"));
    let text = std::fs::read_to_string(&config).unwrap();
    let without: String = text
        .lines()
        .filter(|line| !line.starts_with("database.url "))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&config, without).unwrap();
    let ran = Ran::of(sidekeep(), &config);
    ran.assert_fails("database.role", "sidekeep_gone", "CREATE ROLE");
    let kek = std::fs::read_to_string(world.path("kek")).unwrap();
    let key = kek.lines().last().unwrap().rsplit(':').next().unwrap();
    assert!(!ran.said.contains("hunter2") && !ran.said.contains(key), "{}", ran.said);
}

#[test]
fn a_server_that_stands_still_holds_nobody_up() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let (config, _) = world.configure("database.connect_timeout = \"1s\"\n");
    cluster.signal(Signal::SIGSTOP);
    let (ran, took) = timed(|| Ran::of(sidekeep(), &config));
    cluster.signal(Signal::SIGCONT);
    ran.assert_fails("database.reach", "no answer within 1s", "is it running");
    assert!(took < Duration::from_secs(10), "{took:?}");
}
