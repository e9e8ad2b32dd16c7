//! The OpenRPC document (spec.open-rpc.org, 1.3.2), made from the types that the methods really have.

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::error::{Kind, PROTOCOL};
use super::methods::{Entry, Methods};
use super::params::Context;

/// The document.
pub fn document(methods: &Methods) -> Value {
    let settings =
        SchemaSettings::draft07().with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let entries: Vec<Value> = methods.entries().map(|entry| method(entry, &mut generator)).collect();
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "sidekeep",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Records and audit log over a Unix socket. Parameters are by name.",
            "license": { "name": "Apache-2.0" }
        },
        "methods": entries,
        "components": { "schemas": generator.take_definitions(true) }
    })
}

fn method(entry: &Entry, generator: &mut SchemaGenerator) -> Value {
    let (params, result) = (entry.schemas)(generator);
    let context = generator.subschema_for::<Option<Context>>();
    let about = &entry.about;
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let (example, answer) = (read(about.example.0), read(about.example.1));
    let given: Vec<Value> = example
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    json!({
        "name": about.name,
        "summary": about.summary,
        "paramStructure": "by-name",
        "params": parameters(&params, &context),
        "result": { "name": "result", "schema": result },
        "errors": errors(about.errors),
        "examples": [{ "name": about.name, "params": given, "result": { "name": "result", "value": answer } }]
    })
}

/// The members of the parameters' schema, and the context that goes with every method.
fn parameters(params: &Schema, context: &Schema) -> Vec<Value> {
    let params = params.as_value();
    let required: Vec<&str> = params
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let empty = Map::new();
    let properties = params.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let mut list: Vec<Value> = properties
        .iter()
        .map(|(name, schema)| {
            let summary = schema.get("description").cloned().unwrap_or_default();
            let schema = bounded(schema.clone());
            json!({ "name": name, "summary": summary, "required": required.contains(&name.as_str()), "schema": schema })
        })
        .collect();
    // OpenRPC asks for the required ones first.
    list.sort_by_key(|parameter| parameter.get("required") != Some(&Value::Bool(true)));
    list.push(
        json!({ "name": "context", "summary": "For whom and why.", "required": false, "schema": context }),
    );
    list
}

/// The schema of a parameter, in which numbers have the bounds of the type that reads them.
fn bounded(mut schema: Value) -> Value {
    let bounds = match schema.get("format").and_then(Value::as_str) {
        Some("int16") => Some((json!(i16::MIN), json!(i16::MAX))),
        Some("int32") => Some((json!(i32::MIN), json!(i32::MAX))),
        Some("int64") => Some((json!(i64::MIN), json!(i64::MAX))),
        Some("uint16") => Some((json!(0), json!(u16::MAX))),
        Some("uint32") => Some((json!(0), json!(u32::MAX))),
        Some("uint64" | "uint") => Some((json!(0), json!(u64::MAX))),
        _ => None,
    };
    match &mut schema {
        Value::Object(members) => {
            if let Some((least, most)) = bounds {
                members.entry("minimum").or_insert(least);
                members.entry("maximum").or_insert(most);
            }
            members.values_mut().for_each(|member| *member = bounded(member.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = bounded(item.take())),
        _ => {}
    }
    schema
}

fn errors(kinds: &[Kind]) -> Vec<Value> {
    let protocol = PROTOCOL.iter().map(|(code, when)| json!({ "code": code, "message": when }));
    let own = kinds.iter().map(|kind| {
        json!({ "code": kind.code, "message": kind.when, "data": { "kind": kind.name, "retryable": kind.retryable } })
    });
    protocol.chain(own).collect()
}
