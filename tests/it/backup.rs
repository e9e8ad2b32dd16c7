//! Dumps: made by the real `pg_dump`, found by their manifests, verified, rotated; and none that is half there.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Daemon, Store, World, sidekeep};

/// A world whose dumps and whose keyring's backup go to folders of their own.
pub struct Shelf {
    pub world: World,
    /// What every daemon has in its configuration.
    pub config: String,
}

impl Shelf {
    pub fn new() -> Self {
        Self::of(World::new())
    }

    pub fn of(world: World) -> Self {
        let owner = world.path("owner-url");
        std::fs::write(&owner, format!("{}\n", world.owner_url)).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&owner, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (dumps, keyring) = (world.path("dumps"), world.path("keyring"));
        let config = format!(
            "backup.destination = \"file://{}\"\nkeyring.backup = \"file://{}\"\ndatabase.direct_url_file = {owner:?}\n",
            dumps.display(),
            keyring.display()
        );
        Self { world, config }
    }

    /// As [`Shelf::new`], with its dumps in this destination.
    pub fn at(store: &Store) -> Self {
        let Self { world, config } = Self::new();
        let lines = config.lines().filter(|line| !line.starts_with("backup.destination"));
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        Self { world, config: format!("backup.destination = \"{}\"\n{}{lines}", store.url, store.config) }
    }

    pub fn start(&self, more: &str) -> Daemon {
        self.world.start_with(&format!("{}{more}", self.config))
    }

    /// Starts a daemon in a mount namespace of its own, after this was done there.
    pub fn start_after(&self, shell: &str, more: &str) -> Daemon {
        self.world.start_after(shell, &format!("{}{more}", self.config))
    }

    /// As if the run of a daemon that was killed had been taken over long ago, which takes half a minute.
    pub fn forget_run(&self) {
        let failed = "UPDATE job_runs SET state = 'failed', error = 'killed', finished_at = now() WHERE state = 'running'";
        self.world.sql(failed);
    }

    /// The folder of all dumps.
    pub fn dumps(&self) -> PathBuf {
        self.world.path("dumps").join("dumps")
    }

    /// What stands in the folder of a dump.
    pub fn files(&self, name: &str) -> Vec<String> {
        files(&self.dumps().join(name))
    }
}

pub fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A run of a job, to its end.
pub fn run(daemon: &Daemon, job: &str) -> Value {
    daemon.run_job(job)
}

/// A run that does what it is for; answers what it counts.
pub fn done(daemon: &Daemon, job: &str) -> Value {
    let run = run(daemon, job);
    assert_eq!(run["state"], "ok", "{run}");
    run["counts"].clone()
}

/// A run that fails; answers why.
pub fn failed(daemon: &Daemon, job: &str) -> String {
    let run = run(daemon, job);
    assert_eq!(run["state"], "failed", "{run}");
    run["error"].as_str().unwrap().to_owned()
}

pub fn list(daemon: &Daemon) -> Vec<Value> {
    daemon.ok("backup.list", json!({}))["items"].as_array().unwrap().clone()
}

/// Somebody with records of every kind.
pub fn fill(daemon: &Daemon, persons: usize) {
    let mut client = daemon.client();
    for number in 0..persons {
        let user = format!("u{number}");
        let profile = json!({ "user_id": user, "username": user, "email": format!("{user}@example.org") });
        client.ok("profile.create", profile);
        client.ok("preferences.set", json!({ "user_id": user, "preferences": { "theme": "dark" } }));
        client
            .ok("consent.record", json!({ "user_id": user, "consent_type": "newsletter", "granted": true }));
        let messages = json!([{ "role": "user", "content": "hello" }]);
        client.ok("conversation.create", json!({ "user_id": user, "messages": messages }));
    }
}

