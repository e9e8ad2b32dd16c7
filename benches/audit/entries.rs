//! The entries that are appended: like those of a shop's back office, about 350 bytes each, with all that is sealed.

use serde_json::{Value, json};

use crate::support::client::request;
use crate::support::load::Lines;

/// Persons who act, and whose data it is.
const PEOPLE: u32 = 4_000;
/// So many different ones, sent in turn.
const ENTRIES: u32 = 16_384;

const ACTIONS: [&str; 6] =
    ["invoice.read", "invoice.export", "order.update", "address.read", "ticket.read", "user.login"];
const BROWSERS: [&str; 3] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:145.0) Gecko/20100101 Firefox/145.0",
    "okhttp/5.1.0 (Android 16; shop 4.20.1)",
];

/// The parameters of one: each entry has an actor, every second one somebody else's data.
pub(crate) fn entry(number: u32) -> Value {
    // Persons come in no order.
    let mixed = number.wrapping_mul(2_654_435_761);
    let pick = |list: &[&str]| {
        list.iter().cycle().nth(usize::from(mixed.to_le_bytes()[0] >> 3)).map(|text| (*text).to_owned())
    };
    let mut entry = json!({
        "action": pick(&ACTIONS),
        "user_id": format!("user-{}", mixed % PEOPLE),
        "resource_type": "invoice",
        "resource_id": format!("inv-{}", mixed >> 12),
        "outcome": "success",
        "ip_address": format!("203.0.113.{}", mixed % 255),
        "user_agent": pick(&BROWSERS),
        "labels": { "region": "eu", "tenant": format!("t{}", mixed % 50) },
        "metadata": { "fields": ["total", "address"], "rows": mixed % 97, "ticket": format!("#{}", mixed >> 9) },
    });
    if number.is_multiple_of(2)
        && let Some(members) = entry.as_object_mut()
    {
        members.insert("subject_user_id".into(), format!("user-{}", (mixed >> 7) % PEOPLE).into());
    }
    entry
}

/// One `audit.append` for each entry.
pub(crate) fn appends() -> Lines {
    Lines::new((0..ENTRIES).map(|number| request("audit.append", &entry(number))), 1)
}

/// Calls of `audit.append_many`, each with so many entries.
pub(crate) fn many(calls: u32, each: u32) -> Lines {
    let call = |call: u32| {
        let entries: Vec<Value> = (0..each).map(|number| entry(call * each + number)).collect();
        request("audit.append_many", &json!({ "entries": entries }))
    };
    Lines::new((0..calls).map(call), 1)
}

/// How long the parameters of one are on average.
pub(crate) fn bytes() -> usize {
    (0..1000).map(|number| entry(number).to_string().len()).sum::<usize>() / 1000
}
