//! Retention: what is due goes, on time and no sooner, and the log shows that it went.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::holds::assert_intact;
use crate::support::{Client, Daemon, Psql, Session, World, wait_for};

/// No job but those that are asked for.
pub const QUIET: &str = "jobs.enabled = false\n";

/// So many days ago.
pub fn ago(days: i64) -> String {
    (chrono::Utc::now() - chrono::TimeDelta::days(days)).to_rfc3339()
}

fn years(years: i64) -> String {
    ago(years * 366)
}

/// A run to its end.
pub fn retention(daemon: &Daemon, dry_run: bool) -> Value {
    let run = daemon.ok("job.run", json!({ "name": "retention", "dry_run": dry_run, "wait": "25s" }));
    if run["state"] == "running" { ended(daemon, &run) } else { run }
}

/// A run that succeeds, and counts what a dry run before it has counted.
pub fn run_as_foreseen(daemon: &Daemon) -> Value {
    let foreseen = retention(daemon, true);
    assert_eq!(foreseen["state"], "ok", "{foreseen}");
    let run = retention(daemon, false);
    assert_eq!((&run["state"], &run["counts"]), (&json!("ok"), &foreseen["counts"]), "{run}");
    run["counts"].clone()
}

fn counts(conversations: i64, consents: i64, requests: i64, subjects: i64) -> Value {
    json!({ "conversations": conversations, "consents": consents, "audit_months": 0, "requests": requests,
            "subjects": subjects })
}

/// A conversation whose messages are so many days old.
fn talk(client: &mut Client, user_id: &str, id: &str, days: &[i64]) {
    let messages: Vec<Value> = days
        .iter()
        .map(|days| json!({ "role": "user", "content": "hello", "created_at": ago(*days) }))
        .collect();
    let created = ago(days.iter().copied().max().unwrap_or(91));
    client.ok(
        "conversation.create",
        json!({ "user_id": user_id, "id": id, "messages": messages, "created_at": created }),
    );
}

#[test]
fn conversations_go_so_long_after_their_last_message() {
    let world = World::new();
    let daemon = world.start_with(QUIET);
    let mut client = daemon.client();
    assert_eq!(retention(&daemon, true)["counts"], counts(0, 0, 0, 0));
    talk(&mut client, "a", "over", &[200, 91]);
    talk(&mut client, "a", "going on", &[200, 89]);
    talk(&mut client, "a", "empty", &[]);
    talk(&mut client, "b", "of b", &[400]);
    for held in ["held", "restricted"] {
        talk(&mut client, held, &format!("of {held}"), &[400]);
    }
    client.ok("subject.hold", json!({ "user_id": "held", "reason": "a case", "id": "h" }));
    client.ok("subject.restrict", json!({ "user_id": "restricted", "reason": "disputed" }));
    let view = "SELECT string_agg(id, ',' ORDER BY id) FROM expired_conversations";
    assert_eq!(world.sql(view), "empty,of b,over");

    assert_eq!(run_as_foreseen(&daemon), counts(3, 0, 0, 0));
    assert_eq!(world.sql(view), "");
    let left = "SELECT string_agg(id, ',' ORDER BY id) FROM conversations";
    assert_eq!(world.sql(left), "going on,of held,of restricted");
    assert_eq!(client.err("conversation.get", json!({ "id": "over" })).kind(), "not_found");
    assert_eq!(run_as_foreseen(&daemon), counts(0, 0, 0, 0));
    client.ok("subject.release", json!({ "id": "h", "reason": "closed" }));
    client.ok("subject.unrestrict", json!({ "user_id": "restricted", "reason": "settled" }));
    assert_eq!(run_as_foreseen(&daemon), counts(2, 0, 0, 0));

    // An entry for each person of a batch, and none for a message.
    let entries = client.ok("audit.query", json!({ "action": "retention" }))["items"].clone();
    let told: Vec<_> = entries.as_array().unwrap().iter().collect();
    assert_eq!(told.len(), 4, "{entries}");
    let of_a = told.iter().find(|entry| entry["subject_user_id"] == "a").unwrap();
    assert_eq!(
        (&of_a["labels"]["sidekeep.conversations"], &of_a["labels"]["sidekeep.messages"]),
        (&json!("2"), &json!("2"))
    );
    assert_eq!(of_a["metadata"]["conversations"], json!(["empty", "over"]), "{of_a}");
    assert_eq!(of_a["labels"]["sidekeep.method"], "retention");
    assert_intact(&daemon);
}

