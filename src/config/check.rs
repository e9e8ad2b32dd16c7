//! Walks what one source says along the tree of known keys: names every unknown key and every value that its type refuses,
//! and keeps the rest. Knows nothing of rules that concern several keys.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use config::{Map, Value, ValueKind};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::keys::{self, Kind, Node};
use super::problem::{Origin, Problem};

/// What one source gives.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// The values that their types accept.
    pub(super) values: Map<String, Value>,
    /// Where each key was set, sections and lists too.
    pub(super) origins: BTreeMap<String, Origin>,
    /// The keys whose values were refused.
    pub(super) broken: BTreeSet<String>,
    /// What is wrong.
    pub(super) problems: Vec<Problem>,
}

/// One step of the way to a value.
#[derive(Clone, Debug)]
enum Step {
    Key(String),
    Index(usize),
}

/// The way to a value, as in `access.rules[0].role`.
#[derive(Clone, Debug, Default)]
struct Way(Vec<Step>);

impl Way {
    fn to(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// A document in which nothing but this value stands at its place.
    fn around(&self, value: toml::Value) -> toml::Value {
        self.0.iter().rev().fold(value, |inner, step| match step {
            Step::Key(key) => toml::Value::Table(toml::Table::from_iter([(key.clone(), inner)])),
            Step::Index(_) => toml::Value::Array(vec![inner]),
        })
    }
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) => {
                    f.write_str(if position == 0 { "" } else { "." })?;
                    // A key in quotes may hold anything; what is shown must not move a terminal's cursor.
                    let bare = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                    if bare && !key.is_empty() { f.write_str(key)? } else { write!(f, "{key:?}")? }
                }
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// One walk: `place` says where a span of the source is.
struct Walk<'a> {
    place: &'a dyn Fn(Range<usize>) -> Origin,
    found: Checked,
}

/// Checks a whole table.
pub(super) fn table(table: &DeTable<'_>, place: &dyn Fn(Range<usize>) -> Origin) -> Checked {
    let mut walk = Walk { place, found: Checked::default() };
    walk.found.values = walk.section(&keys::ROOT, table, &Way::default());
    walk.found
}

impl Walk<'_> {
    fn section(&mut self, node: &Node, table: &DeTable<'_>, way: &Way) -> Map<String, Value> {
        let mut values = Map::new();
        for (key, value) in table {
            let here = way.to(Step::Key(key.get_ref().to_string()));
            match node.child(key.get_ref()) {
                Some(child) => {
                    if let Some(value) = self.value(child, value, &here) {
                        values.insert(key.get_ref().to_string(), value);
                    }
                }
                None => {
                    let hint = keys::nearest(node, &way.to_string(), key.get_ref());
                    self.refuse(&here, key.span(), format!("unknown key; {hint}"));
                }
            }
        }
        values
    }

    fn value(&mut self, node: &Node, value: &Spanned<DeValue<'_>>, way: &Way) -> Option<Value> {
        self.found.origins.insert(way.to_string(), (self.place)(value.span()));
        let kind = match (node, value.get_ref()) {
            (Node::Section(_) | Node::Named(_), DeValue::Table(table)) => {
                ValueKind::Table(self.section(node, table, way))
            }
            (Node::List(each), DeValue::Array(items)) => {
                let kept: Vec<_> = items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.value(each, item, &way.to(Step::Index(index))))
                    .collect();
                // Without one of its items it would be another list, and be blamed for that.
                ValueKind::Array(kept.into_iter().collect::<Option<_>>()?)
            }
            (Node::Leaf(kind), value_here) => match leaf(kind, value_here, way) {
                Ok(kind) => kind,
                Err(message) => {
                    self.refuse(way, value.span(), message);
                    return None;
                }
            },
            (Node::Section(_) | Node::Named(_), other) => {
                let message = format!("must be a table of keys, not {}", name_of(other));
                self.refuse(way, value.span(), message);
                return None;
            }
            (Node::List(_), other) => {
                let message = format!("must be a list in square brackets, not {}", name_of(other));
                self.refuse(way, value.span(), message);
                return None;
            }
        };
        Some(Value::new(None, kind))
    }

    fn refuse(&mut self, way: &Way, span: Range<usize>, message: String) {
        let key = way.to_string();
        self.found.broken.insert(key.clone());
        self.found.problems.push(Problem { at: (self.place)(span), key, message });
    }
}

/// Checks a value by its kind, then by reading a configuration that holds nothing else.
fn leaf(kind: &Kind, value: &DeValue<'_>, way: &Way) -> Result<ValueKind, String> {
    let plain = match (kind, value) {
        (Kind::Text | Kind::NumberOrText, DeValue::String(text)) => toml::Value::String(text.to_string()),
        (Kind::Choice(words), DeValue::String(text)) => {
            if !words.iter().any(|word| word == text) {
                return Err(choice(words, text));
            }
            toml::Value::String(text.to_string())
        }
        (Kind::Whole | Kind::NumberOrText, DeValue::Integer(number)) => toml::Value::Integer(whole(number)?),
        (Kind::Boolean, DeValue::Boolean(truth)) => toml::Value::Boolean(*truth),
        (kind, other) => return Err(format!("must be {}, not {}", kind_of(kind), name_of(other))),
    };
    super::Config::deserialize(way.around(plain.clone()))
        .map_err(|error| error.message().trim().to_owned())?;
    Ok(match plain {
        toml::Value::Integer(number) => ValueKind::I64(number),
        toml::Value::Boolean(truth) => ValueKind::Boolean(truth),
        other => ValueKind::String(other.as_str().unwrap_or_default().to_owned()),
    })
}

fn whole(number: &DeInteger<'_>) -> Result<i64, String> {
    match i64::from_str_radix(number.as_str(), number.radix()) {
        Ok(number) if number >= 0 => Ok(number),
        Ok(_) => Err("must be a whole number, not a negative one".into()),
        Err(_) => Err("is too large a number".into()),
    }
}

fn choice(words: &[String], text: &str) -> String {
    let all = one_of(words);
    match keys::nearest_word(words, text) {
        Some(word) => format!("must be {all}; did you mean \"{word}\"?"),
        None => format!("must be {all}"),
    }
}

fn one_of(words: &[String]) -> String {
    let all: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    format!("one of {}", all.join(", "))
}

fn kind_of(kind: &Kind) -> String {
    match kind {
        Kind::Text => "text in quotes".into(),
        Kind::Choice(words) => one_of(words),
        Kind::Whole => "a whole number".into(),
        Kind::Boolean => "true or false".into(),
        Kind::NumberOrText => "a number, or a name in quotes".into(),
    }
}

fn name_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
