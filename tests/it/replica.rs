//! A replica is read from where that is right, and is never needed.

use std::process::Command;

use serde_json::{Value, json};

use crate::doctor::doctor;
use crate::support::{Cluster, Daemon, World, sql, wait_for};

/// How many entries of the log this server has read for somebody.
fn read(owner: &str) -> i64 {
    let query = "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) FROM pg_stat_user_tables \
        WHERE relname LIKE 'audit_logs_%'";
    sql(owner, query).parse().unwrap()
}

fn append(daemon: &Daemon, count: usize) {
    let entries: Vec<Value> = (0..count).map(|_| json!({ "action": "a", "user_id": "u" })).collect();
    daemon.ok("audit.append_many", json!({ "entries": entries }));
}

/// Verifies everything, and answers how many entries there were.
fn verify(daemon: &Daemon) -> i64 {
    let report = daemon.ok("audit.verify", json!({ "wait": "60s" }));
    assert_eq!(report["verdict"], "intact", "{report}");
    report["entries"].as_i64().unwrap()
}

#[test]
fn the_log_is_verified_from_a_replica_that_has_all_of_it_and_else_from_the_primary() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let standby = cluster.standby();
    let moved = |url: &str| {
        let host = |cluster: &Cluster| cluster.socket_directory().display().to_string();
        url.replace(&host(&cluster), &host(&standby))
    };
    let owner = moved(&world.owner_url);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| standby.up());
        let more =
            format!("database.replica_url = {:?}\nlimits.call_timeout = \"2m\"\n", moved(&world.app_url));
        let daemon = world.start_with(&more);
        wait_for("the standby", || {
            let asked = Command::new("psql").args([&owner, "-XqAtc", "SELECT 1"]).output().unwrap();
            asked.status.success().then_some(())
        });
        append(&daemon, 700);
        let first = verify(&daemon);
        assert!(first >= 700);
        // A session tells what it has read when it ends, at the latest.
        let reading = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'sidekeep_app'";
        wait_for("rows that the standby has read", || {
            (sql(&owner, reading) == "0" && read(&owner) >= 700).then_some(())
        });
        // One that stands behind is not waited for long, and not believed.
        sql(&owner, "SELECT pg_wal_replay_pause()");
        append(&daemon, 300);
        let before = read(&owner);
        let second = verify(&daemon);
        assert!(second >= first + 300, "{first} {second}");
        assert_eq!(read(&owner), before, "what is behind was read");
        // One that is no longer a replica is another history.
        sql(&owner, "SELECT pg_wal_replay_resume()");
        sql(&owner, "SELECT pg_promote()");
        assert!(verify(&daemon) > second);
        assert_eq!(read(&owner), before, "what was promoted was read");
        running.join().unwrap();
        standby.crash();
        assert!(verify(&daemon) > second);
        daemon.stop();
    });
}

#[test]
fn an_old_primary_that_comes_back_is_not_gone_on_with() {
    let cluster = Cluster::own(&[]);
    let mut world = World::on(&cluster);
    let standby = cluster.standby();
    let host = |cluster: &Cluster| cluster.socket_directory().display().to_string();
    let owner = world.owner_url.replace(&host(&cluster), &host(&standby));
    let both = format!("{},{}", host(&cluster), host(&standby)).replace('/', "%2F");
    let (user, rest) = world.app_url.split_once("@/").unwrap();
    world.app_url = format!("{user}@{both}/{}", rest.split_once('?').unwrap().0);
    let asked = || Command::new("psql").args([&owner, "-XqAtc", "SELECT 1"]).output().unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| standby.up());
        let daemon = world.start_with("limits.call_timeout = \"3s\"\n");
        append(&daemon, 5);
        wait_for("the standby", || asked().status.success().then_some(()));
        wait_for("all of it there", || {
            (sql(&owner, "SELECT count(*) >= 5 FROM audit_logs") == "t").then_some(())
        });
        cluster.crash();
        sql(&owner, "SELECT pg_promote()");
        running.join().unwrap();
        let entry = json!({ "action": "after", "id": "after" });
        let after = wait_for("the fail-over", || daemon.client().call("audit.append", entry.clone()).ok());
        // The old one takes writes again, and the new one is away: nothing is written or read.
        cluster.up();
        standby.crash();
        let health = wait_for("the refusal", || {
            let health = daemon.ok("system.health", json!({}));
            health["checks"]["database"]["message"]
                .as_str()
                .filter(|m| m.contains("timeline"))
                .map(str::to_owned)
        });
        assert!(health.contains("old primary"), "{health}");
        for (method, params) in
            [("audit.append", json!({ "action": "lost" })), ("audit.get", json!({ "id": "after" }))]
        {
            assert_eq!(daemon.client().err(method, params).kind(), "unavailable", "{method}");
        }
        assert_eq!(world.sql("SELECT count(*) FROM audit_logs WHERE action = 'lost'"), "0");
        standby.up();
        let got =
            wait_for("the new one", || daemon.client().call("audit.get", json!({ "id": "after" })).ok());
        assert_eq!(got["position"], after["position"]);
        daemon.stop();
    });
}

