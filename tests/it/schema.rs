//! The schema: it goes up and down, every column has a class, and what diesel believes is what the catalogue says.

use std::process::Command;

use sidekeep::config::Database;
use sidekeep::store::migrations;
use tokio_util::task::TaskTracker;

use crate::support::{Cluster, Psql, World, migrate, sidekeep, sql, wait_for};

fn dump(url: &str) -> String {
    let done = Command::new("pg_dump").args(["--schema-only", "--schema=sidekeep", url]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // Newer versions of pg_dump draw a random word for these lines.
    String::from_utf8(done.stdout)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with('\\'))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn migrations_go_up_down_and_up_to_the_same_schema() {
    let cluster = Cluster::shared();
    let url = cluster.owner_url(&cluster.empty_database());
    migrate(&url);
    let first = dump(&url);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(migrations::revert_all(&Database::default(), &url, &TaskTracker::new())).unwrap();
    let tables = sql(&url, "SELECT string_agg(tablename, ',') FROM pg_tables WHERE schemaname = 'sidekeep'");
    assert_eq!(tables, "__diesel_schema_migrations");
    migrate(&url);
    assert_eq!(dump(&url), first);
}

#[test]
fn every_table_and_column_is_described_and_every_column_has_a_class() {
    let world = World::new();
    let bare = world.sql(
        "SELECT c.relname || '.' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0 AND NOT attisdropped \
         WHERE relnamespace = 'sidekeep'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition AND relname <> '__diesel_schema_migrations' \
         AND (coalesce(col_description(c.oid, attnum), '') !~ '^(clear|sealed|identity): .' OR obj_description(c.oid) IS NULL)",
    );
    assert_eq!(bare, "");
    let sealed = world.sql(
        "SELECT string_agg(attname, ',') FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'sidekeep'::regnamespace \
         AND relkind IN ('r', 'p') AND NOT relispartition AND (col_description(c.oid, attnum) LIKE 'sealed:%') <> (attname LIKE '%\\_sealed')",
    );
    assert_eq!(sealed, "");
}

#[test]
fn diesel_knows_the_columns_that_the_catalogue_has() {
    let world = World::new();
    let catalogue = world.sql(
        "SELECT table_name || '.' || column_name || ' ' || CASE udt_name WHEN 'timestamptz' THEN 'Timestamptz' WHEN 'int8' THEN 'Int8' \
         WHEN 'text' THEN 'Text' WHEN 'bytea' THEN 'Bytea' WHEN 'bool' THEN 'Bool' WHEN 'int4' THEN 'Int4' WHEN 'int2' THEN 'Int2' WHEN 'jsonb' THEN 'Jsonb' WHEN 'date' THEN 'Date' WHEN '_text' THEN 'Array<Text>' ELSE udt_name END || ' ' || is_nullable \
         FROM information_schema.columns WHERE table_schema = 'sidekeep' AND table_name <> '__diesel_schema_migrations' AND table_name !~ '^audit_logs_[0-9]' \
         AND table_name NOT IN (SELECT viewname FROM pg_views WHERE schemaname = 'sidekeep') \
         ORDER BY table_name, ordinal_position",
    );
    let mut known = Vec::new();
    let mut table = String::new();
    for line in include_str!("../../src/store/schema.rs").lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("sidekeep.") {
            table = name.split(' ').next().unwrap().to_owned();
        } else if let Some((column, kind)) = line.strip_suffix(',').and_then(|line| line.split_once(" -> ")) {
            let inner = kind.strip_prefix("Nullable<").and_then(|kind| kind.strip_suffix('>'));
            known.push(format!(
                "{table}.{column} {} {}",
                inner.unwrap_or(kind),
                if inner.is_some() { "YES" } else { "NO" }
            ));
        }
    }
    // A stable sort: the order within a table counts, that of tables does not.
    known.sort_by_key(|column| column.split('.').next().unwrap().to_owned());
    assert_eq!(known.join("\n"), catalogue);
}

