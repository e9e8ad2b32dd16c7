//! Restoring a dump: everybody comes back but who was erased since, the log verifies, and what does not fit is refused before
//! anything is touched.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::publication::{checkpoint, published};
use crate::support::kept::{directory, keyring_backup, people};
use crate::support::{Cluster, Daemon, Psql, Store, World, sidekeep, sql, wait_for};

/// A deployment with a dump: `ada`, `bob` and `eve` are in it.
pub struct Dumped {
    pub world: World,
    pub daemon: Daemon,
    pub name: String,
    more: String,
}

/// In folders of the world.
fn config(world: &World) -> String {
    format!(
        "{}audit.publish = \"file://{}\"\nbackup.destination = \"file://{}\"\n{}",
        keyring_backup(world),
        published(world).display(),
        world.path("dumps").display(),
        owner(world),
    )
}

/// In parts of a store.
fn config_in(store: &Store, world: &World) -> String {
    let (url, reach) = (&store.url, &store.config);
    format!(
        "{reach}keyring.backup = \"{url}/keyring\"\naudit.publish = \"{url}/published\"\nbackup.destination = \"{url}/dumps\"\n{}",
        owner(world),
    )
}

fn owner(world: &World) -> String {
    let file = world.path("owner-url");
    std::fs::write(&file, &world.owner_url).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // What is lost publishes nothing more while it is restored, nor mends its keyring's backup when a minute is over.
    format!(
        "audit.streams = 1\njobs.checkpoint.enabled = false\njobs.keyring_backup.schedule = \"0 0 1 1 *\"\n\
         database.direct_url_file = {file:?}\n"
    )
}

pub fn run(daemon: &Daemon, job: &str) -> Value {
    let done = daemon.ok("job.run", json!({ "name": job, "wait": "60s" }));
    assert_eq!(done["state"], "ok", "{done}");
    done
}

impl Dumped {
    pub fn new() -> Self {
        Self::with("")
    }

    /// With more configuration.
    pub fn with(more: &str) -> Self {
        let world = World::new();
        let more = format!("{}{more}", config(&world));
        Self::of(world, more)
    }

    fn of(world: World, more: String) -> Self {
        let daemon = world.start_with(&more);
        for user in ["ada", "bob", "eve"] {
            daemon.ok(
                "profile.create",
                json!({ "user_id": user, "username": user, "email": format!("{user}@example.org") }),
            );
            daemon.ok(
                "conversation.create",
                json!({ "id": format!("talk-{user}-1"), "user_id": user, "messages": [{ "role": "user", "content": "hello" }] }),
            );
            daemon.ok(
                "consent.record",
                json!({ "user_id": user, "consent_type": "newsletter", "granted": true }),
            );
        }
        checkpoint(&daemon);
        run(&daemon, "backup");
        let listed = daemon.ok("backup.list", json!({}));
        let name =
            listed["items"][0]["name"].as_str().unwrap_or_else(|| panic!("{more}: {listed}")).to_owned();
        Self { world, daemon, name, more }
    }

    /// What happens after the dump, and is lost: but that `bob` was erased.
    pub fn go_on(&self) {
        self.daemon.ok("subject.erase", json!({ "user_id": "bob", "reason": "request" }));
        self.daemon.ok("preferences.set", json!({ "user_id": "zoe", "preferences": { "late": true } }));
        checkpoint(&self.daemon);
        self.backed_up();
    }

    /// Waits until the keyring's backup has every erasure, and everybody.
    pub fn backed_up(&self) {
        run(&self.daemon, "keyring_backup");
        let late = "SELECT count(*) FROM keyring_shards WHERE raised_at IS NOT NULL";
        wait_for("the keyring's backup", || (self.world.sql(late) == "0").then_some(()));
        let behind = "SELECT generation > stored FROM keyring_backups";
        wait_for("its manifest", || (self.world.sql(behind) == "f").then_some(()));
    }

    pub fn empty(&self) -> String {
        let cluster = Cluster::shared();
        cluster.owner_url(&cluster.empty_database())
    }

    pub fn restore(&self, into: &str, more: &[&str]) -> Done {
        self.restore_this(&self.name, into, more)
    }

