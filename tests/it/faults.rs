//! PostgreSQL away, killed, frozen, read-only or full: nothing acknowledged is lost, every call ends in time, and the daemon
//! goes on by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Cluster, Daemon, Psql, World, timed, wait_for};

/// What is allowed on a busy machine where a fraction of a second is meant; the figures themselves are printed. Whatever the
/// daemon would otherwise wait for lasts five seconds.
const LATE: Duration = Duration::from_millis(4500);

fn consent(user_id: &str, id: &str) -> Value {
    json!({ "user_id": user_id, "consent_type": "c", "granted": true, "id": id })
}

fn health(client: &mut Client) -> Value {
    client.ok("system.health", json!({}))
}

fn wait_healthy(daemon: &Daemon) -> Duration {
    let mut client = daemon.client();
    timed(|| wait_for("health", || (health(&mut client)["status"] == "ok").then_some(()))).1
}

/// What it answers when it can: a call of a second that is tried again on a busy machine.
fn soon(daemon: &Daemon, method: &str, params: &Value) -> Value {
    wait_for(method, || daemon.client().call(method, params.clone()).ok())
}

/// Asks for health again and again until told to stop, and answers how long it took, the longest last.
fn times_of_health(daemon: &Daemon, stop: &AtomicBool) -> Vec<Duration> {
    let (mut client, mut times) = (daemon.client(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        times.push(timed(|| health(&mut client)).1);
        thread::sleep(Duration::from_millis(10));
    }
    times.sort();
    times
}

#[test]
fn without_a_database_it_starts_and_serves_when_there_is_one() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    world.start().stop();
    cluster.down();
    let daemon = world.spawn("limits.call_timeout = \"1s\"\n");
    let mut stranger = world.spawn(&format!("keyring.key_files = [{:?}]\n", world.add_key("other")));
    let ((), listening) = timed(|| daemon.wait_listening());
    let mut client = daemon.client();
    let (first, took) = timed(|| health(&mut client));
    assert_eq!(first["status"], "unavailable");
    let (error, waited) = timed(|| client.err("consent.record", consent("u", "c")));
    assert_eq!(error.kind(), "unavailable", "{error:?}");
    assert!(error.data["retry_after_ms"].is_u64() && !error.message.contains("/tmp"), "{error:?}");
    eprintln!("listens after {listening:?}, first health {took:?}, a call of 1s {waited:?}");
    assert!(took < LATE && waited < LATE);
    cluster.up();
    let served = wait_healthy(&daemon);
    eprintln!("healthy {served:?} after PostgreSQL was ready");
    assert!(served < LATE);
    soon(&daemon, "consent.record", &consent("u", "c"));
    // Found when the database came; until then nothing was served.
    assert_eq!(stranger.wait(), Some(78), "{}", stranger.log());
    assert!(stranger.log().contains("key-encryption key"), "{}", stranger.log());
}

/// What each call heard, by the id of its record, and about whom it was.
type Heard = BTreeMap<String, (String, Answer)>;

/// Writes and reads until told to stop.
fn write_on(daemon: &Daemon, worker: u32, stop: &AtomicBool, done: &AtomicU32) -> Heard {
    let (mut client, mut heard) = (daemon.client(), Heard::new());
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (user_id, id) = (format!("u{worker}-{}", number % 7), format!("c{worker}-{number}"));
        let answer = client.call("consent.record", consent(&user_id, &id));
        done.fetch_add(u32::from(answer.is_ok()), Ordering::Relaxed);
        let read = client.call("consent.history", json!({ "user_id": user_id }));
        heard.insert(id, (user_id, answer));
        if let Err(error) = read {
            assert_eq!(error.kind(), "unavailable", "{error:?}");
        }
    }
    heard
}

fn check_heard(world: &World, daemon: &Daemon, heard: &Heard) {
    let stored = world.sql("SELECT id FROM consent_records");
    let stored: BTreeSet<&str> = stored.lines().collect();
    let (mut client, mut due) = (daemon.client(), 0);
    for (id, (user_id, answer)) in heard {
        let is_stored = stored.contains(&**id);
        match answer {
            Ok(_) => assert!(is_stored, "{id} was acknowledged"),
            Err(error) if error.kind() == "unavailable" => {
                assert!(!is_stored, "{id}: {error:?}");
                continue;
            }
            Err(error) => {
                assert_eq!(error.kind(), "unknown_outcome", "{id}: {error:?}");
                client.ok("consent.record", consent(user_id, id));
            }
        }
        due += 1;
    }
    assert_eq!(world.sql("SELECT count(*) FROM consent_records"), due.to_string());
    assert_eq!(
        world.sql("SELECT count(*) FROM subjects"),
        world.sql("SELECT count(DISTINCT subject_id) + 1 FROM consent_records")
    );
}

