//! Entries that are appended while things fail: what each caller heard, and what the log must then hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::{Value, json};

use super::{Answer, Client, Daemon, World, read};

/// The entry that has this id, always the same, with sealed parts of one of a few persons.
pub fn entry(id: &str) -> Value {
    let person = id.bytes().map(u32::from).sum::<u32>() % 7;
    json!({
        "id": id, "action": "record.read", "user_id": format!("user:{person}"), "resource_type": "document",
        "resource_id": id, "ip_address": "203.0.113.7", "metadata": { "id": id },
    })
}

/// What callers heard of the entries that they sent, by id; nothing where the connection ended before the answer.
#[derive(Debug, Default)]
pub struct Heard(pub BTreeMap<String, Option<Answer>>);

impl Heard {
    /// Sends one, and notes what is heard.
    pub fn call(&mut self, client: &mut Client, id: &str) -> Answer {
        let answer = client.call("audit.append", entry(id));
        self.0.insert(id.to_owned(), Some(answer.clone()));
        answer
    }

    pub fn merge(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// How many heard this kind of error.
    pub fn of(&self, kind: &str) -> usize {
        self.0.values().flatten().filter(|a| a.as_ref().is_err_and(|e| e.kind() == kind)).count()
    }

    pub fn acknowledged(&self) -> usize {
        self.0.values().flatten().filter(|answer| answer.is_ok()).count()
    }

    /// The ids that were not answered.
    pub fn unanswered(&self) -> BTreeSet<String> {
        self.0.iter().filter(|(_, answer)| answer.is_none()).map(|(id, _)| id.clone()).collect()
    }

    /// What was acknowledged is in the log exactly once, what was refused is not; sent again, an id answers the same; and
    /// the whole log is as it must be.
    pub fn check(&mut self, world: &World, through: &Daemon) {
        self.check_these(world, through);
        let count = world.sql("SELECT count(*) FROM audit_logs WHERE action = 'record.read'");
        assert_eq!(count, self.0.len().to_string());
    }

    /// As [`Heard::check`], where there are others beside.
    pub fn check_these(&mut self, world: &World, through: &Daemon) {
        let stored = world.sql("SELECT id FROM audit_logs WHERE action = 'record.read'");
        let stored: Vec<&str> = stored.lines().collect();
        let distinct: BTreeSet<&str> = stored.iter().copied().collect();
        assert_eq!(stored.len(), distinct.len(), "an id is there twice");
        let mut again = through.again(self.0.keys());
        for (id, answer) in &mut self.0 {
            match answer {
                Some(Ok(_)) => assert!(distinct.contains(&**id), "{id} was acknowledged"),
                Some(Err(error)) if error.kind() == "unknown_outcome" => {}
                Some(Err(error)) => {
                    assert!(["unavailable", "overloaded"].contains(&error.kind()), "{id}: {error:?}");
                    assert!(!distinct.contains(&**id), "{id} was refused: {error:?}");
                }
                None => {}
            }
            let again =
                again.remove(id).unwrap().unwrap_or_else(|error| panic!("{id} sent again: {error:?}"));
            if let Some(Ok(receipt)) = answer {
                assert_eq!(again, *receipt, "{id} sent again");
            }
            *answer = Some(Ok(again));
        }
        check_log(world, through);
    }
}

impl Daemon {
    /// Sends these entries, many at a time, and answers what each heard.
    fn again<'a>(&self, ids: impl Iterator<Item = &'a String>) -> BTreeMap<String, Answer> {
        let (mut client, mut answers) = (self.client(), BTreeMap::new());
        let ids: Vec<&String> = ids.collect();
        for some in ids.chunks(64) {
            for id in some {
                let request =
                    json!({ "jsonrpc": "2.0", "id": id, "method": "audit.append", "params": entry(id) });
                client.send(format!("{request}\n").as_bytes());
            }
            for _ in some {
                let line = client.line();
                answers.insert(line["id"].as_str().unwrap().to_owned(), read(&line));
            }
        }
        answers
    }
}

/// Nothing waits, positions are dense, and the log verifies.
pub fn check_log(world: &World, through: &Daemon) {
    world.drained();
    let sparse = world.sql(
        "SELECT count(*) FROM (SELECT stream, count(*) n, max(position) + 1 top FROM audit_logs GROUP BY stream) t \
         JOIN audit_streams s USING (stream) WHERE n <> top OR top <> size",
    );
    assert_eq!(sparse, "0", "positions are dense");
    let report = through.ok("audit.verify", json!({}));
    assert_eq!(report["verdict"], "intact", "{report}");
}

/// Appends until told to stop or the connection ends, so many calls at a time on one connection.
pub fn append_on(
    daemon: &Daemon,
    worker: &str,
    at_once: usize,
    stop: &AtomicBool,
    done: &AtomicU32,
) -> Heard {
    let mut heard = Heard::default();
    let Ok(mut client) = Client::try_connect(&daemon.socket) else { return heard };
    let (mut waiting, mut next) = (BTreeMap::new(), 0);
    loop {
        let mut ended = false;
        while waiting.len() < at_once && !stop.load(Ordering::Relaxed) && !ended {
            let id = format!("{worker}-{next}");
            next += 1;
            let request =
                json!({ "jsonrpc": "2.0", "id": id, "method": "audit.append", "params": entry(&id) });
            ended = client.try_send(format!("{request}\n").as_bytes()).is_err();
            waiting.insert(id, ());
        }
        if waiting.is_empty() {
            break;
        }
        let Some(line) = client.try_line() else { break };
        let id = line["id"].as_str().unwrap().to_owned();
        waiting.remove(&id);
        let answer = read(&line);
        done.fetch_add(u32::from(answer.is_ok()), Ordering::Relaxed);
        heard.0.insert(id, Some(answer));
    }
    heard.0.extend(waiting.into_keys().map(|id| (id, None)));
    heard
}
