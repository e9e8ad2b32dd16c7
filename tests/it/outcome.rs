//! How a write ends when something fails on its way: committed, not committed or unknown, and never told wrong.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Answer, Cluster, Daemon, Fault, Proxy, Psql, World, timed, wait_for};

/// Deadlines here are three seconds or less, and a call ends 100 ms after it; the rest is for a busy machine.
const LATE: Duration = Duration::from_secs(10);

fn consent(user_id: &str, id: &str) -> Value {
    json!({ "user_id": user_id, "consent_type": "c", "granted": true, "id": id })
}

/// A world whose daemons reach the shared cluster by way of a proxy.
fn proxied() -> (World, Proxy) {
    let mut world = World::new();
    let proxy = Proxy::new(&Cluster::shared().socket_directory());
    world.app_url = proxy.url(&world.app_url);
    (world, proxy)
}

fn retries(daemon: &Daemon) -> usize {
    let metrics = daemon.ok("system.metrics", json!({}));
    metrics["text"]
        .as_str()
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("sidekeep_transaction_retries_total{"))
        .count()
}

/// What is failed; where nothing is said, the COMMIT.
type Step = (&'static str, Option<fn(&str) -> bool>);

/// Each durable step of a write about somebody new; all but the first are those of a write about anybody.
const STEPS: [Step; 5] = [
    ("create the person", Some(|sql| sql.contains("create_subjects"))),
    ("BEGIN", Some(|sql| sql == "BEGIN")),
    ("the person FOR SHARE", Some(|sql| sql.contains("FOR SHARE"))),
    ("INSERT", Some(|sql| sql.starts_with("INSERT INTO") && sql.contains("consent_records"))),
    ("COMMIT", None),
];

/// Fails each step, lets `judge` look at what the caller heard and how many records there are, and tries again.
fn fail_each_step(more: &str, faults: [Fault; 2], judge: impl Fn(&str, Fault, &Answer, &str)) {
    let (world, proxy) = proxied();
    // No run of a job between the steps.
    let daemon = world.start_with(&format!("jobs.enabled = false\n{more}"));
    let mut client = daemon.client();
    for (number, (step, what)) in STEPS.into_iter().enumerate() {
        for fault in faults {
            let (user_id, id) = (format!("u{number}{fault:?}"), format!("c{number}{fault:?}"));
            if number > 0 {
                // So that the step is one of the write, and not of finding out that the person is new.
                client.ok("preferences.set", json!({ "user_id": user_id, "preferences": {} }));
            }
            world.drained();
            let failed = proxy.failed();
            match what {
                Some(what) => proxy.fail(fault, what),
                None => proxy.fail_commit(fault, "audit_staged"),
            }
            let (first, took) = timed(|| client.call("consent.record", consent(&user_id, &id)));
            assert_eq!(proxy.failed(), failed + 1, "{step}, {fault:?}");
            assert!(took < LATE, "{step}, {fault:?}: {took:?}");
            eprintln!("{step}, {fault:?}: {took:?}");
            let stored = format!("SELECT count(*) FROM consent_records WHERE id = '{id}'");
            judge(step, fault, &first, &world.sql(&stored));
            let again = client.ok("consent.record", consent(&user_id, &id));
            assert_eq!(client.ok("consent.record", consent(&user_id, &id)), again);
            assert_eq!(client.ok("consent.history", json!({ "user_id": user_id }))["items"], json!([again]));
            assert_eq!(world.sql(&format!("SELECT count(*) FROM subjects WHERE user_id = '{user_id}'")), "1");
        }
    }
}

#[test]
fn a_connection_cut_at_a_commit_is_unknown_and_anywhere_else_unnoticed() {
    fail_each_step(
        "database.pool = 2\n",
        [Fault::CutBefore, Fault::CutAfter],
        |step, fault, first, stored| {
            if step == "COMMIT" {
                assert_eq!(first.as_ref().unwrap_err().kind(), "unknown_outcome", "{fault:?}");
                assert_eq!(stored, if fault.is_after() { "1" } else { "0" }, "{fault:?}");
            } else {
                assert_eq!((first.is_ok(), stored), (true, "1"), "{step}, {fault:?}: {first:?}");
            }
        },
    );
}

#[test]
fn a_connection_that_falls_silent_ends_by_the_deadline() {
    const MORE: &str = "limits.call_timeout = \"2s\"\ndatabase.pool = 2\n";
    fail_each_step(MORE, [Fault::MuteBefore, Fault::MuteAfter], |step, fault, first, stored| {
        let kind = first.as_ref().unwrap_err().kind().to_owned();
        match step {
            "COMMIT" => assert_eq!(
                (&*kind, stored),
                ("unknown_outcome", if fault.is_after() { "1" } else { "0" }),
                "{fault:?}"
            ),
            // It commits by itself, though not the record.
            "create the person" => assert_eq!((&*kind, stored), ("unknown_outcome", "0"), "{fault:?}"),
            _ => assert_eq!((&*kind, stored), ("unavailable", "0"), "{step}, {fault:?}"),
        }
    });
}

#[test]
fn a_read_is_never_of_unknown_outcome() {
    let (world, proxy) = proxied();
    let daemon = world.start_with("limits.call_timeout = \"2s\"\ndatabase.pool = 2\njobs.enabled = false\n");
    let mut client = daemon.client();
    client.ok("consent.record", consent("u", "c"));
    for fault in [Fault::CutBefore, Fault::CutAfter, Fault::MuteBefore, Fault::MuteAfter] {
        for what in ["SELECT", "COMMIT"] {
            // So that it is the read that is hit, and not what takes the entry of the one before in.
            world.drained();
            let failed = proxy.failed();
            proxy.fail(fault, move |sql| sql.starts_with(what) && !sql.contains("server_version_num"));
            match client.call("consent.history", json!({ "user_id": "u" })) {
                Ok(page) => assert_eq!(page["items"].as_array().unwrap().len(), 1),
                Err(error) => assert_eq!(error.kind(), "unavailable", "{fault:?} at {what}"),
            }
            assert_eq!(proxy.failed(), failed + 1, "{fault:?} at {what}");
        }
    }
}

/// Makes every commit wait for a standby that there is not, from when this returns.
pub fn hold_commits(cluster: &Cluster) {
    cluster.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    cluster.execute("SELECT pg_reload_conf()");
    // Sessions know of it before the checkpointer does, whose word it is that counts.
    let [mut probe, mut look] = [(); 2].map(|()| Psql::open(&cluster.owner_url("postgres")));
    probe.begin(
        "DO $$ BEGIN LOOP PERFORM pg_logical_emit_message(true, '', ''); COMMIT; PERFORM pg_sleep(0.01); END LOOP; END $$",
    );
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE wait_event = 'SyncRep' AND datname = 'postgres'";
    wait_for("a commit that waits", || (look.run(ended) == "1").then_some(()));
}

#[test]
fn a_standby_that_is_gone_makes_no_success() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let daemon = world.start_with("limits.call_timeout = \"3s\"\naudit.access = \"none\"\n");
    let patient = world.start_with("limits.call_timeout = \"20s\"\naudit.access = \"none\"\n");
    let mut client = daemon.client();
    client.ok("preferences.set", json!({ "user_id": "known", "preferences": {} }));
    hold_commits(&cluster);
    for user_id in ["known", "new"] {
        let (error, took) = timed(|| client.err("consent.record", consent(user_id, &format!("{user_id}-1"))));
        eprintln!("deadline 3s: {user_id} {took:?}");
        assert_eq!(error.kind(), "unknown_outcome", "{user_id}: {error:?}");
        assert!(took < LATE);
    }
    client.ok("preferences.get", json!({ "user_id": "known" }));
    let health = wait_for("health to see it", || {
        let health = client.ok("system.health", json!({}));
        (health["status"] == "degraded").then_some(health)
    });
    assert!(health["checks"]["database"]["message"].as_str().unwrap().contains("synchronous"), "{health}");
    let status = client.ok("system.status", json!({}));
    assert_eq!(status["database"]["synchronous_standby_names"], "nobody");
    assert_eq!(status["database"]["synchronous_standbys"], 0);

    // A cancelled wait is a success with a warning.
    let waiting = "FROM pg_stat_activity a WHERE wait_event = 'SyncRep' AND EXISTS ( \
                   SELECT FROM pg_locks l WHERE l.pid = a.pid AND relation = 'consent_records'::regclass)";
    wait_for("what was given up", || (world.sql(&format!("SELECT count(*) {waiting}")) == "0").then_some(()));
    let (error, took) = thread::scope(|scope| {
        let call =
            scope.spawn(|| timed(|| patient.client().err("consent.record", consent("known", "cancelled"))));
        wait_for("the wait", || {
            (world.sql(&format!("SELECT count(pg_cancel_backend(pid)) {waiting}")) == "1").then_some(())
        });
        call.join().unwrap()
    });
    assert_eq!(error.kind(), "unknown_outcome");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(patient.log().contains("canceling wait for synchronous replication"), "the warning is logged");

    cluster.execute("ALTER SYSTEM RESET synchronous_standby_names");
    cluster.execute("SELECT pg_reload_conf()");
    for (user_id, id) in [("known", "known-1"), ("new", "new-1"), ("known", "cancelled")] {
        client.ok("consent.record", consent(user_id, id));
    }
    assert_eq!(world.sql("SELECT count(*) FROM consent_records"), "3");
    wait_for("health", || (client.ok("system.health", json!({}))["status"] == "ok").then_some(()));
}

