//! An erasure that fails, that is asked for twice, and that meets everybody else: all of it or nothing, and nothing comes back.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sidekeep::subjects::selector::TABLES;

use crate::erasure::{SALT, fill, filled, rows};
use crate::support::{Client, Cluster, Fault, PATIENCE, Proxy, Psql, World, timed, wait_for};

fn erase(user_id: &str, id: &str) -> Value {
    json!({ "user_id": user_id, "reason": "request", "id": id, "salt": SALT })
}

/// Every table that an erasure writes to, and how.
const WRITES: [(&str, &str); 12] = [
    ("user_profiles", "DELETE"),
    ("user_preferences", "DELETE"),
    ("consent_records", "DELETE"),
    ("consent_evidence", "INSERT"),
    ("conversation_messages", "DELETE"),
    ("conversations", "DELETE"),
    ("legal_holds", "DELETE"),
    ("subjects", "DELETE"),
    ("subject_refusals", "DELETE"),
    ("subject_refusals", "INSERT"),
    ("subject_erasures", "INSERT"),
    ("audit_staged", "INSERT"),
];

const LEFT: &str = "SELECT (SELECT count(*) FROM subject_erasures) || ' ' || (SELECT count(*) FROM consent_evidence) || ' ' || \
    (SELECT count(*) FROM subject_refusals) || ' ' || (SELECT count(*) FROM audit_staged WHERE action = 'subject.erase') || ' ' || \
    (SELECT count(*) FROM audit_logs WHERE action = 'subject.erase' AND outcome = 'success')";

#[test]
fn a_fault_at_any_statement_leaves_everything_as_it_was() {
    let world = World::new();
    let daemon = world.start_with("erasure.consents = \"keep\"\nkeyring.refuse_again = \"1s\"\n");
    let mut client = daemon.client();
    fill(&mut client, "u", "MARK");
    client.ok("subject.hold", json!({ "user_id": "u", "reason": "r", "id": "h" }));
    client.ok("subject.release", json!({ "id": "h", "reason": "r" }));
    let before = rows(&world);
    world.sql("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'planted'; END $$");
    for (table, verb) in WRITES {
        for when in ["BEFORE", "AFTER"] {
            world.sql(&format!(
                "CREATE TRIGGER fail {when} {verb} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION fail()"
            ));
            let error = client.err("subject.erase", erase("u", "e"));
            assert_eq!(error.code, -32603, "{when} {verb} on {table}: {error:?}");
            world.sql(&format!("DROP TRIGGER fail ON {table}"));
            assert_eq!(
                (rows(&world), world.sql(LEFT).as_str()),
                (before.clone(), "0 0 0 0 0"),
                "{when} {verb} on {table}"
            );
        }
    }
    assert_eq!(client.ok("subject.erase", erase("u", "e"))["body"]["counts"], filled());
    assert_eq!(client.ok("audit.verify", json!({}))["verdict"], "intact");
    assert_eq!(world.sql(LEFT), "1 2 1 0 1");
}

