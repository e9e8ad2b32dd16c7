//! Checks of the role that the daemon serves as: it may do what it has to, and nothing by which the log could be changed.

use std::sync::Arc;

use serde::Deserialize;

use super::check::Finding;
use super::patient::Patient;

const LEAST: &str = "serve as a role of its own, as `sidekeep setup` makes it: CREATE ROLE sidekeep_app LOGIN NOSUPERUSER NOCREATEDB \
    NOCREATEROLE NOREPLICATION NOBYPASSRLS; the owner of the tables is for database.migrate_url_file alone";

/// Roles of PostgreSQL's own by which a member can write past all grants.
const POWERS: &str = "'pg_write_all_data', 'pg_execute_server_program', 'pg_write_server_files', 'pg_read_server_files', \
    'pg_database_owner', 'pg_create_subscription'";

/// From this version on the right to change a setting can be granted.
const GRANTED_SETTINGS: i32 = 150_000;

/// What the role must not have, by table; a month of the log is as the log.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("__diesel_schema_migrations", &["INSERT", "UPDATE", "DELETE"]),
    ("audit_archives", &["DELETE"]),
    ("audit_checkpoints", &["UPDATE", "DELETE"]),
    ("audit_dropped", &["UPDATE", "DELETE"]),
    ("audit_heads", &["UPDATE", "DELETE"]),
    ("audit_logs", &["UPDATE", "DELETE"]),
    ("audit_nodes", &["UPDATE", "DELETE"]),
    ("audit_staged", &["UPDATE"]),
    ("audit_streams", &["DELETE"]),
    ("consent_evidence", &["UPDATE"]),
    ("consent_records", &["UPDATE"]),
    ("deployment", &["UPDATE", "DELETE"]),
    ("retention_floor", &["INSERT", "UPDATE", "DELETE"]),
    ("schema_compatibility", &["INSERT", "UPDATE", "DELETE"]),
    ("subject_erasures", &["UPDATE", "DELETE"]),
];

#[derive(Deserialize)]
struct Attributes {
    role: String,
    version: i32,
    superuser: bool,
    create_role: bool,
    create_database: bool,
    bypass_rls: bool,
    replication: bool,
    powers: Vec<String>,
}