#[test]
fn a_deadlock_is_tried_again() {
    let world = World::new();
    // A session looks for a deadlock once, so long after it began to wait: by then the other one has to wait too.
    let database = world.sql("SELECT current_database()");
    world.sql(&format!("ALTER DATABASE {database} SET deadlock_timeout = '5s'"));
    let daemon = world.start();
    daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    let [mut other, mut look] = [(); 2].map(|()| Psql::open(&world.owner_url));
    // Whoever else waits so long is the victim.
    other.run("SET deadlock_timeout = '1min'; BEGIN; SELECT FROM user_preferences FOR UPDATE");
    let preferences = thread::scope(|scope| {
        let call =
            scope.spawn(|| daemon.ok("preferences.update", json!({ "user_id": "u", "changes": { "a": 1 } })));
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                     AND application_name = 'sidekeep' AND wait_event_type = 'Lock'";
        wait_for("the call behind the lock", || (look.run(waits) == "1").then_some(()));
        other.run("SELECT FROM subjects WHERE user_id = 'u' FOR UPDATE; COMMIT");
        call.join().unwrap()
    });
    assert_eq!((&preferences["version"], &preferences["preferences"]), (&json!(2), &json!({ "a": 1 })));
    assert_eq!(retries(&daemon), 1);
}