#[test]
fn a_long_conversation_goes_in_parts_and_is_counted_once() {
    let world = World::new();
    let daemon = world.start_with(QUIET);
    let mut client = daemon.client();
    talk(&mut client, "a", "long", &[100]);
    talk(&mut client, "a", "other", &[100]);
    let person = world.sql("SELECT subject_id FROM subjects WHERE user_id = 'a'");
    world.sql(
        "INSERT INTO conversation_messages SELECT 'long', n, NULL, '\\x01', now() - interval '100 days' FROM generate_series(1, 20000) n; \
         UPDATE conversations SET message_count = 20001 WHERE id = 'long'",
    );
    assert_eq!(run_as_foreseen(&daemon), counts(2, 0, 0, 0));
    assert_eq!(world.sql("SELECT count(*) FROM conversation_messages"), "0");
    let told = world.sql(&format!(
        "SELECT sum((labels ->> 'sidekeep.messages')::int), sum((labels ->> 'sidekeep.conversations')::int), count(*) > 3 \
         FROM audit_logs WHERE action = 'retention' AND subject_id = {person}"
    ));
    assert_eq!(told, "20002|2|t");
    assert_intact(&daemon);
}

#[test]
fn consents_go_so_long_after_they_ended_and_nothing_comes_back_to_life() {
    let world = World::new();
    let daemon = world.start_with(QUIET);
    let mut client = daemon.client();
    retention(&daemon, true);
    let mut record = |id: &str, kind: &str, given: String, expires: Option<String>| {
        let given = json!({ "id": id, "user_id": "a", "consent_type": kind, "granted": true, "given_at": given,
                            "expires_at": expires });
        client.ok("consent.record", given);
    };
    record("replaced long ago", "t1", years(16), None);
    record("stands", "t1", years(8), None);
    record("replaced of late", "t2", years(9), None);
    record("stands 2", "t2", years(5), None);
    record("expired", "t3", years(16), Some(years(14)));
    record("very old", "t4", years(26), None);
    let same = years(16);
    record("equal, first", "t5", same.clone(), None);
    record("equal, second", "t5", same, None);
    // The one that ended another one is not to go before it.
    record("ended", "t6", years(16), None);
    record("ends it, expired before", "t6", years(8), Some(years(15)));
    record("not yet given", "t7", ago(-400), None);
    record("before that", "t7", years(20), None);
    let view = "SELECT string_agg(id, ',' ORDER BY id) FROM expired_consents";
    let due = "ended,ends it, expired before,equal, first,expired,replaced long ago";
    assert_eq!(world.sql(view), due);
    let client = &mut daemon.client();
    client.ok("subject.hold", json!({ "user_id": "a", "reason": "a case", "id": "h" }));
    assert_eq!(world.sql(view), "");
    assert_eq!(run_as_foreseen(&daemon), counts(0, 0, 0, 0));
    client.ok("subject.release", json!({ "id": "h", "reason": "closed" }));

    assert_eq!(run_as_foreseen(&daemon), counts(0, 5, 0, 0));
    assert_eq!(world.sql(view), "");
    assert_eq!(world.sql("SELECT count(*) FROM consent_records"), "7");
    let check = |kind: &str| daemon.ok("consent.check", json!({ "user_id": "a", "consent_type": kind }));
    assert_eq!(check("t6"), json!({ "granted": false, "consent": null }));
    assert_eq!(check("t5")["consent"]["id"], "equal, second");
    assert_eq!(check("t7")["consent"]["id"], "before that");
    assert_intact(&daemon);

    // The log names what went, and its id may be taken again.
    let told = client.ok("audit.query", json!({ "action": "retention", "resource_id": "expired" }));
    assert_eq!(told["items"][0]["resource_type"], "consent", "{told}");
    assert_eq!(told["items"][0]["subject_user_id"], "a");
    client.ok(
        "consent.record",
        json!({ "id": "expired", "user_id": "b", "consent_type": "t", "granted": true }),
    );
    assert_intact(&daemon);
    // What somebody else takes away is still found.
    world.sql("DELETE FROM consent_records WHERE id IN ('expired', 'stands')");
    let report = daemon.ok("audit.verify", json!({}));
    assert_eq!(report["breaks"].as_array().unwrap().len(), 2, "{report}");
}