    pub fn restore_this(&self, what: &str, into: &str, more: &[&str]) -> Done {
        let config = self.daemon.config.to_str().unwrap();
        let done =
            sidekeep(&[&["--config", config, "--json", "restore", what, "--into", into], more].concat());
        Done {
            code: done.status.code(),
            told: serde_json::from_slice(&done.stdout).unwrap_or_default(),
            said: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    }

    /// A file with the configuration of another database, for commands.
    pub fn config_of(&self, into: &str) -> String {
        let file = self.world.path("into-url");
        std::fs::write(&file, into).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let app = Cluster::shared().app_url(&database(into));
        let urls = format!("database.url = {app:?}\ndatabase.migrate_url_file = {file:?}\n");
        let (config, _) = self.world.configure(&(self.more.clone() + &urls));
        config.to_str().unwrap().to_owned()
    }

    /// A daemon on another database.
    pub fn serve(&self, into: &str) -> Daemon {
        let app = into.replacen(&format!("{}@", user(into)), "sidekeep_app@", 1);
        self.world.start_with(&format!("{}database.url = {app:?}\n", self.more))
    }
}

/// The role in a URL.
fn user(url: &str) -> String {
    url.split("://").nth(1).unwrap().split(['@', ':', '/']).next().unwrap().to_owned()
}

#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub told: Value,
    said: String,
}

impl Done {
    #[track_caller]
    pub fn refused(&self, why: &str) {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert!(self.said.contains(why), "{self:?}");
    }
}

#[track_caller]
pub fn untouched(into: &str) {
    assert_eq!(sql(into, "SELECT to_regnamespace('sidekeep') IS NULL"), "t");
}

#[test]
fn a_dump_from_before_an_erasure_holds_everybody_but_the_erased_person() {
    for store in Store::all() {
        let world = World::new();
        let more = config_in(&store, &world);
        let dumped = Dumped::of(world, more);
        dumped.daemon.ok("subject.hold", json!({ "user_id": "eve", "reason": "a lawsuit" }));
        dumped.daemon.ok("subject.restrict", json!({ "user_id": "ada", "reason": "contested" }));
        dumped.go_on();
        let into = dumped.empty();
        let done = dumped.restore(&into, &[]);
        assert_eq!(done.code, Some(0), "{}: {done:?}", store.url);
        let restored = &done.told["restored"];
        assert_eq!(
            (&restored["erased_again"], &restored["entries_staged"]),
            (&json!(1), &json!(1)),
            "{done:?}"
        );
        assert_eq!((&restored["lost_persons"], &restored["open_holds"]), (&json!(0), &json!(1)), "{done:?}");
        assert_eq!(restored["gaps"].as_array().unwrap().len(), 1, "{done:?}");
        assert!(restored["lost_from"].as_str() < restored["lost_until"].as_str(), "{done:?}");
        assert_eq!(restored["withdrawals_unknown"], true, "{done:?}");
        assert_eq!(done.told["log"]["verdict"], "intact", "{done:?}");
        assert_eq!(done.told["log"]["gaps"], 1, "{done:?}");
        assert_eq!(sql(&into, "SELECT count(*) FROM audit_streams WHERE leased_until > now()"), "0");
        serves_all_but_bob(&dumped, &into);
    }
}

