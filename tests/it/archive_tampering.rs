//! An archive that was changed does not verify, and the place is told.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::archive::{Past, archive, archiving, public_key, verify};
use crate::support::Store;

/// The files of an archive whose names end so, in order.
fn files(root: &Path, ends: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(ends) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Changes the lines of an object, and compresses them again.
fn relined(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    rewrite(path, |bytes| {
        let mut text = String::new();
        zstd::Decoder::new(&**bytes).unwrap().read_to_string(&mut text).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        change(&mut lines);
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        lines.iter().for_each(|line| writeln!(encoder, "{line}").unwrap());
        *bytes = encoder.finish().unwrap();
    });
}

/// Changes what a manifest says, without the key to sign it.
fn edited(path: &Path, change: impl FnOnce(&mut Value)) {
    rewrite(path, |bytes| {
        let mut manifest: Value = serde_json::from_slice(bytes).unwrap();
        change(&mut manifest["body"]);
        *bytes = serde_json::to_vec(&manifest).unwrap();
    });
}

fn copy(from: &Path, to: &Path) {
    for file in files(from, "") {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&file, target).unwrap();
    }
}

type Tampering = (&'static str, fn(&Path), &'static [&'static str]);

/// What is done to an archive, and what is then told, of the first break at least.
const TAMPERINGS: [Tampering; 15] = [
    (
        "a flipped bit",
        |root| rewrite(&files(root, ".zst")[2], |bytes| bytes[3000] ^= 1),
        &["compression", "sha256"],
    ),
    (
        "a flipped bit at the end",
        |root| rewrite(&files(root, ".zst")[2], |bytes| *bytes.last_mut().unwrap() ^= 1),
        &["compression", "sha256"],
    ),
    (
        "cut short",
        |root| rewrite(&files(root, ".zst")[2], |bytes| bytes.truncate(bytes.len() / 2)),
        &["size", "sha256", "root"],
    ),
    ("empty", |root| rewrite(&files(root, ".zst")[2], Vec::clear), &["size", "entries", "root"]),
    ("more at the end", |root| rewrite(&files(root, ".zst")[2], |bytes| bytes.extend(b"more")), &["sha256"]),
    ("an object gone", |root| std::fs::remove_file(&files(root, ".zst")[2]).unwrap(), &["object"]),
    (
        "an action changed",
        |root| {
            relined(&files(root, ".zst")[2], |lines| {
                lines[7] = lines[7].replacen("record.read", "record.edit", 1)
            });
        },
        &["leaf_hash", "root"],
    ),
    (
        "sealed bytes changed",
        |root| {
            relined(&files(root, ".zst")[2], |lines| {
                let at = lines[7].rfind("\"metadata_sealed\":\"").unwrap() + 30;
                let other = if &lines[7][at..=at] == "A" { "B" } else { "A" };
                lines[7].replace_range(at..=at, other);
            });
        },
        &["sealed"],
    ),
    (
        "an entry left out",
        |root| {
            relined(&files(root, ".zst")[2], |lines| {
                lines.remove(7);
            })
        },
        &["entries", "root"],
    ),
    ("two entries swapped", |root| relined(&files(root, ".zst")[2], |lines| lines.swap(7, 8)), &["root"]),
    (
        "a line that is no entry",
        |root| relined(&files(root, ".zst")[2], |lines| lines[7] = "{}".into()),
        &["entry", "root"],
    ),
    (
        "a manifest edited",
        |root| edited(&files(root, ".manifest.json")[2], |body| body["entries"] = json!(1)),
        &["manifest"],
    ),
    ("a manifest gone", |root| std::fs::remove_file(&files(root, ".manifest.json")[2]).unwrap(), &["gap"]),
    (
        "the first manifest gone",
        |root| std::fs::remove_file(&files(root, ".manifest.json")[0]).unwrap(),
        &["beginning", "gap"],
    ),
    (
        "a manifest in another's place",
        |root| {
            let manifests = files(root, ".manifest.json");
            std::fs::copy(&manifests[0], &manifests[2]).unwrap();
        },
        &["name"],
    ),
];

#[test]
fn whatever_is_changed_is_found_with_its_place() {
    let past = Past::new();
    let store = Store::directory();
    let daemon = past.start(&store);
    assert_eq!(archive(&daemon)["state"], "ok");
    let key = public_key(&daemon, &past.world);
    let root = store.files.clone().unwrap();
    for (what, tamper, expected) in TAMPERINGS {
        let copied = Store::directory();
        let to = copied.files.clone().unwrap();
        copy(&root, &to);
        let touched = files(&to, ".manifest.json")[2].strip_prefix(&to).unwrap().to_str().unwrap().to_owned();
        tamper(&to);
        let (code, report) = verify(&[&copied.url], None, Some(&key));
        let breaks = report["breaks"].as_array().unwrap_or_else(|| panic!("{what}: {report}"));
        assert_eq!((code, &report["verdict"]), (Some(1), &json!("broken")), "{what}");
        let told: Vec<&str> = breaks.iter().map(|found| found["what"].as_str().unwrap()).collect();
        assert!(expected.iter().any(|what| told.contains(what)), "{what}: {report}");
        let month = &touched[..touched.rfind('/').unwrap()];
        let placed =
            |found: &Value| found["object"].as_str().unwrap().contains(month) || what.ends_with("gone");
        assert!(breaks.iter().all(placed), "{what}: {report}");
        // An entry that was changed is told by its position.
        if ["an action changed", "sealed bytes changed", "a line that is no entry"].contains(&what) {
            let manifest: Value =
                serde_json::from_slice(&std::fs::read(root.join(&touched)).unwrap()).unwrap();
            let position = manifest["body"]["first_position"].as_u64().unwrap() + 7;
            assert!(breaks.iter().any(|found| found["position"] == position), "{what}: {report}");
        }
    }
    assert_eq!(verify(&[&store.url], None, Some(&key)).0, Some(0));
}

#[test]
fn another_key_or_another_deployment_is_told() {
    let past = Past::new();
    let store = Store::directory();
    let daemon = past.start(&store);
    let old = public_key(&daemon, &past.world);
    daemon.stop();
    // Another key signs, and the one before is known still.
    let (first, new) = (past.world.path("signing"), past.world.add_signing_key("signing-2"));
    let daemon =
        past.world.start_with(&format!("{}signing.key_files = [{new:?}, {first:?}]\n", archiving(&store)));
    assert_eq!(archive(&daemon)["state"], "ok");
    let (code, report) = verify(&[&store.url], None, Some(&old));
    assert_eq!((code, &report["breaks"][0]["what"]), (Some(1), &json!("key")), "{report}");
    let both = public_key(&daemon, &past.world);
    assert_eq!(verify(&[&store.url], None, Some(&both)).0, Some(0));
    assert_eq!(verify(&[&store.url], None, None).0, Some(0));

    // Two deployments in one archive are none.
    let other = Past::of("deployment.name = \"other\"\n");
    let elsewhere = Store::directory();
    let daemon = other.start(&elsewhere);
    assert_eq!(archive(&daemon)["state"], "ok");
    assert_eq!(verify(&[&elsewhere.url], None, None).1["deployment"], "other");
    let (code, report) = verify(&[&store.url], None, Some(&public_key(&daemon, &other.world)));
    assert_eq!((code, &report["breaks"][0]["what"]), (Some(1), &json!("key")), "{report}");
    let mixed = Store::directory();
    let to = mixed.files.clone().unwrap();
    copy(elsewhere.files.as_ref().unwrap(), &to);
    let from = store.files.clone().unwrap();
    for file in files(&from, "") {
        let target = to.join(file.strip_prefix(&from).unwrap());
        if file.to_str().unwrap().contains("stream-1") {
            std::fs::copy(&file, target).unwrap();
        }
    }
    let (code, report) = verify(&[&mixed.url], None, None);
    let told = report["breaks"].as_array().unwrap();
    assert_eq!(code, Some(1));
    assert!(told.iter().any(|found| found["what"] == "deployment" && found["found"] == "test"), "{report}");
}
