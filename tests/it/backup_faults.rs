//! What goes wrong with a dump: whatever it is, the run fails and says why, nothing is listed that is not whole, and the next
//! run does it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::backup::{Shelf, done, failed, files, fill, list};
use crate::doctor::look;
use crate::drill::sign_again;
use crate::support::{Cluster, Daemon, Passage, Store, World, sidekeep, sql, wait_for};

/// The `pg_dump` of the newest version that is installed.
fn pg_dump() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    let mut found: Vec<_> =
        versions.map(|entry| entry.path().join("bin/pg_dump")).filter(|path| path.exists()).collect();
    found.sort();
    found.pop().unwrap()
}

/// What to do in a mount namespace so that a script stands in the place of `pg_dump`, and the real one beside it as `$real`.
fn instead(shelf: &Shelf, script: &str) -> String {
    let (real, fake) = (shelf.world.path("real"), shelf.world.path("fake"));
    std::fs::create_dir_all(&real).unwrap();
    std::fs::copy(pg_dump(), real.join("pg_dump")).unwrap();
    let real = real.join("pg_dump");
    std::fs::write(&fake, format!("#!/bin/sh\nreal={}\n{script}\n", real.display())).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("mount --bind {} {}", fake.display(), pg_dump().display())
}

const VERSION: &str = "case \"$1\" in --version) exec \"$real\" --version;; esac";

/// Holds a table back, so that `pg_dump` waits for it.
struct Held(Child);