/// A daemon on the restored database serves at once, and everything is as it should be.
fn serves_all_but_bob(dumped: &Dumped, into: &str) {
    let certificate = dumped.world.sql("SELECT certificate_id FROM subject_erasures");
    let daemon = dumped.serve(into);
    assert_eq!(daemon.ok("profile.get", json!({ "user_id": "eve" }))["email"], "eve@example.org");
    assert_eq!(
        daemon.ok("subject.certificate", json!({ "id": certificate }))["body"]["id"],
        json!(certificate)
    );
    let mut client = daemon.client();
    assert_eq!(client.err("profile.get", json!({ "user_id": "ada" })).kind(), "restricted");
    assert_eq!(client.err("profile.get", json!({ "user_id": "bob" })).kind(), "not_found");
    assert_eq!(client.err("subject.erase", json!({ "user_id": "eve", "reason": "request" })).kind(), "held");
    assert_eq!(sql(into, "SELECT count(*) FROM conversation_messages"), "2");
    assert_eq!(sql(into, "SELECT count(*) FROM subject_erasures"), "1");
    assert_eq!(sql(into, "SELECT string_agg(user_id, ',' ORDER BY user_id) FROM subjects"), "ada,eve,zoe");
    wait_for("the entry of the erasure", || {
        let told =
            "SELECT count(*) FROM audit_logs WHERE action = 'subject.erase' AND labels ? 'sidekeep.restored'";
        (sql(into, told) == "1").then_some(())
    });
    for (method, params) in [
        ("audit.append", json!({ "action": "login", "user_id": "eve" })),
        ("preferences.set", json!({ "user_id": "bob", "preferences": {} })),
        ("consent.record", json!({ "user_id": "eve", "consent_type": "newsletter", "granted": false })),
        (
            "conversation.append",
            json!({ "id": "talk-eve-1", "messages": [{ "role": "user", "content": "again" }] }),
        ),
    ] {
        client.ok(method, params);
    }
    let verdict = daemon.ok("audit.verify", json!({}));
    assert_eq!(
        (&verdict["verdict"], &verdict["erased_subjects"]),
        (&json!("intact"), &json!(1)),
        "{verdict}"
    );
    // From now on the keyring's backup is this database's; the old one may not go on with it.
    run(&daemon, "keyring_backup");
    daemon.ok("subject.unrestrict", json!({ "user_id": "ada", "reason": "settled" }));
    daemon.ok("subject.erase", json!({ "user_id": "ada", "reason": "request" }));
    wait_for("the next erasure", || {
        let late = "SELECT count(*) FROM keyring_shards WHERE raised_at IS NOT NULL";
        (sql(into, late) == "0").then_some(())
    });
    let done = run(&daemon, "backup");
    assert_eq!(done["state"], "ok", "{done}");
    daemon.assert_well();
}

pub const WAITS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'";

/// A restore that waits before it makes an index, until whoever is answered with it gives up the advisory lock 7.
pub fn made_to_wait(dumped: &Dumped, into: &str) -> (Psql, std::process::Child) {
    sql(
        into,
        "CREATE FUNCTION public.wait() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); END'; \
         CREATE EVENT TRIGGER wait ON ddl_command_end WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION public.wait()",
    );
    let mut holder = Psql::open(into);
    holder.run("SELECT pg_advisory_lock(7)");
    let restoring = std::process::Command::new(env!("CARGO_BIN_EXE_sidekeep"))
        .args(["--config", dumped.daemon.config.to_str().unwrap(), "restore", &dumped.name, "--into", into])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_for("its wait", || (holder.run(&format!("SELECT count(*) {WAITS}")) == "1").then_some(()));
    (holder, restoring)
}

/// The name in a URL.
fn database(url: &str) -> String {
    url.split('/').nth(3).unwrap().split('?').next().unwrap().to_owned()
}

