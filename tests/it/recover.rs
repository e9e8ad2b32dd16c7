//! A database that was brought back from a physical copy, or failed over and lost something: nothing is served from it before
//! `sidekeep recover` has erased again whoever was erased since.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::gap::{Backup, caught_up};
use crate::publication::{checkpoint, published};
use crate::support::kept::{directory, keyring_backup, people};
use crate::support::{Cluster, Daemon, Fault, Proxy, World, sidekeep, sql, wait_for};

/// Nothing is entered for reads, so that nothing but the keyring's backup keeps them back.
fn config(world: &World) -> String {
    format!(
        "{}audit.publish = \"file://{}\"\naudit.access = \"none\"\naudit.streams = 1\n",
        keyring_backup(world),
        published(world).display()
    )
}

/// `ada`, `bob` and `eve`, of whom everything is kept.
fn fill(daemon: &Daemon) {
    for user in ["ada", "bob", "eve"] {
        let email = format!("{user}@example.org");
        daemon.ok("profile.create", json!({ "user_id": user, "username": user, "email": email }));
        let messages = json!([{ "role": "user", "content": "hello" }]);
        daemon.ok(
            "conversation.create",
            json!({ "id": format!("talk-{user}-1"), "user_id": user, "messages": messages }),
        );
        let consent = json!({ "user_id": user, "consent_type": "newsletter", "granted": true });
        daemon.ok("consent.record", consent);
    }
    daemon.ok("subject.hold", json!({ "user_id": "bob", "reason": "a lawsuit", "id": "bobs-hold" }));
    daemon.ok("audit.append", json!({ "action": "login", "user_id": "ada" }));
    checkpoint(daemon);
    back_up(daemon);
}

fn back_up(daemon: &Daemon) {
    let done = daemon.ok("job.run", json!({ "name": "keyring_backup", "wait": "60s" }));
    assert_eq!(done["state"], "ok", "{done}");
}

/// What is lost: but that `bob` was erased, `eve` is held, and `ada` restricted.
fn go_on(world: &World, daemon: &Daemon) {
    daemon.ok("subject.release", json!({ "id": "bobs-hold", "reason": "settled" }));
    daemon.ok("subject.erase", json!({ "user_id": "bob", "reason": "request" }));
    daemon.ok("subject.hold", json!({ "user_id": "eve", "reason": "a lawsuit" }));
    daemon.ok("subject.restrict", json!({ "user_id": "ada", "reason": "contested" }));
    daemon.ok("preferences.set", json!({ "user_id": "zoe", "preferences": { "late": true } }));
    checkpoint(daemon);
    back_up(daemon);
    wait_for("the erasure", || (!people(world).contains(&"bob".to_owned())).then_some(()));
}

fn command(config: &std::path::Path, more: &[&str]) -> (Option<i32>, Value, String) {
    let done = sidekeep(&[&["--config", config.to_str().unwrap(), "--json", "recover"], more].concat());
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    (done.status.code(), serde_json::from_slice(&done.stdout).unwrap_or_default(), said)
}

/// A daemon that may find out that it may serve nothing.
fn shut(world: &World, more: &str) -> Daemon {
    let daemon = world.spawn(more);
    daemon.wait_listening();
    daemon
}

/// Everything that a daemon refuses while the database is behind.
fn serves_nothing(daemon: &Daemon) {
    let mut client = daemon.client();
    for (method, params) in [
        ("profile.get", json!({ "user_id": "bob" })),
        ("profile.get", json!({ "user_id": "eve" })),
        ("conversation.list", json!({ "user_id": "bob" })),
        ("subject.export", json!({ "user_id": "bob" })),
        ("preferences.set", json!({ "user_id": "bob", "preferences": {} })),
        ("audit.append", json!({ "action": "login", "user_id": "bob" })),
    ] {
        let refused = client.err(method, params);
        assert_eq!(refused.kind(), "unavailable", "{method}: {refused:?}");
        assert!(refused.message.contains("recover --accept-gap"), "{method}: {refused:?}");
    }
    let health = daemon.ok("system.health", json!({}));
    let check = &health["checks"]["keyring_backup"]["status"];
    assert_eq!((&health["status"], check), (&json!("unavailable"), &json!("unavailable")));
    let out = daemon.config.with_extension("zip");
    let config = daemon.config.to_str().unwrap();
    let done = sidekeep(&["--config", config, "export", "bob", "--out", out.to_str().unwrap()]);
    assert!(!done.status.success() && !out.exists(), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("recover --accept-gap"), "{done:?}");
}

