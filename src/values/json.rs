//! JSON that is kept and given back exactly as it was sent, numbers and all: only white space is dropped.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

/// Any JSON value on one line, without duplicate keys or lone surrogates, nested at most 128 levels.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Checks a value, and drops the white space between its tokens.
    ///
    /// # Errors
    /// Says what makes it ambiguous: a duplicate key, a lone surrogate, a number that is out of range.
    pub fn parse(text: &str) -> Result<Self, String> {
        check(text)?;
        RawValue::from_string(compact(text)).map(Self).map_err(|error| plain(&error))
    }

    /// A value that was checked before it was stored; nothing when it is no JSON at all.
    pub fn trusted(text: String) -> Option<Self> {
        RawValue::from_string(text).ok().map(Self)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The value `null`.
    pub fn is_null(&self) -> bool {
        self.as_str() == "null"
    }

    /// Whether it says the same, whatever the order of keys or the spelling of strings and numbers.
    pub fn same(&self, other: &Self) -> bool {
        if self.as_str() == other.as_str() {
            return true;
        }
        let value = |json: &Self| serde_json::from_str::<serde_json::Value>(json.as_str()).ok();
        matches!((value(self), value(other)), (Some(a), Some(b)) if a == b)
    }

    /// Applies a JSON Merge Patch (RFC 7396 §2); what the patch does not name stays as it was written.
    #[must_use]
    pub fn merge(target: Option<&Self>, patch: &Self) -> Self {
        let Some(changes) = Object::parse(patch.as_str()) else { return patch.clone() };
        let mut removed = HashSet::new();
        let mut members = target.and_then(|target| Object::parse(target.as_str())).unwrap_or_default().0;
        let mut places: HashMap<String, usize> =
            members.iter().enumerate().map(|(place, (key, _))| (key.clone(), place)).collect();
        for (key, change) in changes.0 {
            let change = Self(change);
            let place = places.get(&key).copied();
            let old = place.and_then(|place| members.get_mut(place)).map(|(_, value)| value);
            // A member that is taken out stays as null until the end, so that the places keep.
            let new = if change.is_null() {
                RawValue::NULL.to_owned()
            } else {
                Self::merge(old.as_ref().map(|old| Self((*old).clone())).as_ref(), &change).0
            };
            match old {
                Some(old) => *old = new,
                None => {
                    places.insert(key.clone(), members.len());
                    members.push((key.clone(), new));
                }
            }
            if change.is_null() {
                removed.insert(key);
            }
        }
        members.retain(|(key, _)| !removed.contains(key));
        Object(members).into_json()
    }

    /// Reads the value as a type.
    ///
    /// # Errors
    /// Says what is wrong, and of a member which: [`member_fault`] takes the two apart again.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, String> {
        let mut deserializer = serde_json::Deserializer::from_str(self.as_str());
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let (path, fault) = (error.path().to_string(), plain(error.inner()));
            if path == "." { fault } else { format!("{MEMBER}{path}`: {fault}") }
        })
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(de::Error::custom)
    }
}

impl JsonSchema for Json {
    fn schema_name() -> Cow<'static, str> {
        "Json".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "Any JSON value, given back exactly as it was sent." })
    }
}

/// A JSON object whose values are left as they were written, in their order.
#[derive(Clone, Debug, Default)]
pub struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// The object, or nothing when the text is of another kind.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// A member's value.
    pub fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    /// Takes a member out.
    pub fn remove(&mut self, key: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.remove(at).1)
    }

    /// Sets a member where it stands, or at the end.
    pub fn set(&mut self, key: impl Into<String>, value: Box<RawValue>) {
        let key = key.into();
        match self.0.iter_mut().find(|(name, _)| *name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// The members, in order.
    pub fn members(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), &**value))
    }

    /// The object as one value.
    pub fn into_json(self) -> Json {
        let mut text = String::from("{");
        for (index, (key, value)) in self.0.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(&serde_json::Value::from(key.as_str()).to_string());
            text.push(':');
            text.push_str(value.get());
        }
        text.push('}');
        Json(RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut seen = HashSet::new();
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, Box<RawValue>>()? {
                    if !seen.insert(member.0.clone()) {
                        return Err(de::Error::custom(format_args!("duplicate field `{}`", member.0)));
                    }
                    members.push(member);
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Reads a struct from an object alone; serde's own structs also take a list of their members.
///
/// # Errors
/// Whatever else it was.
pub fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct FromMap<D>(D);
    impl<'de, D: Deserializer<'de>> Deserializer<'de> for FromMap<D> {
        type Error = D::Error;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.deserialize_map(visitor)
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
        }
    }
    T::deserialize(FromMap(deserializer))
}

/// How the fault of a member begins.
const MEMBER: &str = "member `";

/// The path and the fault in what [`Json::read`] says of a member: serde carries an error through a raw value as text alone.
pub fn member_fault(message: &str) -> Option<(&str, &str)> {
    message.strip_prefix(MEMBER)?.split_once("`: ")
}

/// An error's own words, without the place in a text that the caller has not seen, and without what was found there, which
/// may be a person's.
pub fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) if error.line() > 0 => reworded(text.get(..at).unwrap_or_default()),
        _ => reworded(&text),
    }
}

/// From where to where the numbers of a type of Rust's go.
fn bounds(of: &str) -> Option<String> {
    let of = match of {
        "i16" => format!("from {} to {}", i16::MIN, i16::MAX),
        "i32" => format!("from {} to {}", i32::MIN, i32::MAX),
        "i64" => format!("from {} to {}", i64::MIN, i64::MAX),
        "u16" => format!("from 0 to {}", u16::MAX),
        "u32" => format!("from 0 to {}", u32::MAX),
        "u64" | "usize" => format!("from 0 to {}", u64::MAX),
        _ => return None,
    };
    Some(of)
}