/// Whether the role is nobody special.
pub(super) async fn attributes(patient: Arc<Patient>) -> Finding {
    let asked = format!(
        "SELECT rolname AS role, current_setting('server_version_num')::int AS version, rolsuper AS superuser, \
            rolcreaterole AS create_role, rolcreatedb AS create_database, rolbypassrls AS bypass_rls, \
            rolreplication AS replication, ARRAY(SELECT p.rolname FROM pg_roles p WHERE p.rolname <> r.rolname \
                AND (p.rolsuper OR p.rolname IN ({POWERS})) AND pg_has_role(r.oid, p.oid, 'MEMBER') ORDER BY 1) AS powers \
        FROM pg_roles r WHERE rolname = current_user"
    );
    let found: Attributes = match patient.one(&asked).await {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    let role = &found.role;
    if found.superuser {
        return Finding::fail(
            format!(
                "the daemon serves as the superuser {role}, who can change the log and switch its triggers off"
            ),
            LEAST,
        );
    }
    let mut more: Vec<String> = [
        (found.create_role, "CREATEROLE"),
        (found.create_database, "CREATEDB"),
        (found.bypass_rls, "BYPASSRLS"),
        (found.replication, "REPLICATION"),
    ]
    .into_iter()
    .filter(|(has, _)| *has)
    .map(|(_, name)| name.to_owned())
    .collect();
    more.extend(found.powers.iter().map(|power| format!("membership in {power}")));
    if found.version >= GRANTED_SETTINGS {
        let asked = "SELECT has_parameter_privilege(current_user, 'session_replication_role', 'SET') AS may";
        match patient.one::<May>(asked).await {
            Ok(May { may: true }) => more.push("the right to set session_replication_role".to_owned()),
            Ok(_) => {}
            Err(finding) => return finding,
        }
    }
    if more.is_empty() {
        return Finding::ok(format!("{role} is no superuser, and nobody special"));
    }
    Finding::fail(format!("{role} can do more than it should: {}", more.join(", ")), LEAST)
}

#[derive(Deserialize)]
struct May {
    may: bool,
}

#[derive(Deserialize)]
struct Owned {
    superuser: bool,
    owned: Vec<String>,
}

/// Whether the role owns nothing that it could then change or drop.
pub(super) async fn ownership(patient: Arc<Patient>) -> Finding {
    const ASKED: &str = "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser, ARRAY( \
        SELECT 'the database' FROM pg_database WHERE datname = current_database() AND pg_has_role(datdba, 'MEMBER') \
        UNION ALL SELECT 'the schema' FROM pg_namespace WHERE nspname = 'sidekeep' \
            AND (pg_has_role(nspowner, 'MEMBER') OR has_schema_privilege(oid, 'CREATE')) \
        UNION ALL (SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace('sidekeep')::oid \
            AND relkind IN ('r', 'p', 'v') AND pg_has_role(relowner, 'MEMBER') ORDER BY 1 LIMIT 5) \
        UNION ALL (SELECT proname || '()' FROM pg_proc WHERE pronamespace = to_regnamespace('sidekeep')::oid \
            AND pg_has_role(proowner, 'MEMBER') ORDER BY 1 LIMIT 5)) AS owned";
    let found: Owned = match patient.one(ASKED).await {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    if found.superuser {
        return Finding::skipped("a superuser may do everything; see role.attributes");
    }
    if found.owned.is_empty() {
        return Finding::ok("it owns nothing, and can switch no trigger off");
    }
    Finding::fail(
        format!("the daemon's role owns, or may make things in: {}", found.owned.join(", ")),
        "give them to another role (ALTER TABLE ... OWNER TO ..., REASSIGN OWNED), who is named in database.migrate_url_file, and take \
         the daemon's role out of that one",
    )
}

#[derive(Deserialize)]
struct Granted {
    table: String,
    privilege: String,
}

/// Whether the role was granted neither more nor less than it needs.
pub(super) async fn grants(patient: Arc<Patient>) -> Finding {
    const NOT: &str = "SELECT relname AS table, 'SELECT' AS privilege FROM pg_class \
        WHERE relnamespace = to_regnamespace('sidekeep')::oid AND relkind IN ('r', 'p') AND NOT relispartition \
            AND NOT has_table_privilege(oid, 'SELECT') \
        UNION ALL SELECT relname, 'INSERT' FROM pg_class WHERE relnamespace = to_regnamespace('sidekeep')::oid \
            AND relname IN ('audit_logs', 'audit_staged', 'subjects', 'job_runs') AND NOT has_table_privilege(oid, 'INSERT') \
        UNION ALL SELECT proname, 'EXECUTE' FROM pg_proc WHERE pronamespace = to_regnamespace('sidekeep')::oid \
            AND prosecdef AND NOT has_function_privilege(oid, 'EXECUTE') ORDER BY 1, 2";
    let asked = more_than_it_should();
    let (more, less) = tokio::join!(patient.ask::<Granted>(&asked), patient.ask::<Granted>(NOT));
    let (more, less) = match (more, less) {
        (Ok(more), Ok(less)) => (more, less),
        (Err(finding), _) | (_, Err(finding)) => return finding,
    };
    let tell = |granted: &[Granted]| {
        let each =
            granted.iter().take(8).map(|granted| format!("{} on {}", granted.privilege, granted.table));
        each.collect::<Vec<_>>().join(", ")
    };
    if patient
        .one::<May>("SELECT rolsuper AS may FROM pg_roles WHERE rolname = current_user")
        .await
        .is_ok_and(|is| is.may)
    {
        return Finding::skipped("a superuser may do everything; see role.attributes");
    }
    if !more.is_empty() {
        return Finding::fail(
            format!("the daemon's role can do more than it should: {}", tell(&more)),
            "take it back as the owner of the tables: REVOKE ... ON sidekeep.TABLE FROM the role, and from PUBLIC",
        );
    }
    if !less.is_empty() {
        return Finding::fail(
            format!("the daemon's role lacks: {}", tell(&less)),
            "grant it as the owner of the tables: GRANT ... ON sidekeep.TABLE TO sidekeep_app; a restore by another tool leaves grants out",
        );
    }
    Finding::ok("what it needs, and nothing by which the log could be changed")
}

fn more_than_it_should() -> String {
    let pairs = FORBIDDEN.iter().flat_map(|(table, privileges)| {
        privileges.iter().map(move |privilege| format!("('{table}', '{privilege}')"))
    });
    let pairs = pairs.collect::<Vec<_>>().join(", ");
    format!(
        "SELECT c.relname AS table, p AS privilege FROM pg_class c, unnest(ARRAY['TRUNCATE', 'TRIGGER']) AS p \
            WHERE c.relnamespace = to_regnamespace('sidekeep')::oid AND c.relkind IN ('r', 'p') AND has_table_privilege(c.oid, p) \
        UNION ALL SELECT c.relname, f.privilege FROM (VALUES {pairs}) AS f(name, privilege) JOIN pg_class c \
            ON c.relnamespace = to_regnamespace('sidekeep')::oid AND c.relkind IN ('r', 'p') \
            AND (c.relname = f.name OR f.name = 'audit_logs' AND c.relispartition AND c.relname LIKE 'audit\\_logs\\_%') \
            WHERE CASE f.privilege WHEN 'UPDATE' THEN has_any_column_privilege(c.oid, 'UPDATE') \
                ELSE has_table_privilege(c.oid, f.privilege) END \
        UNION ALL SELECT 'subjects', 'UPDATE of ' || a.name FROM unnest(ARRAY['subject_id', 'user_id']) AS a(name) \
            WHERE has_column_privilege('sidekeep.subjects', a.name, 'UPDATE') ORDER BY 1, 2"
    )
}
