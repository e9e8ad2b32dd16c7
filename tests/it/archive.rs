//! The archive: months that are over leave as objects that prove themselves, in a directory, in S3 and in Google Cloud Storage.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use sidekeep::audit::merkle::Hash;
use sidekeep::objects::Objects;
use sidekeep::values::jcs;

use crate::objects::open;
use crate::support::{Cluster, Daemon, Store, World, sidekeep};

const DAY: i64 = 24 * 3600;
/// Entries of each month and stream, about.
const ENTRIES: usize = 600;

/// A log with three months that are over, of two streams, and the fourth going on.
pub struct Past {
    pub cluster: Cluster,
    pub world: World,
    more: &'static str,
}

impl Past {
    pub fn new() -> Self {
        Self::of("")
    }

    /// With more configuration.
    pub fn of(more: &'static str) -> Self {
        let cluster = Cluster::with_clock();
        let world = World::on(&cluster);
        let daemon = world.start_with(&format!("{QUIET}audit.streams = 2\n{more}"));
        for month in 0..3 {
            cluster.set_clock(month * 32 * DAY);
            append(&daemon, &format!("m{month}"), ENTRIES);
            assert_eq!(daemon.run_job("checkpoint")["state"], "ok");
        }
        cluster.set_clock(130 * DAY);
        append(&daemon, "now", 5);
        daemon.stop();
        Self { cluster, world, more }
    }

    /// Starts a daemon that archives there.
    pub fn start(&self, store: &Store) -> Daemon {
        self.world.start_with(&format!("{}{}", archiving(store), self.more))
    }

    /// As if nothing had been archived.
    pub fn forget(&self) {
        self.world.sql("TRUNCATE audit_archives");
    }
}

pub const QUIET: &str = "audit.access = \"none\"\njobs.enabled = false\n";

pub fn archiving(store: &Store) -> String {
    format!("{QUIET}{}archive.destination = {:?}\narchive.after = \"1d\"\n", store.config, store.url)
}

pub fn archive(daemon: &Daemon) -> Value {
    daemon.run_job("archive")
}

/// Entries of a few persons in each of two streams: a connection is pinned to one of them, nobody knows to which.
fn append(daemon: &Daemon, word: &str, count: usize) {
    let (mut filled, mut clients) = (BTreeSet::new(), Vec::new());
    while filled.len() < 2 {
        let (mut client, number) = (daemon.client(), clients.len());
        let entry = |n: usize| {
            json!({
                "action": "record.read", "id": format!("{word}-{number}-{n}"), "user_id": format!("user:{}", n % 7),
                "subject_user_id": format!("user:{}", n % 5), "ip_address": "203.0.113.7", "metadata": { "word": word, "n": n },
                "labels": { "metadata_sealed_sha256": "\"leaf_hash\":\"" }, "resource_type": "document", "resource_id": "\u{20ac} \"x\"",
            })
        };
        if filled.insert(client.ok("audit.append", entry(0))["stream"].as_u64()) {
            let entries: Vec<Value> = (1..count).map(entry).collect();
            client.ok("audit.append_many", json!({ "entries": entries }));
        }
        clients.push(client);
    }
}

/// What `verify --archive` says: its exit code, and its report.
pub fn verify(urls: &[&str], config: Option<&PathBuf>, key: Option<&PathBuf>) -> (Option<i32>, Value) {
    let mut arguments = vec!["--json".to_owned(), "verify".into()];
    urls.iter().for_each(|url| arguments.extend(["--archive".into(), (*url).to_owned()]));
    config.iter().for_each(|file| arguments.extend(["--config".into(), file.display().to_string()]));
    key.iter().for_each(|file| arguments.extend(["--key".into(), file.display().to_string()]));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = sidekeep(&arguments);
    let said = String::from_utf8(done.stdout).unwrap();
    let why = String::from_utf8_lossy(&done.stderr).into_owned();
    (done.status.code(), serde_json::from_str(&said).unwrap_or_else(|_| json!({ "error": why })))
}

/// A file with the public key.
pub fn public_key(daemon: &Daemon, world: &World) -> PathBuf {
    let said = sidekeep(&["--config", daemon.config.to_str().unwrap(), "signing", "public-key"]);
    let file = world.path("public-key");
    std::fs::write(&file, said.stdout).unwrap();
    file
}

pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(work)
}