#[test]
fn evidence_and_requests_outlive_their_person_and_go_when_their_time_has_come() {
    let world = World::new();
    let daemon = world.start_with(&format!("{QUIET}erasure.consents = \"keep\"\n"));
    let mut client = daemon.client();
    for user_id in ["dead", "alive"] {
        client.ok("consent.record", json!({ "user_id": user_id, "consent_type": "t", "granted": true }));
        let id = format!("of {user_id}");
        client.ok(
            "request.open",
            json!({ "user_id": user_id, "kind": "access", "id": id, "received_at": ago(1) }),
        );
        client.ok("request.close", json!({ "id": id, "outcome": "done", "reason": "sent" }));
    }
    client.ok(
        "request.open",
        json!({ "user_id": "alive", "kind": "access", "id": "open", "received_at": ago(1) }),
    );
    client.ok("subject.erase", json!({ "user_id": "dead", "reason": "request" }));
    assert_eq!(run_as_foreseen(&daemon), counts(0, 0, 0, 0));
    world.sql(
        "UPDATE requests SET closed_at = now() - interval '2600 days' WHERE closed_at IS NOT NULL; \
         SET session_replication_role = replica; UPDATE subject_erasures SET erased_at = now() - interval '2600 days'",
    );
    client.ok("subject.hold", json!({ "user_id": "alive", "reason": "a case", "id": "h" }));
    assert_eq!(run_as_foreseen(&daemon), counts(0, 1, 1, 0));
    client.ok("subject.release", json!({ "id": "h", "reason": "closed" }));
    assert_eq!(run_as_foreseen(&daemon), counts(0, 0, 1, 0));
    assert_eq!(
        world.sql("SELECT (SELECT count(*) FROM consent_evidence), string_agg(id, ',') FROM requests"),
        "0|open"
    );
    // The tombstone is what its certificate says again.
    world.sql(
        "SET session_replication_role = replica; \
         UPDATE subject_erasures SET erased_at = (certificate #>> '{body,erased_at}')::timestamptz",
    );
    assert_intact(&daemon);
}

#[test]
fn persons_whom_nothing_refers_to_are_erased_with_a_tombstone() {
    let world = World::new();
    // Without entries, so that nothing refers to who has no record.
    let daemon =
        world.start_with(&format!("{QUIET}audit.access = \"none\"\nkeyring.refuse_again = \"1d\"\n"));
    let mut client = daemon.client();
    for user_id in ["forgotten", "held", "asks", "writes", "named"] {
        client.ok("preferences.set", json!({ "user_id": user_id, "preferences": {} }));
    }
    client
        .ok("request.open", json!({ "user_id": "asks", "kind": "access", "id": "r", "received_at": ago(1) }));
    client.ok("audit.append", json!({ "action": "seen", "user_id": "named" }));
    for user_id in ["forgotten", "held", "asks", "named"] {
        client.ok("preferences.delete", json!({ "user_id": user_id }));
    }
    client.ok("subject.hold", json!({ "user_id": "held", "reason": "a case" }));
    assert_eq!(run_as_foreseen(&daemon), counts(0, 0, 0, 0), "they may be about to be written about");
    world.sql("UPDATE subjects SET created_at = created_at - interval '2 days'");
    assert_eq!(run_as_foreseen(&daemon), counts(0, 0, 0, 1));
    let left = world.sql("SELECT string_agg(user_id, ',' ORDER BY user_id) FROM subjects");
    assert_eq!(left, "asks,held,named,writes");
    assert_eq!(world.sql("SELECT count(*) FROM subjects WHERE subject_id = 0"), "1");
    let told = world.sql(
        "SELECT e.reason, e.certificate -> 'body' ->> 'reason', l.action, l.labels ? 'sidekeep.run' \
         FROM subject_erasures e JOIN audit_logs l ON l.id = e.entry_id AND l.subject_id = e.subject_id",
    );
    assert_eq!(told, "retention|retention|subject.erase|t");
    let report = daemon.ok("audit.verify", json!({}));
    assert_eq!((&report["verdict"], &report["erased_subjects"]), (&json!("intact"), &json!(1)));
    // Nobody asked for it: who comes back is taken in again.
    client.ok("preferences.set", json!({ "user_id": "forgotten", "preferences": {} }));
}

