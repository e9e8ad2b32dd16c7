//! What is in a keyring's backup, as somebody with the key-encryption keys reads it.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sidekeep::backup::keyring::Lines;
use sidekeep::keyring::{Kek, Keks, shard};

use super::World;

/// The configuration of a backup in a directory of this world.
pub fn keyring_backup(world: &World) -> String {
    format!("keyring.backup = \"file://{}\"\n", directory(world).display())
}

pub fn directory(world: &World) -> PathBuf {
    world.path("keyring-backup")
}

/// The rows of a table in all shards that are there. A key file that is gone opens nothing.
pub fn rows(world: &World, keys: &[&Path], table: &str) -> Vec<Value> {
    let Ok(listed) = std::fs::read_dir(directory(world).join("shards")) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in listed {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // One that is being written has another name.
        let Ok(number) = i16::from_str_radix(&name, 16) else { continue };
        let bytes = std::fs::read(&path).unwrap();
        let (_, plain) = shard::open(&keks(keys), ("test", number), &bytes)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut lines = Lines::of(&plain).unwrap();
        for line in lines.next(usize::MAX).unwrap() {
            if line.table == table {
                found.push(serde_json::from_str(line.row.get()).unwrap());
            }
        }
    }
    found
}

fn keks(files: &[&Path]) -> Keks {
    let kek = |file: &&Path| {
        let text = std::fs::read_to_string(file).unwrap();
        (file.to_path_buf(), Kek::parse(file.to_path_buf(), &text).unwrap())
    };
    Keks::new(files.iter().map(kek).collect()).unwrap()
}

/// The user ids whose keys are in the backup.
pub fn people(world: &World) -> Vec<String> {
    let rows = rows(world, &[&world.path("kek")], "subjects");
    let mut people: Vec<String> =
        rows.iter().filter_map(|row| Some(row["user_id"].as_str()?.to_owned())).collect();
    people.sort_unstable();
    people
}