/// What is there after a recovery.
fn serves_all_but_bob(world: &World, daemon: &Daemon, owner: &str) {
    let mut client = daemon.client();
    wait_for("the daemon", || client.call("profile.get", json!({ "user_id": "eve" })).ok());
    assert_eq!(client.ok("profile.get", json!({ "user_id": "eve" }))["email"], "eve@example.org");
    assert_eq!(client.err("profile.get", json!({ "user_id": "bob" })).kind(), "not_found");
    assert_eq!(client.err("profile.get", json!({ "user_id": "ada" })).kind(), "restricted");
    assert_eq!(client.err("subject.erase", json!({ "user_id": "eve", "reason": "request" })).kind(), "held");
    assert_eq!(sql(owner, "SELECT string_agg(user_id, ',' ORDER BY user_id) FROM subjects"), "ada,eve,zoe");
    for table in ["user_profiles", "consent_records", "conversations", "conversation_messages"] {
        assert_eq!(sql(owner, &format!("SELECT count(*) FROM {table}")), "2", "{table}");
    }
    let certificate = sql(owner, "SELECT certificate_id FROM subject_erasures");
    assert_eq!(
        client.ok("subject.certificate", json!({ "id": certificate }))["body"]["id"],
        json!(certificate)
    );
    let told =
        "SELECT count(*) FROM audit_logs WHERE action = 'subject.erase' AND labels ? 'sidekeep.restored'";
    wait_for("the entry of the erasure", || (sql(owner, told) == "1").then_some(()));
    let verdict = daemon.ok("audit.verify", json!({}));
    assert_eq!((&verdict["verdict"], &verdict["gaps"]), (&json!("intact"), &json!(1)), "{verdict}");
    assert_eq!(verdict["erased_subjects"], 1, "{verdict}");
    // The keyring's backup is this database's from here on.
    back_up(daemon);
    daemon.ok("subject.unrestrict", json!({ "user_id": "ada", "reason": "settled" }));
    daemon.ok("subject.erase", json!({ "user_id": "ada", "reason": "request" }));
    wait_for("the next erasure", || (people(world) == ["eve", "zoe"]).then_some(()));
}

/// A copy of the cluster from before an erasure and whatever else has happened until now. At last something is done with the daemon.
fn copy_from_before<'c>(
    cluster: &'c Cluster,
    world: &World,
    more: &str,
    last: impl FnOnce(&Daemon),
) -> Backup<'c> {
    let daemon = world.start_with(more);
    fill(&daemon);
    daemon.stop();
    let before = Backup::take(cluster);
    let daemon = world.start_with(more);
    go_on(world, &daemon);
    last(&daemon);
    daemon.stop();
    before
}

#[test]
fn a_physical_copy_from_before_an_erasure_serves_nothing_before_it_was_recovered() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let more = config(&world);
    let before = copy_from_before(&cluster, &world, &more, |daemon| {
        let (code, told, _) = command(&daemon.config, &[]);
        assert_eq!((code, &told["keyring"]["behind"]), (Some(0), &json!(false)), "{told}");
    });
    before.restore();

    let daemon = shut(&world, &more);
    serves_nothing(&daemon);
    let (code, told, said) = command(&daemon.config, &[]);
    let keyring = &told["keyring"];
    assert_eq!(
        (code, &keyring["behind"], &keyring["erased_again"]),
        (Some(1), &json!(true), &json!(1)),
        "{told}"
    );
    assert!(said.contains("recover --accept-gap"), "{said}");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE user_id = 'bob'"), "1", "nothing was changed");
    assert_eq!(world.sql("SELECT count(*) FROM subject_erasures"), "0");

    let (code, told, said) = command(&daemon.config, &["--accept-gap"]);
    assert_eq!(code, Some(0), "{told} {said}");
    let keyring = &told["keyring"];
    for (key, count) in [
        ("erased_again", 1),
        ("tombstones", 1),
        ("entries_staged", 1),
        ("persons", 1),
        ("holds", 1),
        ("open_holds", 1),
    ] {
        assert_eq!(keyring[key], count, "{key}: {told}");
    }
    assert!(keyring["lost_from"].as_str().unwrap() < keyring["lost_until"].as_str().unwrap(), "{told}");
    assert_eq!(keyring["withdrawals_unknown"], true, "{told}");
    assert_eq!((&told["log"]["verdict"], &told["log"]["gaps"]), (&json!("intact"), &json!(1)), "{told}");
    serves_all_but_bob(&world, &daemon, &world.owner_url);
    let (code, told, _) = command(&daemon.config, &["--accept-gap"]);
    assert_eq!((code, &told["keyring"]["behind"]), (Some(0), &json!(false)), "{told}");
    daemon.assert_well();
}