#[test]
fn a_run_that_removes_nothing_although_something_is_due_has_failed() {
    let world = World::new();
    let daemon = world.start_with(QUIET);
    let mut client = daemon.client();
    for id in ["v1", "v2"] {
        talk(&mut client, "a", id, &[100]);
    }
    client.ok(
        "consent.record",
        json!({ "id": "c", "user_id": "a", "consent_type": "t", "granted": true, "given_at": years(9), "expires_at": years(8) }),
    );
    world.sql(
        "CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; \
         CREATE TRIGGER keep BEFORE DELETE ON conversations FOR EACH ROW WHEN (OLD.id = 'v1') EXECUTE FUNCTION public.keep(); \
         CREATE TRIGGER keep BEFORE DELETE ON consent_records FOR EACH ROW EXECUTE FUNCTION public.keep()",
    );
    let run = retention(&daemon, false);
    assert_eq!(run["state"], "failed", "{run}");
    let error = run["error"].as_str().unwrap();
    assert!(error.contains("conversations: 2 were due, 1 were removed, and 1 stayed"), "{error}");
    // What did go is counted, and the other kinds were tried.
    assert_eq!(run["counts"], counts(1, 0, 0, 0));
    let log = daemon.log();
    assert!(log.contains("consents: 1 were due, 0 were removed, and 1 stayed"), "{log}");
    world.sql("DROP TRIGGER keep ON conversations; DROP TRIGGER keep ON consent_records");
    assert_eq!(run_as_foreseen(&daemon), counts(1, 1, 0, 0));
    assert_intact(&daemon);
}

#[test]
fn who_is_taken_by_somebody_else_is_left_for_the_next_run() {
    let world = World::new();
    let daemon = world.start_with(QUIET);
    let mut client = daemon.client();
    for user_id in ["a", "b"] {
        talk(&mut client, user_id, &format!("of {user_id}"), &[100]);
    }
    let taken = Session::hold(&world.owner_url, "a");
    let run = retention(&daemon, false);
    assert_eq!((&run["state"], &run["counts"]), (&json!("ok"), &counts(1, 0, 0, 0)), "{run}");
    taken.release();
    assert_eq!(run_as_foreseen(&daemon), counts(1, 0, 0, 0));
    assert_intact(&daemon);
}

/// Persons with a conversation each that is due, and the one who comes last.
fn many(world: &World, daemon: &Daemon) -> String {
    let mut client = daemon.client();
    for number in 0..50 {
        talk(&mut client, &format!("u{number}"), &format!("of u{number}"), &[100]);
    }
    world.sql("SELECT user_id FROM subjects ORDER BY subject_id DESC LIMIT 1")
}