#[test]
fn a_connection_that_is_cut_at_any_statement_erases_all_or_nothing_and_a_retry_tells() {
    let mut world = World::new();
    let proxy = Proxy::new(&Cluster::shared().socket_directory());
    world.app_url = proxy.url(&world.app_url);
    // No run of a job between the steps.
    let daemon = world.start_with("database.pool = 2\njobs.enabled = false\n");
    let mut client = daemon.client();
    // Where nothing is said, the COMMIT.
    type Step = (&'static str, Option<fn(&str) -> bool>);
    let steps: [Step; 9] = [
        (
            "the person FOR UPDATE",
            Some(|sql| sql.contains("user_id") && sql.trim_end().ends_with("FOR UPDATE")),
        ),
        ("profile", Some(|sql| sql.contains("DELETE FROM sidekeep.user_profiles"))),
        ("consents", Some(|sql| sql.contains("DELETE FROM sidekeep.consent_records"))),
        ("messages", Some(|sql| sql.contains("DELETE FROM sidekeep.conversation_messages"))),
        ("conversations", Some(|sql| sql.contains("DELETE FROM sidekeep.conversations"))),
        ("the person", Some(|sql| sql.contains("DELETE FROM sidekeep.subjects "))),
        ("tombstone", Some(|sql| sql.contains("INSERT INTO") && sql.contains("subject_erasures"))),
        ("entry", Some(|sql| sql.contains("INSERT INTO") && sql.contains("audit_staged"))),
        ("COMMIT", None),
    ];
    for (number, (step, what)) in steps.into_iter().enumerate() {
        for fault in [Fault::CutBefore, Fault::CutAfter] {
            let (user_id, id) = (format!("u{number}{fault:?}"), format!("e{number}{fault:?}"));
            fill(&mut client, &user_id, "MARK");
            world.drained();
            let failed = proxy.failed();
            match what {
                Some(what) => proxy.fail(fault, what),
                None => proxy.fail_commit(fault, "audit_staged"),
            }
            let first = client.call("subject.erase", erase(&user_id, &id));
            assert_eq!(proxy.failed(), failed + 1, "{step}, {fault:?}");
            let there = world.sql(&format!("SELECT count(*) FROM subjects WHERE user_id = '{user_id}'"));
            if step == "COMMIT" {
                assert_eq!(first.as_ref().unwrap_err().kind(), "unknown_outcome", "{fault:?}");
                assert_eq!(there, if fault.is_after() { "0" } else { "1" }, "{fault:?}");
            } else {
                assert!(first.is_ok() && there == "0", "{step}, {fault:?}: {first:?}");
            }
            let again = client.ok("subject.erase", erase(&user_id, &id));
            assert_eq!(again["body"]["counts"], filled(), "{step}, {fault:?}");
            if let Ok(first) = first {
                assert_eq!(first, again);
            }
            assert_eq!(
                world.sql(&format!("SELECT count(*) FROM subject_erasures WHERE certificate_id = '{id}'")),
                "1"
            );
        }
    }
    let report = client.ok("audit.verify", json!({}));
    assert_eq!((&report["verdict"], &report["erased_subjects"]), (&json!("intact"), &json!(18)), "{report}");
}

#[test]
fn a_daemon_that_is_killed_in_an_erasure_has_erased_nothing() {
    let world = World::new();
    let mut daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "u", "MARK");
    let before = rows(&world);
    let mut holding = Psql::open(&world.owner_url);
    holding.run("BEGIN");
    holding.run("LOCK TABLE subject_erasures IN ACCESS EXCLUSIVE MODE");
    client.send_call("subject.erase", erase("u", "e"));
    wait_for("the erasure", || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (world.sql(waiting) == "1").then_some(())
    });
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    holding.run("COMMIT");
    wait_for("the end of its transaction", || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'sidekeep_app' AND xact_start IS NOT NULL";
        (world.sql(open) == "0").then_some(())
    });
    assert_eq!((rows(&world), world.sql(LEFT).as_str()), (before, "0 0 0 0 0"));
    let daemon = daemon.start_again();
    assert_eq!(daemon.ok("subject.erase", erase("u", "e"))["body"]["counts"], filled());
    assert_eq!(daemon.ok("audit.verify", json!({}))["verdict"], "intact");
}

