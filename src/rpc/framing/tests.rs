//! The automaton against serde_json, over every way of cutting the bytes.

use proptest::prelude::*;
use serde_json::Value;

use super::{Framer, Step};

/// The messages of a stream, and where and why it breaks.
type Frames = (Vec<Vec<u8>>, Option<(usize, &'static str, bool)>);

fn frames<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Frames {
    let (mut framer, mut message, mut found, mut seen) = (Framer::new(), Vec::new(), Vec::new(), 0);
    for mut chunk in chunks {
        loop {
            match framer.feed(chunk) {
                Step::NeedMore => break message.extend_from_slice(chunk),
                Step::Message(end) => {
                    message.extend_from_slice(&chunk[..end]);
                    found.push(std::mem::take(&mut message).trim_ascii().to_vec());
                    (seen, chunk) = (seen + end, &chunk[end..]);
                }
                Step::Violation { at, fault, resumable } => {
                    return (found, Some((seen + at, fault, resumable)));
                }
            }
        }
        seen += chunk.len();
    }
    if framer.ends_message() {
        found.push(message.trim_ascii().to_vec());
    }
    (found, None)
}

fn one_by_one(bytes: &[u8]) -> Frames {
    frames(bytes.chunks(1))
}

fn broken(text: &str) -> (usize, &'static str, bool) {
    let (_, violation) = frames([text.as_bytes()]);
    violation.unwrap_or_else(|| panic!("{text:?} passes"))
}

#[test]
fn compact_lines_and_pretty_printed_values_are_messages() {
    let text = "{\"a\":1}\n{\n  \"b\": [1, -2.5e+3, \"x\\n\\u00e9\\\\\", null]\n}\n\n[]{} true 0 \"s\"-1";
    let (found, violation) = one_by_one(text.as_bytes());
    assert_eq!(violation, None);
    assert_eq!(found.len(), 8, "{found:?}");
}

#[test]
fn a_violation_is_found_at_its_byte() {
    for (text, at) in [
        ("}", 0),
        ("{1", 1),
        ("{\"a\" 1", 5),
        ("{\"a\":1,}", 7),
        ("[1,]", 3),
        ("[1}", 2),
        ("{\"a\":1]", 6),
        ("01", 1),
        ("-x", 1),
        ("1.x", 2),
        ("1ex", 2),
        ("trux", 3),
        ("truex", 4),
        ("1x", 1),
        ("\"\\x", 2),
        ("\"\\u12x", 5),
        ("\"a\nb", 2),
        ("\"\0", 1),
        ("\u{feff}{}", 0),
        ("[\u{a0}", 1),
    ] {
        assert_eq!(broken(text).0, at, "{text:?}");
    }
}

#[test]
fn only_a_message_on_one_line_can_be_skipped() {
    assert!(broken("{}\n\n{\"a\":1,}").2);
    assert!(!broken("{\n\"a\":1,}").2);
    assert!(broken("\"a\n").2, "the newline that breaks a string ends its line");
}

#[test]
fn nesting_ends_at_128_levels() {
    let deep = |levels: usize| [b"[".repeat(levels), b"]".repeat(levels)].concat();
    assert_eq!(frames([&deep(128)[..]]), (vec![deep(128)], None));
    let (_, violation) = frames([&deep(129)[..]]);
    assert_eq!(violation.map(|(at, ..)| at), Some(128));
}

#[test]
fn the_end_of_the_input_ends_a_scalar_only() {
    for (text, ends) in
        [("12", true), ("1.", false), ("null", true), ("nul", false), ("[1", false), ("\"a", false)]
    {
        let mut framer = Framer::new();
        assert_eq!(framer.feed(text.as_bytes()), Step::NeedMore);
        assert_eq!(framer.ends_message(), ends, "{text}");
    }
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((".*", inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Bytes that are nearly JSON, which find more than random ones do.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        8 => prop::sample::select(b"{}[]:,\"\\ \n0123456789.eE+-truefalsn".to_vec()),
        1 => any::<u8>(),
    ];
    prop::collection::vec(byte, 0..200)
}

proptest! {
    #[test]
    fn messages_are_those_that_serde_json_finds(
        values in prop::collection::vec((json(), any::<bool>()), 0..6),
        cut in 1_usize..40,
    ) {
        let mut text = String::new();
        for (value, pretty) in &values {
            let one = if *pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
            text.push_str(&one.unwrap());
            text.push('\n');
        }
        let expected: Vec<Value> =
            serde_json::Deserializer::from_str(&text).into_iter().collect::<Result<_, _>>().unwrap();
        let (found, violation) = frames(text.as_bytes().chunks(cut));
        prop_assert_eq!(violation, None);
        let found: Vec<Value> = found.iter().map(|one| serde_json::from_slice(one).unwrap()).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn cutting_changes_nothing(bytes in nearly_json(), cut in 1_usize..20) {
        let whole = frames([&bytes[..]]);
        prop_assert_eq!(&one_by_one(&bytes), &whole);
        prop_assert_eq!(&frames(bytes.chunks(cut)), &whole);
    }

    #[test]
    fn what_passes_is_json(bytes in nearly_json()) {
        let (found, _) = frames([&bytes[..]]);
        for one in found.iter().filter(|one| std::str::from_utf8(one).is_ok()) {
            prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(one).is_ok(), "{:?}", one);
        }
    }
}
