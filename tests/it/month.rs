//! A month on four daemons: every job runs once for each time that it is due, and counts what it did, while records come in and
//! persons are erased. Its dumps bring everybody back but whom the month erased.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use chrono::{DateTime, Datelike as _, NaiveDate, Utc, Weekday};
use serde_json::{Value, json};

use crate::keyring_faults::late_seconds;
use crate::support::{Client, Cluster, Daemon, Psql, Store, World, sql, wait_for};

/// Days of the simulated month: from noon of the first to noon of the last. February has 29 in it, and ends within.
const FIRST: NaiveDate = NaiveDate::from_ymd_opt(2024, 2, 15).unwrap();
const DAYS: u64 = 31;

/// What is due at which hour of each day; the drill on Sundays alone.
const DAILY: [(u32, &[&str]); 3] = [
    (2, &["backup"]),
    (3, &["keyring_backup", "retention"]),
    (4, &["archive", "checkpoint", "partitions", "verify"]),
];
const DRILL: u32 = 5;

/// Those that run minutely or hourly by default have fewer times here; the others have theirs.
const SCHEDULES: &str = "[jobs.checkpoint]\nschedule = \"0 4 * * *\"\n[jobs.verify]\nschedule = \"0 4 * * *\"\n\
    [jobs.keyring_backup]\nschedule = \"0 3 * * *\"\n";

fn at(day: NaiveDate, hour: u32) -> DateTime<Utc> {
    day.and_hms_opt(hour, 0, 0).unwrap().and_utc()
}

fn days() -> impl Iterator<Item = NaiveDate> {
    FIRST.iter_days().skip(1).take(DAYS as usize)
}

/// Each time at which something is due, with what.
fn due_times() -> Vec<(DateTime<Utc>, Vec<&'static str>)> {
    let of_day = |day: NaiveDate| {
        let mut times: Vec<_> = DAILY.iter().map(|(hour, jobs)| (at(day, *hour), jobs.to_vec())).collect();
        if day.weekday() == Weekday::Sun {
            times.push((at(day, DRILL), vec!["drill"]));
        }
        times
    };
    days().flat_map(of_day).collect()
}

/// Four daemons, and everything that they write to.
struct Month {
    cluster: Cluster,
    world: World,
    daemons: Vec<Daemon>,
    psql: Psql,
    config: String,
    /// Where the dumps are, on the S3 server.
    dumps: PathBuf,
    archive: String,
    /// How many dumps there are, and how many rows are in the last one.
    kept: usize,
    dumped: Value,
    _stores: [Store; 3],
}

impl Month {
    fn begin() -> Self {
        let cluster = Cluster::with_clock();
        let world = World::on(&cluster);
        set(&cluster, at(FIRST, 12));
        let stores = [Store::s3_on(&cluster.host_clock()), Store::gs(), Store::directory()];
        let [s3, gs, directory] = &stores;
        let secret = |name: &str, text: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            let path = world.path(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            path
        };
        let (owner, drill) =
            (secret("owner", &world.owner_url), secret("drill", &cluster.owner_url("postgres")));
        let config = format!(
            "{}{}backup.destination = {:?}\nkeyring.backup = {:?}\narchive.destination = {:?}\narchive.after = \"1d\"\n\
             audit.publish = \"file://{}\"\naudit.streams = 1\nbackup.drill_url = {drill:?}\n\
             database.direct_url_file = {owner:?}\ndatabase.migrate_url_file = {owner:?}\n\
             retention.conversations = \"10d\"\nretention.consents = \"12d\"\nretention.requests = \"8d\"\n\
             retention.audit_logs = \"7d\"\n{SCHEDULES}",
            s3.config,
            gs.config,
            s3.url,
            directory.url,
            gs.url,
            world.path("published").display(),
        );
        let daemons: Vec<Daemon> = (0..4).map(|_| world.spawn_beside(&cluster, &config)).collect();
        daemons.iter().for_each(Daemon::wait_ready);
        let psql = Psql::open(&world.owner_url);
        let (dumps, archive) = (s3.files.clone().unwrap().join("dumps"), gs.url.clone());
        let (kept, dumped) = (0, Value::Null);
        let month =
            Self { cluster, world, daemons, psql, config, dumps, archive, kept, dumped, _stores: stores };
        let confirmed = month.command(&month.daemons[0].config, &["migrate", "--confirm-retention"]);
        assert_eq!(confirmed.0, Some(0), "{confirmed:?}");
        month
    }