#[test]
fn of_two_erasures_at_once_one_erases() {
    let world = World::new();
    let daemons = [world.start(), world.start()];
    for (round, id) in [(0, true), (1, false)] {
        let user_id = format!("u{round}");
        fill(&mut daemons[0].client(), &user_id, "MARK");
        let answers: Vec<_> = thread::scope(|scope| {
            let asking: Vec<_> = (0..8)
                .map(|n| {
                    let (daemon, user_id) = (&daemons[n % 2], &user_id);
                    scope.spawn(move || {
                        let asked = if id {
                            erase(user_id, "same")
                        } else {
                            json!({ "user_id": user_id, "reason": "request" })
                        };
                        daemon.client().call("subject.erase", asked)
                    })
                })
                .collect();
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        let done: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
        let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        if id {
            assert!(refused.is_empty() && done.iter().all(|answer| *answer == done[0]), "{answers:?}");
        } else {
            assert!(
                done.len() == 1 && refused.iter().all(|error| error.kind() == "not_found"),
                "{answers:?}"
            );
        }
    }
    assert_eq!(world.sql("SELECT count(*) FROM subject_erasures"), "2");
}

#[test]
fn an_entry_that_an_application_forges_is_none_of_sidekeeps() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "u", "MARK");
    let forged = json!({ "action": "subject.erase", "subject_user_id": "u", "outcome": "success", "resource_type": "erasure", "resource_id": "c-1" });
    let mut labelled = forged.clone();
    labelled["labels"] = json!({ "sidekeep.method": "subject.erase", "sidekeep.uid": "0" });
    assert_eq!(client.err("audit.append", labelled).field(), "labels");
    client.ok("audit.append", forged);
    client.ok("profile.create", json!({ "user_id": "v", "username": "x", "email": "x@x.example" }));
    let certificate = client.ok("subject.erase", erase("v", "e"));
    let own = client.ok("audit.get", json!({ "id": certificate["body"]["entry_id"] }));
    assert_eq!(own["labels"]["sidekeep.method"], "subject.erase");
    let said = "SELECT count(*) FROM audit_logs WHERE action = 'subject.erase' AND labels ->> 'sidekeep.method' = 'subject.erase' \
        AND labels ->> 'sidekeep.row_sha256' IS NOT NULL AND id IN (SELECT entry_id FROM subject_erasures)";
    assert_eq!(world.sql(said), "1");
    assert_eq!(client.ok("audit.verify", json!({}))["verdict"], "intact");

    // Nor does the entry of an erasure that was refused, or only counted, cover a key that somebody takes away.
    let mut counting = erase("u", "e-2");
    counting["dry_run"] = true.into();
    client.ok("subject.erase", counting);
    client.ok("subject.hold", json!({ "user_id": "u", "reason": "r", "id": "h" }));
    assert_eq!(client.err("subject.erase", erase("u", "e-2")).kind(), "held");
    client.ok("audit.verify", json!({}));
    let person = world.sql("SELECT subject_id FROM subjects WHERE user_id = 'u'");
    let entries = world
        .sql(&format!("SELECT id FROM audit_logs WHERE action = 'subject.erase' AND subject_id = {person}"));
    assert_eq!(entries.lines().count(), 3, "forged, counted and refused");
    world.sql(&format!(
        "SET session_replication_role = replica; DELETE FROM subjects WHERE subject_id = {person}"
    ));
    for entry in entries.lines() {
        world.sql(&format!(
            "SET session_replication_role = replica; DELETE FROM subject_erasures WHERE subject_id = {person}; \
             INSERT INTO subject_erasures SELECT {person}, erased_at, reason, '{entry}', 'c-{entry}', certificate, NULL FROM subject_erasures"
        ));
        let report = client.ok("audit.verify", json!({}));
        assert_eq!(
            (&report["verdict"], &report["breaks"][0]["what"]),
            (&json!("broken"), &json!("subjects")),
            "{entry}"
        );
    }
}

