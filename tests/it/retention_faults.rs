//! Retention while what it needs fails: the database is away when it is due, or it is not done in time.

use chrono::{TimeDelta, Timelike as _, Utc};
use serde_json::{Value, json};

use crate::holds::assert_intact;
use crate::retention::{QUIET, ago, run_as_foreseen};
use crate::support::{Client, Cluster, Daemon, Psql, World, wait_for};

fn talk(client: &mut Client, user_id: &str) {
    let messages = json!([{ "role": "user", "content": "hello", "created_at": ago(100) }]);
    client.ok(
        "conversation.create",
        json!({ "user_id": user_id, "id": format!("of {user_id}"), "messages": messages, "created_at": ago(100) }),
    );
}

fn last_run(daemon: &Daemon) -> Value {
    daemon.ok("job.history", json!({ "name": "retention", "limit": 1 }))["items"][0].clone()
}

#[test]
fn a_due_time_at_which_postgresql_is_away_is_made_up_for_once() {
    let cluster = Cluster::own(&[]);
    let runs = "SELECT count(*) FROM job_runs WHERE name = 'retention'";
    // A busy machine may take longer to come so far.
    let begun = [12, 60].into_iter().find_map(|seconds| {
        let world = World::on(&cluster);
        let due = (Utc::now() + TimeDelta::seconds(seconds)).with_nanosecond(0).unwrap();
        let schedule = format!("{} {} {} * * *", due.second(), due.minute(), due.hour());
        let daemon = world.start_with(&format!("[jobs.retention]\nschedule = {schedule:?}\n"));
        talk(&mut daemon.client(), "u");
        let none = world.sql(runs) == "0";
        (Utc::now() < due).then(|| {
            assert!(none, "before its time");
            (world, daemon, due)
        })
    });
    let (world, daemon, due) = begun.expect("a daemon before the due time");
    cluster.down();
    wait_for("the due time", || (Utc::now() > due + TimeDelta::seconds(1)).then_some(()));
    cluster.up();
    daemon.wait_ready();
    let run = wait_for("the run", || Some(last_run(&daemon)).filter(|run| run["state"] == "ok"));
    assert_eq!(run["counts"]["conversations"], 1, "{run}");
    assert_eq!(run["due_at"].as_str().unwrap()[..19], due.to_rfc3339()[..19]);
    assert_eq!(world.sql(runs), "1");
    assert_intact(&daemon);
}

#[test]
fn a_run_over_its_deadline_has_failed_and_the_next_one_does_the_rest() {
    let world = World::new();
    let clock = world.path("clock");
    let set = |off: &str| {
        std::fs::write(clock.with_extension("new"), off).unwrap();
        std::fs::rename(clock.with_extension("new"), &clock).unwrap();
    };
    set("+0");
    let daemon = world.start_by_clock(&clock, QUIET);
    let mut client = daemon.client();
    (0..30).for_each(|number| talk(&mut client, &format!("u{number}")));
    // Of two batches the second waits.
    let last = world.sql("SELECT user_id FROM subjects ORDER BY subject_id DESC LIMIT 1");
    let mut psql = Psql::open(&world.owner_url);
    psql.run("BEGIN");
    psql.run(&format!("SELECT 1 FROM conversation_messages WHERE conversation_id = 'of {last}' FOR UPDATE"));
    let run = daemon.ok("job.run", json!({ "name": "retention", "wait": "0s" }));
    wait_for("the first batch", || {
        let counted = "SELECT counts ->> 'conversations' FROM job_runs WHERE state = 'running'";
        (world.sql(counted) == "20").then_some(())
    });
    // The limit of the job is six hours.
    set("+7h");
    let failed =
        wait_for("the end of the run", || Some(last_run(&daemon)).filter(|run| run["state"] != "running"));
    assert_eq!((&failed["run"], &failed["state"]), (&run["run"], &json!("failed")), "{failed}");
    assert_eq!(failed["counts"]["conversations"], 20, "{failed}");
    let locks = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    wait_for("the statement's end", || (world.sql(locks) == "0").then_some(()));
    psql.run("COMMIT");
    drop(daemon);
    let daemon = world.start_with(QUIET);
    assert_eq!(run_as_foreseen(&daemon)["conversations"], 10);
    assert_intact(&daemon);
}
