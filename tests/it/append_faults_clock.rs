//! Clocks that are wrong: those of daemons, which must not matter, and PostgreSQL's, which the log goes by.

use serde_json::{Value, json};

use crate::support::appends::{Heard, check_log, entry};
use crate::support::{Cluster, Daemon, World};

const ALONE: &str = "audit.streams = 1\naudit.access = \"none\"\njobs.enabled = false\n";

#[test]
fn a_daemons_own_clock_does_not_matter() {
    let world = World::new();
    let offs = ["+1h", "-1h", "+7y", "-7y"];
    let daemons = offs.map(|off| world.start_with_clock(off, ALONE));
    let mut heard = Heard::default();
    for (off, daemon) in offs.iter().zip(&daemons) {
        let mut client = daemon.client();
        let log = daemon.log();
        let stamp: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        let year = stamp["timestamp"].as_str().unwrap()[..4].to_owned();
        let now = world.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY')");
        assert_eq!(year != now, off.ends_with('y'), "{off}: its clock is off: {year}");
        heard.call(&mut client, &format!("by{off}")).unwrap();
        // By PostgreSQL's clock: five minutes ahead, and no more.
        let at = |minutes: &str| {
            world.sql(&format!("SELECT to_char(now() AT TIME ZONE 'UTC' + interval '{minutes} minutes', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"))
        };
        client.ok("audit.append", json!({ "action": "soon", "occurred_at": at("4") }));
        let error = client.err("audit.append", json!({ "action": "later", "occurred_at": at("6") }));
        assert_eq!(error.field(), "occurred_at", "{off}");
    }
    assert_eq!(
        world.sql(
            "SELECT bool_and(recorded_at BETWEEN now() - interval '1 minute' AND now()) FROM audit_logs"
        ),
        "t"
    );
    // Each has its own stream, and keeps it.
    assert_eq!(world.sql("SELECT count(*), max(epoch) FROM audit_streams WHERE leased_until BETWEEN now() AND now() + interval '16 seconds'"), "4|1");
    for (n, daemon) in daemons.iter().enumerate() {
        for off in offs {
            assert!(daemon.client().call("audit.append", entry(&format!("by{off}"))).is_ok(), "{n}");
        }
    }
    heard.check(&world, &daemons[3]);
    assert_eq!(daemons[2].ok("job.run", json!({ "name": "checkpoint" }))["state"], "ok");
    heard.check(&world, &daemons[0]);
}

/// Where an entry is, and whether its time is PostgreSQL's.
fn append(world: &World, daemon: &Daemon, heard: &mut Heard, id: &str) -> (i64, bool) {
    let receipt = heard.call(&mut daemon.client(), id).unwrap();
    let timely = world.sql(&format!(
        "SELECT recorded_at BETWEEN now() - interval '1 minute' AND now() + interval '1 minute' FROM audit_logs WHERE id = '{id}'"
    ));
    eprintln!("{id}: {receipt}, and it is {}", world.sql("SELECT now()"));
    (receipt["stream"].as_i64().unwrap(), timely == "t")
}

#[test]
fn postgresqls_clock_is_followed_wherever_it_goes() {
    const HOUR: i64 = 3600;
    const YEARS: i64 = 7 * 365 * 24 * HOUR;
    let cluster = Cluster::with_clock();
    let world = World::on(&cluster);
    let daemon = world.start_with(ALONE);
    let mut heard = Heard::default();
    let mut go = |ahead: i64, id: &str| {
        cluster.set_clock(ahead);
        append(&world, &daemon, &mut heard, id)
    };
    assert_eq!(go(0, "now"), (0, true));
    // Back by less than a minute: times stay where they are until it is later again.
    assert_eq!(go(-30, "a little back"), (0, true));
    assert_eq!(go(HOUR, "an hour ahead"), (0, true));
    // No time of the first stream may decrease, so that another one goes on.
    assert_eq!(go(0, "an hour back"), (1, true));
    // Later than its last entry again, either of them may.
    assert!(go(HOUR, "ahead again").1);
    // So far ahead that its months are not made yet.
    let (ahead, timely) = go(YEARS, "years ahead");
    assert!(timely);
    let (back, timely) = go(0, "years back");
    assert!(timely && back != ahead, "{back}");
    let decreasing = "SELECT count(*) FROM (SELECT recorded_at < lag(recorded_at) OVER (PARTITION BY stream ORDER BY position) back FROM audit_logs) t WHERE back";
    assert_eq!(world.sql(decreasing), "0");
    heard.check(&world, &daemon);
}

#[test]
fn an_id_is_remembered_over_the_end_of_a_month() {
    let cluster = Cluster::with_clock();
    let world = World::on(&cluster);
    let until = world.sql(
        "SELECT extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month' - now() AT TIME ZONE 'UTC')::bigint",
    );
    let turn: i64 = until.parse().unwrap();
    // Ten minutes before the month ends, and five after.
    cluster.set_clock(turn - 600);
    let (first, second) = (world.start_with(ALONE), world.start_with(ALONE));
    let receipt = first.ok("audit.append", entry("old"));
    cluster.set_clock(turn + 300);
    for daemon in [&first, &second] {
        assert_eq!(daemon.ok("audit.append", entry("old")), receipt);
        let mut other = entry("old");
        other["action"] = json!("other");
        assert_eq!(daemon.client().err("audit.append", other).kind(), "conflict");
    }
    second.ok("audit.append", entry("new"));
    assert_eq!(world.sql("SELECT count(DISTINCT tableoid) FROM audit_logs"), "2");
    check_log(&world, &first);
}