/// What would be right, in JSON's words, where serde quotes what is wrong.
fn reworded(text: &str) -> String {
    let mistaken = ["invalid type: ", "invalid value: "].iter().find_map(|start| text.strip_prefix(start));
    if let Some((found, expected)) = mistaken.and_then(|rest| rest.rsplit_once(", expected ")) {
        let found = match found.split(['`', '"']).next().unwrap_or_default().trim_end() {
            "string" => "text",
            "integer" | "floating point" => "a number",
            "boolean" => "true or false",
            "sequence" => "an array",
            "map" => "an object",
            "null" | "unit value" => "null",
            _ => "something else",
        };
        if let Some(bounds) = bounds(expected).filter(|_| found == "a number") {
            return format!("must be a whole number {bounds}");
        }
        let expected = match expected {
            "a sequence" => "an array",
            "a map" => "an object",
            "a string" => "text",
            "a boolean" => "true or false",
            "i16" | "i32" | "i64" => "a whole number",
            "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
            structure if structure.starts_with("struct ") => "an object",
            other => other,
        };
        return format!("must be {expected}, and is {found}");
    }
    match text.strip_prefix("unknown variant `").and_then(|rest| rest.rsplit_once("`, expected ")) {
        Some((_, expected)) => format!("must be {}", expected.replace('`', "\"")),
        // Of a list of words: that it is no word at all.
        None if text == "expected value" => "must be text".to_owned(),
        None => text.to_owned(),
    }
}

/// Drops white space outside of strings; the text is valid JSON.
fn compact(text: &str) -> String {
    let mut compact = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for character in text.chars() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
        } else if matches!(character, ' ' | '\t' | '\n' | '\r') {
            continue;
        } else {
            in_string = character == '"';
        }
        compact.push(character);
    }
    compact
}

/// Walks through the whole value: what serde_json skips over in a raw value is looked at here.
fn check(text: &str) -> Result<(), String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Walk.deserialize(&mut deserializer).and_then(|()| deserializer.end()).map_err(|error| plain(&error))
}

struct Walk;

impl<'de> DeserializeSeed<'de> for Walk {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Walk)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if seen.contains(&key) {
                return Err(de::Error::custom("a key is there twice in one object"));
            }
            seen.insert(key);
            map.next_value_seed(Walk)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Json;
    use proptest::prelude::*;

    fn json(text: &str) -> Json {
        Json::parse(text).unwrap()
    }

    #[test]
    fn only_white_space_is_dropped() {
        let text = "{ \"a\\\" b\" : [ 1.0 , 1E5, 9007199254740993, -0 ],\n\t\"é\": \" \\u00e9 \\\\\" }";
        assert_eq!(
            json(text).as_str(),
            "{\"a\\\" b\":[1.0,1E5,9007199254740993,-0],\"é\":\" \\u00e9 \\\\\"}"
        );
    }

    #[test]
    fn an_error_says_what_would_be_right_and_never_quotes() {
        let worded = |text: &str| {
            let error = serde_json::from_str::<Vec<bool>>(text).unwrap_err();
            super::plain(&error)
        };
        assert_eq!(worded("\"Ada, expected `x`\""), "must be an array, and is text");
        assert_eq!(worded("[1]"), "must be true or false, and is a number");
        assert_eq!(worded("[null]"), "must be true or false, and is null");
        assert_eq!(worded("{\"Ada\":1}"), "must be an array, and is an object");
        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Two {
            _One,
            _Two,
        }
        let error = serde_json::from_str::<Two>("\"Ada`, expected y\"").unwrap_err();
        assert_eq!(super::plain(&error), "must be \"_one\" or \"_two\"");
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for text in [
            "{\"a\":1,\"a\":2}",
            "[{\"b\":{\"a\":1,\"\\u0061\":2}}]",
            "\"\\ud800\"",
            "1e999",
            "{\"a\":1}x",
            "[1,]",
        ] {
            assert!(Json::parse(text).is_err(), "{text}");
        }
        assert!(Json::parse(&"[".repeat(10_000)).is_err());
    }

    /// RFC 7396, appendix A: original, patch, result.
    #[test]
    fn a_merge_patch_does_what_the_rfc_shows() {
        let cases = [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"e":null,"a":1}"#),
            ("[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            ("{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ];
        for (original, patch, result) in cases {
            assert_eq!(
                Json::merge(Some(&json(original)), &json(patch)).as_str(),
                result,
                "{original} {patch}"
            );
        }
    }

    #[test]
    fn what_a_patch_does_not_name_keeps_its_digits() {
        let merged = Json::merge(
            Some(&json(r#"{"n":1.10,"m":{"big":123456789012345678901234567890}}"#)),
            &json(r#"{"m":{"x":1}}"#),
        );
        assert_eq!(merged.as_str(), r#"{"n":1.10,"m":{"big":123456789012345678901234567890,"x":1}}"#);
    }

    #[test]
    fn the_same_is_told_whatever_the_order() {
        assert!(json(r#"{"a":1,"b":"\u00e9"}"#).same(&json(r#"{"b":"é","a":1}"#)));
        assert!(!json("[1,2]").same(&json("[2,1]")));
    }

    proptest! {
        #[test]
        fn any_text_is_checked_without_a_panic(text in "[\\[\\]{}\",:0-9a-z\\\\ \n]{0,40}") {
            if let Ok(json) = Json::parse(&text) {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(json.as_str()).unwrap(), value);
            }
        }
    }
}
