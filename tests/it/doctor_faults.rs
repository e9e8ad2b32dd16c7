//! `sidekeep doctor`: each fault that can be seen is found by its own check, which says why and what to do.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::doctor::{Ran, doctor, sidekeep};
use crate::support::{Cluster, Pooler, World, libfaketime, sql, wait_for};

/// In a mount namespace of its own, after a shell has done this there. Needs root.
fn doctor_after(world: &World, shell: &str, more: &str) -> Ran {
    let mut command = Command::new("unshare");
    command.args([
        "-m",
        "sh",
        "-c",
        &format!("{shell} && exec \"$@\""),
        "sh",
        env!("CARGO_BIN_EXE_sidekeep"),
    ]);
    Ran::of(command, &world.configure(more).0)
}

fn alter(cluster: &Cluster, world: &World, name: &str, value: &str) {
    cluster.execute(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    cluster.execute("SELECT pg_reload_conf()");
    let shown = || sql(&cluster.owner_url("postgres"), &format!("SHOW {name}"));
    wait_for("the setting", || (shown() == value).then_some(()));
    assert!(!world.owner_url.is_empty());
}

/// What doctor finds after this SQL.
fn after(cluster: &Cluster, sql: fn(&World) -> String) -> Option<Ran> {
    let world = world(cluster);
    world.sql(&sql(&world));
    Some(doctor(&world, ""))
}

/// One fault: how it is made, with the run that has to find it; the check that has to fail, why, and with what advice.
type Fault = (&'static str, fn(&Cluster) -> Option<Ran>, &'static str, &'static str, &'static str);

/// A database of its own on the cluster that is hurt.
fn world(cluster: &Cluster) -> World {
    World::on(cluster)
}

const FAULTS: [Fault; 24] = [
    (
        "unreachable",
        |cluster| {
            let mut world = world(cluster);
            world.app_url =
                world.app_url.replace(cluster.socket_directory().to_str().unwrap(), "/nonexistent");
            Some(doctor(&world, ""))
        },
        "database.reach",
        "not reached",
        "is it running",
    ),
    (
        "no TLS",
        |cluster| {
            let mut world = world(cluster);
            let (url, authority) = by_network(&world);
            world.app_url = url;
            Some(doctor(&world, &authority))
        },
        "database.tls",
        "no TLS",
        "ssl = on",
    ),
    (
        "a replica without TLS",
        |cluster| {
            let world = world(cluster);
            let (url, authority) = by_network(&world);
            Some(doctor(&world, &format!("database.replica_url = {url:?}\n{authority}")))
        },
        "database.replica",
        "not reached",
        "ssl = on",
    ),
    (
        "superuser",
        |cluster| {
            let mut world = world(cluster);
            world.app_url.clone_from(&world.owner_url);
            Some(doctor(&world, ""))
        },
        "role.attributes",
        "superuser",
        "sidekeep setup",
    ),
    (
        "old pg_dump",
        |cluster| {
            let world = world(cluster);
            let fake = world.path("pg_dump");
            std::fs::write(&fake, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n").unwrap();
            std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
            let mounts = each_pg_dump().map(|real| format!("mount --bind {} {real}", fake.display()));
            let (dumps, keyring) = (world.path("dumps"), world.path("keyring"));
            let more = format!(
                "backup.destination = \"file://{}\"\nkeyring.backup = \"file://{}\"\n",
                dumps.display(),
                keyring.display()
            );
            Some(doctor_after(&world, &mounts.collect::<Vec<_>>().join(" && "), &more))
        },
        "backup.programs",
        "9.6.24",
        "install the client programs",
    ),
    (
        "retry interval with synchronous replication",
        |cluster| {
            let world = world(cluster);
            alter(cluster, &world, "synchronous_standby_names", "nobody");
            let ran = doctor(&world, "");
            alter(cluster, &world, "synchronous_standby_names", "");
            Some(ran)
        },
        "replication.retry_interval",
        "is 5s",
        "500ms",
    ),
    (
        "no synchronous standby",
        |cluster| {
            let world = world(cluster);
            alter(cluster, &world, "synchronous_standby_names", "nobody");
            let ran = doctor(&world, "");
            alter(cluster, &world, "synchronous_standby_names", "");
            Some(ran)
        },
        "replication.standby",
        "every write hangs",
        "start the standby",
    ),
    (
        "synchronous_standby_names empty with a fail-over in the URL",
        |cluster| {
            let mut world = world(cluster);
            world.app_url.push_str("&host=/nonexistent");
            Some(doctor(&world, ""))
        },
        "replication.standby",
        "several hosts",
        "after a promotion",
    ),
    (
        "pooler in transaction mode",
        |cluster| {
            let mut world = world(cluster);
            let pooler = Pooler::start(cluster, "transaction")?;
            world.app_url = pooler.url(&world.app_url, cluster);
            Some(doctor(&world, ""))
        },
        "database.pooler",
        "transaction mode",
        "PostgreSQL itself",
    ),
    (
        "migrations through a pooler",
        |cluster| {
            let world = world(cluster);
            let pooler = Pooler::start(cluster, "transaction")?;
            let file = world.path("migrate-url");
            std::fs::write(&file, pooler.url(&world.app_url, cluster)).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            Some(doctor(&world, &format!("database.migrate_url_file = {file:?}\n")))
        },
        "database.pooler",
        "sidekeep migrate and dumps would go through a pooler",
        "database.direct_url_file",
    ),
    (
        "disk",
        |cluster| {
            let world = world(cluster);
            let dumps = world.path("dumps");
            std::fs::create_dir(&dumps).unwrap();
            let mount = format!("mount -t tmpfs -o size=256k tmpfs {}", dumps.display());
            Some(doctor_after(
                &world,
                &mount,
                &format!("archive.destination = \"file://{}\"\n", dumps.display()),
            ))
        },
        "destination.archive",
        "256.0 KiB",
        "make room",
    ),
    (
        "a disk that takes no writes",
        |cluster| {
            let world = world(cluster);
            let dumps = world.path("dumps");
            std::fs::create_dir(&dumps).unwrap();
            let mount = format!("mount -t tmpfs -o ro tmpfs {}", dumps.display());
            Some(doctor_after(
                &world,
                &mount,
                &format!("archive.destination = \"file://{}\"\n", dumps.display()),
            ))
        },
        "destination.archive",
        "written",
        "read-only",
    ),
    (
        "key mode",
        |cluster| {
            let world = world(cluster);
            std::fs::set_permissions(world.path("kek"), std::fs::Permissions::from_mode(0o644)).unwrap();
            Some(doctor(&world, ""))
        },
        "keyring.files",
        "0644",
        "chmod 0640",
    ),
    (
        "signing key's mode",
        |cluster| {
            let world = world(cluster);
            std::fs::set_permissions(world.path("signing"), std::fs::Permissions::from_mode(0o604)).unwrap();
            Some(doctor(&world, ""))
        },
        "signing.files",
        "signing.key_files: ",
        "chmod 0640",
    ),
    (
        "clock skew",
        |cluster| {
            let world = world(cluster);
            let mut command = sidekeep();
            command
                .env("LD_PRELOAD", libfaketime())
                .env("FAKETIME", "-2m")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            Some(Ran::of(command, &world.configure("").0))
        },
        "clock",
        "ahead of",
        "NTP",
    ),
    (
        "missing role",
        |cluster| {
            let mut world = world(cluster);
            world.app_url = world.app_url.replace("sidekeep_app", "sidekeep_gone");
            Some(doctor(&world, ""))
        },
        "database.role",
        "role \"sidekeep_gone\" does not exist",
        "CREATE ROLE",
    ),
    (
        "pending migration",
        |cluster| {
            after(cluster, |_| {
                "DELETE FROM __diesel_schema_migrations WHERE version = (SELECT max(version) FROM __diesel_schema_migrations)".into()
            })
        },
        "schema.migrations",
        "lacks 1 migration",
        "sidekeep migrate",
    ),
    (
        "a trigger switched off on one month",
        |cluster| after(cluster, |world| format!("ALTER TABLE {} DISABLE TRIGGER append_only", month(world))),
        "schema.triggers",
        "append_only is switched off",
        "verify --full",
    ),
    (
        "a trigger dropped",
        |cluster| after(cluster, |_| "DROP TRIGGER held ON subjects".into()),
        "schema.triggers",
        "subjects: held is missing",
        "migrations",
    ),
    (
        "a trigger that lets pass",
        |cluster| {
            after(cluster, |_| {
                "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'".into()
            })
        },
        "schema.triggers",
        "refuses nothing",
        "verify --full",
    ),
    (
        "a role that can do more than it should",
        |cluster| {
            after(cluster, |world| format!("GRANT UPDATE (action) ON {} TO sidekeep_app", month(world)))
        },
        "role.grants",
        "UPDATE on audit_logs_2",
        "REVOKE",
    ),
    (
        "a role that owns a table",
        |cluster| after(cluster, |_| "ALTER TABLE audit_heads OWNER TO sidekeep_app".into()),
        "role.ownership",
        "audit_heads",
        "REASSIGN OWNED",
    ),
    (
        "no month for the next entries",
        |cluster| {
            after(cluster, |_| {
                "DO $$ BEGIN EXECUTE 'DROP TABLE audit_logs_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM'); END $$".into()
            })
        },
        "schema.months",
        "no entry can be written",
        "partitions",
    ),
    (
        "a crash would lose what was answered",
        |cluster| {
            let world = world(cluster);
            Some(doctor(&world, ""))
        },
        "database.durability",
        "fsync",
        "ALTER SYSTEM",
    ),
];

/// The URL of the same database by the network, where the server speaks no TLS, and whom to trust there.
fn by_network(world: &World) -> (String, String) {
    let database = world.app_url.split(['/', '?']).nth(3).unwrap();
    let authority = rcgen::generate_simple_self_signed(vec!["db.test".to_owned()]).unwrap();
    let file = world.path("ca.pem");
    std::fs::write(&file, authority.cert.pem()).unwrap();
    let url = format!("postgresql://sidekeep_app@db.test/{database}?hostaddr={}", address());
    (url, format!("database.ca_file = {file:?}\n"))
}

/// An address of this process's own, so that the port is free.
fn address() -> String {
    let pid = std::process::id();
    format!("127.{}.{}.{}", 16 + (pid >> 16) % 32, (pid >> 8) & 255, pid & 255)
}

fn month(world: &World) -> String {
    world.sql("SELECT 'audit_logs_' || to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')")
}

fn each_pg_dump() -> impl Iterator<Item = String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
    versions
        .map(|entry| entry.path().join("bin/pg_dump"))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
}

#[test]
fn each_fault_is_found_by_its_check() {
    let cluster = Cluster::own(&[("listen_addresses", &address())]);
    for (fault, make, check, why, advice) in FAULTS {
        let Some(ran) = make(&cluster) else { continue };
        eprintln!("{fault}: {}", ran.check(check));
        ran.assert_fails(check, why, advice);
        // Unreachable is a word of its own for scripts: nothing is known then.
        let code = if fault == "unreachable" { 2 } else { 1 };
        assert_eq!(ran.code, Some(code), "{fault}: {}", ran.said);
        assert_eq!(ran.report["status"], "fail");
    }
}
