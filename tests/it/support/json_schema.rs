//! As much of JSON Schema draft-07 as the daemon's document uses. A keyword that is not known here is a panic, so that
//! nothing goes unchecked.

use serde_json::{Map, Value};

/// The types of JSON, as a schema names them.
pub const TYPES: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];

/// A document whose `#/components/schemas` the references mean.
pub struct Schemas<'a> {
    document: &'a Value,
}

impl<'a> Schemas<'a> {
    pub fn of(document: &'a Value) -> Self {
        Self { document }
    }

    /// What a schema really is, behind its references.
    pub fn resolve(&self, schema: &'a Value) -> &'a Value {
        let Some(reference) = schema.get("$ref").and_then(Value::as_str) else { return schema };
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference}"));
        let found = self.document.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"));
        self.resolve(found)
    }

    /// The types that a value may have.
    pub fn types(&self, schema: &'a Value) -> Vec<&'a str> {
        let schema = self.resolve(schema);
        if let Some(parts) = schema.get("anyOf").or(schema.get("oneOf")).and_then(Value::as_array) {
            return parts.iter().flat_map(|part| self.types(part)).collect();
        }
        match schema.get("type") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ if schema.get("enum").is_some() => vec!["string"],
            _ => TYPES.to_vec(),
        }
    }

    /// The schemas that an object or an array may follow, whichever alternative has them.
    pub fn member(&self, schema: &'a Value, keyword: &str) -> Option<&'a Value> {
        let schema = self.resolve(schema);
        let parts = schema.get("anyOf").or(schema.get("oneOf")).and_then(Value::as_array);
        schema.get(keyword).or_else(|| parts?.iter().find_map(|part| self.member(part, keyword)))
    }

    /// What is wrong with a value, if anything is; with its place.
    pub fn problem(&self, schema: &'a Value, value: &Value) -> Option<String> {
        if schema == &Value::Bool(true) {
            return None;
        }
        let schema = self.resolve(schema).as_object().unwrap_or_else(|| panic!("{schema}"));
        schema
            .iter()
            .find_map(|(keyword, rule)| self.keyword(schema, keyword, rule, value))
            .map(|problem| format!("{problem} in {value}"))
    }

    fn keyword(
        &self,
        schema: &'a Map<String, Value>,
        keyword: &str,
        rule: &'a Value,
        value: &Value,
    ) -> Option<String> {
        let fails = |holds: bool| (!holds).then(|| format!("{keyword} {rule}"));
        match keyword {
            "description" | "title" | "default" | "format" | "$schema" | "examples" => None,
            "type" => {
                let types = rule.as_array().map_or_else(|| vec![rule], |types| types.iter().collect());
                fails(types.into_iter().any(|one| is(value, one.as_str().unwrap())))
            }
            "enum" => fails(rule.as_array().unwrap().contains(value)),
            "const" => fails(rule == value),
            "minimum" => fails(value.as_f64().is_none_or(|n| n >= rule.as_f64().unwrap())),
            "maximum" => fails(value.as_f64().is_none_or(|n| n <= rule.as_f64().unwrap())),
            // In characters, while the daemon counts bytes: the schema can only be the looser one.
            "minLength" => {
                fails(value.as_str().is_none_or(|s| s.chars().count() as u64 >= rule.as_u64().unwrap()))
            }
            "maxLength" => {
                fails(value.as_str().is_none_or(|s| s.chars().count() as u64 <= rule.as_u64().unwrap()))
            }
            "pattern" => None,
            "minItems" => fails(value.as_array().is_none_or(|a| a.len() as u64 >= rule.as_u64().unwrap())),
            "maxItems" => fails(value.as_array().is_none_or(|a| a.len() as u64 <= rule.as_u64().unwrap())),
            "items" => value.as_array()?.iter().find_map(|item| self.problem(rule, item)),
            "properties" => {
                let object = value.as_object()?;
                rule.as_object().unwrap().iter().find_map(|(name, property)| {
                    self.problem(property, object.get(name)?).map(|problem| format!("{name}: {problem}"))
                })
            }
            "required" => {
                let object = value.as_object()?;
                rule.as_array().unwrap().iter().find_map(|name| {
                    (!object.contains_key(name.as_str().unwrap())).then(|| format!("{name} is missing"))
                })
            }
            "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                value.as_object()?.iter().find_map(|(name, member)| match rule {
                    _ if known.is_some_and(|known| known.contains_key(name)) => None,
                    Value::Bool(true) => None,
                    Value::Bool(false) => Some(format!("{name} is not allowed")),
                    rule => self.problem(rule, member),
                })
            }
            "maxProperties" => {
                fails(value.as_object().is_none_or(|object| object.len() as u64 <= rule.as_u64().unwrap()))
            }
            "propertyNames" => {
                value.as_object()?.keys().find_map(|name| self.problem(rule, &Value::from(name.as_str())))
            }
            "anyOf" => fails(rule.as_array().unwrap().iter().any(|part| self.problem(part, value).is_none())),
            "oneOf" => {
                let fitting =
                    rule.as_array().unwrap().iter().filter(|part| self.problem(part, value).is_none());
                fails(fitting.count() == 1)
            }
            "not" => fails(self.problem(rule, value).is_some()),
            "allOf" => rule.as_array().unwrap().iter().find_map(|part| self.problem(part, value)),
            unknown => panic!("a keyword that this reader does not know: {unknown}"),
        }
    }
}

/// Whether a value is of a type.
pub fn is(value: &Value, of: &str) -> bool {
    match of {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type of JSON: {other}"),
    }
}