#[test]
fn killed_under_load_it_loses_nothing_and_is_back_at_once() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let daemon = world.start_with("limits.call_timeout = \"20s\"\ndatabase.acquire_timeout = \"20s\"\n");
    let (stop, done) = (AtomicBool::new(false), AtomicU32::new(0));
    let heard = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| (worker, &daemon, &stop, &done))
            .map(|(w, d, s, n)| scope.spawn(move || write_on(d, w, s, n)))
            .collect();
        let more = |count: u32| {
            let from = done.load(Ordering::Relaxed);
            wait_for("acknowledged writes", || (done.load(Ordering::Relaxed) >= from + count).then_some(()));
        };
        for round in 0..3 {
            more(40);
            cluster.crash();
            let from = done.load(Ordering::Relaxed);
            cluster.up();
            let ready = Instant::now();
            wait_for("the first write", || (done.load(Ordering::Relaxed) > from).then_some(()));
            eprintln!(
                "round {round}: the first write is acknowledged {:?} after PostgreSQL was ready",
                ready.elapsed()
            );
            assert!(ready.elapsed() < LATE);
        }
        more(40);
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect::<Heard>()
    });
    let of = |kind: &str| heard.values().filter(|(_, a)| a.as_ref().is_err_and(|e| e.kind() == kind)).count();
    eprintln!("{} calls, {} unavailable, {} unknown", heard.len(), of("unavailable"), of("unknown_outcome"));
    check_heard(&world, &daemon, &heard);
}

#[test]
fn a_backend_that_is_ended_is_not_noticed() {
    const END: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                       WHERE datname = current_database() AND application_name = 'sidekeep'";
    let world = World::new();
    let daemon = world.start_with("database.pool = 2\n");
    let mut client = daemon.client();
    client.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    for _ in 0..10 {
        // Idle.
        world.sql(END);
        client.ok("preferences.get", json!({ "user_id": "u" }));
    }
    let mut lock = Psql::open(&world.owner_url);
    for round in 0..5 {
        // In a transaction.
        lock.run("BEGIN; SELECT FROM user_preferences FOR UPDATE");
        let changes = json!({ "user_id": "u", "changes": { "n": round }, "expected_version": round + 1 });
        thread::scope(|scope| {
            let call = scope.spawn(|| daemon.ok("preferences.update", changes));
            wait_for("the call behind the lock", || {
                (world.sql(&format!("{END} AND wait_event_type = 'Lock'")) == "1").then_some(())
            });
            lock.run("COMMIT");
            assert_eq!(call.join().unwrap()["version"], round + 2);
        });
    }
}

/// Lets the server go on and the watcher end, also when the test fails meanwhile.
struct Thaw<'a>(&'a Cluster, &'a AtomicBool);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.0.signal(Signal::SIGCONT);
        self.1.store(true, Ordering::Relaxed);
    }
}

