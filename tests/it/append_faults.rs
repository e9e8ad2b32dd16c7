//! A batch of the log and what can happen to it on its way: daemons and servers killed, connections cut, leases lost. What
//! was acknowledged is in the log once, and what is sent again is answered the same.

use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;

use crate::support::appends::{Heard, check_log, entry};
use crate::support::{Cluster, Daemon, Fault, Proxy, Psql, World, read, timed, wait_for};

/// One stream for each daemon, and nothing else that writes to it.
const ALONE: &str = "audit.streams = 1\naudit.access = \"none\"\njobs.enabled = false\n";

fn is_append(sql: &str) -> bool {
    sql.starts_with("WITH head AS")
}

/// A world whose daemons reach the shared cluster by way of a proxy, and the URL without it.
fn proxied() -> (World, Proxy, String) {
    let mut world = World::new();
    let proxy = Proxy::new(&Cluster::shared().socket_directory());
    let direct = std::mem::take(&mut world.app_url);
    world.app_url = proxy.url(&direct);
    (world, proxy, direct)
}

/// More configuration for a daemon that does not go by way of the proxy.
fn directly(direct: &str) -> String {
    format!("database.url = {direct:?}\n{ALONE}")
}

/// The daemon gives a batch up after ten seconds: who is answered sooner is so by the call's own deadline, which is a second.
const STEP: Duration = Duration::from_secs(9);

const WAITING: &str = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
     AND query LIKE 'WITH head AS%' AND wait_event_type = 'Lock'";

/// The server process that a batch stands still in, behind a table that is locked or behind another transaction.
fn wait_batch(world: &World, behind: &str) -> Pid {
    let waiting = format!("{WAITING} AND wait_event = '{behind}'");
    let pid =
        wait_for("the batch behind the lock", || Some(world.sql(&waiting)).filter(|pid| !pid.is_empty()));
    Pid::from_raw(pid.parse().unwrap())
}

/// Holds the heads of all streams, so that the batch that is sent stands still in the server; and in which process.
fn hold_batch(world: &World, send: impl FnOnce()) -> (Psql, Pid) {
    let [mut table, mut heads] = [(); 2].map(|()| Psql::open(&world.owner_url));
    // First where no renewal of the lease would wait, which would be taken for the loss of it: a writer that has the batch
    // under way renews nothing.
    table.run("BEGIN; LOCK TABLE audit_logs IN SHARE MODE");
    send();
    wait_batch(world, "relation");
    heads.run("BEGIN; SELECT FROM audit_streams FOR UPDATE");
    table.run("COMMIT");
    (heads, wait_batch(world, "transactionid"))
}

fn expire_leases(world: &World) {
    world.sql("UPDATE audit_streams SET leased_until = now() - interval '1 second'");
}

/// As after a renewal, and for longer, so that however slow the machine is nobody takes a stream meanwhile.
fn prolong_leases(world: &World) {
    world.sql("UPDATE audit_streams SET leased_until = now() + interval '50 seconds'");
}