    /// A command at this time: its exit code, what it answers, and what it says.
    fn command(&self, config: &Path, arguments: &[&str]) -> (Option<i32>, Value, String) {
        let done = Command::new(env!("CARGO_BIN_EXE_sidekeep"))
            .args(["--json", "--config", config.to_str().unwrap()])
            .args(arguments)
            .envs(self.cluster.host_clock())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), serde_json::from_slice(&done.stdout).unwrap_or_default(), said)
    }

    fn client(&self, number: u64) -> Client {
        self.daemons[number as usize % self.daemons.len()].client()
    }

    fn number(&mut self, query: &str) -> i64 {
        self.psql.run(query).parse().unwrap_or_else(|_| panic!("{query}"))
    }

    /// What jobs count, as the tables have it.
    fn rows(&mut self) -> Value {
        let rows = self.psql.run(
            "SELECT json_build_object('conversations', (SELECT count(*) FROM conversations), 'consents', (SELECT count(*) FROM consent_records), \
             'requests', (SELECT count(*) FROM requests), 'subjects', (SELECT count(*) FROM subjects), \
             'audit_months', (SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_logs'::regclass), \
             'archived', (SELECT count(*) FROM audit_archives), 'entries', (SELECT coalesce(sum(entries), 0) FROM audit_archives), \
             'bytes', (SELECT coalesce(sum(size), 0) FROM audit_archives), 'checkpoints', (SELECT count(*) FROM audit_checkpoints), \
             'sizes', (SELECT sum(size) FROM audit_streams), 'generation', (SELECT stored FROM keyring_backups), \
             'dropped', (SELECT coalesce(sum(size), 0) FROM (SELECT max(size) AS size FROM audit_dropped GROUP BY stream) AS d))",
        );
        serde_json::from_str(&rows).unwrap()
    }

    /// What the views say is due.
    fn expired(&mut self) -> Value {
        let due = self.psql.run(
            "SELECT json_build_object('conversations', (SELECT count(*) FROM expired_conversations), \
             'consents', (SELECT count(*) FROM expired_consents), 'audit_months', (SELECT count(*) FROM expired_audit_months))",
        );
        serde_json::from_str(&due).unwrap()
    }

    /// Waits until nothing runs.
    fn rest(&mut self) {
        let psql = &mut self.psql;
        wait_for("the end of all runs", || {
            (psql.run("SELECT count(*) FROM job_runs WHERE state = 'running'") == "0").then_some(())
        });
    }

    /// Goes to a time, and waits until what is due then has ended. Answers the counts of each job.
    fn go_to(&mut self, time: DateTime<Utc>, jobs: &[&str]) -> BTreeMap<String, Value> {
        self.rest();
        set(&self.cluster, time);
        let query = format!(
            "SELECT json_agg(r) FROM job_runs r WHERE due_at = '{}' AND state <> 'running'",
            time.to_rfc3339()
        );
        let psql = &mut self.psql;
        let runs: Vec<Value> = wait_for(&format!("{jobs:?} of {time}"), || {
            let runs: Vec<Value> = serde_json::from_str(&psql.run(&query)).unwrap_or_default();
            (runs.len() >= jobs.len()).then_some(runs)
        });
        let counted = |run: Value| {
            assert_eq!((&run["state"], &run["epoch"]), (&json!("ok"), &json!(1)), "{run}");
            (run["name"].as_str().unwrap().to_owned(), run["counts"].clone())
        };
        let counts: BTreeMap<String, Value> = runs.into_iter().map(counted).collect();
        assert!(counts.keys().eq(jobs), "{counts:?}");
        counts
    }

    /// What applications do in a day, and who is erased.
    fn live(&mut self, day: u64) {
        let mut client = self.client(day);
        let user = format!("user:{day}");
        let profile = json!({ "user_id": user, "username": user, "email": format!("{day}@example.org") });
        client.ok("profile.create", profile);
        let messages =
            json!([{ "role": "user", "content": "hello" }, { "role": "assistant", "content": "hello" }]);
        client.ok("conversation.create", json!({ "user_id": user, "messages": messages }));
        let consent = |user: &str| json!({ "user_id": user, "consent_type": "newsletter", "granted": day.is_multiple_of(2) });
        client.ok("consent.record", consent(&user));
        client
            .ok("request.open", json!({ "user_id": user, "kind": "access", "id": format!("request-{day}") }));
        // Another daemon goes on with who came the day before, if they are still there.
        let mut client = self.client(day + 1);
        if let Some(before) =
            day.checked_sub(1).filter(|before| erased_on(*before).is_none_or(|on| on >= day))
        {
            client.ok("consent.record", consent(&format!("user:{before}")));
            let close = json!({ "id": format!("request-{before}"), "outcome": "done" });
            client.ok("request.close", close);
        }
        if day == HELD {
            client.ok("subject.hold", json!({ "user_id": user, "reason": "a lawsuit" }));
        }
        for gone in (0..day).filter(|gone| erased_on(*gone) == Some(day)) {
            client.ok("subject.erase", json!({ "user_id": format!("user:{gone}"), "reason": "request" }));
            // Within a minute, which is over once the clock is set.
            let stored =
                "SELECT stored_at > (SELECT max(erased_at) FROM subject_erasures) FROM keyring_backups";
            wait_for("the keyring's backup", || (self.psql.run(stored) == "t").then_some(()));
        }
        // A run that an erasure or a hold has asked for would count as the one that is due next.
        let raised = "SELECT count(*) FROM keyring_shards WHERE raised_at IS NOT NULL";
        wait_for("the keyring's backup", || (self.psql.run(raised) == "0").then_some(()));
        for daemon in &self.daemons {
            wait_for("a daemon that has seen it", || (late_seconds(daemon) == 0.0).then_some(()));
        }
    }

    /// Compares what jobs have counted with what there is in the database.
    fn check(&mut self, counts: &BTreeMap<String, Value>, before: &Value, due: &Value) {
        let after = self.rows();
        let gone = |kind: &str| before[kind].as_i64().unwrap() - after[kind].as_i64().unwrap();
        if let Some(retention) = counts.get("retention") {
            for kind in ["conversations", "consents", "requests", "subjects", "audit_months"] {
                assert_eq!(retention[kind], gone(kind), "{kind}: {counts:?} {before} {after}");
            }
            for kind in ["conversations", "consents", "audit_months"] {
                assert_eq!(retention[kind], due[kind], "{kind}: {counts:?} {due}");
            }
        }
        if let Some(partitions) = counts.get("partitions") {
            assert_eq!(partitions["months"], -gone("audit_months"));
            let archived = ["archived", "entries", "bytes"].map(|kind| -gone(kind));
            let counted =
                ["months", "entries", "bytes"].map(|kind| counts["archive"][kind].as_i64().unwrap());
            assert_eq!(counted, archived, "{counts:?} {before} {after}");
            assert_eq!(counts["checkpoint"], json!({ "checkpoints": -gone("checkpoints") }));
            let reached = counts["verify"]["reached"].as_i64().unwrap();
            let sizes = |rows: &Value| rows["sizes"].as_i64().unwrap();
            assert!((sizes(before)..=sizes(&after)).contains(&reached), "{counts:?} {before} {after}");
            assert_eq!(counts["verify"]["entries"], reached - after["dropped"].as_i64().unwrap());
        }
        if let Some(keyring) = counts.get("keyring_backup") {
            assert_eq!(keyring["generation"], after["generation"], "{counts:?} {after}");
        }
        let dumps = |month: &Self| month.client(0).ok("backup.list", json!({}))["items"].clone();
        if let Some(backup) = counts.get("backup") {
            let dumps = dumps(self);
            let name = dumps[0]["name"].as_str().unwrap();
            let folder = self.dumps.join(name);
            let manifest: Value =
                serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
            let tables = manifest["body"]["tables"].as_object().unwrap();
            assert_eq!(backup["rows"], tables.values().map(|rows| rows.as_i64().unwrap()).sum::<i64>());
            assert_eq!(backup["bytes"], folder.join("dump").metadata().unwrap().len());
            for table in
                ["user_profiles", "consent_records", "conversations", "conversation_messages", "requests"]
            {
                assert_eq!(tables[table], self.number(&format!("SELECT count(*) FROM {table}")), "{table}");
            }
            let kept = dumps.as_array().unwrap().len();
            assert_eq!(backup["kept"], kept);
            assert_eq!(backup["pruned"], self.kept + 1 - kept);
            (self.kept, self.dumped) = (kept, backup["rows"].clone());
        }
        if let Some(drill) = counts.get("drill") {
            assert_eq!(drill["rows"], self.dumped);
            assert_eq!(&dumps(self)[0]["proved_at"].as_str().unwrap()[..13], &self.now()[..13]);
        }
    }

    /// What time it is, as answers show it.
    fn now(&mut self) -> String {
        self.psql.run("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')")
    }
}