/// What the manifest of a dump says.
pub fn manifest(shelf: &Shelf, name: &str) -> Value {
    let text = std::fs::read(shelf.dumps().join(name).join("manifest.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["body"].clone()
}

#[test]
fn a_dump_is_made_listed_and_verified() {
    let shelf = Shelf::new();
    let daemon = shelf.start("");
    fill(&daemon, 5);
    daemon.ok("subject.erase", json!({ "user_id": "u4", "reason": "request" }));
    assert!(list(&daemon).is_empty());
    let counts = done(&daemon, "backup");
    let items = list(&daemon);
    assert_eq!((items.len(), &counts["kept"], &counts["pruned"]), (1, &json!(1), &json!(0)), "{counts}");
    let name = items[0]["name"].as_str().unwrap();
    assert_eq!((&items[0]["proved_at"], &items[0]["size"]), (&Value::Null, &counts["bytes"]));
    assert_eq!(shelf.files(name), ["dump", "manifest.json"]);
    let paths = items[0]["objects"].as_array().unwrap().iter().map(|path| path.as_str().unwrap());
    assert!(paths.map(|path| shelf.world.path("dumps").join(path)).all(|path| path.is_file()));

    let body = manifest(&shelf, name);
    let count = |table: &str| body["tables"][table].as_i64().unwrap();
    assert_eq!((count("user_profiles"), count("conversations"), count("subject_erasures")), (4, 4, 1));
    assert_eq!((&body["persons"], &body["encrypted"]), (&json!(4), &json!(false)), "{body}");
    assert_eq!(body["tables"].get("subjects"), None);
    assert!(body["left_out"].as_array().unwrap().contains(&json!("subjects")));
    assert!(body["audit"]["streams"].as_array().is_some_and(|streams| !streams.is_empty()), "{body}");
    assert_eq!(body["kek_ids"].as_array().unwrap().len(), 1);

    let config = daemon.config.to_str().unwrap();
    let verified = sidekeep(&["--config", config, "backup", "verify", name]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let said = String::from_utf8(verified.stdout).unwrap();
    assert!(said.contains("sound") && said.contains("pg_restore reads"), "{said}");
    let listed = sidekeep(&["--config", config, "backup", "list"]);
    assert!(String::from_utf8(listed.stdout).unwrap().starts_with(name));
    let made = sidekeep(&["--config", config, "backup", "--json"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let run: Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&run["state"], list(&daemon).len()), (&json!("ok"), 2));

    let dump = shelf.dumps().join(name).join("dump");
    let restored = std::process::Command::new("pg_restore").args(["-f", "-"]).arg(&dump).output().unwrap();
    let sql = String::from_utf8_lossy(&restored.stdout).into_owned();
    assert!(sql.contains("COPY sidekeep.user_profiles") && !sql.contains("COPY sidekeep.subjects"));
    daemon.assert_well();
}

#[test]
fn who_has_set_nothing_or_half_is_told_what_to_set() {
    let shelf = Shelf::new();
    let daemon = shelf.world.start();
    let error = daemon.client().call("job.run", json!({ "name": "backup" })).unwrap_err();
    assert!(error.message.contains("backup.destination"), "{error:?}");
    assert!(list(&daemon).is_empty());
    let jobs = daemon.ok("job.list", json!({}));
    let status = daemon.ok("system.status", json!({}));
    let lacking = [
        ("backup", "backup.destination"),
        ("drill", "backup.destination"),
        ("archive", "archive.destination"),
    ];
    for (name, key) in lacking.into_iter().chain([("keyring_backup", "keyring.backup")]) {
        let job = jobs["items"].as_array().unwrap().iter().find(|job| job["name"] == name).unwrap();
        assert_eq!((&job["enabled"], &job["missing_key"]), (&json!(false), &json!(key)), "{job}");
        let job = &status["jobs"][name];
        assert_eq!((&job["enabled"], &job["missing_key"]), (&json!(false), &json!(key)), "{job}");
    }
    assert_eq!(status["jobs"]["verify"]["missing_key"], Value::Null);
    daemon.stop();
    let half: String =
        shelf.config.lines().filter(|line| !line.starts_with("keyring")).map(|l| format!("{l}\n")).collect();
    let daemon = shelf.world.start_with(&half);
    let why = failed(&daemon, "backup");
    assert!(why.contains("keyring.backup"), "{why}");
    daemon.stop();
    let role: String =
        shelf.config.lines().filter(|line| !line.starts_with("database")).map(|l| format!("{l}\n")).collect();
    let daemon = shelf.world.start_with(&role);
    let why = failed(&daemon, "backup");
    assert!(why.contains("database.direct_url_file") && why.contains("sidekeep_app"), "{why}");
    assert!(list(&daemon).is_empty());
}
