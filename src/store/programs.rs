//! PostgreSQL's client programs: where they are, and of which version. Runs none but to ask for its version.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the packages of distributions put the versions that are installed side by side: before and behind the number.
const SIDE_BY_SIDE: &[(&str, &str)] = &[("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];
/// Where a program is that stands alone.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A program, and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// How it is run.
    pub path: PathBuf,
    /// As in `15.18`.
    pub version: String,
    major: u32,
}

/// None that will do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{program} of PostgreSQL {least} or later is needed, and {}; on Debian: apt-get install postgresql-client-{least}",
    .newest.as_ref().map_or("there is none".to_owned(), |newest| format!("the newest here is {newest}"))
)]
pub struct NoProgram {
    program: &'static str,
    least: u32,
    newest: Option<String>,
}

impl Program {
    /// The program that is nearest to a version of PostgreSQL and not older: that of the version itself where it is there.
    ///
    /// # Errors
    /// [`NoProgram`], with what to install.
    pub fn find(program: &'static str, least: u32) -> Result<Self, NoProgram> {
        let mut found: Vec<Self> = folders()
            .iter()
            .map(|folder| folder.join(program))
            .filter(|path| path.is_file())
            .chain([PathBuf::from(program)])
            .filter_map(Self::at)
            .collect();
        found.sort_by(|a, b| (a.major, &a.version).cmp(&(b.major, &b.version)));
        let newest = found.last().map(|program| program.version.clone());
        let fitting = found.into_iter().find(|found| found.major >= least);
        fitting.ok_or(NoProgram { program, least, newest })
    }

    fn at(path: PathBuf) -> Option<Self> {
        let said = command(&path).arg("--version").output().ok().filter(|said| said.status.success())?;
        let (version, major) = version(std::str::from_utf8(&said.stdout).ok()?)?;
        Some(Self { path, version, major })
    }

    /// A command of it, in an environment that holds nothing of this process's.
    pub fn command(&self) -> Command {
        command(&self.path)
    }
}

fn command(path: &Path) -> Command {
    let mut command = Command::new(path);
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C").env("HOME", "/nonexistent").current_dir("/");
    command
}

/// The folders with the programs of each version.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (parent, before) in SIDE_BY_SIDE {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(before));
            if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
                folders.push(entry.path().join("bin"));
            }
        }
    }
    folders
}

/// Version and major version of what a program says of itself: `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn version(said: &str) -> Option<(String, u32)> {
    let version = said.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    Some((version.to_owned(), version.get(..digits)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{NoProgram, version};

    #[test]
    fn what_a_program_says_of_its_version_is_read() {
        let read = |said| version(said).map(|(version, major)| format!("{version}/{major}"));
        assert_eq!(
            read("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n").as_deref(),
            Some("15.18/15")
        );
        assert_eq!(read("pg_dump (PostgreSQL) 18beta1\n").as_deref(), Some("18beta1/18"));
        assert_eq!(read("pg_dump 15\n"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn it_is_said_what_to_install() {
        let error = NoProgram { program: "pg_dump", least: 17, newest: Some("15.18".into()) };
        let said = error.to_string();
        assert!(said.contains("newest here is 15.18") && said.ends_with("postgresql-client-17"), "{said}");
    }
}
