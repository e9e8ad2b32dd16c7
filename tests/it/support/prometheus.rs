//! A strict reader of Prometheus' text format, version 0.0.4: whatever a scraper could stumble over is a panic.

use std::collections::{BTreeMap, BTreeSet};

/// What was read: each series by its name and sorted labels.
#[derive(Debug, Default)]
pub struct Figures {
    pub types: BTreeMap<String, String>,
    pub samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Figures {
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line must end with a newline");
        let (mut figures, mut helped, mut finished) = (Self::default(), BTreeSet::new(), BTreeSet::new());
        let mut family = String::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let name = if let Some(rest) = line.strip_prefix("# HELP ") {
                let name = rest.split(' ').next().unwrap().to_owned();
                assert!(helped.insert(name.clone()), "HELP twice: {line}");
                name
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
                let before = figures.types.insert(name.to_owned(), kind.to_owned());
                assert!(before.is_none(), "TYPE twice: {line}");
                name.to_owned()
            } else {
                assert!(!line.starts_with('#'), "a comment that is neither HELP nor TYPE: {line}");
                figures.sample(line)
            };
            assert!(is_name(&name), "{line}");
            if name != family {
                assert!(finished.insert(name.clone()), "the lines of {name} do not stand together");
                family = name;
            }
        }
        figures.check_histograms();
        figures
    }

    /// Reads a sample; answers its family.
    fn sample(&mut self, line: &str) -> String {
        let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
        let (name, mut rest) = line.split_at(end);
        let mut labels = BTreeMap::new();
        if let Some(inside) = rest.strip_prefix('{') {
            let mut inside = inside;
            while !inside.starts_with('}') {
                let (label, after) = inside.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
                assert!(is_name(label) && !label.contains(':'), "{line}");
                let (value, after) = quoted(after).unwrap_or_else(|| panic!("{line}"));
                assert!(labels.insert(label.to_owned(), value).is_none(), "a label twice: {line}");
                inside = after.strip_prefix(',').unwrap_or(after);
            }
            rest = &inside[1..];
        }
        let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
        let value = match value {
            "+Inf" => f64::INFINITY,
            value => value.parse().unwrap_or_else(|_| panic!("{line}")),
        };
        let family = ["_bucket", "_sum", "_count"]
            .into_iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|family| self.types.get(*family).is_some_and(|kind| kind == "histogram"))
            .unwrap_or(name)
            .to_owned();
        assert!(self.types.contains_key(&family), "a sample without TYPE: {line}");
        assert!(self.samples.insert((name.to_owned(), labels), value).is_none(), "a series twice: {line}");
        family
    }

    fn check_histograms(&self) {
        for (name, _) in self.types.iter().filter(|(_, kind)| *kind == "histogram") {
            let count = format!("{name}_count");
            for ((_, labels), count) in self.samples.iter().filter(|((of, _), _)| *of == count) {
                let mut buckets: Vec<(f64, f64)> = self
                    .samples
                    .iter()
                    .filter(|((of, with), _)| {
                        *of == format!("{name}_bucket")
                            && with.iter().filter(|(key, _)| *key != "le").eq(labels.iter())
                    })
                    .map(|((_, with), value)| (with["le"].replace("+Inf", "inf").parse().unwrap(), *value))
                    .collect();
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{name}: buckets are cumulative");
                assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{name}");
            }
        }
    }

    /// The value of one series; none where it is not there.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.samples.get(&(name.to_owned(), labels)).copied()
    }
}

fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            (_, c) => value.push(c),
        }
    }
}