/// A step of a batch, and what becomes of the connection there.
type Trap = (Fault, &'static str);

fn set_trap(proxy: &Proxy, (fault, step): Trap) {
    match step {
        "find" => {
            // And not what the daemon looks for by itself, to make digests of it.
            let find = |sql: &str| sql.contains("\"wrapped_key\"") && !sql.contains("SKIP LOCKED");
            proxy.then_fail(fault, move |sql| sql.starts_with("SELECT") && find(sql));
        }
        "create" => {
            proxy.then_fail(fault, |sql| sql.contains("create_subjects"));
        }
        "append" => proxy.then_fail(fault, is_append),
        "fence" => {
            proxy.then_fail(fault, |sql| {
                sql.contains("SET epoch = epoch + 1") && sql.contains("AND epoch = $2")
            });
        }
        // The fence's: it seals the head last.
        "commit" => proxy.then_fail_commit(fault, "SET head_mac"),
        "take" => proxy.then_fail(fault, |sql| sql.contains("SKIP LOCKED")),
        other => panic!("{other}"),
    }
}

#[test]
fn a_connection_cut_at_any_step_is_unnoticed() {
    use Fault::{CutAfter, CutBefore};
    let cases: [&[Trap]; 15] = [
        &[(CutBefore, "find")],
        &[(CutAfter, "find")],
        &[(CutBefore, "create")],
        &[(CutAfter, "create")],
        &[(CutBefore, "append")],
        &[(CutAfter, "append")],
        &[(CutBefore, "append"), (CutBefore, "fence")],
        &[(CutBefore, "append"), (CutAfter, "fence")],
        &[(CutAfter, "append"), (CutAfter, "fence")],
        &[(CutBefore, "append"), (CutBefore, "commit")],
        &[(CutBefore, "append"), (CutAfter, "commit")],
        &[(CutAfter, "append"), (CutBefore, "commit")],
        &[(CutAfter, "append"), (CutAfter, "commit")],
        &[(CutBefore, "append"), (CutAfter, "commit"), (CutBefore, "take")],
        &[(CutAfter, "append"), (CutAfter, "commit"), (CutAfter, "take")],
    ];
    let (world, proxy, direct) = proxied();
    let daemon = world.start_with(ALONE);
    let other = world.start_with(&directly(&direct));
    let (mut client, mut heard) = (daemon.client(), Heard::default());
    heard.call(&mut client, "first").unwrap();
    for (number, traps) in cases.into_iter().enumerate() {
        // An entry about persons of its own, and one after another: the last trap has sprung before the next case.
        let failed = proxy.failed();
        traps.iter().for_each(|trap| set_trap(&proxy, *trap));
        let id = format!("c{number}");
        let mut given = entry(&id);
        given["user_id"] = json!(format!("person-{number}"));
        let receipt = client.ok("audit.append", given.clone());
        // What takes the next stream does so with the next batch.
        let follower = format!("c{number}-next");
        heard.call(&mut client, &follower).unwrap();
        wait_for(&format!("the last of {traps:?}"), || {
            (proxy.failed() == failed + u32::try_from(traps.len()).unwrap()).then_some(())
        });
        assert_eq!(other.ok("audit.append", given.clone()), receipt, "{traps:?}: sent again elsewhere");
        assert_eq!(client.ok("audit.append", given), receipt, "{traps:?}: sent again");
    }
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id LIKE 'person-%'"), "15");
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE id ~ '^c[0-9]+$'"), "15");
    let report = other.ok("audit.verify", json!({}));
    assert_eq!(report["verdict"], "intact", "{report}");
}

/// When the daemon or the server dies: before the batch is with the server, while it works on it, or when it is committed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Before,
    During,
    After,
}

#[test]
fn a_daemon_killed_around_the_commit_leaves_what_it_acknowledged_and_nothing_twice() {
    let cases =
        [When::Before, When::During, When::After].into_iter().flat_map(|when| [(when, false), (when, true)]);
    thread::scope(|scope| {
        for (when, taken_over) in cases {
            scope.spawn(move || {
                let (world, proxy, direct) = proxied();
                let mut killed = world.start_with(ALONE);
                let mut heard = Heard::default();
                let mut client = killed.client();
                for n in 0..3 {
                    heard.call(&mut client, &format!("old{n}")).unwrap();
                }
                let mut send = || {
                    client.send_call("audit.append", entry("cut"));
                };
                let mut lock = None;
                match when {
                    When::During => lock = Some(hold_batch(&world, send).0),
                    When::Before => {
                        proxy.fail(Fault::MuteBefore, is_append);
                        send();
                        wait_for("the batch", || (proxy.failed() == 1).then_some(()));
                    }
                    When::After => {
                        proxy.fail(Fault::MuteAfter, is_append);
                        send();
                        let there = "SELECT count(*) FROM audit_logs WHERE id = 'cut'";
                        wait_for("the commit", || (world.sql(there) == "1").then_some(()));
                    }
                }
                killed.signal(Signal::SIGKILL);
                killed.wait();
                heard.0.insert("cut".into(), None);
                if let Some(lock) = &mut lock {
                    lock.run("COMMIT");
                    // The server goes on to commit what nobody waits for any more.
                    let there = "SELECT count(*) FROM audit_logs WHERE id = 'cut'";
                    wait_for("the commit", || (world.sql(there) == "1").then_some(()));
                }
                if taken_over {
                    expire_leases(&world);
                } else {
                    prolong_leases(&world);
                }
                let other = world.start_with(&directly(&direct));
                heard.call(&mut other.client(), "other").unwrap();
                let again = killed.start_again();
                heard.call(&mut again.client(), "again").unwrap();
                let of = "SELECT stream FROM audit_logs WHERE id = 'other'";
                assert_eq!(world.sql(of), if taken_over { "0" } else { "1" }, "{when:?}");
                let stored = world.sql("SELECT count(*) FROM audit_logs WHERE id = 'cut'");
                assert_eq!(stored, if when == When::Before { "0" } else { "1" }, "{when:?}");
                heard.check(&world, &other);
                heard.check(&world, &again);
            });
        }
    });
}

