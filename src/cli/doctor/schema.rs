//! Checks of the schema: complete, guarded by its triggers, and with months ahead.

use std::sync::Arc;

use serde::Deserialize;

use super::check::Finding;
use super::patient::Patient;
use crate::store::migrations::Schema;

/// The triggers that guard what is in a table, and the table; each month of the log has the one of the log.
const TRIGGERS: &[(&str, &[&str])] = &[
    ("audit_checkpoints", &["append_only"]),
    ("audit_dropped", &["append_only"]),
    ("audit_heads", &["append_only"]),
    ("audit_logs", &["append_only"]),
    ("audit_nodes", &["append_only"]),
    ("audit_staged", &["append_only", "into_the_log"]),
    ("consent_evidence", &["append_only"]),
    ("consent_records", &["append_only"]),
    ("legal_holds", &["held", "held_truncate", "shards_on_insert", "shards_on_update"]),
    ("subject_erasures", &["append_only", "shards_on_insert"]),
    ("subject_refusals", &["shards_on_insert", "shards_on_update"]),
    (
        "subjects",
        &[
            "deployment",
            "held",
            "held_truncate",
            "shards_on_delete",
            "shards_on_insert",
            "shards_on_truncate",
            "shards_on_update",
        ],
    ),
];

/// What a table's trigger calls has to refuse.
const REFUSES: &str = "RAISE EXCEPTION";

/// Whether the schema is the one of this version.
pub(super) fn migrations(patient: &Patient) -> Finding {
    match &patient.schema {
        None => Finding::skipped("there is no connection to PostgreSQL; see the checks database.*"),
        Some(Err(why)) => {
            Finding::fail(format!("it could not be looked at: {why}"), "see the checks database.*")
        }
        Some(Ok(schema)) => match schema.advice() {
            None => Finding::ok("up to date"),
            Some(advice) => {
                let next = match schema {
                    Schema::Newer { .. } => {
                        "a later sidekeep has migrated this database: run that one here too"
                    }
                    _ => "`sidekeep migrate`, with database.migrate_url_file; then start the daemons again",
                };
                Finding::fail(advice, next)
            }
        },
    }
}

#[derive(Deserialize)]
struct Trigger {
    table: String,
    is_month: bool,
    name: String,
    is_internal: bool,
    enabled: String,
    function: String,
    refuses: bool,
}

#[derive(Deserialize)]
struct Triggers {
    role: String,
    months: Vec<String>,
    triggers: Vec<Trigger>,
}

/// Whether everything that guards the log, the holds and the keyring's backup is there and switched on.
pub(super) async fn triggers(patient: Arc<Patient>) -> Finding {
    let asked = format!(
        "SELECT current_setting('session_replication_role') AS role, \
            ARRAY(SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
                WHERE i.inhparent = 'sidekeep.audit_logs'::regclass ORDER BY 1) AS months, \
            (SELECT coalesce(json_agg(json_build_object('table', c.relname, 'is_month', c.relispartition, 'name', t.tgname, \
                'is_internal', t.tgisinternal, 'enabled', t.tgenabled, 'function', p.proname, \
                'refuses', p.prosrc LIKE '%{REFUSES}%') ORDER BY c.relname, t.tgname), '[]') \
             FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid \
             WHERE c.relnamespace = 'sidekeep'::regnamespace) AS triggers"
    );
    let found: Triggers = match patient.one(&asked).await {
        Ok(found) => found,
        Err(finding) => return finding,
    };
    let wrong = wrong(&found);
    if wrong.is_empty() {
        let count = found.triggers.iter().filter(|trigger| !trigger.is_internal).count();
        return Finding::ok(format!("{count} triggers, all switched on"));
    }
    let advice = "find out who did it, and since when; then, as the owner of the tables: ALTER TABLE sidekeep.TABLE ENABLE TRIGGER NAME; \
        what is missing is in the migrations. Then `sidekeep verify --full`: what was changed meanwhile, the proof shows";
    Finding::fail(wrong.join("\n"), advice)
}

fn wrong(found: &Triggers) -> Vec<String> {
    let mut wrong = Vec::new();
    if found.role != "origin" {
        wrong.push(format!("session_replication_role is {} for the daemon: no trigger fires", found.role));
    }
    for trigger in found.triggers.iter().filter(|trigger| !matches!(trigger.enabled.as_str(), "O" | "A")) {
        let what = if trigger.is_internal { "a trigger of a foreign key" } else { trigger.name.as_str() };
        wrong.push(format!("{}: {what} is switched off", trigger.table));
    }
    let months = found.months.iter().map(|month| (month.as_str(), &["append_only"][..]));
    for (table, names) in TRIGGERS.iter().map(|(table, names)| (*table, *names)).chain(months) {
        for name in names {
            let trigger = found.triggers.iter().find(|t| t.table == table && t.name == *name);
            match trigger {
                None => wrong.push(format!("{table}: {name} is missing")),
                Some(trigger) if *name == "append_only" && trigger.function != "refuse_change" => {
                    wrong.push(format!("{table}: {name} calls another function, {}", trigger.function));
                }
                Some(_) => {}
            }
        }
    }
    let toothless =
        found.triggers.iter().filter(|t| t.function.starts_with("refuse_") && !t.refuses && !t.is_month);
    wrong.extend(toothless.map(|t| format!("{}: {} refuses nothing any more", t.table, t.function)));
    wrong.dedup();
    wrong
}

/// Whether the months are there that entries go to now and soon.
pub(super) async fn months(patient: Arc<Patient>) -> Finding {
    const ASKED: &str = "SELECT to_char(m, 'YYYY-MM') AS month, n AS ahead FROM generate_series(0, 1) AS n, \
        LATERAL (SELECT now() AT TIME ZONE 'UTC' + make_interval(months => n)) AS l(m) \
        WHERE NOT EXISTS (SELECT FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid \
            WHERE i.inhparent = 'sidekeep.audit_logs'::regclass AND c.relname = 'audit_logs_' || to_char(m, 'YYYY_MM'))";
    #[derive(Deserialize)]
    struct Missing {
        month: String,
        ahead: i32,
    }
    let missing: Vec<Missing> = match patient.ask(ASKED).await {
        Ok(missing) => missing,
        Err(finding) => return finding,
    };
    let advice = "run the job that makes them: sidekeep call job.run '{\"name\": \"partitions\"}', and see job.partitions";
    match missing.as_slice() {
        [] => Finding::ok("this month and the next are there"),
        [first, ..] if first.ahead == 0 => {
            Finding::fail(format!("{} is missing: no entry can be written", first.month), advice)
        }
        [first, ..] => Finding::fail(
            format!("{} is missing: from its first day on no entry can be written", first.month),
            advice,
        ),
    }
}
