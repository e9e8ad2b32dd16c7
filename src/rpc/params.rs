//! Parameters: by name only, each checked, the wrong one named. `context` goes with every method.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::values::{Object, ShortText, Term, UserId, member_fault, plain};

/// For whom and why the application calls. Recorded, never trusted.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Context {
    /// Who acts.
    pub user_id: Option<UserId>,
    /// Why, as a code.
    pub purpose: Option<Term>,
    /// The application's own id of the request.
    pub request_id: Option<Term>,
    /// W3C Trace Context.
    pub traceparent: Option<Term>,
    /// The address that the person's request came from.
    pub ip_address: Option<ShortText>,
    /// The program that the person uses.
    pub user_agent: Option<ShortText>,
}

/// A method without parameters of its own.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct None {}

/// Reads the parameters of one call, and the context beside them.
///
/// # Errors
/// [`Error::Invalid`], naming the field.
pub fn read<P: DeserializeOwned>(params: Option<&RawValue>) -> Result<(Context, P)> {
    let text = params.map_or("{}", RawValue::get);
    if !text.starts_with('{') {
        return Err(Error::invalid("params", "must be an object: parameters are by name"));
    }
    // A key can be spelt with escapes, and otherwise in one way.
    if !text.contains("\"context\"") && !text.contains('\\') {
        return Ok((Context::default(), fields("", text)?));
    }
    let mut object: Object = serde_json::from_str(text).map_err(|error| located("", &plain(&error)))?;
    match object.remove("context") {
        None => Ok((Context::default(), fields("", text)?)),
        Some(context) => {
            let context =
                if context.get() == "null" { Context::default() } else { fields("context", context.get())? };
            Ok((context, fields("", object.into_json().as_str())?))
        }
    }
}

fn fields<T: DeserializeOwned>(base: &str, text: &str) -> Result<T> {
    if !text.starts_with('{') {
        return Err(Error::invalid(if base.is_empty() { "params" } else { base }, "must be an object"));
    }
    if let Ok(fields) = serde_json::from_str(text) {
        return Ok(fields);
    }
    // Once more, keeping account of where it is: most calls are right, and need not pay for that.
    let mut deserializer = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        let fault = plain(error.inner());
        let fault = match found(text, &path) {
            Some(found) if fault == "must be text" => format!("{fault}, and is {found}"),
            _ => fault,
        };
        let path = [base, &path].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
        located(&path, &fault)
    })
}

/// What kind of value stands at a path, where serde does not say it.
fn found(text: &str, path: &str) -> Option<&'static str> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let pointer = path.replace('[', ".").replace(']', "").replace('.', "/");
    Some(match value.pointer(&format!("/{pointer}"))? {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "true or false",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "text",
        serde_json::Value::Array(_) => "an array",
        serde_json::Value::Object(_) => "an object",
    })
}

/// Names the field that serde's own words name, where they do.
fn located(path: &str, message: &str) -> Error {
    if let Some((member, fault)) = member_fault(message) {
        return located(&format!("{path}.{member}"), fault);
    }
    let words = [
        ("missing field `", "is missing"),
        ("unknown field `", "is unknown"),
        ("duplicate field `", "is there twice"),
    ];
    for (beginning, what) in words {
        let Some((name, rest)) = message.strip_prefix(beginning).and_then(|rest| rest.split_once('`')) else {
            continue;
        };
        // An unknown field is already the last part of the path.
        let known = path == name || path.ends_with(&format!(".{name}"));
        let field = if path.is_empty() || known {
            if known { path.to_owned() } else { name.to_owned() }
        } else {
            format!("{path}.{name}")
        };
        let expected = rest.trim_start_matches(", ").replace('`', "");
        let message = if expected.is_empty() { what.to_owned() } else { format!("{what}; {expected}") };
        return Error::Invalid { field, message };
    }
    let field = if path.is_empty() { "params" } else { path };
    Error::invalid(field, message)
}

#[cfg(test)]
mod tests {
    use super::read;
    use crate::error::Error;
    use crate::records::{conversation, profile};
    use crate::subjects::{erase, request};
    use serde_json::value::RawValue;

    fn field<P: serde::de::DeserializeOwned + std::fmt::Debug>(params: &str) -> (String, String) {
        let params = RawValue::from_string(params.to_owned()).unwrap();
        match read::<P>(Some(&params)) {
            Err(Error::Invalid { field, message }) => (field, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_wrong_field_is_named() {
        let cases = [
            ("[]", "params"),
            ("{}", "user_id"),
            (r#"{"user_id":"a","username":"b","email":"c","userid":"d"}"#, "userid"),
            (r#"{"user_id":"a","user_id":"b"}"#, "user_id"),
            (r#"{"user_id":7,"username":"b","email":"c"}"#, "user_id"),
            (r#"{"user_id":"x\u0000y","username":"b","email":"c"}"#, "user_id"),
            (r#"{"user_id":"a","username":"b","email":"c","metadata":{"x":1,"x":2}}"#, "metadata"),
            (r#"{"user_id":"a","username":"b","email":"c","context":{"purpos":"x"}}"#, "context.purpos"),
            (r#"{"user_id":"a","username":"b","email":"c","context":{"purpose":""}}"#, "context.purpose"),
            (r#"{"user_id":"a","username":"b","email":"c","context":[]}"#, "context"),
        ];
        for (params, expected) in cases {
            assert_eq!(field::<profile::Create>(params).0, expected, "{params}");
        }
        assert_eq!(field::<profile::Update>(r#"{"user_id":"a","changes":{"emial":"x"}}"#).0, "changes.emial");
        assert_eq!(field::<profile::Update>(r#"{"user_id":"a","changes":["x"]}"#).0, "changes");
        let kind = field::<request::Open>(r#"{"user_id":"a","kind":null}"#);
        assert_eq!(kind, ("kind".into(), "must be text, and is null".into()));
        let reason = field::<erase::Erase>(r#"{"user_id":"a","reason":7}"#);
        assert_eq!(reason, ("reason".into(), "must be text, and is a number".into()));
        for version in ["9223372036854775808", "1.5"] {
            let update = format!(r#"{{"user_id":"a","changes":{{}},"expected_version":{version}}}"#);
            let bounds = "must be a whole number from -9223372036854775808 to 9223372036854775807";
            assert_eq!(field::<profile::Update>(&update), ("expected_version".into(), bounds.into()));
        }
        let messages = r#"{"id":"c","messages":[{"role":"user","content":"x"},{"role":"user"}]}"#;
        assert_eq!(field::<conversation::Append>(messages).0, "messages[1].content");
    }

    #[test]
    fn metadata_comes_as_it_was_sent() {
        let params = r#"{"context":{"purpose":"support"},"user_id":"a","username":"b","email":"c","metadata":{"n":1.0}}"#;
        let params = RawValue::from_string(params.to_owned()).unwrap();
        let (context, create) = read::<profile::Create>(Some(&params)).unwrap();
        assert_eq!(context.purpose.unwrap().as_str(), "support");
        assert_eq!(create.metadata.unwrap().as_str(), r#"{"n":1.0}"#);
    }
}
