//! Pages that a person can read offline: plain HTML without scripts, everything in it escaped. Pure.

use std::fmt::Write as _;

use super::manifest::Head;

/// How many items a page has.
pub(super) const ITEMS: u64 = 1000;

/// Nothing is loaded and nothing runs, whatever a text in it says.
const BEFORE_TITLE: &str = "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
<meta name=\"viewport\" content=\"width=device-width\">\n<title>";
const AFTER_TITLE: &str = "</title>\n<style>\n\
body { font: 1em/1.5 sans-serif; max-width: 60em; margin: 0 auto; padding: 1em }\n\
main > ol > li { border-top: 1px solid; padding: .5em }\n\
dt { font-weight: bold }\ndd { white-space: pre-wrap; overflow-wrap: anywhere }\n\
table { border-collapse: collapse }\nth, td { text-align: left; vertical-align: top; padding: .2em 1em .2em 0 }\n\
pre { white-space: pre-wrap }\n</style>\n</head>\n<body>\n";
const END: &str = "</body>\n</html>\n";

/// What a part is called, and what it is, in a reader's words.
fn words(part: &str) -> (&str, &str) {
    match part {
        "profile" => ("Profile", "Who you are in the application."),
        "preferences" => ("Preferences", "What you have set."),
        "consents" => ("Consents", "What you agreed to or withdrew, and when."),
        "conversations" => {
            ("Conversations", "Your conversations with the application. What was said is under Messages.")
        }
        "messages" => {
            ("Messages", "What was said in your conversations, each message with its conversation's id.")
        }
        "person" => {
            ("Person", "That you are known, since when, and whether the use of your data is restricted.")
        }
        "holds" => ("Legal holds", "Orders that forbid to delete your data, and why."),
        "requests" => ("Requests", "What you asked for, and what became of it."),
        "audit_entries" => {
            ("Log", "What was done by you and with your data. Other people are only called other.")
        }
        "accesses" => {
            ("Accesses", "Who read or changed your data, when and why. Other people are only called other.")
        }
        _ => (part, ""),
    }
}

/// The file of a page, from 1.
pub(super) fn file(part: &str, page: u64) -> String {
    format!("pages/{part}-{page:06}.html")
}

/// How many pages so many items need.
pub(super) fn pages(items: u64) -> u64 {
    items.div_ceil(ITEMS)
}

/// The beginning of a page, up to its items.
pub(super) fn begin(part: &str, page: u64, items: u64, out: &mut String) {
    let (title, about) = words(part);
    out.push_str(BEFORE_TITLE);
    escape(title, out);
    let _ = write!(out, ", page {page} of {}{AFTER_TITLE}<header>\n<h1>", pages(items));
    escape(title, out);
    out.push_str("</h1>\n<p>");
    escape(about, out);
    out.push_str("</p>\n");
    navigation(part, page, items, "Top", out);
    let first = page.saturating_sub(1).saturating_mul(ITEMS).saturating_add(1);
    let _ = write!(out, "</header>\n<main>\n<ol start=\"{first}\">\n");
}

/// The end of a page.
pub(super) fn end(part: &str, page: u64, items: u64, out: &mut String) {
    out.push_str("</ol>\n</main>\n<footer>\n");
    navigation(part, page, items, "Bottom", out);
    out.push_str("</footer>\n");
    out.push_str(END);
}

fn navigation(part: &str, page: u64, items: u64, place: &str, out: &mut String) {
    let _ = write!(out, "<nav aria-label=\"{place}\"><p><a href=\"../index.html\">Overview</a>");
    let link = |to: u64, text: &str, out: &mut String| {
        let name = file(part, to);
        let _ = write!(out, " <a href=\"../{name}\">{text}</a>");
    };
    if page > 1 {
        link(page.saturating_sub(1), "Previous page", out);
    }
    if page < pages(items) {
        link(page.saturating_add(1), "Next page", out);
    }
    out.push_str("</p></nav>\n");
}