#[test]
fn frozen_it_ends_every_call_by_its_deadline() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    // Room for the calls of the first wave, and for all that the daemon itself asks at the same time.
    let daemon = world.start_with("limits.call_timeout = \"1s\"\ndatabase.pool = 12\n");
    soon(&daemon, "preferences.set", &json!({ "user_id": "u", "preferences": {} }));
    let stop = AtomicBool::new(false);
    let calls = |count: u32, wave: &str| {
        let mut slowest = Duration::ZERO;
        thread::scope(|scope| {
            let calls: Vec<_> = (0..count)
                .map(|n| {
                    let (daemon, id) = (&daemon, format!("{wave}{n}"));
                    scope.spawn(move || match n % 3 {
                        0 => (true, timed(|| daemon.client().err("consent.record", consent("u", &id)))),
                        1 => (true, timed(|| daemon.client().err("consent.record", consent(&id, &id)))),
                        _ => (
                            false,
                            timed(|| daemon.client().err("preferences.get", json!({ "user_id": "u" }))),
                        ),
                    })
                })
                .collect();
            for call in calls {
                let (writes, (error, took)) = call.join().unwrap();
                slowest = slowest.max(took);
                assert!(
                    error.kind() == "unavailable" || (writes && error.kind() == "unknown_outcome"),
                    "{error:?}"
                );
            }
        });
        eprintln!("{wave}: {count} calls of 1s ended within {slowest:?}");
        assert!(slowest < LATE);
    };
    thread::scope(|scope| {
        let watching = scope.spawn(|| times_of_health(&daemon, &stop));
        let thaw = Thaw(&cluster, &stop);
        cluster.signal(Signal::SIGSTOP);
        calls(4, "first");
        let mut client = daemon.client();
        let ((), noticed) = timed(|| {
            wait_for("health to see it", || (health(&mut client)["status"] == "unavailable").then_some(()))
        });
        // More than the pool holds: it is not for want of connections.
        calls(17, "second");
        cluster.signal(Signal::SIGCONT);
        let healthy = wait_healthy(&daemon);
        drop(thaw);
        let times = watching.join().unwrap();
        let (third, slowest) = (times[times.len() - 3], times[times.len() - 1]);
        eprintln!(
            "unavailable {noticed:?} after the first calls; healthy {healthy:?} after it went on; health within {slowest:?}, \
             all but two within {third:?}"
        );
        // Were it to wait for the server, one after another would, for a second each.
        assert!(third < Duration::from_millis(500) && slowest < LATE && healthy < LATE);
    });
    for n in 0..8 {
        soon(&daemon, "consent.record", &consent("u", &format!("after{n}")));
    }
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sidekeep'";
    wait_for("the end of broken connections", || {
        // The pool's, and those of the two writers of the log.
        (world.sql(sessions).parse::<u32>().unwrap() <= 14).then_some(())
    });
}

#[test]
fn a_host_that_stands_still_does_not_hide_the_next_one() {
    let still = tempfile::tempdir().unwrap();
    // The kernel takes connections for it, and nobody ever answers one.
    let _listener = std::os::unix::net::UnixListener::bind(still.path().join(".s.PGSQL.5432")).unwrap();
    let mut world = World::new();
    world.app_url = world.app_url.replace("?host=", &format!("?host={}&host=", still.path().display()));
    let (daemon, took) = timed(|| world.start_with("database.connect_timeout = \"60s\"\n"));
    eprintln!("served after {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    daemon.ok("consent.record", consent("u", "c"));
}

#[test]
fn a_frozen_server_does_not_keep_the_daemon_from_ending() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let mut daemon = world.start_with("limits.call_timeout = \"20s\"\nsocket.drain = \"300ms\"\n");
    daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    cluster.signal(Signal::SIGSTOP);
    let mut client = daemon.client();
    client.send_call("preferences.get", json!({ "user_id": "u" }));
    let mut other = daemon.client();
    wait_for("the call", || (other.ok("system.status", json!({}))["calls"]["in_flight"] == 1).then_some(()));
    daemon.signal(Signal::SIGTERM);
    let (code, took) = timed(|| daemon.wait());
    cluster.signal(Signal::SIGCONT);
    eprintln!("ended {took:?} after SIGTERM, of which 300ms are for calls in flight");
    assert_eq!(code, Some(0), "{}", daemon.log());
    assert_eq!(client.line()["error"]["data"]["kind"], "unavailable");
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[test]
fn read_only_it_refuses_writes_and_serves_reads() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let daemon = world.start_with("audit.access = \"none\"\n");
    let mut client = daemon.client();
    client.ok("preferences.set", json!({ "user_id": "u", "preferences": { "a": 1 } }));
    let set = |value: &str| {
        cluster.execute(&format!("ALTER SYSTEM SET default_transaction_read_only = {value}"));
        cluster.execute("SELECT pg_reload_conf()");
        wait_for("the setting", || (world.sql("SHOW default_transaction_read_only") == value).then_some(()));
    };
    set("on");
    for user_id in ["u", "new"] {
        wait_for("the sessions to hear of it", || {
            let answer = client.call("consent.record", consent(user_id, &format!("{user_id}-1")));
            answer
                .is_err_and(|error| {
                    assert_eq!(error.kind(), "unavailable", "{error:?}");
                    true
                })
                .then_some(())
        });
    }
    assert_eq!(client.ok("preferences.get", json!({ "user_id": "u" }))["preferences"], json!({ "a": 1 }));
    let seen = wait_for("health to see it", || {
        let seen = health(&mut client);
        (seen["status"] == "degraded").then_some(seen)
    });
    assert!(seen["checks"]["database"]["message"].as_str().unwrap().contains("read-only"), "{seen}");
    // One that starts now has nothing to write either.
    let second = world.start_with("audit.access = \"none\"\n");
    assert_eq!(second.ok("preferences.get", json!({ "user_id": "u" }))["preferences"], json!({ "a": 1 }));
    set("off");
    client.ok("consent.record", consent("late", "late-1"));
    second.ok("consent.record", consent("late", "late-1"));
}

