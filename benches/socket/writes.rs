//! Methods that write: each ends with a commit that reaches the disk. Reported, without targets but one: the length of a
//! conversation must not matter to `conversation.append`.

use serde_json::{Value, json};

use crate::Extent;
use crate::support::client::Client;
use crate::support::place::Daemon;
use crate::support::report::{Report, Target, Turns, microseconds, times};

/// Messages of a short and of a long conversation.
const SHORT: u32 = 10;
const LONG: u32 = 10_000;

/// One connection, one call at a time.
pub(crate) fn all(report: &mut Report, daemon: &Daemon, extent: Extent) -> anyhow::Result<()> {
    let mut client = daemon.connect()?;
    report.section("writes, one connection, one call at a time");
    let count = extent.turns * 10;
    let mut series = |method: &str, params: &dyn Fn(u32) -> Value| -> anyhow::Result<()> {
        let mut all = Vec::new();
        for number in 0..count {
            let (took, _) = client.timed(method, &params(number))?;
            all.push(microseconds(took));
        }
        report.figure(method, &times(&mut all));
        Ok(())
    };
    let user = |number: u32| format!("bench-{number}");
    series(
        "profile.create",
        &|number| json!({ "user_id": user(number), "username": "ada", "email": "ada@example.org" }),
    )?;
    series(
        "profile.update",
        &|number| json!({ "user_id": user(number), "changes": { "full_name": "Ada Lovelace" } }),
    )?;
    series(
        "preferences.set",
        &|number| json!({ "user_id": user(number), "preferences": { "theme": "light", "language": "en" } }),
    )?;
    series(
        "preferences.update",
        &|number| json!({ "user_id": user(number), "changes": { "theme": "dark", "count": number } }),
    )?;
    series(
        "consent.record",
        &|number| json!({ "user_id": user(number), "consent_type": "newsletter", "granted": number % 2 == 0 }),
    )?;
    append(report, &mut client, extent)
}

/// In turns: one message to a conversation of about ten, one to another of ten thousand.
fn append(report: &mut Report, client: &mut Client, extent: Extent) -> anyhow::Result<()> {
    let long = conversation(client, LONG)?;
    let mut turns = Turns::default();
    for _ in 0..extent.turns * 10 {
        let short = conversation(client, SHORT)?;
        let at_short = microseconds(client.timed("conversation.append", &one(&short))?.0);
        let at_long = microseconds(client.timed("conversation.append", &one(&long))?.0);
        turns.add(vec![at_short], vec![at_long]);
    }
    report.figure("conversation.append at 10 messages", &times(&mut turns.baseline));
    report.figure("conversation.append at 10,000 messages", &times(&mut turns.ours));
    report.target("conversation.append, 10,000 / 10", turns.ratio(), "", Target::AtMost(1.5));
    Ok(())
}

fn one(id: &str) -> Value {
    json!({ "id": id, "messages": [message()] })
}

fn message() -> Value {
    json!({ "role": "user", "content": "What does the engine weave that the loom does not?" })
}

/// A new conversation of so many messages; its id.
fn conversation(client: &mut Client, messages: u32) -> anyhow::Result<String> {
    const AT_ONCE: u32 = 500;
    let created = client.call("conversation.create", &json!({ "user_id": "bench-conversation" }))?;
    let id = created.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut left = messages;
    while left > 0 {
        let now = left.min(AT_ONCE);
        let some: Vec<Value> = (0..now).map(|_| message()).collect();
        client.call("conversation.append", &json!({ "id": id, "messages": some }))?;
        left -= now;
    }
    Ok(id)
}