/// An item, as one JSON object; nothing where it is none.
pub(super) fn item(json: &str, out: &mut String) -> Option<()> {
    out.push_str("<li>");
    let mut reader = Reader { rest: json };
    reader.value(true, out)?;
    out.push_str("</li>\n");
    reader.rest.is_empty().then_some(())
}

/// The page that leads to all others.
pub(super) fn index(head: &Head, notice: Option<&str>, out: &mut String) {
    let title = match head.scope {
        super::Scope::Access => "All data that is held about you",
        super::Scope::Portability => "The data that you provided",
    };
    let _ = write!(out, "{BEFORE_TITLE}{title}{AFTER_TITLE}<header>\n<h1>{title}</h1>\n<p>About ");
    escape(&head.user_id, out);
    out.push_str(", kept by ");
    escape(&head.deployment, out);
    let _ = write!(out, ", as of {}.</p>\n</header>\n<main>\n<table>\n<thead><tr>", head.exported_at);
    for heading in ["Part", "What it is", "How many", "How long it is kept", "For programs"] {
        let _ = write!(out, "<th scope=\"col\">{heading}</th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (part, items) in &head.counts {
        let (title, about) = words(part);
        out.push_str("<tr><th scope=\"row\">");
        if *items > 0 {
            let _ = write!(out, "<a href=\"{}\">", file(part, 1));
            escape(title, out);
            out.push_str("</a>");
        } else {
            escape(title, out);
        }
        out.push_str("</th><td>");
        escape(about, out);
        let _ = write!(out, "</td><td>{items}</td><td>");
        escape(head.retention.get(part).map(String::as_str).unwrap_or_default(), out);
        let _ = writeln!(out, "</td><td><a href=\"data/{part}.json\">data/{part}.json</a></td></tr>");
    }
    out.push_str("</tbody>\n</table>\n");
    if let Some(notice) = notice {
        out.push_str("<h2>How your data is used</h2>\n<pre>");
        escape(notice, out);
        out.push_str("</pre>\n");
    }
    out.push_str(
        "<h2>Whether this is whole</h2>\n<p><a href=\"manifest.json\">manifest.json</a> lists every file with its SHA-256 and is \
         signed (Ed25519 over the RFC 8785 form of its body).</p>\n</main>\n",
    );
    out.push_str(END);
}

/// Writes a text so that it is nothing but text.
fn escape(text: &str, out: &mut String) {
    let mut rest = text;
    while let Some(place) = rest.find(['&', '<', '>', '"', '\'']) {
        let (before, at) = rest.split_at(place);
        out.push_str(before);
        let mut after = at.chars();
        out.push_str(match after.next() {
            Some('&') => "&amp;",
            Some('<') => "&lt;",
            Some('>') => "&gt;",
            Some('"') => "&quot;",
            _ => "&#39;",
        });
        rest = after.as_str();
    }
    out.push_str(rest);
}

/// Reads JSON as it is written out: nothing is built of it in between, as there may be millions of items.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn eat(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(token)?.trim_start();
        Some(())
    }

    /// `outer` are the names that sidekeep gives, which are words; within are the application's own.
    fn value(&mut self, outer: bool, out: &mut String) -> Option<()> {
        match self.rest.as_bytes().first()? {
            b'{' => self.object(outer, out),
            b'[' => self.array(out),
            b'"' => {
                let text = self.text()?;
                if text.contains('\\') {
                    escape(&serde_json::from_str::<String>(text).ok()?, out);
                } else {
                    escape(text.strip_prefix('"')?.strip_suffix('"')?, out);
                }
                Some(())
            }
            _ => {
                let length = self.rest.find([',', '}', ']', ' ']).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at_checked(length)?;
                self.rest = rest.trim_start();
                out.push_str(match word {
                    "true" => "yes",
                    "false" => "no",
                    "null" => "\u{2013}",
                    // A number has none of the characters that would have to be escaped.
                    number if number.parse::<f64>().is_ok() => number,
                    _ => return None,
                });
                Some(())
            }
        }
    }

    /// Its members but for those that are null.
    fn object(&mut self, outer: bool, out: &mut String) -> Option<()> {
        self.eat("{")?;
        out.push_str("<dl>");
        while self.eat("}").is_none() {
            let name = self.text()?;
            self.eat(":")?;
            if self.eat("null").is_none() {
                out.push_str("<dt>");
                if outer && !name.contains('\\') {
                    let words = name.trim_matches('"');
                    words.split('_').enumerate().for_each(|(index, word)| {
                        if index > 0 {
                            out.push(' ');
                        }
                        escape(word, out);
                    });
                } else {
                    escape(&serde_json::from_str::<String>(name).ok()?, out);
                }
                out.push_str("</dt><dd>");
                self.value(false, out)?;
                out.push_str("</dd>");
            }
            if self.eat(",").is_none() && !self.rest.starts_with('}') {
                return None;
            }
        }
        out.push_str("</dl>");
        Some(())
    }

    fn array(&mut self, out: &mut String) -> Option<()> {
        self.eat("[")?;
        out.push_str("<ul>");
        while self.eat("]").is_none() {
            out.push_str("<li>");
            self.value(false, out)?;
            out.push_str("</li>");
            if self.eat(",").is_none() && !self.rest.starts_with(']') {
                return None;
            }
        }
        out.push_str("</ul>");
        Some(())
    }

    /// A text with its quotation marks, as it is written.
    fn text(&mut self) -> Option<&'a str> {
        let inner = self.rest.strip_prefix('"')?;
        let mut from = 0;
        loop {
            let place = from + inner.get(from..)?.find(['"', '\\'])?;
            if inner.as_bytes().get(place) == Some(&b'"') {
                // With both quotation marks, which are a byte each.
                let (text, rest) = self.rest.split_at_checked(place + 2)?;
                self.rest = rest.trim_start();
                return Some(text);
            }
            from = place + 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{begin, end, escape, file, item, pages};

    fn shown(json: &str) -> Option<String> {
        let mut out = String::new();
        item(json, &mut out).map(|()| out)
    }

    #[test]
    fn an_item_is_shown_with_all_that_is_in_it_and_nothing_of_it_is_markup() {
        let html = shown(
            r#"{"given_at":"2026","none":null,"<b>":true,"m":{"a_b":[1.5e3,"x\"<script>\u00e9",{}],"n":null, "o": false}}"#,
        );
        assert_eq!(
            html.as_deref(),
            Some(
                "<li><dl><dt>given at</dt><dd>2026</dd><dt>&lt;b&gt;</dt><dd>yes</dd><dt>m</dt><dd><dl><dt>a_b</dt><dd><ul><li>1.5e3\
                 </li><li>x&quot;&lt;script&gt;é</li><li><dl></dl></li></ul></dd><dt>o</dt><dd>no</dd></dl></dd></dl></li>\n"
            )
        );
        for bad in
            ["", "{", "{\"a\":}", "{\"a\":1", "[1 2]", "{\"a\" 1}", "x", "\"open", "{} {}", "{\"a\":\"\\"]
        {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn pages_lead_to_one_another() {
        assert_eq!((pages(0), pages(1), pages(1000), pages(1001)), (0, 1, 1, 2));
        let mut html = String::new();
        begin("consents", 2, 2500, &mut html);
        end("consents", 2, 2500, &mut html);
        assert!(html.contains("<ol start=\"1001\">") && html.contains("page 2 of 3"), "{html}");
        for link in [file("consents", 1), file("consents", 3), "index.html".into()] {
            assert_eq!(html.matches(&format!("href=\"../{link}\"")).count(), 2, "{html}");
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_shown_and_every_text_in_it_is_escaped(value in json(), marker: String) {
            let value = serde_json::json!({ "v": value, "marker": marker });
            let html = shown(&value.to_string()).unwrap();
            let mut escaped = String::new();
            escape(&marker, &mut escaped);
            prop_assert!(html.contains(&escaped));
            prop_assert!(!html.contains("<script"));
        }
    }
}