/// What one client does about the person until it is told to stop; what it reads is of the generation that lives.
fn rush(client: &mut Client, number: usize, stop: &AtomicBool) -> usize {
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        calls += 1;
        let (method, params) = match (number + calls) % 9 {
            0 => ("profile.create", json!({ "user_id": "u", "username": "MARK", "email": "MARK@x.example" })),
            1 => ("preferences.set", json!({ "user_id": "u", "preferences": { "MARK": calls } })),
            2 => (
                "consent.record",
                json!({ "user_id": "u", "consent_type": "t", "granted": true, "metadata": "MARK" }),
            ),
            3 => (
                "conversation.create",
                json!({ "user_id": "u", "messages": [{ "role": "user", "content": "MARK" }] }),
            ),
            4 => (
                "audit.append",
                json!({ "user_id": "u", "action": "a", "ip_address": "MARK", "metadata": "MARK" }),
            ),
            5 => ("profile.update", json!({ "user_id": "u", "changes": { "full_name": "MARK" } })),
            6 => ("profile.get", json!({ "user_id": "u" })),
            7 => ("audit.query", json!({ "user_id": "u", "limit": 5 })),
            _ if number < 4 => ("subject.erase", json!({ "user_id": "u", "reason": "request" })),
            _ => ("conversation.list", json!({ "user_id": "u" })),
        };
        if let Err(error) = client.call(method, params) {
            let kinds = ["not_found", "conflict", "unavailable", "overloaded"];
            assert!(kinds.contains(&error.kind()), "{method}: {error:?}");
        }
    }
    calls
}

#[test]
fn writing_reading_and_erasing_one_person_at_once_leaves_nothing_that_opens() {
    const RUSH: Duration = Duration::from_secs(10);
    let world = World::new();
    let daemons = [world.start(), world.start()];
    let stop = AtomicBool::new(false);
    let (calls, took) = timed(|| {
        thread::scope(|scope| {
            let rushing: Vec<_> = (0..32)
                .map(|number| {
                    let (daemon, stop) = (&daemons[number % 2], &stop);
                    scope.spawn(move || rush(&mut daemon.client(), number, stop))
                })
                .collect();
            let began = Instant::now();
            // By the clock, since what it is about is what happens meanwhile; and until enough has.
            let erased = || world.sql("SELECT count(*) FROM subject_erasures").parse::<u32>().unwrap();
            while (began.elapsed() < RUSH || (erased() <= 3 && began.elapsed() < PATIENCE))
                && rushing.iter().all(|thread| !thread.is_finished())
            {
                thread::yield_now();
                thread::park_timeout(Duration::from_millis(20));
            }
            stop.store(true, Ordering::Relaxed);
            rushing.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        })
    });
    let mut client = daemons[0].client();
    // Who has come back last goes too.
    let _ = client.call("subject.erase", json!({ "user_id": "u", "reason": "request" }));
    let erased: u64 = world.sql("SELECT count(*) FROM subject_erasures").parse().unwrap();
    eprintln!("{calls} calls in {took:?}, {erased} erasures");
    assert!(erased > 3, "{erased} erasures in {calls} calls");
    for line in rows(&world).lines() {
        assert!(line.ends_with(" 0"), "{line}");
    }
    let report = client.ok("audit.verify", json!({}));
    assert_eq!(report["verdict"], "intact", "{report}");
    let all = client.ok("audit.query", json!({ "limit": 1000 }));
    assert!(!all.to_string().contains("MARK"), "an old datum is shown");
    let lost = "SELECT count(*) FROM (SELECT actor_id AS id FROM audit_logs UNION SELECT subject_id FROM audit_logs) l \
        WHERE id IS NOT NULL AND id NOT IN (SELECT subject_id FROM subjects UNION SELECT subject_id FROM subject_erasures)";
    assert_eq!(world.sql(lost), "0", "each number leads to a person or to a tombstone");
    assert_eq!(Opened::all(&world, &["u"]).marks("MARK"), Vec::<String>::new());
}

