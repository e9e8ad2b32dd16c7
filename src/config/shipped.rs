//! The documented configuration file is true: it has every key, with its default.

use std::path::Path;

use super::{Config, keys, source};

/// What is shipped.
const SHIPPED: &str = include_str!("../../config/sidekeep.toml");

#[test]
fn the_shipped_file_equals_the_defaults() {
    let shipped: Config = toml::from_str(SHIPPED).unwrap();
    assert_eq!(shipped, Config::default());
}

#[test]
fn the_shipped_file_has_every_key_and_no_other() {
    let key = |line: &str| {
        let name = line.split(" = ").next().unwrap_or_default();
        line.contains(" = ") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let every: Vec<_> = SHIPPED
        .lines()
        .map(|line| {
            line.strip_prefix("# ").filter(|rest| rest.starts_with("[[") || key(rest)).unwrap_or(line)
        })
        .collect();
    let parsed = source::parse(Path::new("F"), &every.join("\n"));
    assert!(parsed.checked.problems.is_empty() && !parsed.partial, "{:?}", parsed.checked.problems);
    for leaf in keys::ROOT.leaves() {
        let places = [leaf.replace("[]", "[0]"), leaf.replace("[]", "[1]")];
        assert!(places.iter().any(|key| parsed.checked.origins.contains_key(key)), "{leaf} is missing");
    }
    assert!(SHIPPED.lines().all(|line| line.chars().count() <= 100));
}