/// Who came on this day is held.
const HELD: u64 = 1;

/// On which day somebody is erased who came on that day, if at all.
fn erased_on(came: u64) -> Option<u64> {
    (came % 7 == 3).then_some(came + 4)
}

/// Sets the clock of the cluster and of its host.
fn set(cluster: &Cluster, time: DateTime<Utc>) {
    let host = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    cluster.set_clock(time.timestamp() - i64::try_from(host.as_secs()).unwrap());
}

/// Every run of a job that a daemon tells of, the first one first.
fn history(client: &mut Client, job: &str) -> Vec<Value> {
    let (mut runs, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let page = client.ok("job.history", json!({ "name": job, "limit": 25, "cursor": cursor }));
        runs.extend(page["items"].as_array().unwrap().iter().cloned());
        cursor = page["next_cursor"].clone();
        if cursor.is_null() {
            runs.reverse();
            return runs;
        }
    }
}

/// Compares what a daemon tells of a job with what was seen of it, due time by due time.
fn check_history(client: &mut Client, job: &str, seen: &[(DateTime<Utc>, Value)]) {
    let (due, asked): (Vec<Value>, Vec<Value>) = history(client, job)
        .into_iter()
        .partition(|run| run["due_at"].as_str().unwrap().ends_with(":00:00.000000Z"));
    let told: Vec<(DateTime<Utc>, Value)> = due
        .iter()
        .map(|run| (run["due_at"].as_str().unwrap().parse().unwrap(), run["counts"].clone()))
        .collect();
    assert_eq!(told, seen, "{job}");
    for run in due.iter().chain(&asked) {
        assert_eq!((&run["state"], &run["dry_run"]), (&json!("ok"), &json!(false)), "{run}");
    }
    assert!(asked.is_empty() || job == "keyring_backup", "{asked:?}");
}

