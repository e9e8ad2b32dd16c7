//! Jobs: each due time runs once across daemons, what was missed is made up for, and what a dead daemon left is gone on with.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use chrono::Timelike as _;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Daemon, World, read, wait_for};

const EVERY_SECOND: &str = "[jobs.partitions]\nschedule = \"* * * * * *\"\n";

/// Holds back the job `partitions` until it is dropped: a month is missing, and nobody may make it.
struct Held {
    psql: Child,
}

impl Held {
    fn back(world: &World) -> Self {
        world.sql(
            "DO $$ BEGIN EXECUTE format('DROP TABLE IF EXISTS sidekeep.audit_logs_%s', \
             to_char(now() AT TIME ZONE 'UTC' + interval '2 months', 'YYYY_MM')); END $$",
        );
        let mut psql = Command::new("psql")
            .args([world.owner_url.as_str(), "-XqAt"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lock = "SELECT 'held' FROM pg_advisory_lock(hashtext('sidekeep.create_audit_month'));\n";
        psql.stdin.as_mut().unwrap().write_all(lock.as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(psql.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Self { psql }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

/// Waits until a query answers this.
fn wait_sql(world: &World, query: &str, expected: &str) {
    wait_for(query, || (world.sql(query) == expected).then_some(()));
}

/// Waits until a query answers a number that is at least this.
fn wait_count(world: &World, query: &str, least: u64) {
    wait_for(query, || (world.sql(query).parse::<u64>().unwrap() >= least).then_some(()));
}

const RUNS: &str = "SELECT count(*) FROM job_runs WHERE name = 'partitions'";

/// How many runs of `partitions` a daemon has carried out.
fn carried_out(daemon: &Daemon) -> u64 {
    let text = daemon.ok("system.metrics", json!({}))["text"].as_str().unwrap().to_owned();
    let series = text
        .lines()
        .filter(|line| line.starts_with("sidekeep_job_runs_total{") && line.contains("\"partitions\""));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn of_four_daemons_one_runs_each_due_time() {
    let world = World::new();
    let daemons: Vec<_> = (0..4).map(|_| world.spawn(EVERY_SECOND)).collect();
    daemons.iter().for_each(Daemon::wait_ready);
    wait_count(&world, &format!("{RUNS} AND state = 'ok'"), 8);

    // A daemon counts a run when it has heard that its end is recorded.
    wait_for("as many as were carried out", || {
        let before: u64 = world.sql(&format!("{RUNS} AND state = 'ok'")).parse().unwrap();
        let carried_out: u64 = daemons.iter().map(carried_out).sum();
        let after: u64 = world.sql(RUNS).parse().unwrap();
        eprintln!("{carried_out} of {before} to {after}");
        (before..=after).contains(&carried_out).then_some(())
    });
    let wrong = world.sql(
        "SELECT count(*) FROM job_runs WHERE name = 'partitions' \
         AND (state = 'failed' OR epoch <> 1 OR dry_run OR due_at <> date_trunc('second', due_at) OR started_at < due_at)",
    );
    assert_eq!(wrong, "0");
    let overlaps = world.sql(
        "SELECT count(*) FROM job_runs a JOIN job_runs b ON a.name = b.name AND a.run < b.run \
         AND a.started_at < coalesce(b.finished_at, 'infinity') AND b.started_at < coalesce(a.finished_at, 'infinity')",
    );
    assert_eq!(overlaps, "0");
    // A tick of half a second must not make them late; a busy machine may, for a while.
    let soonest = "SELECT min(started_at - due_at) < interval '300 milliseconds' FROM job_runs WHERE name = 'partitions'";
    wait_sql(&world, soonest, "t");
    for daemon in daemons {
        daemon.stop();
    }
    assert_eq!(world.sql(&format!("{RUNS} AND state = 'running'")), "0");
}

#[test]
fn what_was_missed_is_made_up_for_once() {
    let world = World::new();
    // Daily, and not while this goes on.
    let hour = (chrono::Utc::now().hour() + 12) % 24;
    let daily = format!("[jobs.partitions]\nschedule = \"0 {hour} * * *\"\n");
    let more = format!("{daily}[jobs.checkpoint]\nschedule = \"* * * * * *\"\n");
    let daemon = world.start_with(&more);
    wait_count(&world, "SELECT count(*) FROM job_runs WHERE name = 'checkpoint'", 1);
    assert_eq!(world.sql(RUNS), "0", "it has not been due since the database was first used");
    daemon.stop();

    world.sql("UPDATE deployment SET created_at = created_at - interval '3 days'");
    let daemons = [world.spawn(&daily), world.spawn(&daily)];
    wait_count(&world, &format!("{RUNS} AND state = 'ok'"), 1);
    let due = world.sql(&format!(
        "SELECT due_at AT TIME ZONE 'UTC' = date_trunc('day', now() AT TIME ZONE 'UTC' - interval '{hour} hours') \
         + interval '{hour} hours' FROM job_runs WHERE name = 'partitions'"
    ));
    assert_eq!(due, "t");
    daemons.iter().for_each(Daemon::wait_ready);
    for daemon in daemons {
        daemon.stop();
    }
    let daemon = world.start_with(&more);
    let checkpoints: u64 =
        world.sql("SELECT count(*) FROM job_runs WHERE name = 'checkpoint'").parse().unwrap();
    wait_count(&world, "SELECT count(*) FROM job_runs WHERE name = 'checkpoint'", checkpoints + 2);
    assert_eq!(world.sql(RUNS), "1");
    daemon.stop();
}

#[test]
fn the_run_of_a_killed_daemon_is_gone_on_with_under_the_same_row() {
    let world = World::new();
    let mut killed = world.start();
    let held = Held::back(&world);
    let run = killed.ok("job.run", json!({ "name": "partitions", "wait": "0s" }));
    assert_eq!(run["state"], "running");
    killed.signal(Signal::SIGKILL);
    killed.wait();

    let other = world.start();
    let busy = other.client().err("job.run", json!({ "name": "partitions", "wait": "0s" }));
    assert_eq!(busy.kind(), "conflict", "{busy:?}");
    world.sql("UPDATE job_runs SET heartbeat_at = now() - interval '1 minute' WHERE state = 'running'");
    let row = "SELECT run, epoch, state FROM job_runs WHERE name = 'partitions'";
    let id = run["run"].as_str().unwrap();
    wait_sql(&world, row, &format!("{id}|2|running"));
    drop(held);
    wait_sql(&world, row, &format!("{id}|2|ok"));
    let history = other.ok("job.history", json!({ "name": "partitions" }));
    assert_eq!((history["items"].as_array().unwrap().len(), &history["items"][0]["run"]), (1, &run["run"]));
    other.stop();
}

#[test]
fn a_clock_that_jumped_does_not_take_a_run_from_a_living_daemon() {
    let world = World::new();
    let daemons = [world.start(), world.start()];
    let held = Held::back(&world);
    daemons[0].ok("job.run", json!({ "name": "partitions", "wait": "0s" }));
    for jump in ["- interval '1 hour'", "+ interval '7 years'"] {
        world.sql(&format!("UPDATE job_runs SET heartbeat_at = now() {jump} WHERE state = 'running'"));
        let beaten = "SELECT count(*) FROM job_runs WHERE state = 'running' AND epoch = 1 AND abs(extract(epoch FROM now() - heartbeat_at)) < 30";
        wait_sql(&world, beaten, "1");
    }
    drop(held);
    wait_sql(&world, "SELECT state, epoch FROM job_runs WHERE name = 'partitions'", "ok|1");
    for daemon in daemons {
        daemon.stop();
    }
}

#[test]
fn a_job_does_not_overlap_itself() {
    let world = World::new();
    let held = Held::back(&world);
    let daemons = [world.start_with(EVERY_SECOND), world.start_with(EVERY_SECOND)];
    wait_sql(&world, RUNS, "1");
    wait_sql(&world, &format!("{RUNS} AND now() > started_at + interval '4 seconds'"), "1");
    assert_eq!(world.sql(RUNS), "1");
    let busy = daemons[0].client().err("job.run", json!({ "name": "partitions", "wait": "300ms" }));
    assert_eq!(busy.kind(), "conflict", "{busy:?}");
    drop(held);
    wait_count(&world, &format!("{RUNS} AND state = 'ok'"), 3);
    let missed = world.sql(
        "SELECT b.due_at - a.due_at > interval '3 seconds' FROM (SELECT due_at FROM job_runs WHERE name = 'partitions' ORDER BY due_at LIMIT 1) a, \
         (SELECT due_at FROM job_runs WHERE name = 'partitions' ORDER BY due_at OFFSET 1 LIMIT 1) b",
    );
    assert_eq!(missed, "t", "of what was due meanwhile, the latest alone");
    for daemon in daemons {
        daemon.stop();
    }
}

#[test]
fn a_wait_as_long_as_a_call_may_take_is_answered_in_time() {
    let world = World::new();
    let held = Held::back(&world);
    // A tenth of it is left for the answer.
    let daemons = [(); 2].map(|()| world.start_with("limits.call_timeout = \"10s\"\n"));
    let wait = json!({ "name": "partitions", "wait": "1m" });
    let mut first = daemons[0].client();
    first.send_call("job.run", wait.clone());
    wait_sql(&world, &format!("{RUNS} AND state = 'running'"), "1");
    let mut others = daemons.each_ref().map(Daemon::client);
    for other in &mut others {
        other.send_call("job.run", wait.clone());
    }
    let running = read(&first.line()).unwrap();
    assert_eq!(running["state"], "running", "{running}");
    for mut other in others {
        let busy = read(&other.line()).unwrap_err();
        assert!(busy.message.contains(running["run"].as_str().unwrap()), "{busy:?}");
        assert_eq!(busy.kind(), "conflict", "{busy:?}");
    }
    drop(held);
}

#[test]
fn job_run_waits_answers_and_goes_on_without_its_caller() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let run = client.ok(
        "job.run",
        json!({ "name": "partitions", "context": { "user_id": "user:op", "purpose": "upkeep" } }),
    );
    assert_eq!(
        (&run["state"], &run["counts"], &run["dry_run"]),
        (&json!("ok"), &json!({ "months": 0 }), &json!(false))
    );
    assert_eq!((&run["name"], &run["error"]), (&json!("partitions"), &Value::Null));
    assert!(
        run["finished_at"].as_str() >= run["started_at"].as_str()
            && run["started_at"].as_str() >= run["due_at"].as_str()
    );

    for (params, field) in [
        (json!({ "name": "retentoin" }), "name"),
        (json!({ "name": "checkpoint", "dry_run": true }), "dry_run"),
        (json!({ "name": "checkpoint", "wait": "soon" }), "wait"),
    ] {
        let error = client.err("job.run", params);
        assert_eq!((error.code, error.field()), (-32602, field), "{error:?}");
    }
    let unknown = client.err("job.history", json!({ "name": "retentoin" }));
    assert!(unknown.code == -32602 && unknown.message.contains("archive, backup, checkpoint"), "{unknown:?}");

    let held = Held::back(&world);
    let dry = client.ok("job.run", json!({ "name": "partitions", "dry_run": true }));
    assert_eq!(
        (&dry["state"], &dry["counts"], &dry["dry_run"]),
        (&json!("ok"), &json!({ "months": 1 }), &json!(true))
    );
    let running = daemon.ok("job.run", json!({ "name": "partitions", "wait": "50ms" }));
    assert_eq!(
        (&running["state"], &running["finished_at"], &running["counts"]),
        (&json!("running"), &Value::Null, &Value::Null)
    );
    let listed = client.ok("job.list", json!({}));
    let partitions =
        listed["items"].as_array().unwrap().iter().find(|job| job["name"] == "partitions").unwrap();
    assert_eq!(partitions["last_run"]["run"], running["run"]);
    assert_eq!(
        (&partitions["schedule"], &partitions["time_zone"], &partitions["enabled"]),
        (&json!("0 4 * * *"), &json!("UTC"), &json!(true))
    );
    assert!(partitions["next_due"].as_str().unwrap().ends_with("T04:00:00.000000Z"), "{partitions}");
    drop(held);
    let ended = wait_for("the run", || {
        let page = client.ok("job.history", json!({ "name": "partitions", "limit": 1 }));
        (page["items"][0]["state"] != "running").then(|| page["items"][0].clone())
    });
    assert_eq!(
        (&ended["run"], &ended["state"], &ended["counts"]),
        (&running["run"], &json!("ok"), &json!({ "months": 1 }))
    );

    let mut seen = Vec::new();
    let mut cursor = Value::Null;
    loop {
        let page = client.ok("job.history", json!({ "name": "partitions", "limit": 2, "cursor": cursor }));
        seen.extend(page["items"].as_array().unwrap().iter().map(|run| run["run"].clone()));
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            break;
        }
    }
    assert_eq!(seen, [&running["run"], &dry["run"], &run["run"]].map(Clone::clone));

    let entries = client.ok("audit.query", json!({ "action": "job.*" }));
    let entries = entries["items"].as_array().unwrap();
    // Lists of runs leave no entry, unless they fail.
    let other = |entry: &&Value| entry["action"] != "job.run";
    assert!(entries.iter().filter(other).all(|entry| entry["outcome"] == "failure"), "{entries:?}");
    let named = |outcome: &str| {
        entries
            .iter()
            .filter(|entry| entry["resource_id"] == "partitions" && entry["outcome"] == outcome)
            .count()
    };
    // Three calls, and the ends of the two runs that were no dry runs: with what they counted.
    assert_eq!(named("success"), 5, "{entries:?}");
    let counted: Vec<(&Value, &Value)> = entries
        .iter()
        .filter(|entry| entry["labels"]["sidekeep.run"].is_string())
        .map(|entry| (&entry["labels"]["sidekeep.run"], &entry["labels"]["sidekeep.months"]))
        .collect();
    assert_eq!(counted, [(&running["run"], &json!("1")), (&run["run"], &json!("0"))]);
    daemon.stop();
}

#[test]
fn a_daemon_that_is_no_job_runner_runs_what_it_is_asked_for_and_nothing_else() {
    let world = World::new();
    let sidecar = world.start_with(&format!("[jobs]\nenabled = false\n{EVERY_SECOND}"));
    let runner = world.start_with(EVERY_SECOND);
    wait_count(&world, RUNS, 4);
    let strangers = format!("{RUNS} AND split_part(holder, ' ', 2) <> '{}'", runner.pid());
    assert_eq!(world.sql(&strangers), "0");
    let listed = sidecar.ok("job.list", json!({}));
    assert!(
        listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|job| job["enabled"] == false && job["next_due"].is_null())
    );
    assert_eq!(sidecar.ok("job.run", json!({ "name": "partitions" }))["state"], "ok");
    assert_eq!(world.sql(&strangers), "1");

    let off = world.start_with("[jobs.partitions]\nschedule = \"* * * * * *\"\nenabled = false\n");
    let listed = off.ok("job.list", json!({}));
    let items = listed["items"].as_array().unwrap();
    let enabled: Vec<_> = items.iter().filter(|job| job["enabled"] == true).map(|job| &job["name"]).collect();
    assert_eq!(enabled, ["checkpoint", "retention", "verify"], "what has no destination is off too");
    for daemon in [sidecar, runner, off] {
        daemon.stop();
    }
}

#[test]
fn a_daemon_that_ends_waits_for_its_runs_and_lets_go_of_those_that_take_too_long() {
    let world = World::new();
    let mut daemon = world.start_with("socket.drain = \"1m\"\n");
    let held = Held::back(&world);
    let first = daemon.ok("job.run", json!({ "name": "partitions", "wait": "0s" }));
    daemon.signal(Signal::SIGTERM);
    wait_for("the drain", || daemon.log().contains("draining").then_some(()));
    drop(held);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    let state = |run: &Value| {
        format!(
            "SELECT state, epoch, holder IS NULL FROM job_runs WHERE run = '{}'",
            run["run"].as_str().unwrap()
        )
    };
    assert_eq!(world.sql(&state(&first)), "ok|1|f");

    let mut daemon = world.start_with("socket.drain = \"100ms\"\n");
    let held = Held::back(&world);
    let second = daemon.ok("job.run", json!({ "name": "partitions", "wait": "0s" }));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    assert_eq!(world.sql(&state(&second)), "running|1|t");
    drop(held);
    let daemon = daemon.start_again();
    wait_sql(&world, &state(&second), "ok|2|f");
    daemon.stop();
}

#[test]
fn a_job_that_failed_is_seen_until_it_succeeds() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    assert_eq!(
        client.ok("system.health", json!({}))["checks"]["jobs"]["status"],
        "ok",
        "nothing has been due"
    );
    world.sql("REVOKE EXECUTE ON FUNCTION create_audit_month(date) FROM sidekeep_app");
    let failed = client.ok("job.run", json!({ "name": "partitions" }));
    assert_eq!((&failed["state"], &failed["counts"]), (&json!("failed"), &Value::Null));
    let error = failed["error"].as_str().unwrap();
    assert!(error.starts_with("internal error") && !error.contains("permission"), "{error}");
    assert!(daemon.log().contains("permission denied for function create_audit_month"), "{}", daemon.log());

    let health = client.ok("system.health", json!({}));
    assert_eq!(
        (&health["status"], &health["checks"]["jobs"]["status"]),
        (&json!("degraded"), &json!("degraded"))
    );
    assert!(health["checks"]["jobs"]["message"].as_str().unwrap().contains("partitions"), "{health}");
    let status = client.ok("system.status", json!({}));
    assert_eq!(status["jobs"]["partitions"]["last_run"]["run"], failed["run"]);
    assert!(status["jobs"]["partitions"]["age_seconds"].as_u64().unwrap() < 60, "{status}");

    world.sql("GRANT EXECUTE ON FUNCTION create_audit_month(date) TO sidekeep_app");
    assert_eq!(client.ok("job.run", json!({ "name": "partitions" }))["state"], "ok");
    assert_eq!(client.ok("system.health", json!({}))["status"], "ok");
    daemon.stop();
}

#[test]
fn successes_of_a_job_that_runs_often_are_pruned_and_failures_are_kept() {
    let world = World::new();
    let daemon = world.start_with("[jobs.checkpoint]\nschedule = \"0 0 1 1 *\"\n");
    world.sql(
        "INSERT INTO job_runs SELECT 'r' || n, 'checkpoint', now() - make_interval(mins => n), now(), now(), CASE n % 2 WHEN 0 THEN 'ok' ELSE 'failed' END, \
         false, 1, now(), 'x', NULL, CASE n % 2 WHEN 1 THEN 'x' END FROM generate_series(1, 400) n",
    );
    assert_eq!(daemon.ok("job.run", json!({ "name": "checkpoint" }))["state"], "ok");
    let kept = "SELECT count(*) FILTER (WHERE state = 'ok'), count(*) FILTER (WHERE state = 'failed'), max(run COLLATE \"C\") FILTER (WHERE state = 'ok' AND run < 'r') IS NOT NULL FROM job_runs WHERE name = 'checkpoint'";
    wait_sql(&world, kept, "100|200|t");
    daemon.stop();
}

#[test]
fn jobs_begin_when_postgresql_comes_later() {
    let world = World::new();
    let (before, directory) = world.app_url.rsplit_once("host=").unwrap();
    let directory = directory.split('&').next().unwrap();
    let real = directory.replace("%2F", "/");
    let later = world.path("later");
    let url = format!(
        "{before}host={}",
        world.app_url.rsplit_once("host=").unwrap().1.replacen(directory, later.to_str().unwrap(), 1)
    );
    let daemon = world.spawn(&format!("database.url = {url:?}\n{EVERY_SECOND}"));
    daemon.wait_listening();
    std::os::unix::fs::symlink(real, &later).unwrap();
    daemon.wait_ready();
    wait_count(&world, &format!("{RUNS} AND state = 'ok'"), 2);
    daemon.stop();
}