/// A trigger that fails the first time with this SQLSTATE; a sequence does not roll back.
fn fails_once(world: &World, sqlstate: &str, deferred: &str) {
    world.sql(&format!(
        "CREATE SEQUENCE tries; GRANT USAGE ON SEQUENCE tries TO sidekeep_app; \
         CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF nextval('sidekeep.tries') = 1 THEN RAISE EXCEPTION 'as a test wants it' USING ERRCODE = '{sqlstate}'; END IF; \
         RETURN NULL; END $$; \
         CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON consent_records {deferred} FOR EACH ROW EXECUTE FUNCTION fail()"
    ));
}

#[test]
fn a_serialization_failure_is_tried_again_wherever_it_comes() {
    for deferred in ["", "DEFERRABLE INITIALLY DEFERRED"] {
        let world = World::new();
        fails_once(&world, "40001", deferred);
        let daemon = world.start();
        daemon.ok("consent.record", consent("u", "c"));
        assert_eq!(
            (retries(&daemon), &*world.sql("SELECT count(*) FROM consent_records")),
            (1, "1"),
            "{deferred}"
        );
    }
}

#[test]
fn a_commit_that_the_server_refuses_is_not_unknown() {
    let world = World::new();
    fails_once(&world, "P0001", "DEFERRABLE INITIALLY DEFERRED");
    let daemon = world.start();
    let error = daemon.client().err("consent.record", consent("u", "c"));
    assert_eq!((error.code, error.message.as_str()), (-32603, "internal error"));
    assert_eq!(world.sql("SELECT count(*) FROM consent_records"), "0");
    daemon.ok("consent.record", consent("u", "c"));
}