#[test]
fn a_target_that_is_not_empty_is_refused_and_so_is_one_half_restored() {
    let dumped = Dumped::new();
    let into = dumped.world.owner_url.clone();
    let before = sql(&into, "SELECT count(*) FROM sidekeep.subjects");
    dumped.restore(&into, &[]).refused("has a schema sidekeep already");
    assert_eq!(sql(&into, "SELECT count(*) FROM sidekeep.subjects"), before);

    // Killed in the middle.
    let into = dumped.empty();
    let cluster = Cluster::shared();
    let (mut holder, mut killed) = made_to_wait(&dumped, &into);
    killed.kill().unwrap();
    killed.wait().unwrap();
    holder.run(&format!("SELECT pg_terminate_backend(pid) {WAITS}"));
    drop(holder);
    let database = database(&into);
    wait_for("the end of its connections", || {
        let left = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        );
        (sql(&cluster.owner_url("postgres"), &left) == "0").then_some(())
    });
    sql(&into, "DROP EVENT TRIGGER wait; DROP FUNCTION public.wait()");
    dumped.restore(&into, &[]).refused("DROP SCHEMA sidekeep CASCADE");
    // Whoever takes it for a database that is whole is told the same.
    let config = dumped.config_of(&into);
    let all = || {
        for command in
            [&["serve"][..], &["verify", "--full"], &["recover"], &["migrate"], &["migrate", "--check"]]
        {
            let done = sidekeep(&[&["--config", &config], command].concat());
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.code() == Some(1) && said.contains("was broken off"), "{command:?}: {said}");
        }
    };
    all();
    // As it is between the making of the tables and the shutting of the schema.
    sql(&into, "TRUNCATE sidekeep.__diesel_schema_migrations");
    sql(&into, "GRANT USAGE ON SCHEMA sidekeep TO sidekeep_app");
    all();
    sql(&into, "DROP SCHEMA sidekeep CASCADE");
    let done = dumped.restore(&into, &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn of_two_with_one_user_id_the_one_before_was_erased() {
    let dumped = Dumped::new();
    let world = &dumped.world;
    dumped.backed_up();
    let kept = [shard_of(world, "bob"), directory(world).join("manifest.json")];
    let before = kept.each_ref().map(|path| std::fs::read(path).unwrap());
    // Again and under another number, in another shard.
    while shard_of(world, "bob") == kept[0] {
        dumped.daemon.ok("subject.erase", json!({ "user_id": "bob", "reason": "request" }));
        dumped.daemon.ok("preferences.set", json!({ "user_id": "bob", "preferences": {} }));
    }
    checkpoint(&dumped.daemon);
    dumped.backed_up();
    // Cut off when the shard with the new key was written, and that with the erasure not yet.
    for (path, bytes) in kept.iter().zip(&before) {
        std::fs::write(path, bytes).unwrap();
    }
    let into = dumped.empty();
    let refused = dumped.restore(&into, &[]);
    assert!(
        refused.said.contains("1 person(s) of the dump have neither a key nor a tombstone"),
        "{refused:?}"
    );
    sql(&into, "DROP SCHEMA sidekeep CASCADE");
    let done = dumped.restore(&into, &["--accept-lost", "1"]);
    // That the person was erased no entry says.
    assert_eq!(done.told["log"]["breaks"].as_array().unwrap().len(), 1, "{done:?}");
    let users = "SELECT string_agg(user_id, ',' ORDER BY user_id) FROM subjects";
    assert_eq!(sql(&into, users), "ada,bob,eve");
    assert_eq!(
        sql(&into, "SELECT string_agg(id, ',' ORDER BY id) FROM conversations"),
        "talk-ada-1,talk-eve-1"
    );
}

/// The shards that are there.
fn shards(world: &World) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(directory(world).join("shards")).unwrap();
    let mut shards: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    shards.sort();
    shards
}

/// The shard that a person is in.
fn shard_of(world: &World, user: &str) -> PathBuf {
    let query = format!(
        "SELECT lpad(to_hex(shard_of(subject_id)::int), 2, '0') FROM subjects WHERE user_id = '{user}'"
    );
    directory(world).join("shards").join(world.sql(&query))
}

