//! Months of the log that go: past the confirmed floor, archived, in order, and with everything that proves the rest intact.

use std::process::Command;

use serde_json::{Value, json};

use crate::retention::{QUIET, retention, run_as_foreseen};
use crate::support::{Cluster, Daemon, Psql, Store, World, sidekeep};

const DAY: i64 = 86_400;

/// A world whose log is over several months.
pub struct Past {
    pub cluster: Cluster,
    pub world: World,
    /// A directory.
    store: Store,
}

impl Past {
    pub fn new() -> Self {
        let cluster = Cluster::with_clock();
        let world = World::on(&cluster);
        std::fs::write(world.path("owner-url"), &world.owner_url).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(world.path("owner-url"), private).unwrap();
        Self { cluster, world, store: Store::directory() }
    }

    /// A configuration by which everything that is older goes there, and is kept no longer.
    pub fn config(&self, store: &Store, keep: &str) -> String {
        let signers = ["signing", "old-signing"].map(|name| self.world.path(name));
        let signers: Vec<_> = signers.into_iter().filter(|path| path.exists()).collect();
        format!(
            "audit.streams = 1\nretention.audit_logs = {keep:?}\narchive.after = {keep:?}\narchive.destination = {:?}\n{}\
             database.migrate_url_file = {:?}\nsigning.key_files = {signers:?}\n",
            store.url,
            store.config,
            self.world.path("owner-url")
        )
    }

    /// A daemon so many days ago.
    fn start(&self, days: i64) -> Daemon {
        self.cluster.set_clock(-days * DAY);
        let more = format!("{QUIET}{}", self.config(&self.store, "1d"));
        match days {
            0 => self.world.start_with(&more),
            days => self.world.start_with_clock(&format!("-{days}d"), &more),
        }
    }

    /// Entries of a month: a checkpoint and a verification are made over them.
    pub fn live(&self, days: i64, entries: usize) {
        let daemon = self.start(days);
        let mut client = daemon.client();
        for first in (0..entries).step_by(1000) {
            let entry = |number: usize| json!({ "id": format!("e-{days}-{number}"), "action": "seen", "user_id": "u" });
            let some: Vec<Value> = (first..(first + 1000).min(entries)).map(entry).collect();
            client.ok("audit.append_many", json!({ "entries": some }));
        }
        for job in ["checkpoint", "verify"] {
            assert_eq!(client.ok("job.run", json!({ "name": job, "wait": "25s" }))["state"], "ok");
        }
        daemon.stop();
    }

    /// The month in which it was so many days ago.
    pub fn month(&self, days: i64) -> String {
        self.world.sql(&format!(
            "SELECT date_trunc('month', (now() - interval '{days} days') AT TIME ZONE 'UTC')::date"
        ))
    }

    /// Archives, and has it forgotten of other months than this one and those before.
    fn archive(&self, daemon: &Daemon, month: &str) {
        let known = self.world.sql("SELECT string_agg(month::text, ',') FROM audit_archives");
        let run = daemon.ok("job.run", json!({ "name": "archive", "wait": "25s" }));
        assert_eq!(run["state"], "ok", "{run}");
        self.world.sql(&format!(
            "DELETE FROM audit_archives WHERE month <> '{month}' AND NOT month::text = ANY (string_to_array('{known}', ','))"
        ));
    }

    fn due(&self) -> String {
        self.world.sql("SELECT string_agg(month::text, ',' ORDER BY month) FROM expired_audit_months")
    }

    /// The owner of the tables says so; answers the period.
    pub fn confirm(daemon: &Daemon) -> String {
        let config = daemon.config.to_str().unwrap();
        let done = sidekeep(&["--config", config, "--json", "migrate", "--confirm-retention"]);
        let told: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!(told["applied"], json!([]), "{told}");
        told["retention_confirmed"].as_str().unwrap().to_owned()
    }
}

/// What PostgreSQL says when it refuses.
fn refused(url: &str, statement: &str) -> String {
    let done = Command::new("psql").args([url, "-XqAt", "-c", statement]).output().unwrap();
    assert!(!done.status.success(), "{statement}");
    String::from_utf8(done.stderr).unwrap()
}