#[test]
fn whoever_was_erased_and_came_back_since_has_a_key_again() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let more = config(&world);
    let daemon = world.start_with(&more);
    let users: Vec<String> = (0..20).map(|number| format!("user-{number:02}")).collect();
    let set = |daemon: &Daemon| {
        for user in &users {
            daemon.ok("preferences.set", json!({ "user_id": user, "preferences": {} }));
        }
    };
    set(&daemon);
    checkpoint(&daemon);
    back_up(&daemon);
    daemon.stop();
    let before = Backup::take(&cluster);
    let daemon = world.start_with(&more);
    for user in &users {
        daemon.ok("subject.erase", json!({ "user_id": user, "reason": "request" }));
    }
    // Under other numbers, and so in other shards: before the old ones, or behind them.
    set(&daemon);
    checkpoint(&daemon);
    back_up(&daemon);
    let numbers = "SELECT string_agg(subject_id::text, ',' ORDER BY subject_id) FROM subjects";
    let now = world.sql(numbers);
    daemon.stop();
    before.restore();

    let daemon = shut(&world, &more);
    let (code, told, said) = command(&daemon.config, &["--accept-gap"]);
    assert_eq!((code, &told["keyring"]["erased_again"]), (Some(0), &json!(20)), "{told} {said}");
    assert_eq!(world.sql(numbers), now);
    assert_eq!(people(&world), users);
}

#[test]
fn a_backup_that_is_not_mounted_is_not_taken_for_one_that_tells_of_nobody() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let more = config(&world);
    copy_from_before(&cluster, &world, &more, |_| {}).restore();
    let (mounted, elsewhere) = (directory(&world), world.path("elsewhere"));
    std::fs::rename(&mounted, &elsewhere).unwrap();

    // Not to be written anew meanwhile.
    let daemon = shut(&world, &format!("{more}jobs.enabled = false\n"));
    let check = wait_for("the comparison", || {
        let check = daemon.ok("system.health", json!({}))["checks"]["keyring_backup"].clone();
        (check["status"] == "degraded").then_some(check)
    });
    assert!(check["message"].as_str().unwrap().contains("mount the destination"), "{check}");
    let (code, told, said) = command(&daemon.config, &["--accept-gap"]);
    assert!(code == Some(1) && said.contains("mount the destination"), "{told} {said}");
    assert_eq!(world.sql("SELECT count(*) FROM audit_streams WHERE closed_at IS NOT NULL"), "0");

    let _ = std::fs::remove_dir_all(&mounted);
    std::fs::rename(&elsewhere, &mounted).unwrap();
    wait_for("the comparison", || {
        let refused = daemon.client().call("profile.get", json!({ "user_id": "bob" })).err()?;
        refused.message.contains("recover --accept-gap").then_some(())
    });
    let (code, told, said) = command(&daemon.config, &["--accept-gap"]);
    assert_eq!((code, &told["keyring"]["erased_again"]), (Some(0), &json!(1)), "{told} {said}");
}

#[test]
fn a_daemon_that_may_takes_such_a_copy_up_by_itself() {
    let cluster = Cluster::own(&[]);
    let world = World::on(&cluster);
    let more = format!("{}audit.on_gap = \"record\"\n", config(&world));
    let daemon = world.start_with(&more);
    fill(&daemon);
    let before = Backup::take(&cluster);
    go_on(&world, &daemon);
    // The daemon goes on while the server is another one, and so does one without jobs.
    let other = world.start_with(&format!("{more}jobs.enabled = false\n"));
    before.restore();
    let mut client = other.client();
    let found = wait_for("an answer", || match client.call("profile.get", json!({ "user_id": "bob" })) {
        Err(error) if error.kind() == "unavailable" => None,
        answer => Some(answer),
    });
    assert_eq!(found.unwrap_err().kind(), "not_found", "nobody who was erased is answered, not even once");
    wait_for("the entry", || {
        let entered =
            "SELECT count(*) FROM audit_logs WHERE labels ->> 'sidekeep.method' = 'database.recover'";
        (world.sql(entered) != "0").then_some(())
    });
    serves_all_but_bob(&world, &daemon, &world.owner_url);
    assert_eq!(other.client().err("profile.get", json!({ "user_id": "bob" })).kind(), "not_found");
    daemon.stop();
    other.stop();
}