#[test]
fn a_replica_that_is_not_there_keeps_nobody_waiting() {
    let world = World::new();
    // The primary itself is none.
    for url in ["postgresql://sidekeep_app@/none?host=/nonexistent", &world.app_url.clone()] {
        let daemon = world.start_with(&format!("database.replica_url = {url:?}\n"));
        append(&daemon, 3);
        assert!(verify(&daemon) >= 3);
        daemon.assert_well();
        daemon.stop();
    }
}

#[test]
fn doctor_tells_what_is_wrong_with_a_replica() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    world.sql("CREATE ROLE stranger LOGIN");
    let standby = cluster.standby();
    let host = |cluster: &Cluster| cluster.socket_directory().display().to_string();
    let moved = |url: &str| url.replace(&host(&cluster), &host(&standby));
    let (url, owner) = (moved(&world.app_url), moved(&world.owner_url));
    let database = world.app_url.split(['/', '?']).nth(3).unwrap();
    let look = |url: &str| doctor(&world, &format!("database.replica_url = {url:?}\n"));
    let told = |url: &str, status: &str, why: &str, advice: &str| {
        let found = look(url).check("database.replica").clone();
        assert_eq!(found["status"], status, "{found}");
        assert!(found["why"].as_str().unwrap().contains(why), "{why:?}: {found}");
        assert!(found["advice"].as_str().unwrap_or_default().contains(advice), "{advice:?}: {found}");
    };
    let found = doctor(&world, "").check("database.replica").clone();
    assert_eq!((&found["status"], &found["advice"]), (&json!("ok"), &Value::Null), "{found}");

    told(&url, "warn", "not reached", "verification reads from the primary");
    told(&world.app_url, "fail", "no replica", "name a streaming replica");
    std::thread::scope(|scope| {
        let running = scope.spawn(|| standby.up());
        wait_for("the standby", || {
            let asked = Command::new("psql").args([&owner, "-XqAtc", "SELECT 1"]).output().unwrap();
            asked.status.success().then_some(())
        });
        told(&url, "ok", "has what the primary has", "");
        // Of several hosts each may be read from, though none takes writes.
        let several = format!("{url}&host=/nonexistent");
        told(&several, "ok", "has what the primary has", "");
        told(&url.replace(database, "postgres"), "fail", "no log in this database", "database");
        told(&url.replace("sidekeep_app@", "stranger@"), "fail", "stranger may not read", "GRANT SELECT");
        told(&url.replace("sidekeep_app@", "nobody@"), "fail", "not reached", "pg_hba.conf");
        sql(&owner, "SELECT pg_wal_replay_pause()");
        wait_for("the pause", || {
            (sql(&owner, "SELECT pg_get_wal_replay_pause_state()") == "paused").then_some(())
        });
        world.sql("CREATE TABLE more ()");
        told(&url, "warn", "replay is paused", "pg_wal_replay_resume");
        sql(&owner, "SELECT pg_wal_replay_resume()");
        sql(&owner, "SELECT pg_promote()");
        told(&url, "fail", "was promoted", "name a streaming replica");
        running.join().unwrap();
        standby.crash();
    });
}
