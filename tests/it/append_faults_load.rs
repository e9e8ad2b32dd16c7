//! The log under load: PostgreSQL away for long, a daemon that ends, a queue that is full, clients that do not read, and the
//! same new persons in many batches at once.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::appends::{Heard, append_on, check_log, entry};
use crate::support::{Client, Cluster, Psql, World, read, timed, wait_for};

/// Waits until so many more are acknowledged.
fn more(done: &AtomicU32, count: u32) {
    let from = done.load(Ordering::Relaxed);
    wait_for("acknowledged entries", || (done.load(Ordering::Relaxed) >= from + count).then_some(()));
}

#[test]
fn with_postgresql_away_for_long_callers_hear_so_and_nobody_has_to_help() {
    // Longer than any step, connection, acquisition or lease lasts.
    const AWAY: Duration = Duration::from_secs(17);
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    // The steps of a batch last ten seconds: what ends sooner ends by its deadline.
    let daemons = [0, 1].map(|_| world.start_with("limits.call_timeout = \"5s\"\n"));
    let (stop, done) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut heard = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|n| (format!("w{n}"), &daemons[n % 2], &stop, &done))
            .map(|(name, daemon, stop, done)| scope.spawn(move || append_on(daemon, &name, 4, stop, done)))
            .collect();
        more(&done, 200);
        cluster.crash();
        let ended = Instant::now();
        // Meanwhile each call ends by its deadline.
        let (mut probe, mut slowest) = (daemons[0].client(), Duration::ZERO);
        let mut probed = Heard::default();
        let mut number = 0;
        while ended.elapsed() < AWAY {
            let (answer, took) = timed(|| probed.call(&mut probe, &format!("probe{number}")));
            let kind = answer.unwrap_err().kind().to_owned();
            assert!(["unavailable", "unknown_outcome"].contains(&&*kind), "{kind}");
            slowest = slowest.max(took);
            number += 1;
        }
        assert!(slowest < Duration::from_secs(9), "{slowest:?}");
        cluster.up();
        let (from, ready) = (done.load(Ordering::Relaxed), Instant::now());
        wait_for("the first entry", || (done.load(Ordering::Relaxed) > from).then_some(()));
        let back = ready.elapsed();
        eprintln!(
            "away {AWAY:?}: calls of 5s ended within {slowest:?}; the first entry {back:?} after it was back"
        );
        assert!(back < Duration::from_secs(9), "{back:?}");
        more(&done, 200);
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().fold(probed, |heard, worker| heard.merge(worker.join().unwrap()))
    });
    eprintln!(
        "{} entries, {} unavailable, {} unknown",
        heard.0.len(),
        heard.of("unavailable"),
        heard.of("unknown_outcome")
    );
    heard.check(&world, &daemons[1]);
    heard.check(&world, &daemons[0]);
}

#[test]
fn killed_again_and_again_under_load_nothing_is_lost_or_doubled() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let steady = world.start_with("limits.call_timeout = \"20s\"\n");
    let (stop, done) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut heard = thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|n| (format!("w{n}"), &steady, &stop, &done))
            .map(|(name, daemon, stop, done)| scope.spawn(move || append_on(daemon, &name, 8, stop, done)))
            .collect();
        let mut heard = Heard::default();
        let mut other = world.start();
        for round in 0..4 {
            // One daemon is killed in each round, and every other time the server with it.
            let own = AtomicU32::new(0);
            let killed = thread::scope(|scope| {
                let load = scope.spawn(|| append_on(&other, &format!("k{round}"), 32, &stop, &own));
                more(&own, 60);
                other.signal(Signal::SIGKILL);
                load.join().unwrap()
            });
            other.wait();
            assert!(killed.acknowledged() >= 60);
            heard = heard.merge(killed);
            if round % 2 == 1 {
                cluster.crash();
                cluster.up();
            }
            other = other.start_again();
            more(&done, 60);
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().fold(heard, |heard, worker| heard.merge(worker.join().unwrap()))
    });
    eprintln!(
        "{} entries, {} unanswered, {} unknown",
        heard.0.len(),
        heard.unanswered().len(),
        heard.of("unknown_outcome")
    );
    heard.check(&world, &world.start());
}

