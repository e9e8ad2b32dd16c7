//! `sidekeep doctor`: a healthy installation has no fault, what cannot be looked at is said, and looking changes nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::dev::Dev;
use crate::support::{Cluster, World, timed, wait_for};

/// What the checks of one run said.
pub struct Ran {
    pub code: Option<i32>,
    pub report: Value,
    pub said: String,
}

impl Ran {
    pub fn of(mut command: Command, config: &Path) -> Self {
        command.arg("--config").arg(config).args(["--json", "doctor"]).stdin(Stdio::null());
        let done = command.output().unwrap();
        let said = String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap();
        let line = said.lines().next().unwrap_or_default();
        let report = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {said}"));
        Self { code: done.status.code(), report, said }
    }

    pub fn check(&self, name: &str) -> &Value {
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
    pub fn assert_fails(&self, name: &str, why: &str, advice: &str) {
        let check = self.check(name);
        assert_eq!(check["status"], "fail", "{check}");
        assert!(check["why"].as_str().unwrap().contains(why), "{why:?}: {check}");
        assert!(check["advice"].as_str().unwrap().contains(advice), "{advice:?}: {check}");
    }
}

pub fn sidekeep() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sidekeep"))
}

/// What is found with a configuration.
pub fn look(config: &Path) -> Ran {
    Ran::of(sidekeep(), config)
}

pub fn doctor(world: &World, more: &str) -> Ran {
    Ran::of(sidekeep(), &world.configure(more).0)
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
    let postmaster = folder.join("postgres/data/postmaster.pid");
    wait_for("the end of PostgreSQL", || (!postmaster.exists()).then_some(()));

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
    // A daemon that runs the job itself would find out, and say so too.
    let daemon = world.start_with("jobs.enabled = false\n");
    daemon.run_job("partitions");
    world.sql("UPDATE job_runs SET state = 'failed', error = 'no room' WHERE name = 'partitions'");
    let ran = doctor(&world, &format!("socket.path = {:?}\n", daemon.socket));
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
    assert!(took < Duration::from_secs(30), "{took:?}");
}

#[test]
fn a_place_that_is_not_mounted_and_a_database_that_was_put_back_are_found() {
    let world = World::new();
    let keyring = world.path("keyring");
    let daemon = world.start_with(&format!("keyring.backup = \"file://{}\"\n", keyring.display()));
    daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    assert_eq!(daemon.run_job("keyring_backup")["state"], "ok");
    let config = daemon.config.clone();
    daemon.stop();
    assert_eq!(Ran::of(sidekeep(), &config).check("keyring.backup")["status"], "ok");

    world.sql("DELETE FROM keyring_writes");
    Ran::of(sidekeep(), &config).assert_fails(
        "keyring.backup",
        "lacks what its keyring's backup tells",
        "--accept-gap",
    );

    std::fs::rename(&keyring, world.path("elsewhere")).unwrap();
    Ran::of(sidekeep(), &config).assert_fails("destination.keyring", "is not there", "mount it");
    assert!(!keyring.exists(), "looking has made it");
}

#[test]
fn a_job_that_nobody_runs_is_overdue() {
    let world = World::new();
    world.start().stop();
    world.sql("DELETE FROM job_runs; UPDATE deployment SET created_at = now() - interval '3 days'");
    let ran = doctor(&world, "");
    for name in ["job.verify", "job.retention", "job.partitions"] {
        ran.assert_fails(name, "no daemon ran it", "jobs.enabled");
    }
    let ran = doctor(&world, "jobs.enabled = false\n");
    assert_eq!(ran.check("job.verify")["status"], "skipped", "{}", ran.said);
}