#[test]
fn the_daemons_role_can_do_no_more_than_it_needs() {
    let world = World::new();
    let role = "has_table_privilege('sidekeep_app', c.oid, ";
    let grants = world.sql(&format!(
        "SELECT string_agg(relname || ':' || concat(CASE WHEN {role}'SELECT') THEN 'r' END, CASE WHEN {role}'INSERT') THEN 'a' END, \
         CASE WHEN {role}'UPDATE') THEN 'w' END, CASE WHEN {role}'DELETE') THEN 'd' END, CASE WHEN {role}'TRUNCATE, TRIGGER, REFERENCES') THEN '!' END), \
         ' ' ORDER BY relname COLLATE \"C\") FROM pg_class c WHERE relnamespace = 'sidekeep'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
    ));
    assert_eq!(
        grants,
        "__diesel_schema_migrations:r audit_archives:ra audit_checkpoints:ra audit_dropped:ra audit_heads:ra audit_logs:ra audit_nodes:ra audit_publications:raw \
         audit_staged:rad audit_streams:raw audit_verified:raw backup_policy:raw consent_evidence:rad consent_records:rad conversation_messages:rad \
         conversations:rawd daemons:rawd deployment:ra job_runs:rawd keyring_backups:rw keyring_marks:rad keyring_shards:r keyring_writes:rad legal_holds:rad requests:rad retention_floor:r retention_policies:raw schema_compatibility:r \
         subject_erasures:ra subject_refusals:rad subjects:rad user_preferences:rawd user_profiles:rawd"
    );
    let role = world.sql("SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls FROM pg_roles WHERE rolname = 'sidekeep_app'");
    assert_eq!(role, "f|f|f|f");
}

#[test]
fn a_daemon_serves_only_a_schema_that_it_knows() {
    let cluster = Cluster::shared();
    let database = cluster.empty_database();
    let world = World::with_urls(cluster.owner_url(&database), cluster.app_url(&database));
    let mut daemon = world.spawn("");
    assert_eq!(daemon.wait(), Some(1), "{}", daemon.log());
    assert!(daemon.log().contains("sidekeep migrate"), "{}", daemon.log());

    std::fs::write(world.path("owner-url"), &world.owner_url).unwrap();
    std::fs::set_permissions(world.path("owner-url"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let more = format!("database.migrate_url_file = {:?}\n", world.path("owner-url"));
    let (config, _) = world.configure(&more);
    let config = config.to_str().unwrap();
    assert_eq!(sidekeep(&["--config", config, "migrate", "--check"]).status.code(), Some(1));
    assert_eq!(sidekeep(&["--config", config, "migrate"]).status.code(), Some(0));
    assert_eq!(sidekeep(&["--config", config, "migrate", "--check"]).status.code(), Some(0));
    world.start().stop();

    // A later schema that this version can live with, and one that it cannot.
    world.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101000000')");
    world.start().stop();
    world.sql("UPDATE schema_compatibility SET min_daemon = '99.0.0'");
    let mut daemon = world.spawn("");
    assert_eq!(daemon.wait(), Some(1));
    assert!(daemon.log().contains("99.0.0"), "{}", daemon.log());
}

#[test]
fn a_migration_may_take_as_long_as_it_takes() {
    let cluster = Cluster::shared();
    let url = cluster.owner_url(&cluster.empty_database());
    // Another migration is at work.
    let mut other = Psql::open(&url);
    other.run("SELECT pg_advisory_lock(7306085893296054114)");
    let migration = std::thread::spawn({
        let url = url.clone();
        move || migrate(&url)
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory' \
                 AND query_start < clock_timestamp() - interval '2 seconds'";
    wait_for("a migration that waits for long", || (other.run(waits) == "1").then_some(()));
    drop(other);
    migration.join().unwrap();
    assert_eq!(sql(&url, "SELECT count(*) FROM user_profiles"), "0");
}