/// How the server ends, or a process of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Killed {
    Postmaster,
    Backend,
    Session,
}

#[test]
fn a_server_killed_around_the_commit_answers_the_batch_as_it_became() {
    thread::scope(|scope| {
        for killed in [Killed::Postmaster, Killed::Backend, Killed::Session] {
            scope.spawn(move || {
                let cluster = Cluster::own(&[]);
                let mut world = World::on(&cluster);
                let proxy = Proxy::new(&cluster.socket_directory());
                world.app_url = proxy.url(&world.app_url);
                let daemon = world.start_with(ALONE);
                let (mut client, mut heard) = (daemon.client(), Heard::default());
                heard.call(&mut client, "first").unwrap();
                for when in [When::Before, When::During, When::After] {
                    let (id, failed) = (format!("{when:?}"), proxy.failed());
                    match when {
                        When::Before => proxy.fail(Fault::MuteBefore, is_append),
                        When::After => proxy.fail(Fault::MuteAfter, is_append),
                        When::During => {}
                    }
                    let mut lock = None;
                    let mut send = || {
                        client.send_call("audit.append", entry(&id));
                    };
                    let pid = match when {
                        When::During => {
                            let (heads, pid) = hold_batch(&world, send);
                            lock = Some(heads);
                            pid
                        }
                        _ => {
                            send();
                            wait_for("the batch", || (proxy.failed() > failed).then_some(()));
                            // What was let through is committed; the process waits for more.
                            let there = format!("SELECT count(*) FROM audit_logs WHERE id = '{id}'");
                            if when == When::After {
                                wait_for("the commit", || (world.sql(&there) == "1").then_some(()));
                            }
                            let of = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
                                 AND application_name = 'sidekeep' AND query ~ '^(WITH head|UPDATE sidekeep.audit_streams|INSERT INTO sidekeep.audit_streams)' \
                                 ORDER BY query_start DESC LIMIT 1";
                            Pid::from_raw(world.sql(of).parse().unwrap())
                        }
                    };
                    let ((), took) = timed(|| match killed {
                        Killed::Postmaster => {
                            cluster.crash();
                            cluster.up();
                        }
                        Killed::Backend => nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap(),
                        Killed::Session => drop(world.sql(&format!("SELECT pg_terminate_backend({pid})"))),
                    });
                    drop(lock);
                    let (answer, waited) = timed(|| read(&client.line()));
                    eprintln!("{killed:?} {when:?}: {took:?} to end it, answered {waited:?} later");
                    assert!(answer.is_ok(), "{killed:?} {when:?}: {answer:?}");
                    heard.0.insert(id, Some(answer));
                }
                wait_for("the server", || daemon.client().call("audit.append", entry("first")).ok());
                heard.check(&world, &daemon);
                heard.check(&world, &world.start());
            });
        }
    });
}