#[test]
fn a_session_that_was_told_to_read_only_is_not_kept() {
    let world = World::new();
    let daemon = world.start_with("database.pool = 3\n");
    let role = |statement: &str| {
        world.sql(&format!(
            "ALTER ROLE sidekeep_app IN DATABASE {} {statement}",
            world.sql("SELECT current_database()")
        ));
    };
    role("SET default_transaction_read_only = on");
    // Each is waited for: one that had not ended yet would still take the call.
    world.sql("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sidekeep'");
    assert_eq!(daemon.client().err("consent.record", consent("u", "c")).kind(), "unavailable");
    role("RESET default_transaction_read_only");
    daemon.ok("consent.record", consent("u", "c"));
}

#[test]
fn a_standby_is_not_read_from_and_its_promotion_is_noticed() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let daemon = world.start_with("limits.call_timeout = \"1s\"\n");
    soon(&daemon, "preferences.set", &json!({ "user_id": "u", "preferences": {} }));
    cluster.down();
    std::fs::write(cluster.data().join("standby.signal"), "").unwrap();
    thread::scope(|scope| {
        let standby = scope.spawn(|| cluster.up());
        wait_for("a standby", || {
            let url = &world.owner_url;
            let asked =
                Command::new("psql").args([url, "-XqAtc", "SELECT pg_is_in_recovery()"]).output().unwrap();
            (asked.stdout == b"t\n").then_some(())
        });
        let mut client = daemon.client();
        let told = wait_for("health to see it", || {
            let message = health(&mut client)["checks"]["database"]["message"].clone();
            message.as_str().filter(|message| message.contains("standby")).map(str::to_owned)
        });
        eprintln!("{told}");
        // What the primary has erased may still be here.
        assert_eq!(client.err("preferences.get", json!({ "user_id": "u" })).kind(), "unavailable");
        world.sql("SELECT pg_promote()");
        let promoted = wait_healthy(&daemon);
        eprintln!("healthy {promoted:?} after it was promoted");
        soon(&daemon, "consent.record", &consent("u", "c"));
        standby.join().unwrap();
    });
}

/// A small disk of its own; taken away when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(size: &str, owner: &Path) -> Self {
        let path = tempfile::Builder::new().prefix("sidekeep-disk-").tempdir().unwrap().keep();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let disk = Self(path);
        let owner = std::fs::metadata(owner).unwrap();
        disk.option(&format!("size={size},mode=0700,uid={},gid={}", owner.uid(), owner.gid()));
        disk
    }

    fn option(&self, options: &str) {
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&self.0)
            .output()
            .unwrap();
        assert!(done.status.success(), "this test mounts a tmpfs, which takes root: {done:?}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn with_its_disk_full_it_goes_on_reading() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("a small disk takes root: not tested");
        return;
    }
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let disk = Disk::mount("2m", &cluster.data());
    world.sql(&format!("CREATE TABLESPACE small LOCATION '{}'", disk.0.display()));
    world.sql("ALTER TABLE consent_records SET TABLESPACE small");
    let daemon = world.start();
    let mut client = daemon.client();
    let record = |n: u32| {
        let mut record = consent("u", &format!("c{n}"));
        record["metadata"] = json!("x".repeat(200_000));
        record
    };
    let mut stored = 0;
    let error = loop {
        match client.call("consent.record", record(stored)) {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 100, "the disk never fills");
    };
    assert_eq!(error.kind(), "unavailable", "{error:?}");
    assert!(error.message.contains("disk is full"), "{error:?}");
    let count = || world.sql("SELECT count(*) FROM consent_records");
    assert_eq!(count(), stored.to_string());
    assert_eq!(client.err("consent.record", record(stored)).kind(), "unavailable");
    let current = client.ok("consent.current", json!({ "user_id": "u" }));
    assert_eq!(current["items"][0]["id"], format!("c{}", stored - 1));
    client.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    wait_healthy(&daemon);
    disk.option("remount,size=32m");
    client.ok("consent.record", record(stored));
    assert_eq!(count(), (stored + 1).to_string());
    drop(client);
    daemon.stop();
    cluster.down();
}