#[test]
fn no_mark_of_an_erased_person_is_in_a_dump_in_clear_or_in_a_form_that_opens() {
    const MARK: &str = "ZEBRAMARK";
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&mut client, "user:zebra", MARK);
    client.ok("subject.hold", json!({ "user_id": "user:zebra", "reason": MARK, "id": "h" }));
    client.ok("subject.release", json!({ "id": "h", "reason": MARK }));
    fill(&mut client, "user:other", "OTHERMARK");
    let people = ["user:zebra", "user:other"];
    client.ok("audit.verify", json!({}));
    let before = Opened::all(&world, &people);
    let found = before.marks(MARK);
    // The test can open: else it would prove nothing.
    for place in TABLES
        .iter()
        .filter(|table| !["requests", "subject_erasures", "audit_staged"].contains(&table.name))
        .flat_map(|table| table.sealed.iter().map(move |sealed| format!("{}.{}", table.name, sealed.column)))
    {
        assert!(found.contains(&place), "{place} was not opened: {found:?}");
    }
    client.ok("subject.erase", json!({ "user_id": "user:zebra", "reason": "request", "context": { "user_id": "user:zebra", "ip_address": MARK } }));
    client.ok("audit.verify", json!({}));
    let after = Opened::all(&world, &people);
    assert_eq!(after.marks(MARK), Vec::<String>::new());
    assert!(!after.marks("OTHERMARK").is_empty(), "whoever lives is read as before");
    let dump = Command::new("pg_dump").arg(&world.owner_url).output().unwrap();
    assert!(dump.status.success());
    let dump = String::from_utf8_lossy(&dump.stdout).to_lowercase();
    for text in [MARK, "user:zebra"] {
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(!dump.contains(&text.to_lowercase()) && !dump.contains(&hex), "{text} stands in the dump");
    }
    assert!(dump.contains("user:other") && !daemon.log().contains(MARK));
}

/// What somebody finds who has the whole database and the key-encryption key, and tries every key on everything.
struct Opened(Vec<(String, String)>);

impl Opened {
    fn all(world: &World, people: &[&str]) -> Self {
        let kek = Kek::read(world);
        let keys = kek.data_keys(world, people);
        let mut opened = Vec::new();
        for table in TABLES {
            let row = table.key.join("::text || chr(1) || ");
            for sealed in table.sealed {
                let lines = world.sql(&format!(
                    "SELECT encode(convert_to({row}::text, 'utf8'), 'hex') || ' ' || encode({column}, 'hex') FROM {name} WHERE {column} IS NOT NULL",
                    column = sealed.column,
                    name = table.name
                ));
                for (row, bytes) in lines.lines().map(|line| line.split_once(' ').unwrap()) {
                    let row = unhex(row)
                        .into_iter()
                        .map(|byte| if byte == 1 { 0 } else { byte })
                        .collect::<Vec<_>>();
                    let place = sealed.table.unwrap_or(table.name);
                    let bound =
                        bind("sidekeep seal", &[b"test", place.as_bytes(), &row, sealed.column.as_bytes()]);
                    for key in &keys {
                        if let Some(plain) = open(key, &bound, &unhex(bytes)) {
                            let text = String::from_utf8_lossy(&plain).into_owned();
                            opened.push((format!("{}.{}", table.name, sealed.column), text));
                        }
                    }
                }
            }
        }
        Self(opened)
    }

    /// Where a mark is found.
    fn marks(&self, mark: &str) -> Vec<String> {
        let found = self
            .0
            .iter()
            .filter(|(_, text)| text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == mark));
        found.map(|(place, _)| place.clone()).collect()
    }
}

/// The key-encryption key, as whoever steals its file has it.
struct Kek {
    id: String,
    key: Vec<u8>,
}

impl Kek {
    fn read(world: &World) -> Self {
        let text = std::fs::read_to_string(world.path("kek")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("sidekeep-kek-1:")).unwrap();
        let id = world.sql("SELECT kek_id FROM subjects WHERE subject_id = 0");
        Self { id, key: STANDARD.decode(line).unwrap() }
    }

