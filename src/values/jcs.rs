//! The canonical form of JSON that signatures are made over (RFC 8785). Pure.
//!
//! Numbers are integers that are exact in every reader of JSON; sidekeep signs no others.

use serde_json::Value;

/// The largest integer that every reader of JSON has exactly: 2^53 − 1.
const LARGEST: u64 = (1 << 53) - 1;

/// The canonical bytes; nothing where a number is not an exact integer.
pub fn jcs(value: &Value) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Some(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Option<()> {
    match value {
        Value::Number(number) => {
            number.as_i64().filter(|number| number.unsigned_abs() <= LARGEST)?;
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            // RFC 8785 §3.2.3: by UTF-16 code units.
            members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push(b'{');
            for (index, (name, member)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_text(name, out)?;
                out.push(b':');
                write(member, out)?;
            }
            out.push(b'}');
        }
        Value::String(text) => write_text(text, out)?,
        Value::Null | Value::Bool(_) => out.extend_from_slice(value.to_string().as_bytes()),
    }
    Some(())
}

/// serde_json escapes as ECMAScript does.
fn write_text(text: &str, out: &mut Vec<u8>) -> Option<()> {
    serde_json::to_writer(out, text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::jcs;

    #[test]
    fn members_are_in_the_order_of_their_utf_16_code_units() {
        // The keys of RFC 8785 §3.2.3, in the order that it gives.
        let value = json!({ "\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
            "1": "One", "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O With Diaeresis" });
        let text = String::from_utf8(jcs(&value).unwrap()).unwrap();
        let places: Vec<_> = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"]
            .iter()
            .map(|word| text.find(word).unwrap())
            .collect();
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn text_is_escaped_as_ecmascript_does() {
        let value = json!({ "b": [null, true, -1], "a": "\u{20ac}$\u{f}\nA'B\"\\/" });
        let text = String::from_utf8(jcs(&value).unwrap()).unwrap();
        assert_eq!(text, r#"{"a":"€$\u000f\nA'B\"\\/","b":[null,true,-1]}"#);
    }

    #[test]
    fn a_number_that_is_not_exact_has_no_canonical_form() {
        assert!(jcs(&json!(9_007_199_254_740_991_u64)).is_some());
        for inexact in [json!(9_007_199_254_740_992_u64), json!(u64::MAX), json!(0.5), json!([1e3])] {
            assert_eq!(jcs(&inexact), None, "{inexact}");
        }
    }
}
