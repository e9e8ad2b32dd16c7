//! A change and its entry in the log are one transaction: where either cannot be, the other is not.

use serde_json::{Value, json};

use crate::support::World;

/// Where changes are.
const TABLES: [&str; 8] = [
    "user_profiles",
    "user_preferences",
    "consent_records",
    "conversations",
    "conversation_messages",
    "legal_holds",
    "requests",
    "subject_erasures",
];

/// One call of each method that changes something of a person, each of which would succeed after those before it.
fn calls() -> Vec<(&'static str, Value)> {
    let messages = json!([{ "role": "user", "content": "hello" }]);
    vec![
        ("profile.create", json!({ "user_id": "new", "username": "n", "email": "e" })),
        ("profile.update", json!({ "user_id": "u", "changes": { "email": "other" } })),
        ("profile.delete", json!({ "user_id": "u" })),
        ("preferences.set", json!({ "user_id": "u", "preferences": { "a": 2 } })),
        ("preferences.update", json!({ "user_id": "u", "changes": { "b": 1 } })),
        ("preferences.delete", json!({ "user_id": "u" })),
        ("consent.record", json!({ "user_id": "u", "consent_type": "c", "granted": true })),
        ("conversation.create", json!({ "user_id": "u", "messages": messages })),
        ("conversation.append", json!({ "id": "v", "messages": messages })),
        ("conversation.update", json!({ "id": "v", "changes": { "title": "t" } })),
        ("conversation.delete", json!({ "id": "v" })),
        ("subject.hold", json!({ "user_id": "u", "reason": "r" })),
        ("subject.release", json!({ "id": "h", "reason": "r" })),
        ("subject.restrict", json!({ "user_id": "s", "reason": "r" })),
        ("subject.unrestrict", json!({ "user_id": "r", "reason": "r" })),
        ("request.open", json!({ "user_id": "u", "kind": "access" })),
        ("request.extend", json!({ "id": "q", "reason": "r" })),
        ("request.close", json!({ "id": "q", "outcome": "done" })),
        ("subject.erase", json!({ "user_id": "e", "reason": "request" })),
    ]
}

/// All that stands in the tables, and who is there and restricted of those who were there from the beginning.
fn state(world: &World) -> String {
    let table = |table: &&str| {
        let query = format!(
            "SELECT '{table}' || coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') FROM {table} t"
        );
        world.sql(&query)
    };
    let people = "SELECT string_agg(concat(user_id, restricted_at), ',' ORDER BY user_id) FROM subjects WHERE user_id <> 'new'";
    TABLES.iter().map(table).chain([world.sql(people)]).collect::<Vec<_>>().join("\n")
}

/// How many entries tell that one of these calls succeeded.
fn entered(world: &World) -> i64 {
    let methods = calls().iter().map(|(method, _)| format!("'{method}'")).collect::<Vec<_>>().join(",");
    let told = format!("action IN ({methods}) AND outcome = 'success'");
    let query = format!(
        "SELECT (SELECT count(*) FROM audit_logs WHERE {told}) + (SELECT count(*) FROM audit_staged)"
    );
    world.sql(&query).parse().unwrap()
}

#[test]
fn no_change_is_without_its_entry_and_no_entry_without_its_change() {
    let world = World::new();
    let daemon = world.start_with("audit.streams = 1\n");
    let mut client = daemon.client();
    client.ok("profile.create", json!({ "user_id": "u", "username": "n", "email": "e" }));
    client.ok("preferences.set", json!({ "user_id": "u", "preferences": { "a": 1 } }));
    client.ok("conversation.create", json!({ "user_id": "u", "id": "v" }));
    client.ok("subject.hold", json!({ "user_id": "s", "reason": "r", "id": "h" }));
    client.ok("subject.restrict", json!({ "user_id": "r", "reason": "r" }));
    client.ok("request.open", json!({ "user_id": "u", "kind": "access", "id": "q" }));
    client.ok("profile.create", json!({ "user_id": "e", "username": "n", "email": "e" }));
    world.drained();

    let before = state(&world);
    world.sql("ALTER TABLE audit_staged ADD CONSTRAINT none CHECK (false) NOT VALID");
    for (method, params) in calls() {
        client.err(method, params);
        assert_eq!(state(&world), before, "{method} without its entry");
    }
    world.sql("ALTER TABLE audit_staged DROP CONSTRAINT none");

    let entries = entered(&world);
    world.sql("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'");
    for table in TABLES.iter().chain(&["subjects"]) {
        // At the very end of the transaction, when everything else of it is done.
        let events = if *table == "subjects" { "UPDATE OR DELETE" } else { "INSERT OR UPDATE OR DELETE" };
        world.sql(&format!(
            "CREATE CONSTRAINT TRIGGER fail AFTER {events} ON {table} DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION fail()"
        ));
    }
    for (method, params) in calls() {
        client.err(method, params);
        assert_eq!(entered(&world), entries, "{method} without its change");
        assert_eq!(state(&world), before, "{method}");
    }
    for table in TABLES.iter().chain(&["subjects"]) {
        world.sql(&format!("DROP TRIGGER fail ON {table}"));
    }

    for (count, (method, params)) in calls().into_iter().enumerate() {
        client.ok(method, params);
        let count = i64::try_from(count).unwrap() + 1;
        assert_eq!(entered(&world), entries + count, "{method}");
    }
    assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact");
    daemon.assert_well();
}
