//! `rpc.discover`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::Value;

use super::{About, Methods};
use crate::rpc::discover;
use crate::rpc::params::None;

/// The document, whose own schema is OpenRPC's.
#[derive(Serialize)]
#[serde(transparent)]
struct Document(Value);

impl JsonSchema for Document {
    fn schema_name() -> Cow<'static, str> {
        "OpenRpc".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "required": ["openrpc", "info", "methods", "components"],
            "description": "An OpenRPC document (spec.open-rpc.org)."
        })
    }
}

pub(super) fn add(methods: &mut Methods) {
    methods.add(
        About::own(
            "rpc.discover",
            "The OpenRPC document: every method, its parameters, result and errors.",
            ("{}", r#"{"openrpc":"1.3.2","info":{},"methods":[],"components":{}}"#),
        ),
        |call, _: None| async move { Ok(Document(discover::document(call.calls.methods()))) },
    );
}
