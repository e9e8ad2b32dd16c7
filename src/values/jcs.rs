//! The canonical form of JSON that signatures are made over (RFC 8785). Pure.
//!
//! Numbers are IEEE 754 doubles, as every reader of JSON has them: what an application sent with more digits than that is signed
//! as its nearest double.

use serde_json::Value;

/// The canonical bytes; nothing where a number is no finite double.
pub fn jcs(value: &Value) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Some(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Option<()> {
    match value {
        Value::Number(number) => out.extend_from_slice(double(number.as_f64()?)?.as_bytes()),
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

/// A number as ECMAScript writes it (ECMA-262, Number::toString): the shortest digits that are this double; of two as near, the even
/// ones.
fn double(number: f64) -> Option<String> {
    number.is_finite().then(|| ryu_js::Buffer::new().format_finite(number).to_owned())
}

/// serde_json escapes as ECMAScript does.
fn write_text(text: &str, out: &mut Vec<u8>) -> Option<()> {
    serde_json::to_writer(out, text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{double, jcs};

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

    /// RFC 8785, appendix B, and the digits that the form turns at.
    #[test]
    fn numbers_are_those_of_ecmascript() {
        let of_bits = [
            (0x0000_0000_0000_0000, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ];
        for (bits, text) in of_bits {
            assert_eq!(double(f64::from_bits(bits)).as_deref(), Some(text), "{bits:x}");
        }
        assert_eq!((double(f64::NAN), double(f64::INFINITY)), (None, None));
        let text =
            |json: &str| String::from_utf8(jcs(&serde_json::from_str(json).unwrap()).unwrap()).unwrap();
        assert_eq!(
            text("[1.50, 1E2, 9007199254740993, 18446744073709551615, -0.0]"),
            "[1.5,100,9007199254740992,18446744073709552000,0]"
        );
    }
}