/// The lines of every object, decompressed.
fn lines(objects: &Objects) -> Vec<String> {
    let listed = run(objects.list("archive/")).unwrap();
    let mut lines = Vec::new();
    for found in listed.iter().filter(|found| found.name.ends_with(".jsonl.zst")) {
        let (bytes, _) = run(objects.get(&found.name, 64 << 20)).unwrap();
        let mut text = String::new();
        zstd::Decoder::new(&*bytes).unwrap().read_to_string(&mut text).unwrap();
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

#[test]
fn months_that_are_over_are_archived_once_and_prove_themselves_anywhere() {
    let past = Past::new();
    let world = &past.world;
    for store in Store::all() {
        eprintln!("{}", store.url);
        past.forget();
        let daemon = past.start(&store);
        let key = public_key(&daemon, world);
        let dry = daemon.ok("job.run", json!({ "name": "archive", "dry_run": true }));
        let dry = daemon.ended_run("archive", &dry);
        assert_eq!(world.sql("SELECT count(*) FROM audit_archives"), "0");
        let run = archive(&daemon);
        assert_eq!(run["state"], "ok", "{run}");
        let counts = &run["counts"];
        for count in ["months", "entries"] {
            assert_eq!(dry["counts"][count], counts[count], "{dry} {run}");
        }
        let sums = "SELECT count(*), sum(entries), sum(size) FROM audit_archives WHERE removed_at IS NULL";
        let sums = world.sql(sums);
        assert_eq!(sums, format!("{}|{}|{}", counts["months"], counts["entries"], counts["bytes"]));
        assert_eq!(counts["months"], 6, "three months of two streams");
        let old = world.sql("SELECT count(*) FROM audit_logs WHERE recorded_at < date_trunc('month', now())");
        assert_eq!(old, counts["entries"].to_string());
        assert_eq!(archive(&daemon)["counts"], json!({ "months": 0, "entries": 0, "bytes": 0 }));

        // Each line is an entry, whose leaf is the one in the database.
        let objects = open(&store);
        let lines = lines(&objects);
        assert_eq!(lines.len().to_string(), old);
        for line in lines.iter().step_by(97) {
            let mut entry: Value = serde_json::from_str(line).unwrap();
            assert_eq!(jcs(&entry).unwrap(), line.as_bytes());
            let members = entry.as_object_mut().unwrap();
            let sealed = ["client_sealed", "metadata_sealed"].map(|name| members.remove(name).unwrap());
            let leaf = members.remove("leaf_hash").unwrap();
            assert_eq!(Hash::leaf(&jcs(&entry).unwrap()).hex(), leaf.as_str().unwrap());
            let stored = format!(
                "SELECT encode(leaf_hash, 'hex'), replace(encode(client_sealed, 'base64'), E'\\n', ''), \
                 replace(encode(metadata_sealed, 'base64'), E'\\n', '') FROM audit_logs WHERE stream = {} AND position = {}",
                entry["stream"], entry["position"]
            );
            let told = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let all = [told(&leaf), told(&sealed[0]), told(&sealed[1])].join("|");
            assert_eq!(world.sql(&stored), all);
        }
        let (code, report) = verify(&[&store.url], Some(&daemon.config), Some(&key));
        assert_eq!(code, Some(0), "{report}");
        assert_eq!((&report["verdict"], &report["keys_checked"]), (&json!("intact"), &json!(true)));
        for (told, counted) in [("months", "months"), ("entries", "entries")] {
            assert_eq!(report[told], counts[counted], "{report}");
        }
        daemon.stop();
    }
}

#[test]
fn a_directory_needs_no_configuration_and_a_key_that_is_not_given_is_shown() {
    let past = Past::new();
    let store = Store::directory();
    let daemon = past.start(&store);
    assert_eq!(archive(&daemon)["state"], "ok");
    let said = sidekeep(&["verify", "--archive", &store.url]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    let (out, note) = (String::from_utf8(said.stdout).unwrap(), String::from_utf8(said.stderr).unwrap());
    assert!(out.starts_with("intact: "), "{out}");
    let key = std::fs::read_to_string(public_key(&daemon, &past.world)).unwrap();
    assert!(note.contains("Compare them") && note.contains(key.trim()), "{note}");

    let missing = sidekeep(&["verify", "--archive", "file:///nowhere/at/all"]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    let empty = Store::directory();
    std::fs::create_dir(empty.files.as_ref().unwrap()).unwrap();
    let empty = sidekeep(&["verify", "--archive", &empty.url]);
    assert!(empty.status.code() == Some(2) && String::from_utf8_lossy(&empty.stderr).contains("no archive"));

    // Without a destination, or without a key to sign with, the job is off and says which key to set.
    for (more, named) in [(String::new(), "archive.destination"), (archiving(&store), "signing.key_files")] {
        let daemon = past.world.start_with(&format!("{more}signing.key_files = []\n"));
        let error = daemon.client().err("job.run", json!({ "name": "archive" }));
        assert!(error.kind() == "conflict" && error.message.contains(named), "{error:?}");
    }
}

#[test]
fn an_erased_persons_entries_stay_unreadable_and_the_archive_still_verifies() {
    let past = Past::new();
    let store = Store::directory();
    let daemon = past.start(&store);
    assert_eq!(archive(&daemon)["state"], "ok");
    let (_, before) = verify(&[&store.url], None, None);
    daemon.ok("subject.erase", json!({ "user_id": "user:3", "reason": "request" }));
    let (code, after) = verify(&[&store.url], None, None);
    assert_eq!((code, after), (Some(0), before));
    for line in lines(&open(&store)) {
        assert!(!line.contains("user:3") && !line.contains("203.0.113.7"), "{line}");
    }
    // What is archived after the erasure has her entries too, under a number that leads nowhere.
    past.forget();
    let other = Store::directory();
    let daemon = past.start(&other);
    assert_eq!(archive(&daemon)["state"], "ok");
    assert_eq!(verify(&[&other.url], None, None).0, Some(0));
    assert_eq!(lines(&open(&store)).len(), lines(&open(&other)).len());
    assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact");
}