#[test]
fn in_a_month_every_job_runs_once_for_each_time_that_it_is_due_and_counts_what_it_did() {
    let mut month = Month::begin();
    let mut seen: BTreeMap<String, Vec<(DateTime<Utc>, Value)>> = BTreeMap::new();
    let mut day = 0;
    for (time, jobs) in due_times() {
        month.rest();
        let (before, due) = (month.rows(), month.expired());
        let counts = month.go_to(time, &jobs);
        month.check(&counts, &before, &due);
        counts.into_iter().for_each(|(job, counts)| seen.entry(job).or_default().push((time, counts)));
        if jobs == DAILY[2].1 {
            month.live(day);
            day += 1;
        }
    }
    month.rest();
    assert_eq!(seen.len(), 8);
    for (job, seen) in &seen {
        check_history(&mut month.client(3), job, seen);
    }
    let sum =
        |kind: &str| seen["retention"].iter().map(|(_, counts)| counts[kind].as_i64().unwrap()).sum::<i64>();
    let erased = (0..day).filter(|came| erased_on(*came).is_some_and(|on| on < day)).count() as i64;
    let left = month.rows();
    assert_eq!(left["conversations"], DAYS as i64 - erased - sum("conversations"), "each came with one");
    assert!(["conversations", "consents", "requests", "audit_months"].iter().all(|kind| sum(kind) > 0));
    assert_eq!(month.psql.run("SELECT count(*) FROM job_runs WHERE state <> 'ok' OR epoch <> 1"), "0");
    let held = month.client(0).ok("conversation.list", json!({ "user_id": format!("user:{HELD}") }));
    assert_eq!(held["items"].as_array().unwrap().len(), 1, "a hold keeps what is due");
    let verdict = month.client(1).ok("audit.verify", json!({ "wait": "25s" }));
    assert_eq!((&verdict["verdict"], &verdict["gaps"]), (&json!("intact"), &json!(0)), "{verdict}");
    let archive = month.command(&month.daemons[0].config, &["verify", "--archive", &month.archive]);
    assert_eq!((archive.0, &archive.1["verdict"]), (Some(0), &json!("intact")), "{archive:?}");
    restore_from_before_an_erasure(month, day);
}