#[test]
fn a_lock_past_the_deadline_is_unavailable_and_given_up() {
    let world = World::new();
    let daemon = world.start_with("limits.call_timeout = \"3s\"\n");
    daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    let mut lock = Psql::open(&world.owner_url);
    lock.run("BEGIN; SELECT FROM subjects WHERE user_id = 'u' FOR UPDATE");
    let (error, took) = timed(|| daemon.client().err("consent.record", consent("u", "c")));
    assert_eq!(error.kind(), "unavailable");
    let ((), given_up) = timed(|| {
        let active = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                      AND application_name = 'sidekeep' AND state <> 'idle'";
        wait_for("the statement's end", || (world.sql(active) == "0").then_some(()));
    });
    eprintln!("deadline 3s: answered after {took:?}, nothing left {given_up:?} later");
    assert!(took < LATE && given_up < LATE);
    lock.run("COMMIT");
    daemon.ok("consent.record", consent("u", "c"));
}

#[test]
fn an_exhausted_pool_is_overloaded_and_health_answers() {
    let world = World::new();
    let daemon =
        world.start_with("database.pool = 2\ndatabase.acquire_timeout = \"2s\"\njobs.enabled = false\n");
    daemon.ok("preferences.set", json!({ "user_id": "u", "preferences": {} }));
    let mut lock = Psql::open(&world.owner_url);
    lock.run("BEGIN; SELECT FROM subjects WHERE user_id = 'u' FOR UPDATE");
    thread::scope(|scope| {
        let daemon = &daemon;
        let calls =
            [1, 2].map(|n| scope.spawn(move || daemon.ok("consent.record", consent("u", &format!("c{n}")))));
        wait_for("both", || {
            let pool = daemon.ok("system.status", json!({}))["pool"].clone();
            (pool["open"] == 2 && pool["free"] == 0).then_some(())
        });
        let mut client = daemon.client();
        let (error, took) = timed(|| client.err("preferences.get", json!({ "user_id": "u" })));
        assert_eq!(error.kind(), "overloaded", "{error:?}");
        assert!(error.data["retry_after_ms"].is_u64() && took < LATE);
        let busy =
            [1, 2].map(|_| scope.spawn(|| daemon.client().err("preferences.get", json!({ "user_id": "u" }))));
        let methods = ["system.health", "rpc.discover"].iter().cycle().take(20);
        let mut times: Vec<Duration> =
            methods.map(|method| timed(|| client.ok(method, json!({}))).1).collect();
        times.sort_unstable();
        assert!(busy.into_iter().all(|call| call.join().unwrap().kind() == "overloaded"));
        assert_eq!(
            client.ok("system.health", json!({}))["status"],
            "ok",
            "a full pool is no fault of the server"
        );
        eprintln!("overloaded after {took:?}; health and discover within {times:?}");
        // Most of them: a machine that stands still for a moment holds one up.
        assert!(times[10] < Duration::from_millis(500), "{times:?}");
        lock.run("COMMIT");
        calls.into_iter().for_each(|call| drop(call.join().unwrap()));
    });
    assert_eq!(world.sql("SELECT count(*) FROM consent_records"), "2");
}

#[test]
fn people_made_in_opposite_order_do_not_deadlock() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    let forth: Vec<_> = (0..50).map(|n| format!("u{n:02}")).collect();
    let back: Vec<_> = forth.iter().rev().cloned().collect();
    thread::scope(|scope| {
        for (daemon, order) in [(&first, &forth), (&second, &back), (&second, &forth), (&first, &back)] {
            scope.spawn(move || {
                let mut client = daemon.client();
                for user_id in order {
                    client.ok("preferences.set", json!({ "user_id": user_id, "preferences": {} }));
                }
            });
        }
    });
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id IS NOT NULL"), "50");
    assert_eq!(world.sql("SELECT sum(version) FROM user_preferences"), "200");
    // A session tells what it counted when it ends.
    first.stop();
    second.stop();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sidekeep'";
    wait_for("the sessions' end", || (world.sql(sessions) == "0").then_some(()));
    assert_eq!(world.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"), "0");
}
