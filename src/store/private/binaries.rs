//! Where PostgreSQL's programs are.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;

/// Debian's folder of the versions that are installed side by side.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The folder with `initdb` and `postgres`: the one named, else the newest installed, or of the version of an existing cluster.
pub(super) fn find(named: Option<&Path>, version: Option<&str>) -> Result<PathBuf, Error> {
    if let Some(named) = named {
        return usable(named)
            .then(|| named.to_owned())
            .ok_or_else(|| Error::NotThere { directory: named.into() });
    }
    let mut installed = installed();
    installed.sort();
    let any = !installed.is_empty();
    let found = match version {
        None => installed.pop(),
        Some(version) => installed.into_iter().find(|(major, _)| major.to_string() == version),
    };
    match (found, version) {
        (Some((_, folder)), _) => Ok(folder),
        (None, Some(version)) if any => Err(Error::OtherVersion { version: version.to_owned() }),
        (None, _) => elsewhere().ok_or(Error::Missing),
    }
}

fn installed() -> Vec<(u32, PathBuf)> {
    std::fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let major = entry.file_name().to_str()?.parse().ok()?;
            let folder = entry.path().join("bin");
            usable(&folder).then_some((major, folder))
        })
        .collect()
}

/// Where other distributions put them: what `pg_config` on the PATH says.
fn elsewhere() -> Option<PathBuf> {
    let said = Command::new("pg_config").arg("--bindir").output().ok()?;
    let folder = PathBuf::from(String::from_utf8(said.stdout).ok()?.trim());
    usable(&folder).then_some(folder)
}

fn usable(folder: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file())
}