/// The database is lost; what is left are the dumps, one of which is from before somebody was erased.
fn restore_from_before_an_erasure(mut month: Month, day: u64) {
    let gone = (0..day).rfind(|came| erased_on(*came).is_some_and(|on| on < day)).unwrap();
    let erased_at = month.psql.run(
        "SELECT to_char(max(erased_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS') FROM subject_erasures",
    );
    let dumps = month.client(2).ok("backup.list", json!({}))["items"].clone();
    let before = |dump: &&Value| dump["created_at"].as_str().unwrap() < erased_at.as_str();
    let dump = dumps.as_array().unwrap().iter().find(before).unwrap();
    let created = dump["created_at"].as_str().unwrap();
    let expected = month.psql.run(&format!(
        "SELECT string_agg(user_id, ' ' ORDER BY user_id) FROM subjects WHERE created_at < '{created}'"
    ));
    assert!(!expected.split(' ').any(|user| user == format!("user:{gone}")) && expected.len() > 100);
    for daemon in month.daemons.drain(..) {
        daemon.stop();
    }

    let database = month.cluster.empty_database();
    let into = month.cluster.owner_url(&database);
    let (config, _) = month.world.configure(&month.config);
    let name = dump["name"].as_str().unwrap();
    let (code, told, said) = month.command(&config, &["restore", name, "--into", &into]);
    assert_eq!(code, Some(0), "{told} {said}");
    assert_eq!(told["restored"]["erased_again"], 1, "{told}");
    assert_eq!(told["restored"]["lost_persons"], 0, "{told}");
    let gaps = told["log"]["gaps"].as_u64().unwrap();
    assert_eq!(told["restored"]["gaps"].as_array().unwrap().len() as u64, gaps, "{told}");
    assert!(gaps > 0 && told["log"]["verdict"] == "intact", "{told}");
    // Whoever came after the dump has a key, and nothing else: retention takes it away.
    let people = "SELECT string_agg(user_id, ' ' ORDER BY user_id) FROM sidekeep.subjects JOIN sidekeep.user_profiles USING (subject_id)";
    assert_eq!(sql(&into, people), expected);

    let url = month.cluster.app_url(&database);
    let more = format!("{}jobs.enabled = false\n", month.config.replace(SCHEDULES, ""));
    let daemon = month.world.spawn_beside(&month.cluster, &format!("{more}database.url = {url:?}\n"));
    daemon.wait_ready();
    let (code, verdict, said) = month.command(&daemon.config, &["verify", "--full"]);
    assert_eq!((code, &verdict["verdict"]), (Some(0), &json!("intact")), "{verdict} {said}");
    assert_eq!(verdict["gaps"], gaps, "{verdict}");
    let profile =
        |user: u64| daemon.client().call("profile.get", json!({ "user_id": format!("user:{user}") }));
    assert_eq!(profile(gone).unwrap_err().kind(), "not_found");
    for user in (0..gone).filter(|came| erased_on(*came).is_none()) {
        assert_eq!(profile(user).unwrap()["email"], format!("{user}@example.org"));
    }
    daemon.stop();
}