#[test]
fn a_batch_without_an_answer_is_unknown_at_the_deadline_and_then_decided() {
    let cases =
        [Fault::MuteBefore, Fault::MuteAfter].into_iter().flat_map(|fault| [(fault, false), (fault, true)]);
    thread::scope(|scope| {
        for (fault, taken_over) in cases {
            scope.spawn(move || {
                let (world, proxy, direct) = proxied();
                let slow = world.start_with(&format!("limits.call_timeout = \"1s\"\n{ALONE}"));
                let patient = world.start_with(&directly(&direct));
                let (mut client, mut heard) = (slow.client(), Heard::default());
                wait_for("the first", || heard.call(&mut client, "first").ok());
                proxy.fail(fault, is_append);
                // What was not sent by the deadline is tried again.
                let (error, took) = wait_for("a batch that is sent", || {
                    let (answer, took) = timed(|| heard.call(&mut client, "mute"));
                    let error = answer.unwrap_err();
                    (error.kind() != "unavailable" || proxy.failed() > 0).then_some((error, took))
                });
                assert_eq!(error.kind(), "unknown_outcome", "{fault:?}: {error:?}");
                assert!(took < STEP, "{took:?}");
                // Behind it in the queue: nothing of it was sent, and the caller is told so.
                let (error, took) = timed(|| heard.call(&mut client, "behind").unwrap_err());
                assert_eq!(error.kind(), "unavailable", "{fault:?}: {error:?}");
                assert!(took < STEP, "{took:?}");
                let stored = world.sql("SELECT count(*) FROM audit_logs WHERE id = 'mute'");
                assert_eq!(stored, if fault == Fault::MuteAfter { "1" } else { "0" });
                if taken_over {
                    expire_leases(&world);
                } else {
                    prolong_leases(&world);
                }
                let elsewhere = heard.call(&mut patient.client(), "mute").unwrap();
                assert_eq!(elsewhere["stream"] == 0, taken_over || fault == Fault::MuteAfter);
                // The fence comes when the statement was waited for long enough.
                let again = wait_for("the fence", || client.call("audit.append", entry("mute")).ok());
                assert_eq!(again, elsewhere);
                wait_for("what comes after", || heard.call(&mut client, "after").ok());
                heard.check(&world, &patient);
            });
        }
    });
}

#[test]
fn a_batch_whose_stream_was_taken_over_meanwhile_is_found_where_it_is() {
    // The caller waits long enough for the fence, which finds another daemon's stream.
    thread::scope(|scope| {
        for fault in [Fault::MuteBefore, Fault::MuteAfter] {
            scope.spawn(move || {
                let (world, proxy, direct) = proxied();
                let slow = world.start_with(ALONE);
                // Before the batch, as its fence comes when it was waited for long enough.
                let other = world.start_with(&directly(&direct));
                let (mut client, mut heard) = (slow.client(), Heard::default());
                heard.call(&mut client, "first").unwrap();
                proxy.fail(fault, is_append);
                client.send_call("audit.append", entry("mute"));
                wait_for("the batch", || (proxy.failed() == 1).then_some(()));
                if fault == Fault::MuteAfter {
                    let there = "SELECT count(*) FROM audit_logs WHERE id = 'mute'";
                    wait_for("the commit", || (world.sql(there) == "1").then_some(()));
                }
                expire_leases(&world);
                for n in 0..5 {
                    heard.call(&mut other.client(), &format!("other{n}")).unwrap();
                }
                assert_eq!(world.sql("SELECT count(*) FROM audit_streams"), "1", "it was taken over");
                let answer = read(&client.line());
                let stream = answer.as_ref().unwrap()["stream"].as_i64();
                assert_eq!(stream, Some(i64::from(fault == Fault::MuteBefore)), "{fault:?}");
                heard.0.insert("mute".into(), Some(answer));
                heard.check(&world, &other);
                heard.check(&world, &slow);
            });
        }
    });
}