impl Held {
    fn back(world: &World, table: &str) -> Self {
        use std::io::{BufRead as _, BufReader, Write as _};
        let mut psql = Command::new("psql")
            .args([world.owner_url.as_str(), "-XqAt"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lock = format!("BEGIN; LOCK TABLE sidekeep.{table} IN ACCESS EXCLUSIVE MODE; SELECT 'held';\n");
        psql.stdin.as_mut().unwrap().write_all(lock.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(psql.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Self(psql)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The `pg_dump` that a daemon has started.
fn child(daemon: &Daemon) -> Pid {
    let parent = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let dumps = |pid: i32| {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.contains("pg_dump") && arguments.contains("--snapshot")
    };
    let found = wait_for("pg_dump", || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| parent(*pid) == Some(daemon.pid().as_raw()) && dumps(*pid))
    });
    Pid::from_raw(found)
}

fn begin(daemon: &Daemon) -> String {
    let run = daemon.ok("job.run", json!({ "name": "backup", "wait": "0s" }));
    assert_eq!(run["state"], "running", "{run}");
    run["run"].as_str().unwrap().to_owned()
}

fn ended(daemon: &Daemon, run: &str) -> Value {
    wait_for("the end of the run", || {
        let runs = daemon.ok("job.history", json!({ "name": "backup" }));
        let run = runs["items"].as_array().unwrap().iter().find(|item| item["run"] == run)?.clone();
        (run["state"] != "running").then_some(run)
    })
}

#[test]
fn a_pg_dump_that_fails_leaves_nothing() {
    let shelf = Shelf::new();
    let faults = [
        ("printf PGDMPhalf; exit 1", "exit status: 1"),
        ("\"$real\" \"$@\" | head -c 20000; kill -9 $$", "signal: 9"),
        ("exit 0", "wrote nothing"),
        ("echo no dump", "is no dump"),
        ("echo 'pg_dump: error: query failed: out of it' >&2; exit 3", "query failed: out of it"),
        ("exec \"$real\" \"$@\" --snapshot=00000000-00000000-1", "snapshot"),
    ];
    for (script, why) in faults {
        let daemon = shelf.start_after(&instead(&shelf, &format!("{VERSION}\n{script}")), "");
        let said = failed(&daemon, "backup");
        assert!(said.contains(why), "{script}: {said}");
        assert!(list(&daemon).is_empty() && files(&shelf.dumps()).is_empty(), "{script}");
        daemon.stop();
    }
    let older = "case \"$1\" in --version) echo 'pg_dump (PostgreSQL) 9.6.24'; exit;; esac; exit 9";
    let daemon = shelf.start_after(&instead(&shelf, older), "");
    let said = failed(&daemon, "backup");
    assert!(
        said.contains("the newest here is 9.6.24") && said.contains("apt-get install postgresql-client-"),
        "{said}"
    );
    daemon.stop();
    let daemon = shelf.start("");
    done(&daemon, "backup");
    assert_eq!(list(&daemon).len(), 1);
}

#[test]
fn a_pg_dump_that_is_killed_leaves_nothing() {
    let shelf = Shelf::new();
    let daemon = shelf.start("");
    fill(&daemon, 2);
    let held = Held::back(&shelf.world, "user_profiles");
    let run = begin(&daemon);
    let dumping = child(&daemon);
    let status = daemon.ok("system.status", json!({}));
    let running = &status["jobs"]["backup"]["running"];
    assert_eq!((&running["run"], &running["state"]), (&json!(run), &json!("running")), "{running}");
    kill(dumping, Signal::SIGKILL).unwrap();
    // What the daemon counts waits for the same table.
    drop(held);
    let run = ended(&daemon, &run);
    assert!(run["error"].as_str().is_some_and(|why| why.contains("signal: 9")), "{run}");
    assert!(list(&daemon).is_empty() && files(&shelf.dumps()).is_empty());
    done(&daemon, "backup");
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_that_is_listed() {
    let shelf = Shelf::new();
    let first = shelf.start("");
    fill(&first, 2);
    let held = Held::back(&shelf.world, "user_profiles");
    let run = begin(&first);
    let dumping = child(&first);
    first.signal(Signal::SIGKILL);
    drop(first);
    let other = shelf.start("");
    assert!(list(&other).is_empty());
    drop(held);
    wait_for("the end of a pg_dump that nobody reads", || {
        (!Path::new(&format!("/proc/{dumping}")).exists()).then_some(())
    });
    // Its run is gone on with, from the beginning.
    let run = ended(&other, &run);
    assert_eq!((&run["state"], list(&other).len()), (&json!("ok"), 1), "{run}");
    let listed = |daemon: &Daemon| -> Vec<String> {
        let mut names: Vec<_> =
            list(daemon).iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(files(&shelf.dumps()), listed(&other), "what the run before had left was cleared");
    // What nobody knows of is left alone, as long as a run may still be writing it.
    let folder = |name: &str| shelf.dumps().join(name);
    let hours_ago = |hours: i64| {
        let name = format!(
            "SELECT to_char(now() AT TIME ZONE 'UTC' - interval '{hours} hours', 'YYYYMMDD\"T\"HH24MISS\"Z\"')"
        );
        format!("{}-0123abcd", shelf.world.sql(&name))
    };
    let (young, old) = (hours_ago(11), hours_ago(14));
    for name in [&young, &old, "somebody-elses"] {
        std::fs::create_dir(folder(name)).unwrap();
        std::fs::write(folder(name).join("dump#1"), "PGDMP").unwrap();
    }
    done(&other, "backup");
    let there = files(&shelf.dumps());
    assert!(!there.contains(&old) && there.contains(&young), "{there:?}");
    assert!(there.contains(&"somebody-elses".to_owned()), "{there:?}");
    assert_eq!(list(&other).len(), 2);
}

#[test]
fn a_daemon_that_ends_takes_its_pg_dump_with_it() {
    let shelf = Shelf::new();
    let daemon = shelf.start("socket.drain = \"100ms\"\n");
    fill(&daemon, 1);
    let held = Held::back(&shelf.world, "user_profiles");
    begin(&daemon);
    let dumping = child(&daemon);
    daemon.stop();
    assert!(!Path::new(&format!("/proc/{dumping}")).exists(), "its end was waited for");
    drop(held);
    let daemon = shelf.start("");
    wait_for("the run that was let go", || (list(&daemon).len() == 1).then_some(()));
}

#[test]
fn a_destination_that_is_full_or_shut_fails_the_run() {
    let shelf = Shelf::new();
    let dumps = shelf.world.path("dumps");
    std::fs::create_dir(&dumps).unwrap();
    let mount = format!("mount -t tmpfs -o size=256k,mode=0755 tmpfs {}", dumps.display());
    let daemon = shelf.start_after(&mount, "");
    // Random, so that it does not shrink.
    fill(&daemon, 1);
    shelf.world.sql(
        "INSERT INTO audit_publications SELECT string_agg(md5(random()::text), ''), 1, now() \
         FROM generate_series(1, 40000) n GROUP BY n / 50",
    );
    let said = failed(&daemon, "backup");
    assert!(said.contains("No space left") && said.contains(&*dumps.to_string_lossy()), "{said}");
    assert!(list(&daemon).is_empty());
    let root = format!("/proc/{}/root{}/dumps", daemon.pid(), dumps.display());
    assert!(files(Path::new(&root)).is_empty(), "{:?}", files(Path::new(&root)));
    assert_eq!(daemon.ok("system.health", json!({}))["status"], "degraded");
    daemon.ok("profile.get", json!({ "user_id": "u0" }));
    daemon.stop();
    let mount = format!("mount -t tmpfs -o ro tmpfs {}", dumps.display());
    let daemon = shelf.start_after(&mount, "");
    let said = failed(&daemon, "backup");
    assert!(said.contains("Read-only"), "{said}");
    daemon.stop();
    let daemon = shelf.start("");
    done(&daemon, "backup");
    daemon.assert_well();
}

#[test]
fn a_dump_that_is_not_listed_yet_is_no_dump_when_its_daemon_is_killed() {
    let (keyring, gate) = Store::s3().gated();
    let shelf = Shelf::new();
    let lines = shelf.config.lines().filter(|line| !line.starts_with("keyring.backup"));
    let config: String = lines.map(|line| format!("{line}\n")).collect();
    let more = "jobs.keyring_backup.enabled = false\n";
    let config = format!("{config}keyring.backup = \"{}\"\n{}{more}", keyring.url, keyring.config);
    let daemon = shelf.world.start_with(&config);
    fill(&daemon, 2);
    gate.set(Passage::Mute);
    begin(&daemon);
    let name = wait_for("a dump without its manifest", || {
        files(&shelf.dumps()).into_iter().find(|name| shelf.files(name) == ["dump"])
    });
    assert!(list(&daemon).is_empty(), "the keys of its time are not stored yet");
    daemon.signal(Signal::SIGKILL);
    drop(daemon);
    gate.set(Passage::Open);
    shelf.forget_run();
    let daemon = shelf.world.start_with(&config);
    assert!(list(&daemon).is_empty());
    done(&daemon, "backup");
    assert_eq!(list(&daemon).len(), 1);
    assert!(!files(&shelf.dumps()).contains(&name), "it was cleared");
}

#[test]
fn a_postgresql_that_is_away_is_dumped_when_it_is_back() {
    let cluster = Cluster::own(&[]);
    let shelf = Shelf::of(World::on(&cluster));
    let every = "[jobs.backup]\nschedule = \"*/3 * * * * *\"\n";
    let daemon = shelf.start(every);
    fill(&daemon, 1);
    let dumps = |more: usize| {
        let before = list(&daemon).len();
        wait_for("dumps", || (list(&daemon).len() >= before + more).then_some(()));
    };
    dumps(1);
    cluster.down();
    let then = std::time::Instant::now() + std::time::Duration::from_secs(8);
    wait_for("due times that pass", || (std::time::Instant::now() > then).then_some(()));
    cluster.up();
    daemon.wait_ready();
    dumps(2);
    daemon.stop();
    let twice = "SELECT count(*) FROM (SELECT FROM job_runs WHERE name = 'backup' GROUP BY due_at HAVING count(*) > 1) x";
    assert_eq!(shelf.world.sql(twice), "0");
    let gap = "SELECT max(gap) > interval '5 seconds' FROM (SELECT due_at - lag(due_at) OVER (ORDER BY due_at) AS gap \
        FROM job_runs WHERE name = 'backup') x";
    assert_eq!(shelf.world.sql(gap), "t", "of what was missed, the latest alone is made up for");
    let ok = "SELECT count(*) FROM job_runs WHERE name = 'backup' AND state = 'ok'";
    let daemon = shelf.start("");
    assert!(list(&daemon).len() >= shelf.world.sql(ok).parse().unwrap());
    for item in list(&daemon) {
        let config = daemon.config.to_str().unwrap();
        let name = item["name"].as_str().unwrap();
        assert!(sidekeep(&["--config", config, "backup", "verify", name]).status.success());
    }
}

#[test]
fn a_postgresql_that_crashes_under_a_dump_leaves_nothing() {
    let cluster = Cluster::own(&[]);
    let shelf = Shelf::of(World::on(&cluster));
    let daemon = shelf.start("");
    fill(&daemon, 1);
    let held = Held::back(&shelf.world, "user_profiles");
    let run = begin(&daemon);
    child(&daemon);
    cluster.crash();
    cluster.up();
    drop(held);
    daemon.wait_ready();
    let run = ended(&daemon, &run);
    assert_eq!(run["state"], "failed", "{run}");
    assert!(list(&daemon).is_empty() && files(&shelf.dumps()).is_empty());
    done(&daemon, "backup");
    assert_eq!(list(&daemon).len(), 1);
}

#[test]
fn nobody_sees_a_password() {
    let world = World::new();
    let role = format!("dumper_{}", std::process::id());
    sql(
        &world.owner_url,
        &format!("CREATE ROLE {role} LOGIN PASSWORD 'geheim:4711' IN ROLE pg_read_all_data"),
    );
    let url = world.owner_url.replace("postgres@", &format!("{role}:geheim%3A4711@"));
    assert_ne!(url, world.owner_url);
    let shelf = Shelf::of(world);
    std::fs::write(shelf.world.path("owner-url"), url).unwrap();
    let daemon = shelf.start("");
    fill(&daemon, 1);
    let held = Held::back(&shelf.world, "user_profiles");
    let run = begin(&daemon);
    let process = PathBuf::from(format!("/proc/{}", child(&daemon)));
    let read = |name: &str| String::from_utf8_lossy(&std::fs::read(process.join(name)).unwrap()).into_owned();
    let (arguments, environment) = (read("cmdline"), read("environ"));
    assert!(environment.contains("PGPASSFILE=/proc/self/fd/0") && arguments.contains("--snapshot="));
    assert!(!arguments.contains("geheim") && !environment.contains("geheim"), "{arguments} {environment}");
    assert!(!environment.contains("SIDEKEEP") && !environment.contains("AWS_"), "{environment}");
    // The file is in memory alone, and its owner's.
    assert!(std::fs::read_link(process.join("fd/0")).unwrap().to_string_lossy().starts_with("/memfd:"));
    let passfile = std::fs::metadata(process.join("fd/0")).unwrap();
    assert_eq!(passfile.permissions().mode() & 0o777, 0o600);
    assert_eq!(read("fd/0"), "*:*:*:*:geheim\\:4711\n");
    drop(held);
    let run = ended(&daemon, &run);
    assert_eq!(run["state"], "ok", "{run}");
    assert!(!daemon.log().contains("geheim"));
    sql(&shelf.world.owner_url, &format!("DROP ROLE {role}"));
}

#[test]
fn of_four_daemons_one_dumps_at_each_due_time() {
    let shelf = Shelf::new();
    let every = "[jobs.backup]\nschedule = \"*/4 * * * * *\"\n";
    let daemons: Vec<_> = (0..4).map(|_| shelf.world.spawn(&format!("{}{every}", shelf.config))).collect();
    daemons.iter().for_each(Daemon::wait_ready);
    let ok = "SELECT count(*) FROM job_runs WHERE name = 'backup' AND state = 'ok'";
    wait_for("three dumps", || (shelf.world.sql(ok).parse::<u64>().unwrap() >= 3).then_some(()));
    for daemon in daemons {
        daemon.stop();
    }
    let wrong = "SELECT count(*) FROM job_runs WHERE name = 'backup' AND state = 'failed'";
    assert_eq!(shelf.world.sql(wrong), "0");
    // A run that was let go ends now.
    let daemon = shelf.start("");
    wait_for("a dump for each run", || {
        (shelf.world.sql(ok).parse::<usize>().unwrap() == list(&daemon).len()).then_some(())
    });
}

#[test]
fn dumps_rotate_once_a_newer_one_is_proved() {
    let shelf = Shelf::new();
    let daemon = shelf.start("backup.keep = { daily = 1, weekly = 0, monthly = 0 }\n");
    fill(&daemon, 1);
    for kept in 1..=3 {
        assert_eq!(done(&daemon, "backup")["kept"], kept, "none is proved");
    }
    let oldest = list(&daemon).pop().unwrap()["name"].as_str().unwrap().to_owned();
    done(&daemon, "drill");
    let counts = done(&daemon, "backup");
    assert_eq!(
        (&counts["kept"], &counts["pruned"]),
        (&json!(2), &json!(2)),
        "the proved one stays, and what is newer"
    );
    assert!(!shelf.dumps().join(oldest).exists());
    let page = daemon.ok("backup.list", json!({ "limit": 1 }));
    let next = daemon.ok("backup.list", json!({ "limit": 1, "cursor": page["next_cursor"] }));
    assert_eq!((&page["items"][0]["proved_at"], &next["next_cursor"]), (&Value::Null, &Value::Null));
    assert!(next["items"][0]["proved_at"].is_string());

    let erased = daemon.ok("subject.erase", json!({ "user_id": "u0", "reason": "request" }));
    let day = |text: &Value| {
        let query = format!("SELECT (date '{}' - (now() AT TIME ZONE 'UTC')::date)", text.as_str().unwrap());
        shelf.world.sql(&query).parse::<i64>().unwrap()
    };
    assert_eq!(day(&erased["body"]["backups_gone_after"]), 9, "{erased}");
    assert_eq!(erased["body"]["physical_copies_gone_after"], "unknown");
    // What nobody proves stays, and so no day is promised.
    shelf.world.sql("UPDATE backup_policy SET proved_at = now() - interval '10 days'");
    fill(&daemon, 1);
    let erased = daemon.ok("subject.erase", json!({ "user_id": "u0", "reason": "request" }));
    assert_eq!(erased["body"]["backups_gone_after"], "unknown");
    done(&daemon, "drill");
    daemon.stop();
    // Another daemon, which makes no dumps itself, says the same, and what is declared to it.
    let daemon = shelf.world.start_with("backup.physical_retention = \"30d\"\n");
    fill(&daemon, 1);
    let erased = daemon.ok("subject.erase", json!({ "user_id": "u0", "reason": "request" }));
    assert_eq!(day(&erased["body"]["backups_gone_after"]), 9);
    assert_eq!(day(&erased["body"]["physical_copies_gone_after"]), 30);
    daemon.stop();

    // What a certificate says is gone goes, whatever is kept since.
    let daemon = shelf.start("");
    let oldest = list(&daemon).pop().unwrap()["name"].as_str().unwrap().to_owned();
    let days_ago = shelf.world.sql(
        "SELECT to_char(now() AT TIME ZONE 'UTC' - interval '3 days', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
    );
    sign_again(&shelf, &oldest, |body| body["snapshot_at"] = json!(days_ago));
    done(&daemon, "backup");
    done(&daemon, "drill");
    assert_eq!(done(&daemon, "backup")["kept"], 3, "the last of its day, the proved one, and the newest");
    shelf.world.sql(
        "INSERT INTO subject_erasures (subject_id, erased_at, reason, entry_id, certificate_id, certificate) \
         SELECT 7, now() - interval '1 day', reason, 'other', 'other', \
         jsonb_set(certificate, '{body,backups_gone_after}', to_jsonb('2026-01-01'::text)) FROM subject_erasures LIMIT 1",
    );
    assert_eq!(done(&daemon, "backup")["pruned"], 1);
    assert!(!shelf.dumps().join(oldest).exists());
}

#[test]
fn a_directory_that_is_not_mounted_takes_no_dump() {
    let shelf = Shelf::new();
    let daemon = shelf.start("");
    fill(&daemon, 2);
    done(&daemon, "backup");
    let place = shelf.world.path("dumps");
    let away = shelf.world.path("elsewhere");
    let lost = |daemon: &Daemon| {
        for job in ["backup", "drill"] {
            let why = failed(daemon, job);
            assert!(
                why.contains("sidekeep-dumps") && why.contains("ount it") && why.contains("touch "),
                "{why}"
            );
        }
        let refused = daemon.client().err("backup.list", json!({}));
        assert!(refused.kind() == "unavailable" && refused.message.contains("sidekeep-dumps"), "{refused:?}");
        let ran = look(&daemon.config);
        ran.assert_fails("destination.backup", "is not where the dumps before are", "touch ");
    };
    // The directory is gone; and then it is the empty one that was mounted over.
    std::fs::rename(&place, &away).unwrap();
    lost(&daemon);
    assert!(!place.exists(), "it was made anew");
    std::fs::create_dir(&place).unwrap();
    lost(&daemon);
    assert!(files(&place).is_empty());
    // It is there again.
    std::fs::remove_dir(&place).unwrap();
    std::fs::rename(&away, &place).unwrap();
    assert_eq!(done(&daemon, "backup")["kept"], 2);
    assert_eq!(look(&daemon.config).check("destination.backup")["status"], "ok");
    // Those dumps are lost: the operator says so, in the words of the message.
    std::fs::remove_dir_all(&place).unwrap();
    let why = failed(&daemon, "backup");
    std::fs::create_dir(&place).unwrap();
    let file = why.rsplit("touch ").next().unwrap();
    std::fs::write(file, "").unwrap();
    assert_eq!(done(&daemon, "backup")["kept"], 1);
    daemon.stop();
    // Another place that is named is made by its first dump.
    let other = shelf.world.path("other");
    let config = shelf.config.replace(&place.display().to_string(), &other.display().to_string());
    let daemon = shelf.world.start_with(&config);
    assert_eq!(done(&daemon, "backup")["kept"], 1);
    assert_eq!(files(&other), ["dumps", "sidekeep-dumps"]);
}