/// Begins to recover, and waits for nothing.
fn begin(config: &std::path::Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sidekeep"))
        .args(["--config", config.to_str().unwrap(), "recover", "--accept-gap"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A step, and the statement that it is.
type Step = (&'static str, fn(&str) -> bool);

/// Each durable step of a recovery.
const STEPS: [Step; 6] = [
    ("the keys", |sql| sql.contains("INSERT INTO sidekeep.subjects")),
    ("the deletion", |sql| sql.contains("DELETE FROM sidekeep.subjects")),
    ("the tombstones", |sql| sql.contains("INSERT INTO sidekeep.subject_erasures")),
    ("the entry", |sql| sql.contains("INSERT INTO") && sql.contains("\"audit_staged\"")),
    ("the shard", |sql| sql.contains("SET generation = greatest(generation, $2)")),
    ("the manifest", |sql| sql.contains("SET generation = greatest(generation, $1)")),
];

#[test]
fn a_recovery_that_was_killed_serves_nothing_and_is_gone_on_with() {
    let cluster = Cluster::own(&[]);
    let mut world = World::on(&cluster);
    let more = config(&world);
    let before = copy_from_before(&cluster, &world, &more, |_| {});
    let direct = world.app_url.clone();
    let (kept_keyring, kept_published) = (world.path("kept-keyring"), world.path("kept-published"));
    let keep = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    let (keyring, publication) = (crate::support::kept::directory(&world), published(&world));
    keep(&keyring, &kept_keyring);
    keep(&publication, &kept_published);
    let proxy = Proxy::new(&cluster.socket_directory());
    for fault in [Fault::MuteBefore, Fault::MuteAfter] {
        for (step, is_it) in STEPS {
            let what = format!("{step}, {fault:?}");
            before.restore();
            keep(&kept_keyring, &keyring);
            keep(&kept_published, &publication);
            world.app_url = proxy.url(&direct);
            let (through, _) = world.configure(&more);
            let failed = proxy.failed();
            proxy.fail(fault, is_it);
            let mut killed = begin(&through);
            wait_for(&what, || (proxy.failed() > failed).then_some(()));
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(killed.id().cast_signed()), Signal::SIGKILL)
                .unwrap();
            killed.wait().unwrap();
            world.app_url.clone_from(&direct);
            let daemon = shut(&world, &more);
            // The last step may have taken effect; before that nothing is served.
            if !(step == "the manifest" && fault.is_after()) {
                serves_nothing(&daemon);
            }
            let (code, told, said) = command(&daemon.config, &["--accept-gap"]);
            assert_eq!(code, Some(0), "{what}: {told} {said}");
            serves_all_but_bob(&world, &daemon, &world.owner_url);
            daemon.stop();
        }
    }
}

#[test]
fn a_replica_that_was_promoted_without_the_last_commits_is_recovered() {
    let cluster = Cluster::own(&[]);
    let mut world = World::on(&cluster);
    let standby = cluster.standby();
    let host = |cluster: &Cluster| cluster.socket_directory().display().to_string().replace('/', "%2F");
    let (user, rest) = world.app_url.split_once("@/").unwrap();
    let database = rest.split_once('?').unwrap().0;
    world.app_url = format!("{user}@{},{}/{database}", host(&cluster), host(&standby));
    let more = config(&world);
    let owner_of_standby = world.owner_url.replace(
        &cluster.socket_directory().display().to_string(),
        &standby.socket_directory().display().to_string(),
    );
    let on_standby = |query: &str| sql(&owner_of_standby, query);
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| standby.up());
        let daemon = world.start_with(&more);
        fill(&daemon);
        caught_up(&world, &owner_of_standby);
        // From now on it hears nothing.
        on_standby("ALTER SYSTEM SET primary_conninfo = ''");
        on_standby("SELECT pg_reload_conf()");
        wait_for("its silence", || {
            (on_standby("SELECT count(*) FROM pg_stat_wal_receiver") == "0").then_some(())
        });
        go_on(&world, &daemon);
        cluster.crash();
        on_standby("SELECT pg_promote()");
        starting.join().unwrap();
        // The same daemon, which goes over by itself.
        wait_for("the refusal", || {
            let refused = daemon.client().call("profile.get", json!({ "user_id": "bob" }));
            let refused = refused.err().unwrap_or_else(|| panic!("somebody who was erased was answered"));
            (refused.message.contains("recover --accept-gap")).then_some(())
        });
        serves_nothing(&daemon);
        let (code, told, said) = command(&daemon.config, &["--accept-gap"]);
        assert_eq!(code, Some(0), "{told} {said}");
        assert_eq!(
            (&told["keyring"]["erased_again"], &told["keyring"]["holds"]),
            (&json!(1), &json!(1)),
            "{told}"
        );
        serves_all_but_bob(&world, &daemon, &owner_of_standby);
        daemon.stop();
    });
}
