//! `rpc.discover`: a document that is true. Every example is run, every answer follows its schema.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::backup::{Shelf, done};
use crate::support::json_schema::Schemas;
use crate::support::{World, sidekeep};

/// Renewed by `target/debug/sidekeep openrpc > tests/snapshots/openrpc.json`; the difference is for the reviewer.
const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/openrpc.json");

/// The methods with state, in an order in which each finds what its example names.
const ORDER: [&str; 45] = [
    "profile.create",
    "subject.accesses",
    "profile.get",
    "profile.update",
    "profile.delete",
    "preferences.set",
    "preferences.get",
    "preferences.update",
    "preferences.delete",
    "consent.record",
    "consent.check",
    "consent.current",
    "consent.history",
    "conversation.create",
    "conversation.append",
    "conversation.get",
    "conversation.messages",
    "conversation.list",
    "conversation.search",
    "subject.hold",
    "subject.holds",
    "subject.release",
    "subject.restrict",
    "subject.unrestrict",
    "subject.find",
    "request.open",
    "request.list",
    "request.extend",
    "request.close",
    "audit.append",
    "audit.append_many",
    "audit.get",
    "audit.query",
    "audit.tail",
    "audit.checkpoint",
    "audit.prove",
    "audit.consistency",
    "audit.verify",
    "subject.export",
    "job.run",
    "job.list",
    "job.history",
    "backup.list",
    "keyring.rotate",
    "keyring.status",
];
const LAST: [&str; 5] =
    ["conversation.update", "conversation.delete", "subject.status", "subject.erase", "subject.certificate"];

pub fn document() -> Value {
    let printed = sidekeep(&["openrpc"]);
    assert!(printed.status.success());
    serde_json::from_slice(&printed.stdout).unwrap()
}

pub fn methods(document: &Value) -> impl Iterator<Item = &Value> {
    document["methods"].as_array().unwrap().iter()
}

/// The parameters of a method's example.
pub fn example(method: &Value) -> Value {
    let params = method["examples"][0]["params"].as_array().unwrap();
    let members =
        params.iter().map(|param| (param["name"].as_str().unwrap().to_owned(), param["value"].clone()));
    Value::Object(members.collect::<Map<_, _>>())
}

/// All methods, those with state in an order that works.
pub fn in_order(document: &Value) -> Vec<&Value> {
    let by_name: BTreeMap<&str, &Value> =
        methods(document).map(|method| (method["name"].as_str().unwrap(), method)).collect();
    let ordered: Vec<&str> = ORDER.iter().chain(&LAST).copied().collect();
    let others = by_name.keys().copied().filter(|name| !ordered.contains(name)).collect::<Vec<_>>();
    assert!(
        others.iter().all(|name| name.starts_with("system.") || name.starts_with("rpc.")),
        "give the new methods a place in ORDER: {others:?}"
    );
    ordered.iter().chain(&others).map(|name| by_name[name]).collect()
}

#[test]
fn the_document_is_the_one_that_was_reviewed() {
    let expected = std::fs::read_to_string(SNAPSHOT).unwrap_or_default();
    let printed = String::from_utf8(sidekeep(&["openrpc"]).stdout).unwrap();
    let first = printed.lines().zip(expected.lines()).find(|(now, then)| now != then);
    assert!(
        printed == expected,
        "the document changed, first at {first:?}; if it should, renew it: \
         target/debug/sidekeep openrpc > tests/snapshots/openrpc.json"
    );
}

#[test]
fn the_socket_answers_what_the_command_prints() {
    let world = World::new();
    let daemon = world.start();
    assert_eq!(daemon.ok("rpc.discover", json!({})), document());
}

