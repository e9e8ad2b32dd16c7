//! JSON text shown to people. Works on the text, so that numbers and the order of members stay as the daemon sent them.

use serde_json::Value;

/// The same JSON, indented. The text must be valid.
pub(super) fn indented(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut rest = text.trim().chars().peekable();
    while let Some(character) = rest.next() {
        if in_string {
            out.push(character);
            in_string = escaped || character != '"';
            escaped = character == '\\' && !escaped;
            continue;
        }
        match character {
            '{' | '[' => {
                while rest.next_if(|next| next.is_ascii_whitespace()).is_some() {}
                out.push(character);
                match rest.next_if(|next| matches!(next, '}' | ']')) {
                    Some(close) => out.push(close),
                    None => {
                        depth += 1;
                        new_line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(character);
            }
            ',' => {
                out.push(',');
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            character if character.is_ascii_whitespace() => {}
            character => {
                in_string = character == '"';
                out.push(character);
            }
        }
    }
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

/// One line per value: the path of members that leads to it, and the value, in columns.
pub(super) fn lines(value: &Value) -> String {
    let mut rows = Vec::new();
    flatten(String::new(), value, &mut rows);
    let width = rows.iter().map(|(path, _)| path.chars().count()).max().unwrap_or(0);
    let lines: Vec<_> = rows.iter().map(|(path, value)| format!("{path:width$}  {value}")).collect();
    lines.join("\n")
}

fn flatten(path: String, value: &Value, rows: &mut Vec<(String, String)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                flatten(below(key), value, rows);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, value) in items.iter().enumerate() {
                flatten(below(&index.to_string()), value, rows);
            }
        }
        Value::String(text) => rows.push((path, text.clone())),
        other => rows.push((path, other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indenting_changes_white_space_alone() {
        let cases = [
            ("{}", "{}"),
            (" { } ", "{}"),
            ("[ ]", "[]"),
            (
                r#"{"a":[1.0,1e400,{"b":"x, {y}: \"z\\"}],"c":null}"#,
                "{\n  \"a\": [\n    1.0,\n    1e400,\n    {\n      \"b\": \"x, {y}: \\\"z\\\\\"\n    }\n  ],\n  \"c\": null\n}",
            ),
            (r#""\\""#, r#""\\""#),
            ("12345678901234567890123", "12345678901234567890123"),
        ];
        for (text, shown) in cases {
            assert_eq!(indented(text), shown);
            assert_eq!(indented(shown), shown, "once more changes nothing");
        }
    }

    #[test]
    fn a_value_is_shown_with_its_path() {
        let value = serde_json::json!({"status": "ok", "checks": {"database": {"ok": true}}, "none": []});
        assert_eq!(lines(&value), "checks.database.ok  true\nnone                []\nstatus              ok");
    }
}