#[test]
fn a_daemon_that_slept_past_its_lease_writes_nothing_to_the_stream_it_had() {
    let world = World::new();
    let sleeper = world.start_with(ALONE);
    let (mut client, mut heard) = (sleeper.client(), Heard::default());
    heard.call(&mut client, "before").unwrap();
    sleeper.signal(Signal::SIGSTOP);
    let ids: Vec<String> = (0..20).map(|n| format!("slept{n}")).collect();
    for id in &ids {
        client.send_call("audit.append", entry(id));
    }
    expire_leases(&world);
    let other = world.start_with(ALONE);
    let first = heard.call(&mut other.client(), "other").unwrap();
    assert_eq!((&first["stream"], &first["position"]), (&json!(0), &json!(1)), "taken over");
    sleeper.signal(Signal::SIGCONT);
    for _ in &ids {
        let line = client.line();
        let answer = read(&line);
        assert_eq!(answer.as_ref().unwrap()["stream"], 1, "{answer:?}");
        heard.0.insert(answer.as_ref().unwrap()["id"].as_str().unwrap().into(), Some(answer));
    }
    let second = heard.call(&mut other.client(), "other2").unwrap();
    assert_eq!((&second["stream"], &second["position"]), (&json!(0), &json!(2)));
    heard.check(&world, &other);
}

#[test]
fn a_daemon_that_is_wrong_about_its_stream_writes_nothing_to_it() {
    // What is changed under it, and changed back before the log is verified; and which stream it writes to then.
    let cases = [
        ("epoch = epoch + 1", "epoch = epoch - 1", 1),
        ("size = size + 1", "size = size - 1", 1),
        ("closed_at = now()", "closed_at = NULL", 1),
        // Nobody took it, so that it is had again.
        ("leased_until = now() - interval '1 second'", "leased_until = leased_until", 0),
        // A lease of a clock that was years ahead is none.
        ("leased_until = now() + interval '7 years', epoch = epoch + 1", "epoch = epoch - 1", 1),
    ];
    for (wrong, right, stream) in cases {
        let world = World::new();
        let daemon = world.start_with(ALONE);
        let (mut client, mut heard) = (daemon.client(), Heard::default());
        heard.call(&mut client, "first").unwrap();
        // In one transaction with the batch's own wait for the row: the batch finds the change when it has the row.
        let (mut lock, _) = hold_batch(&world, || {
            client.send_call("audit.append", entry("second"));
        });
        lock.run(&format!("UPDATE audit_streams SET {wrong} WHERE stream = 0; COMMIT"));
        let answer = read(&client.line());
        // A stream that was changed without its seal is left alone, whoever finds it.
        assert_eq!(answer.as_ref().unwrap()["stream"], stream, "{wrong}");
        heard.0.insert("second".into(), Some(answer));
        heard.call(&mut client, "third").unwrap();
        assert_eq!(
            world.sql("SELECT max(position) FROM audit_logs WHERE stream = 0"),
            if stream == 0 { "2" } else { "0" }
        );
        world.sql(&format!("UPDATE audit_streams SET {right} WHERE stream = 0"));
        heard.check(&world, &daemon);
    }
}

#[test]
fn of_two_daemons_that_believe_they_own_a_stream_one_writes_it() {
    let world = World::new();
    let (first, mut heard) = (world.start_with(ALONE), Heard::default());
    heard.call(&mut first.client(), "first").unwrap();
    let second = world.start_with(ALONE);
    let held = |daemon: &Daemon, heard: &mut Heard, id: &str| heard.call(&mut daemon.client(), id).unwrap();
    // So that it does not renew its lease just then.
    first.signal(Signal::SIGSTOP);
    expire_leases(&world);
    assert_eq!(held(&second, &mut heard, "second")["stream"], 0);
    first.signal(Signal::SIGCONT);
    // The epoch of the one and the size of the other: both believe, and neither may write.
    world.sql("UPDATE audit_streams SET epoch = epoch - 1 WHERE stream = 0");
    let third = held(&first, &mut heard, "third");
    assert_eq!((&third["stream"], &held(&second, &mut heard, "fourth")["stream"]), (&json!(1), &json!(2)));
    world.sql("UPDATE audit_streams SET epoch = epoch + 1 WHERE stream = 0");
    thread::scope(|scope| {
        for (daemon, name) in [(&first, "a"), (&second, "b")] {
            scope.spawn(move || {
                let mut client = daemon.client();
                (0..50).for_each(|n| drop(client.ok("audit.append", entry(&format!("{name}{n}")))));
            });
        }
    });
    check_log(&world, &first);
    assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'record.read'"), "104");
    assert_eq!(held(&second, &mut heard, "third"), third);
}
