//! Which keys there are: a tree read from the JSON Schema of `Config`, so that its fields are the only list of them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::Config;

/// What may stand at a place.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// A table with these keys.
    Section(BTreeMap<String, Node>),
    /// A table whose keys are names that the operator gives.
    Named(Box<Node>),
    /// A list of these.
    List(Box<Node>),
    /// A value.
    Leaf(Kind),
}

/// What a value is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text, of some form that its type knows.
    Text,
    /// One of these words.
    Choice(Vec<String>),
    /// A whole number that is not negative.
    Whole,
    /// `true` or `false`.
    Boolean,
    /// A number or text.
    NumberOrText,
}

/// The tree of `Config`.
pub(super) static ROOT: LazyLock<Node> = LazyLock::new(|| {
    let settings = schemars::generate::SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    node(settings.into_generator().into_root_schema_for::<Config>().as_value())
});

impl Node {
    /// What stands under a key, where this is a table that may have it.
    pub(super) fn child(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Section(keys) => keys.get(key),
            Self::Named(node) => Some(node),
            Self::List(_) | Self::Leaf(_) => None,
        }
    }

    /// The paths of all values below, with `[]` where there is a list of tables.
    pub(super) fn leaves(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect("", &mut found);
        found
    }

    fn collect(&self, path: &str, found: &mut Vec<String>) {
        match self {
            Self::Section(keys) => {
                for (key, node) in keys {
                    node.collect(&join(path, key), found);
                }
            }
            Self::Named(node) => node.collect(&join(path, "NAME"), found),
            Self::List(node) if matches!(**node, Self::Section(_)) => {
                node.collect(&format!("{path}[]"), found);
            }
            Self::List(_) | Self::Leaf(_) => found.push(path.to_owned()),
        }
    }
}

/// A path with one more key.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Names the known key that is nearest to an unknown one at `path`, where the keys of `node` stand.
pub(super) fn nearest(node: &Node, path: &str, unknown: &str) -> String {
    let siblings: Vec<&str> = match node {
        Node::Section(keys) => keys.keys().map(String::as_str).collect(),
        Node::Named(_) | Node::List(_) | Node::Leaf(_) => Vec::new(),
    };
    let here = likest(unknown, siblings.iter().map(|key| join(path, key)));
    let anywhere = likest(unknown, ROOT.leaves().into_iter());
    match (here, anywhere) {
        // A key that stands in the wrong section is that key.
        (Some((near, _)), Some((exact, key))) if exact > 0.99 && near < exact => {
            format!("did you mean {key}?")
        }
        (Some((near, key)), _) if near >= 0.5 => format!("did you mean {key}?"),
        (_, Some((near, key))) if near >= 0.7 => format!("did you mean {key}?"),
        (here, anywhere) => {
            let near = here.or(anywhere).map(|(_, key)| key).unwrap_or_default();
            let place = if path.is_empty() { "the sections are".to_owned() } else { format!("[{path}] has") };
            format!("the nearest known key is {near}; {place} {}", siblings.join(", "))
        }
    }
}

/// The path whose last part is most like a word, and how much so, from 0 to 1.
fn likest(word: &str, paths: impl Iterator<Item = String>) -> Option<(f64, String)> {
    let last = |path: &str| path.rsplit('.').next().map(str::to_owned).unwrap_or_default();
    paths
        .map(|path| (strsim::normalized_damerau_levenshtein(word, &last(&path)), path))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
}

/// The word of a list that an unknown one is nearest to, if any is near.
pub(super) fn nearest_word<'a>(words: &'a [String], unknown: &str) -> Option<&'a str> {
    words
        .iter()
        .map(|word| (strsim::normalized_damerau_levenshtein(&unknown.to_lowercase(), word), word))
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .filter(|(score, _)| *score >= 0.5)
        .map(|(_, word)| word.as_str())
}

fn node(schema: &Value) -> Node {
    let ways = ways(schema);
    let words: Option<Vec<_>> =
        ways.iter().map(|way| way.get("const")?.as_str().map(str::to_owned)).collect();
    match (ways.as_slice(), words) {
        (_, Some(words)) => Node::Leaf(Kind::Choice(words)),
        ([way], None) => single(way),
        (_, None) => Node::Leaf(Kind::NumberOrText),
    }
}

/// The alternatives of a schema, flat and without null: an optional value is absent rather than null in TOML.
fn ways(schema: &Value) -> Vec<&Value> {
    let several = ["anyOf", "oneOf"].iter().find_map(|word| schema.get(word)?.as_array());
    match several {
        Some(several) => several.iter().flat_map(ways).collect(),
        None if schema.get("type").and_then(Value::as_str) == Some("null") => Vec::new(),
        None => vec![schema],
    }
}

fn single(schema: &Value) -> Node {
    let kind = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        other => other.and_then(Value::as_str),
    };
    match kind {
        Some("object") => table(schema),
        Some("array") => Node::List(Box::new(schema.get("items").map_or(Node::Leaf(Kind::Text), node))),
        Some("integer") => Node::Leaf(Kind::Whole),
        Some("boolean") => Node::Leaf(Kind::Boolean),
        _ => match schema.get("enum").and_then(Value::as_array) {
            Some(words) => {
                Node::Leaf(Kind::Choice(words.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
            }
            None => Node::Leaf(Kind::Text),
        },
    }
}

fn table(schema: &Value) -> Node {
    match (schema.get("properties").and_then(Value::as_object), schema.get("additionalProperties")) {
        (None, Some(each @ Value::Object(_))) => Node::Named(Box::new(node(each))),
        (keys, _) => Node::Section(
            keys.into_iter().flatten().map(|(key, schema)| (key.clone(), node(schema))).collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Node, ROOT, nearest};

    #[test]
    fn the_tree_has_the_keys_of_the_types() {
        let leaves = ROOT.leaves();
        for key in ["access.rules[].role", "database.url", "keyring.key_files", "log.level", "socket.mode"] {
            assert!(leaves.iter().any(|leaf| leaf == key), "{key} is not in {leaves:?}");
        }
        let tls = ROOT.child("database").and_then(|section| section.child("tls"));
        assert!(matches!(tls, Some(Node::Leaf(Kind::Choice(words))) if words.len() == 2), "{tls:?}");
    }

    #[test]
    fn an_unknown_key_leads_to_the_nearest_known_one() {
        let limits = ROOT.child("limits").unwrap();
        assert_eq!(nearest(limits, "limits", "call_timout"), "did you mean limits.call_timeout?");
        assert_eq!(nearest(limits, "limits", "pool"), "did you mean database.pool?");
        assert_eq!(nearest(&ROOT, "", "databse"), "did you mean database?");
        assert_eq!(nearest(&ROOT, "", "level"), "did you mean log.level?");
        assert!(nearest(limits, "limits", "qqqqqqq").contains("[limits] has buffered_bytes"));
    }
}