fn copy(from: &Path, to: &Path) {
    assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_keyring_that_is_older_damaged_or_somebody_elses_is_refused_before_the_target_is_touched() {
    let dumped = Dumped::new();
    let world = &dumped.world;
    let into = dumped.empty();
    let (all, first) = (directory(world), shard_of(world, "bob"));
    let (old_shard, old_all) = (std::fs::read(&first).unwrap(), world.path("old"));
    copy(&all, &old_all);
    dumped.go_on();
    run(&dumped.daemon, "backup");
    let newest = dumped.daemon.ok("backup.list", json!({}))["items"][0]["name"].as_str().unwrap().to_owned();
    let sound = std::fs::read(&first).unwrap();

    std::fs::write(&first, &old_shard).unwrap();
    dumped.restore(&into, &[]).refused("an older one was put in its place");
    std::fs::remove_file(&first).unwrap();
    dumped.restore(&into, &[]).refused("it is missing");
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&first, &flipped).unwrap();
    dumped.restore(&into, &[]).refused("it was changed");
    std::fs::write(&first, &sound[..sound.len() / 2]).unwrap();
    dumped.restore(&into, &[]).refused("keyring.backup");
    let other = shards(world).into_iter().find(|path| *path != first).unwrap();
    std::fs::copy(&other, &first).unwrap();
    dumped.restore(&into, &[]).refused("it is the part");
    std::fs::write(&first, &sound).unwrap();

    // All of an older time: it knows nothing of the erasure, and would bring the person back.
    let now = world.path("now");
    std::fs::rename(&all, &now).unwrap();
    copy(&old_all, &all);
    dumped.restore_this(&newest, &into, &[]).refused("an older one would bring back");
    std::fs::remove_dir_all(&all).unwrap();
    dumped.restore(&into, &[]).refused("manifest.json");
    std::fs::rename(&now, &all).unwrap();

    // Another key-encryption key, and another deployment.
    let key = world.add_key("another");
    let text = std::fs::read_to_string(&dumped.daemon.config).unwrap();
    let other = world.path("other.toml");
    std::fs::write(&other, text.replace(world.path("kek").to_str().unwrap(), key.to_str().unwrap())).unwrap();
    let with = |config: &Path| {
        let args = ["--config", config.to_str().unwrap(), "restore", &dumped.name, "--into", &into];
        let done = sidekeep(&args);
        Done {
            code: done.status.code(),
            told: Value::Null,
            said: String::from_utf8_lossy(&done.stderr).into_owned(),
        }
    };
    with(&other).refused("none of keyring.key_files");
    std::fs::write(&other, text.replace("deployment.name = \"test\"", "deployment.name = \"other\""))
        .unwrap();
    with(&other).refused("of the deployment");
    std::fs::remove_file(&other).unwrap();
    untouched(&into);
    let done = dumped.restore(&into, &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn a_dump_that_is_damaged_or_from_a_later_version_is_refused_before_the_target_is_touched() {
    let dumped = Dumped::new();
    let world = &dumped.world;
    let into = dumped.empty();
    let folder = world.path("dumps").join("dumps").join(&dumped.name);
    let dump = folder.join("dump");
    let sound = std::fs::read(&dump).unwrap();
    let mut flipped = sound.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (bytes, why) in
        [(&flipped[..], "it was changed"), (&sound[..middle], "bytes, and should have"), (&[][..], "0 bytes")]
    {
        std::fs::write(&dump, bytes).unwrap();
        dumped.restore(&into, &[]).refused(why);
    }
    std::fs::remove_file(&dump).unwrap();
    dumped.restore(&into, &[]).refused("no such object");
    std::fs::write(&dump, &sound).unwrap();
    dumped.restore(dumped.empty().as_str(), &["--scratch", "/nonexistent"]).refused("/nonexistent");
    dumped.restore_this("20200101T000000Z-00000000", &into, &[]).refused("no such object");
    dumped
        .restore("postgresql://a:b@localhost/x", &[])
        .said
        .contains("holds a password")
        .then_some(())
        .unwrap();
    untouched(&into);

    // Somewhere else, as a file.
    let elsewhere = world.path("elsewhere");
    copy(&folder, &elsewhere);
    let done = dumped.restore_this(elsewhere.join("dump").to_str().unwrap(), &into, &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
}

#[test]
fn persons_without_key_and_tombstone_stop_the_restore_unless_their_number_is_accepted() {
    let dumped = Dumped::new();
    let into = dumped.empty();
    // Somebody's key went, and nothing tells why.
    dumped.world.sql("ALTER TABLE subjects DISABLE TRIGGER USER");
    dumped.world.sql("DELETE FROM subjects WHERE user_id = 'bob'");
    dumped.world.sql("ALTER TABLE subjects ENABLE TRIGGER USER; SELECT raise_shards(ARRAY(SELECT shard FROM keyring_shards WHERE generation > 0))");
    wait_for("a backup without bob", || (!people(&dumped.world).contains(&"bob".to_owned())).then_some(()));
    dumped.restore(&into, &[]).refused("1 person(s) of the dump have neither");
    sql(&into, "DROP SCHEMA sidekeep CASCADE");
    let done = dumped.restore(&into, &["--accept-lost", "1"]);
    assert_eq!(done.told["restored"]["lost_persons"], 1, "{done:?}");
    assert_eq!(sql(&into, "SELECT count(*) FROM sidekeep.user_profiles"), "2");
    // Nobody has erased that person, and the log says so.
    assert_eq!((done.code, &done.told["log"]["verdict"]), (Some(1), &json!("broken")), "{done:?}");
}
