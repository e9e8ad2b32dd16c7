//! The published vectors, read by the code that writes the log. Verifiers in other languages read the same files.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::entry::{Entry, Head, Labels};
use super::merkle::{Frontier, Hash, consistency, hex, inclusion, is_consistent, resolve, root_by_inclusion};
use super::note::{self, VerifierKey};
use crate::clock::Timestamp;

fn bytes(text: &Value) -> Option<Vec<u8>> {
    let text = text.as_str()?;
    assert_eq!(text.len() % 2, 0, "{text}");
    Some((0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect())
}

fn time(text: &Value) -> Option<DateTime<Utc>> {
    Some(Timestamp::parse(text.as_str()?).unwrap().utc())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn entry(row: &Value) -> Entry {
    Entry {
        stream: row["stream"].as_i64().unwrap().try_into().unwrap(),
        position: row["position"].as_i64().unwrap(),
        recorded_at: time(&row["recorded_at"]).unwrap(),
        format: row["format"].as_i64().unwrap().try_into().unwrap(),
        id: text(&row["id"]).unwrap(),
        actor_id: row["actor_id"].as_i64(),
        subject_id: row["subject_id"].as_i64(),
        action: text(&row["action"]).unwrap(),
        resource_type: text(&row["resource_type"]),
        resource_id: text(&row["resource_id"]),
        outcome: text(&row["outcome"]),
        occurred_at: time(&row["occurred_at"]),
        labels: (!row["labels"].is_null()).then(|| Labels::stored(&row["labels"]).unwrap()),
        client_sealed: bytes(&row["client_sealed"]),
        metadata_sealed: bytes(&row["metadata_sealed"]),
    }
}

fn read(file: &str) -> Value {
    serde_json::from_str(file).unwrap()
}

#[test]
fn canonical_bytes_and_leaves_are_those_of_the_vectors() {
    let file = read(include_str!("../../tests/vectors/canonical.json"));
    for vector in file["vectors"].as_array().unwrap() {
        let entry = entry(&vector["columns"]);
        assert_eq!(hex(&entry.canonical()), vector["canonical"], "{}", vector["name"]);
        assert_eq!(entry.leaf().hex(), vector["leaf_hash"], "{}", vector["name"]);
    }
    let file = read(include_str!("../../tests/vectors/heads.json"));
    for vector in file["vectors"].as_array().unwrap() {
        let row = &vector["head"];
        let (size, stream) = (row["size"].as_i64().unwrap(), row["stream"].as_i64().unwrap());
        let root = Hash::from_hex(row["root"].as_str().unwrap()).unwrap();
        let head = Head::new(time(&row["at"]).unwrap(), root, size, stream.try_into().unwrap());
        assert_eq!(hex(&head.canonical()), vector["canonical"]);
        assert_eq!(head.leaf().hex(), vector["leaf_hash"]);
    }
}

#[test]
fn roots_and_proofs_are_those_of_the_vectors() {
    let file = read(include_str!("../../tests/vectors/merkle.json"));
    let (mut frontier, mut known) = (Frontier::default(), std::collections::HashMap::new());
    let mut leaves = Vec::new();
    let mut roots = vec![frontier.root()];
    for leaf in file["leaves"].as_array().unwrap() {
        let leaf = Hash::leaf(&bytes(leaf).unwrap());
        known.insert(super::merkle::Node { level: 0, index: frontier.size() }, leaf);
        frontier.push(leaf, |node, hash| {
            known.insert(node, hash);
        });
        leaves.push(leaf);
        roots.push(frontier.root());
    }
    let told: Vec<&str> =
        file["roots"].as_array().unwrap().iter().map(|root| root.as_str().unwrap()).collect();
    assert_eq!(roots.iter().map(Hash::hex).collect::<Vec<_>>(), told);
    let path = |proof: &Value| -> Vec<Hash> {
        let steps = proof["path"].as_array().unwrap().iter();
        steps.map(|step| Hash::from_hex(step.as_str().unwrap()).unwrap()).collect()
    };
    for proof in file["inclusion"].as_array().unwrap() {
        let (leaf, size) = (proof["leaf"].as_u64().unwrap(), proof["size"].as_u64().unwrap());
        assert_eq!(resolve(&inclusion(leaf, size).unwrap(), &known).unwrap(), path(proof), "{proof}");
        let at = |number: u64| usize::try_from(number).unwrap();
        let root = root_by_inclusion(leaves[at(leaf)], leaf, size, &path(proof));
        assert_eq!(root, Some(roots[at(size)]), "{proof}");
    }
    for proof in file["consistency"].as_array().unwrap() {
        let (old, size) = (proof["old"].as_u64().unwrap(), proof["size"].as_u64().unwrap());
        assert_eq!(resolve(&consistency(old, size).unwrap(), &known).unwrap(), path(proof), "{proof}");
        let of = |size: u64| (size, roots[usize::try_from(size).unwrap()]);
        assert!(is_consistent(of(old), of(size), &path(proof)), "{proof}");
    }
}

#[test]
fn notes_open_as_the_vectors_say() {
    let file = read(include_str!("../../tests/vectors/note.json"));
    let key = VerifierKey::decode(file["key"].as_str().unwrap()).unwrap();
    for vector in file["vectors"].as_array().unwrap() {
        let opened = note::open(vector["note"].as_str().unwrap(), std::slice::from_ref(&key));
        let told = &vector["checkpoint"];
        let expected = told["size"].as_u64().map(|size| (size, told["root"].as_str().unwrap().to_owned()));
        assert_eq!(opened.map(|opened| (opened.size, opened.root.hex())), expected, "{}", vector["name"]);
    }
}