#[test]
fn it_is_an_openrpc_document() {
    let document = document();
    let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(members(&document), set(&["openrpc", "info", "methods", "components"]));
    assert!(document["openrpc"].as_str().unwrap().starts_with("1."));
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    let mut names = BTreeSet::new();
    for method in methods(&document) {
        let name = method["name"].as_str().unwrap();
        assert!(names.insert(name), "{name} is there twice");
        assert!(!method["summary"].as_str().unwrap().is_empty(), "{name}");
        assert_eq!(method["paramStructure"], "by-name", "{name}");
        assert!(method["result"]["name"].is_string() && method["result"]["schema"].is_object(), "{name}");
        let params = method["params"].as_array().unwrap();
        let mut own = BTreeSet::new();
        for param in params {
            assert!(own.insert(param["name"].as_str().unwrap()), "{name} {param}");
            assert!(!param["summary"].as_str().unwrap_or_default().is_empty(), "{name} {param}");
            assert!(param["schema"].is_object() && param["required"].is_boolean(), "{name} {param}");
        }
        assert!(own.contains("context"), "{name}");
        assert!(
            params.is_sorted_by_key(|param| param["required"] == json!(false)),
            "{name}: required ones first"
        );
        let mut codes = BTreeSet::new();
        for error in method["errors"].as_array().unwrap() {
            assert!(error["message"].is_string(), "{name} {error}");
            let code = error["code"].as_i64().unwrap();
            assert!(codes.insert(code), "{name} {error}");
            if (-32029..=-32020).contains(&code) {
                assert!(
                    error["data"]["kind"].is_string() && error["data"]["retryable"].is_boolean(),
                    "{error}"
                );
            }
        }
        assert!(codes.contains(&-32602) && codes.contains(&-32022), "{name}: {codes:?}");
        assert_eq!(codes.contains(&-32029), writes(name), "{name}: unknown_outcome is for writes");
        for example in method["examples"].as_array().unwrap() {
            assert!(example["name"].is_string() && example["params"].is_array(), "{name}");
        }
    }
}

fn writes(name: &str) -> bool {
    const OTHERS: [&str; 7] = [
        "audit.append",
        "audit.append_many",
        "audit.checkpoint",
        "audit.prove",
        "job.run",
        "keyring.rotate",
        "subject.export",
    ];
    OTHERS.contains(&name) || writes_records(name)
}