#[test]
fn a_hold_that_is_placed_during_a_run_keeps_what_has_not_gone_yet() {
    let world = World::new();
    let daemon = world.start_with(QUIET);
    let last = many(&world, &daemon);
    let first = world.sql("SELECT user_id FROM subjects WHERE subject_id > 0 ORDER BY subject_id LIMIT 1");
    let mut psql = Psql::open(&world.owner_url);
    psql.run("BEGIN");
    psql.run(&format!("SELECT 1 FROM conversation_messages WHERE conversation_id = 'of {first}' FOR UPDATE"));
    let run = daemon.ok("job.run", json!({ "name": "retention", "wait": "0s" }));
    wait_for("the run to wait", || {
        (world.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()") == "1").then_some(())
    });
    daemon.ok("subject.hold", json!({ "user_id": last, "reason": "a case" }));
    psql.run("COMMIT");
    let ended = ended(&daemon, &run);
    assert_eq!((&ended["state"], &ended["counts"]), (&json!("ok"), &counts(49, 0, 0, 0)), "{ended}");
    assert_eq!(world.sql("SELECT string_agg(id, ',') FROM conversations"), format!("of {last}"));
    assert_intact(&daemon);
}

fn ended(daemon: &Daemon, run: &Value) -> Value {
    wait_for("the end of the run", || {
        let page = daemon.ok("job.history", json!({ "name": "retention", "limit": 1 }));
        let last = page["items"][0].clone();
        (last["run"] == run["run"] && last["state"] != "running").then_some(last)
    })
}

#[test]
fn a_run_whose_daemon_was_killed_is_gone_on_with_and_its_counts_are_true() {
    let world = World::new();
    let mut killed = world.start_with(QUIET);
    let last = many(&world, &killed);
    let mut psql = Psql::open(&world.owner_url);
    psql.run("BEGIN");
    psql.run(&format!("SELECT 1 FROM conversation_messages WHERE conversation_id = 'of {last}' FOR UPDATE"));
    let run = killed.ok("job.run", json!({ "name": "retention", "wait": "0s" }));
    wait_for("two batches", || {
        (world.sql("SELECT counts ->> 'conversations' FROM job_runs WHERE state = 'running'") == "40")
            .then_some(())
    });
    killed.signal(Signal::SIGKILL);
    killed.wait();
    psql.run("COMMIT");
    let other = world.start();
    world.sql("UPDATE job_runs SET heartbeat_at = now() - interval '1 minute' WHERE state = 'running'");
    let ended = ended(&other, &run);
    assert_eq!((&ended["state"], &ended["counts"]), (&json!("ok"), &counts(50, 0, 0, 0)), "{ended}");
    assert_eq!(world.sql("SELECT epoch FROM job_runs WHERE name = 'retention'"), "2");
    let told = "SELECT sum((labels ->> 'sidekeep.conversations')::int), count(DISTINCT subject_id) FROM audit_logs WHERE action = 'retention'";
    other.ok("audit.query", json!({ "limit": 1 }));
    assert_eq!(world.sql(told), "50|50");
    assert_intact(&other);
}

#[test]
fn old_runs_go_and_the_last_of_each_job_stays() {
    let world = World::new();
    let daemon = world.start_with(QUIET);
    for _ in 0..3 {
        daemon.ok("job.run", json!({ "name": "partitions" }));
    }
    daemon.ok("job.run", json!({ "name": "partitions", "dry_run": true }));
    world.sql("UPDATE job_runs SET finished_at = finished_at - interval '400 days'");
    run_as_foreseen(&daemon);
    let left = world.sql("SELECT count(*), bool_or(dry_run) FROM job_runs WHERE name = 'partitions'");
    assert_eq!(left, "1|f");
    let jobs = daemon.ok("job.list", json!({}));
    let job = jobs["items"].as_array().unwrap().iter().find(|job| job["name"] == "partitions").unwrap();
    assert_eq!(job["last_run"]["state"], "ok", "{job}");
}

#[test]
fn what_is_configured_is_what_the_views_go_by() {
    let world = World::new();
    let daemon = world.start_with("retention.conversations = \"10d\"\n");
    wait_for("the policies", || (world.sql("SELECT count(*) FROM retention_policies") == "5").then_some(()));
    let policies =
        "SELECT string_agg(name || ' ' || keep_seconds / 86400, ', ' ORDER BY name) FROM retention_policies";
    assert_eq!(
        world.sql(policies),
        "audit_logs 2556, consents 2556, conversations 10, job_runs 365, requests 2556"
    );
    talk(&mut daemon.client(), "a", "over", &[11]);
    assert_eq!(world.sql("SELECT id FROM expired_conversations"), "over");
    daemon.stop();
    let daemon = world.start_with(QUIET);
    assert_eq!(run_as_foreseen(&daemon), counts(0, 0, 0, 0));
    assert_eq!(world.sql("SELECT count(*) FROM expired_conversations"), "0");
}