#[test]
fn a_daemon_that_ends_under_load_answers_what_it_began() {
    let world = World::new();
    let mut daemon = world.start();
    for round in 0..4 {
        let (stop, done) = (AtomicBool::new(false), AtomicU32::new(0));
        let heard: Vec<Heard> = thread::scope(|scope| {
            let (daemon, stop, done) = (&daemon, &stop, &done);
            let workers: Vec<_> = (0..4)
                .map(|n| scope.spawn(move || append_on(daemon, &format!("r{round}w{n}"), 16, stop, done)))
                .collect();
            more(done, 100);
            daemon.signal(Signal::SIGTERM);
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
        let mut heard = heard.into_iter().fold(Heard::default(), Heard::merge);
        let stored = world.sql("SELECT id FROM audit_logs");
        let silent: Vec<&str> = stored.lines().filter(|id| heard.unanswered().contains(*id)).collect();
        assert!(silent.is_empty(), "in the log and not answered: {silent:?}");
        let (again, took) = timed(|| daemon.start_again());
        daemon = again;
        heard.check_these(&world, &daemon);
        eprintln!("round {round}: {} acknowledged, started again in {took:?}", heard.acknowledged());
    }
    // It gave its streams back: the next one need not wait for the end of their leases.
    assert_eq!(world.sql("SELECT count(*) FROM audit_streams"), "2");
}

#[test]
fn a_full_queue_refuses_and_drops_nothing() {
    let world = World::new();
    let daemon =
        world.start_with("audit.max_wait = \"300ms\"\naudit.access = \"none\"\njobs.enabled = false\n");
    daemon.ok("audit.append", json!({ "action": "first" }));
    let mut lock = Psql::open(&world.owner_url);
    lock.run("BEGIN; LOCK TABLE audit_logs IN SHARE MODE");
    let large = |id: &str| {
        let mut entry = entry(id);
        entry["metadata"] = json!("x".repeat(300_000));
        entry
    };
    let answers: Vec<(String, Value)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|worker| {
                let daemon = &daemon;
                scope.spawn(move || {
                    let mut client = daemon.client();
                    let sent: Vec<_> = (0..30)
                        .map(|n| format!("q{worker}-{n}"))
                        .map(|id| (client.send_call("audit.append", large(&id)), id))
                        .collect();
                    let mut answers: Vec<Value> = sent.iter().map(|_| client.line()).collect();
                    answers.sort_by_key(|answer| answer["id"].as_u64());
                    sent.into_iter().map(|(_, id)| id).zip(answers).collect::<Vec<_>>()
                })
            })
            .collect();
        let refused = "sidekeep_calls_total{method=\"audit.append\",outcome=\"overloaded\"}";
        wait_for("a refusal", || {
            daemon.ok("system.metrics", json!({}))["text"].as_str().unwrap().contains(refused).then_some(())
        });
        wait_for("health", || {
            let (health, took) = timed(|| daemon.ok("system.health", json!({})));
            assert!(took < Duration::from_secs(5), "{took:?} {health}");
            (health["status"] == "ok").then_some(())
        });
        lock.run("COMMIT");
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let (mut taken, mut refused) = (0, 0);
    for (id, answer) in &answers {
        let stored = world.sql(&format!("SELECT count(*) FROM audit_logs WHERE id = '{id}'"));
        match read(answer) {
            Ok(_) => {
                taken += 1;
                assert_eq!(stored, "1", "{id}");
            }
            Err(error) => {
                refused += 1;
                assert_eq!((error.kind(), &*stored), ("overloaded", "0"), "{id}: {error:?}");
                assert!(
                    error.data["retryable"] == true && error.data["retry_after_ms"].is_u64(),
                    "{error:?}"
                );
            }
        }
    }
    let memory = daemon.memory_kib("VmHWM") / 1024;
    eprintln!("{taken} taken, {refused} refused; at most {memory} MiB");
    assert!(taken >= 24 && refused > 0, "{taken} {refused}");
    assert!(memory < 160, "{memory} MiB");
    let order = "SELECT bool_and(later) FROM (SELECT split_part(resource_id, '-', 2)::int > \
         lag(split_part(resource_id, '-', 2)::int) OVER (PARTITION BY split_part(resource_id, '-', 1) ORDER BY stream, position) later \
         FROM audit_logs WHERE resource_id LIKE 'q%') t";
    assert_eq!(world.sql(order), "t", "in the order sent, whoever had to wait");
    check_log(&world, &daemon);
}

#[test]
fn a_client_that_does_not_read_keeps_nobody_up() {
    let world = World::new();
    let daemon = world.start();
    let mut silent = daemon.client();
    for n in 0..400 {
        silent.send_call("audit.append", entry(&format!("silent{n}")));
    }
    let (mut client, mut slowest) = (daemon.client(), Duration::ZERO);
    for n in 0..50 {
        slowest = slowest.max(timed(|| client.ok("audit.append", entry(&format!("other{n}")))).1);
    }
    eprintln!("beside a client that does not read: within {slowest:?}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    for _ in 0..400 {
        read(&silent.line()).unwrap();
    }
    check_log(&world, &daemon);
}

#[test]
fn the_same_new_persons_in_many_batches_at_once_meet_no_deadlock() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    let people: Vec<String> = (0..40).map(|n| format!("new{n:02}")).collect();
    thread::scope(|scope| {
        for worker in 0..32 {
            let (daemon, people) = (if worker % 2 == 0 { &first } else { &second }, &people);
            scope.spawn(move || {
                let mut client: Client = daemon.client();
                // Each in an order of its own, in steps that meet every one of forty.
                for n in 0..people.len() {
                    let step = [1, 3, 7, 9, 11, 13, 17, 39][worker / 4];
                    let (actor, subject) = (&people[n * step % 40], &people[(n * step + worker) % 40]);
                    client.send_call(
                        "audit.append",
                        json!({ "action": "meet", "user_id": actor, "subject_user_id": subject, "id": format!("p{worker}-{n}") }),
                    );
                }
                for _ in people {
                    read(&client.line()).unwrap();
                }
            });
        }
    });
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id LIKE 'new%'"), "40");
    assert_eq!(
        world.sql("SELECT count(*), count(DISTINCT id) FROM audit_logs WHERE action = 'meet'"),
        "1280|1280"
    );
    check_log(&world, &first);
    first.stop();
    second.stop();
    // A session tells what it counted when it ends.
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sidekeep'";
    wait_for("the sessions' end", || (world.sql(sessions) == "0").then_some(()));
    assert_eq!(world.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"), "0");
}

#[test]
fn a_repeated_id_that_no_standby_has_is_no_success() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let patient = world.start_with("jobs.enabled = false\n");
    let hasty = world.start_with("limits.call_timeout = \"1s\"\njobs.enabled = false\n");
    for daemon in [&patient, &hasty] {
        // The person exists already: nothing but the entry itself waits.
        let before = json!({ "action": "before", "user_id": entry("alone")["user_id"] });
        wait_for("an entry", || daemon.client().call("audit.append", before.clone()).ok());
    }
    let set = |names: &str| {
        cluster.execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"));
        cluster.execute("SELECT pg_reload_conf()");
        wait_for("the setting", || (world.sql("SHOW synchronous_standby_names") == names).then_some(()));
    };
    set("nobody");
    world.commits_wait();
    let mut client = patient.client();
    client.send_call("audit.append", entry("alone"));
    // Each wait is given up, so that the entry is seen here, and only here.
    wait_for("the entry", || {
        world.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()");
        (world.sql("SELECT count(*) FROM audit_logs WHERE id = 'alone'") == "1").then_some(())
    });
    // Asked for again by whoever finds it, it is no success either.
    for _ in 0..3 {
        let error = hasty.client().err("audit.append", entry("alone"));
        assert!(["unavailable", "unknown_outcome"].contains(&error.kind()), "{error:?}");
    }
    set("");
    let first = read(&client.line());
    let again = wait_for("an answer", || hasty.client().call("audit.append", entry("alone")).ok());
    match first {
        Ok(receipt) => assert_eq!(receipt, again),
        Err(error) => assert_eq!(error.kind(), "unknown_outcome", "{error:?}"),
    }
    assert_eq!(patient.ok("audit.append", entry("alone")), again);
    check_log(&world, &patient);
}