    /// Every data key that any column of the database yields, for these people or for the deployment.
    fn data_keys(&self, world: &World, people: &[&str]) -> Vec<Vec<u8>> {
        let numbers = "SELECT subject_id FROM subjects UNION SELECT actor_id FROM audit_logs WHERE actor_id > 0 UNION SELECT subject_id FROM audit_logs WHERE subject_id > 0";
        let numbers: Vec<i64> = world.sql(numbers).lines().map(|line| line.parse().unwrap()).collect();
        let columns = world.sql(
            "SELECT table_name || ' ' || column_name FROM information_schema.columns JOIN pg_tables ON tablename = table_name AND schemaname = table_schema \
             WHERE table_schema = 'sidekeep' AND udt_name = 'bytea' AND table_name !~ '^audit_logs_[0-9]'",
        );
        let mut keys = BTreeMap::new();
        for (table, column) in columns.lines().map(|line| line.split_once(' ').unwrap()) {
            // A wrapped key has this length: format, nonce, 32 bytes, tag.
            let wrapped = world.sql(&format!(
                "SELECT DISTINCT encode({column}, 'hex') FROM {table} WHERE octet_length({column}) = 61"
            ));
            for bytes in wrapped.lines().map(unhex) {
                for number in &numbers {
                    for person in people.iter().map(|person| Some(*person)).chain([None]) {
                        let subject = number.to_be_bytes();
                        let mut parts: Vec<&[u8]> = vec![b"test", self.id.as_bytes(), &subject];
                        parts.extend(person.map(str::as_bytes));
                        if let Some(key) = open(&self.key, &bind("sidekeep wrap", &parts), &bytes) {
                            keys.insert(key.clone(), ());
                        }
                    }
                }
            }
        }
        assert!(!keys.is_empty(), "the deployment's own key opens");
        keys.into_keys().collect()
    }
}

/// Parts behind their lengths, as values are bound to their places.
fn bind(purpose: &str, parts: &[&[u8]]) -> Vec<u8> {
    let all = std::iter::once(purpose.as_bytes()).chain(parts.iter().copied());
    all.flat_map(|part| [&u64::try_from(part.len()).unwrap().to_be_bytes(), part].concat()).collect()
}

fn open(key: &[u8], bound: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let cipher = RandomizedNonceKey::new(&AES_256_GCM_SIV, key).unwrap();
    let nonce = Nonce::try_assume_unique_for_key(sealed.get(1..13)?).ok()?;
    let mut text = sealed.get(13..)?.to_vec();
    Some(cipher.open_in_place(nonce, Aad::from(bound), &mut text).ok()?.to_vec())
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_daemon_that_still_knows_an_erased_person_enters_nothing_under_the_old_key() {
    let world = World::new();
    let (one, two) = (world.start_with("audit.streams = 1\njobs.enabled = false\n"), world.start());
    let (mut remembers, mut erases) = (one.client(), two.client());
    // One entry has a statement of its own; of two persons either may come first in it.
    for (round, (count, erased)) in
        [(1, "actor"), (1, "subject"), (3, "actor"), (3, "subject")].into_iter().enumerate()
    {
        let entry = |action: &str| json!({ "user_id": format!("actor-{round}"), "subject_user_id": format!("subject-{round}"), "action": action });
        let person = format!("{erased}-{round}");
        remembers.ok("audit.append", entry("before"));
        let old = world.sql(&format!("SELECT subject_id FROM subjects WHERE user_id = '{person}'"));
        erases.ok("subject.erase", json!({ "user_id": person, "reason": "request" }));
        match count {
            1 => remembers.ok("audit.append", entry("after")),
            _ => remembers.ok("audit.append_many", json!({ "entries": vec![entry("after"); count] })),
        };
        let under = format!(
            "SELECT count(*) FROM audit_logs WHERE action = 'after' AND {old} IN (actor_id, subject_id)"
        );
        assert_eq!(world.sql(&under), "0", "{count} entries, {person}");
    }
    one.assert_well();
}