pub fn assert_intact(daemon: &Daemon, dropped: &str) -> Value {
    let report = daemon.ok("audit.verify", json!({}));
    assert_eq!(report["verdict"], "intact", "{report}");
    assert_eq!(report["dropped"].to_string(), dropped, "{report}");
    let job = daemon.ok("job.run", json!({ "name": "verify", "wait": "25s" }));
    assert_eq!(job["state"], "ok", "{job}");
    report
}

fn whats(report: &Value) -> Vec<String> {
    let breaks = report["breaks"].as_array().unwrap();
    breaks.iter().map(|place| place["what"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_month_goes_when_it_is_past_the_floor_and_archived_and_the_rest_is_proved_as_before() {
    let past = Past::new();
    let world = &past.world;
    past.live(93, 4200);
    let [first, second, third] = [93, 62, 31].map(|days| {
        past.cluster.set_clock(0);
        past.month(days)
    });
    // Another key signs from then on: the entry that says so is needed for as long as the log is.
    world.add_signing_key("new-signing");
    std::fs::rename(world.path("signing"), world.path("old-signing")).unwrap();
    std::fs::rename(world.path("new-signing"), world.path("signing")).unwrap();
    past.live(62, 30);
    past.live(31, 5);
    let daemon = past.start(0);
    let mut client = daemon.client();
    client.ok("audit.append", json!({ "id": "now", "action": "seen" }));
    let before = client.ok("audit.verify", json!({}));
    assert_eq!((&before["verdict"], &before["dropped"]), (&json!("intact"), &json!(0)), "{before}");
    let heads = world.sql("SELECT max(size) FROM audit_checkpoints");
    let consistency = |client: &mut crate::support::Client| {
        let stream =
            client.ok("audit.consistency", json!({ "stream": 0, "from_size": 4097, "to_size": 4230 }));
        (
            stream,
            client
                .ok("audit.consistency", json!({ "from_size": 1, "to_size": heads.parse::<i64>().unwrap() })),
        )
    };
    let consistent = consistency(&mut client);

    // Neither archived nor confirmed.
    let months = |counts: &Value| counts["audit_months"].as_i64().unwrap();
    assert_eq!((past.due(), months(&run_as_foreseen(&daemon))), (String::new(), 0));
    past.archive(&daemon, &first);
    assert_eq!((past.due(), months(&run_as_foreseen(&daemon))), (String::new(), 0), "not confirmed");
    let log = daemon.log();
    assert!(log.contains("--confirm-retention"), "{log}");
    let drop = |month: &str| format!("SELECT sidekeep.drop_audit_month('{month}')");
    assert!(refused(&world.app_url, &drop(&first)).contains("floor"));
    assert!(
        refused(&world.app_url, "INSERT INTO sidekeep.retention_floor VALUES (1, now(), now())")
            .contains("denied")
    );
    assert!(
        refused(&world.app_url, &format!("DROP TABLE sidekeep.audit_logs_{}", first[..7].replace('-', "_")))
            .contains("must be owner")
    );
    assert_eq!(Past::confirm(&daemon), "1d");
    // One behind another that is not archived stays.
    past.archive(&daemon, &third);
    assert_eq!(past.due(), first);
    assert!(refused(&world.app_url, &drop(&third)).contains("older month"));
    assert!(refused(&world.app_url, &drop(&first)).contains("audit_dropped"));
    // A hold keeps the archive, and not the month.
    let hold = client.ok("subject.hold", json!({ "user_id": "u", "reason": "a claim" }));
    let object = world.sql(&format!("SELECT object FROM audit_archives WHERE month = '{first}'"));
    assert_eq!(months(&run_as_foreseen(&daemon)), 1);
    assert!(refused(&world.app_url, &drop(&second)).contains("not in the archive"));

    let gone = world.sql("SELECT max(size) FROM audit_dropped");
    assert_eq!(world.sql(&format!("SELECT min(position) = {gone} FROM audit_logs")), "t");
    let after = assert_intact(&daemon, &gone);
    assert!(after["entries"].as_u64() < before["entries"].as_u64());
    assert_eq!(consistency(&mut client), consistent);
    let error = client.err("audit.prove", json!({ "stream": 0, "position": 7 }));
    assert_eq!((error.kind(), &error.data["month"]), ("not_found", &json!(first[..7])), "{error:?}");
    assert_eq!(error.data["archive"], object);
    assert_eq!(client.err("audit.get", json!({ "stream": 0, "position": 7 })).data, error.data);
    assert_eq!(client.err("audit.get", json!({ "id": "e-93-7" })).kind(), "not_found");
    for id in ["e-62-3", "now"] {
        let proof = client.ok("audit.prove", json!({ "id": id }));
        assert!(proof["path"].as_array().unwrap().len() > 3, "{proof}");
    }
    let told = client.ok("audit.query", json!({ "action": "retention" }));
    assert_eq!(
        (&told["items"][0]["resource_id"], &told["items"][0]["labels"]["sidekeep.entries"]),
        (&json!(first[..7]), &json!(gone))
    );
    client.ok("subject.release", json!({ "id": hold["id"], "reason": "settled" }));
    daemon.stop();

    // The stream is taken over, goes on, and loses the next months too.
    let daemon = past.start(0);
    let mut client = daemon.client();
    past.archive(&daemon, &second);
    // A month between without entries needs no archive.
    let due = past.due();
    assert!(due.starts_with(&second) && due.contains(&third), "{due}");
    assert_eq!(months(&run_as_foreseen(&daemon)), i64::try_from(due.split(',').count()).unwrap());
    let gone = world.sql("SELECT max(size) FROM audit_dropped");
    assert_intact(&daemon, &gone);
    assert_eq!(consistency(&mut client), consistent);
    let carried = "SELECT count(*), min(labels ->> 'sidekeep.carried') FROM audit_logs WHERE action = 'log.signing_key'";
    assert_eq!(world.sql(carried), format!("1|{}", &second[..7]));
    let full = sidekeep(&["--config", daemon.config.to_str().unwrap(), "verify", "--full"]);
    let full = String::from_utf8(full.stdout).unwrap();
    assert!(full.contains("intact") && full.contains(&format!("{gone} dropped")), "{full}");
    client.ok("audit.tail", json!({ "limit": 5 }));
    tampered(world, &daemon, &gone);
}

/// What is left of months that went is as proof against changes as the rest.
fn tampered(world: &World, daemon: &Daemon, gone: &str) {
    world.sql(
        "CREATE TABLE public.dropped AS SELECT * FROM audit_dropped; CREATE TABLE public.nodes AS SELECT * FROM audit_nodes; \
         CREATE TABLE public.kept AS SELECT * FROM audit_logs",
    );
    let last = format!("size = {gone}");
    for (name, tamper, told) in [
        ("the record of it", "DELETE FROM audit_dropped".to_owned(), "position"),
        ("the last record", format!("DELETE FROM audit_dropped WHERE {last}"), "position"),
        ("a longer record", format!("UPDATE audit_dropped SET size = size + 1 WHERE {last}"), "audit_dropped"),
        ("a hash of it", "UPDATE audit_nodes SET children = set_byte(children, 3, 7) WHERE level = 4 AND index = 9".into(), "audit_nodes"),
        ("the tile of it", "DELETE FROM audit_nodes WHERE level = 4 AND index = 9".into(), "audit_nodes"),
        (
            "a row that is back",
            "INSERT INTO audit_logs SELECT stream, 7, recorded_at, format, 'back', actor_id, subject_id, action, resource_type, resource_id, \
             outcome, occurred_at, labels, client_sealed, metadata_sealed, leaf_hash FROM audit_logs ORDER BY position LIMIT 1".into(),
            "position",
        ),
        (
            "a month without a record",
            "DELETE FROM audit_logs WHERE position = (SELECT min(position) FROM audit_logs)".into(),
            "position",
        ),
    ] {
        world.sql(&format!("SET session_replication_role = replica; {tamper}"));
        let report = daemon.ok("audit.verify", json!({}));
        assert!(whats(&report).iter().any(|what| what == told), "{name}: {report}");
        world.sql(
            "SET session_replication_role = replica; DELETE FROM audit_dropped; INSERT INTO audit_dropped SELECT * FROM public.dropped; \
             DELETE FROM audit_nodes n WHERE EXISTS (SELECT FROM public.nodes k WHERE (k.stream, k.level, k.index) = (n.stream, n.level, n.index)); \
             INSERT INTO audit_nodes SELECT * FROM public.nodes; DELETE FROM audit_logs WHERE id = 'back'; \
             INSERT INTO audit_logs SELECT * FROM public.kept ON CONFLICT DO NOTHING",
        );
        let report = daemon.ok("audit.verify", json!({}));
        assert_eq!(report["verdict"], "intact", "after {name}: {report}");
    }
}

#[test]
fn a_month_that_somebody_reads_for_long_goes_once_that_has_ended_and_nobody_waits_behind_it() {
    let past = Past::new();
    past.live(62, 20);
    let daemon = past.start(0);
    past.cluster.set_clock(0);
    past.archive(&daemon, &past.month(62));
    Past::confirm(&daemon);
    let due = retention(&daemon, true)["counts"]["audit_months"].clone();
    assert_ne!(due, 0);
    let mut reader = Psql::open(&past.world.owner_url);
    reader.run("BEGIN");
    reader.run("SELECT count(*) FROM audit_logs");
    let run = daemon.ok("job.run", json!({ "name": "retention", "wait": "0s" }));
    let mut client = daemon.client();
    for number in 0..50 {
        let began = std::time::Instant::now();
        client.ok("audit.append", json!({ "id": format!("meanwhile-{number}"), "action": "seen" }));
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    }
    assert_eq!(past.world.sql("SELECT count(*) FROM audit_dropped"), "0");
    reader.run("COMMIT");
    let ended = crate::support::wait_for("the end of the run", || {
        let page = daemon.ok("job.history", json!({ "name": "retention", "limit": 1 }));
        (page["items"][0]["run"] == run["run"] && page["items"][0]["state"] != "running")
            .then(|| page["items"][0].clone())
    });
    assert_eq!((&ended["state"], &ended["counts"]["audit_months"]), (&json!("ok"), &due), "{ended}");
    let gone = past.world.sql("SELECT max(size) FROM audit_dropped");
    assert_intact(&daemon, &gone);
}

#[test]
fn nothing_goes_by_a_clock_that_jumped() {
    let past = Past::new();
    let world = &past.world;
    past.cluster.set_clock(0);
    let daemon = past.start(0);
    let mut client = daemon.client();
    let messages = json!([{ "role": "user", "content": "hello", "created_at": crate::retention::ago(80) }]);
    client.ok("conversation.create", json!({ "id": "v", "user_id": "u", "messages": messages }));
    let halted = |daemon: &Daemon| {
        let run = retention(daemon, false);
        assert_eq!(run["state"], "failed", "{run}");
        let error = run["error"].as_str().unwrap().to_owned();
        assert!(error.starts_with("nothing was removed: "), "{error}");
        assert_eq!(world.sql("SELECT count(*) FROM conversations"), "1");
        error
    };
    daemon.stop();
    // Both, while nobody looked: nothing in the database is so young.
    past.cluster.set_clock(60 * DAY);
    let ahead = world.start_with_clock("+60d", QUIET);
    let why = halted(&ahead);
    assert!(why.contains("as if the clock had jumped"), "{why}");
    ahead.stop();
    // And back: what was written meanwhile is of a time to come.
    past.cluster.set_clock(0);
    let daemon = past.start(0);
    assert!(halted(&daemon).contains("have written at"));
    Past::confirm(&daemon);
    assert_eq!(run_as_foreseen(&daemon)["conversations"], 0);
    // PostgreSQL's alone.
    for ahead in [3600, -3600, DAY, -DAY, 7 * 366 * DAY, -7 * 366 * DAY] {
        past.cluster.set_clock(ahead);
        assert!(halted(&daemon).contains("apart"), "{ahead}");
    }
    past.cluster.set_clock(0);
    daemon.stop();
    // Who says that the clock is right has what is due then removed.
    past.cluster.set_clock(60 * DAY);
    let more = format!("{QUIET}database.migrate_url_file = {:?}\n", world.path("owner-url"));
    let ahead = world.start_with_clock("+60d", &more);
    assert!(halted(&ahead).contains("--confirm-retention"));
    let config = ahead.config.to_str().unwrap();
    assert!(sidekeep(&["--config", config, "migrate", "--confirm-retention"]).status.success());
    assert_eq!(run_as_foreseen(&ahead)["conversations"], 1);
    ahead.stop();
}