fn writes_records(name: &str) -> bool {
    let verb = name.split('.').next_back().unwrap();
    let rights = ["hold", "release", "restrict", "unrestrict", "erase", "open", "extend", "close"];
    if rights.contains(&verb) {
        return true;
    }
    let personal = !name.starts_with("system.") && !name.starts_with("rpc.");
    personal && ["create", "set", "update", "delete", "record", "append"].contains(&verb)
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() {
    let document = document();
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for name in schemas.keys() {
        assert!(text.contains(&format!("#/components/schemas/{name}\"")), "{name} is not used");
    }
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 20);
    for reference in references {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
}

fn collect<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(members) => {
            found.extend(members.get("$ref").and_then(Value::as_str));
            members.values().for_each(|member| collect(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// Where the members of two values differ, at any depth. What an empty object or list stands for is not looked into.
fn difference(example: &Value, answer: &Value, at: &str) -> Option<String> {
    match (example, answer) {
        (Value::Object(a), Value::Object(b)) if !a.is_empty() => {
            let (mut names, mut answered): (Vec<_>, Vec<_>) = (a.keys().collect(), b.keys().collect());
            names.sort();
            answered.sort();
            if names != answered {
                return Some(format!("{at}: {names:?} and {answered:?}"));
            }
            a.iter().find_map(|(name, value)| difference(value, &b[name], &format!("{at}.{name}")))
        }
        (Value::Array(a), Value::Array(b)) if !a.is_empty() => {
            if a.len() != b.len() {
                return Some(format!("{at}: {} and {} items", a.len(), b.len()));
            }
            a.iter().zip(b).find_map(|(a, b)| difference(a, b, &format!("{at}[]")))
        }
        (Value::Object(_), Value::Object(_)) | (Value::Array(_), Value::Array(_)) => None,
        (Value::String(_), Value::String(_)) | (Value::Number(_), Value::Number(_)) => None,
        (Value::Bool(_), Value::Bool(_)) => None,
        (a, b) if a == b => None,
        (a, b) => Some(format!("{at}: {a} and {b}")),
    }
}

#[test]
fn every_example_does_what_it_shows() {
    let shelf = Shelf::new();
    let daemon = shelf.start(
        "audit.streams = 1\njobs.checkpoint.schedule = \"0 0 1 1 *\"\njobs.verify.schedule = \"0 0 1 1 *\"\n\
         jobs.keyring_backup.schedule = \"0 0 1 1 *\"\n",
    );
    let mut client = daemon.client();
    let document = document();
    let schemas = Schemas::of(&document);
    let mut wrong = Vec::new();
    for method in in_order(&document) {
        let name = method["name"].as_str().unwrap();
        let params = example(method);
        for param in method["params"].as_array().unwrap() {
            let given = params.get(param["name"].as_str().unwrap());
            let problem = given.and_then(|value| schemas.problem(&param["schema"], value));
            wrong.extend(problem.map(|problem| format!("{name} {}: {problem}", param["name"])));
        }
        let shown = &method["examples"][0]["result"]["value"];
        if name == "backup.list" {
            done(&daemon, "backup");
        }
        let answer = client.ok(name, params);
        wrong.extend(difference(shown, &answer, name));
        if name != "rpc.discover" {
            wrong.extend(
                schemas.problem(&method["result"]["schema"], shown).map(|p| format!("{name} example: {p}")),
            );
        }
        wrong.extend(
            schemas.problem(&method["result"]["schema"], &answer).map(|p| format!("{name} answer: {p}")),
        );
        if name == "profile.delete" {
            client.ok("profile.create", example(&document["methods"][0]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_method_takes_a_context() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let document = document();
    let schemas = Schemas::of(&document);
    let context = json!({
        "user_id": "clerk:7",
        "purpose": "support",
        "request_id": "r-1",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "ip_address": "203.0.113.9",
        "user_agent": "Mozilla/5.0"
    });
    for method in in_order(&document) {
        let name = method["name"].as_str().unwrap();
        let schema = &method["params"].as_array().unwrap().last().unwrap()["schema"];
        let known = schemas.member(schema, "properties").unwrap().as_object().unwrap();
        assert!(known.keys().eq(context.as_object().unwrap().keys()), "{name}: {known:?}");
        let mut params = example(method);
        params["context"] = context.clone();
        client.ok(name, params.clone());
        for field in known.keys() {
            for wrong in [json!(5), json!([]), json!({}), json!(true), json!("")] {
                params["context"] = context.clone();
                params["context"][field] = wrong;
                let error = client.err(name, params.clone());
                assert_eq!(
                    (error.code, error.field()),
                    (-32602, &*format!("context.{field}")),
                    "{name} {error:?}"
                );
            }
        }
        params["context"] = json!({ "user": "x" });
        assert_eq!(client.err(name, params).field(), "context.user", "{name}");
    }
    daemon.assert_well();
}

#[test]
fn a_parameter_that_may_be_left_out_may_be_null() {
    let shelf = Shelf::new();
    let daemon = shelf.start("");
    let mut client = daemon.client();
    let document = document();
    for method in in_order(&document) {
        let name = method["name"].as_str().unwrap();
        let mut params = example(method);
        for param in method["params"].as_array().unwrap() {
            if param["required"] != json!(true)
                && !["id", "stream", "position", "email"].iter().any(|key| param["name"] == **key)
            {
                params[param["name"].as_str().unwrap()] = Value::Null;
            }
        }
        let (code, answer) = match client.call(name, params.clone()) {
            Ok(_) => continue,
            Err(error) => (error.code, error),
        };
        assert_ne!(code, -32602, "{name} {params}: {answer:?}");
    }
}

#[test]
fn what_a_schema_takes_the_call_takes_and_what_it_refuses_too() {
    let shelf = Shelf::new();
    let daemon = shelf.start("");
    let mut client = daemon.client();
    let document = document();
    let schemas = Schemas::of(&document);
    for method in in_order(&document) {
        let name = method["name"].as_str().unwrap();
        let example = example(method);
        let mut tried = Vec::new();
        for param in method["params"].as_array().unwrap() {
            let (own, schema) = (param["name"].as_str().unwrap(), &param["schema"]);
            let mut values = vec![Value::Null, json!([]), json!(1.5), json!(1e300)];
            // What is in a patch one by one; a patch of any JSON has no members that are known.
            if own == "changes"
                && let Some(known) = schemas.member(schema, "properties")
            {
                values.extend(known.as_object().unwrap().keys().map(|member| json!({ member: null })));
            }
            tried.extend(values.into_iter().map(|value| (own, schema, value)));
        }
        for (own, schema, value) in tried {
            let mut params = example.clone();
            params[own] = value.clone();
            if own == "changes" {
                // What was tried before may have made another version.
                params.as_object_mut().unwrap().remove("expected_version");
            }
            let fits = schemas.problem(schema, &value).is_none();
            let refused = match client.call(name, params) {
                // What is wrong without the one that is null is not what is looked for.
                Err(error) if error.code == -32602 && error.field().starts_with(own) => Some(error),
                _ => None,
            };
            let alone = ["id", "stream", "position", "email"].contains(&own) && value.is_null();
            assert!(alone || fits == refused.is_none(), "{name} {own}: {value} fits {schema}: {refused:?}");
        }
        client.call(name, example).ok();
    }
}
