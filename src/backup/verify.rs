//! `sidekeep backup verify`: whether a dump is what its manifest says, as far as that can be told without restoring it.

use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};

use schemars::JsonSchema;
use serde::Serialize;

use super::fetch::{Identities, fetch};
use super::manifest::Manifest;
use super::run::program;
use super::shelf::{Shelf, Unread};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::objects::Trouble;
use crate::store::Deadline;

/// What is so of a dump that was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// When its snapshot was taken.
    pub created_at: Timestamp,
    /// The size of the object in bytes.
    pub size: u64,
    /// How many rows its manifest tells of.
    pub rows: i64,
    /// Whether it was opened, and `pg_restore` reads its contents; an encrypted one is opened with a key alone.
    pub opened: bool,
    /// When it was last restored, counted and verified; null where it never was.
    pub proved_at: Option<Timestamp>,
}

/// Reads a dump from its destination: signature, deployment, size and digest, and, where it can be opened, its contents.
///
/// # Errors
/// [`Error::Tampered`] where it is not what it says it is; [`Error::NotFound`]; the destination's; [`Error::Conflict`] without
/// `pg_restore`, with what to install.
pub async fn verify(
    shelf: &Shelf,
    name: &str,
    identities: Option<Identities>,
    deadline: &Deadline,
) -> Result<Verified> {
    let dump = shelf.dump(name).await.map_err(|error| match error {
        Unread::Manifest(Trouble::Absent) => Error::NotFound { what: "dump" },
        Unread::Manifest(Trouble::Away(why)) => Error::unavailable(format!("{}: {why}", shelf.objects.url())),
        error => Error::Tampered { at: format!("dump {name}: {error}") },
    })?;
    let manifest = dump.manifest;
    let opened = if manifest.encrypted && identities.is_none() {
        fetch(&shelf.objects, &manifest, None, std::io::sink(), deadline).await?;
        false
    } else {
        contents(shelf, &manifest, identities, deadline).await?;
        true
    };
    Ok(Verified {
        name: manifest.name,
        created_at: manifest.snapshot_at,
        size: manifest.size,
        rows: manifest.tables.values().sum(),
        opened,
        proved_at: dump.proof.map(|proof| proof.proved_at),
    })
}

/// Has `pg_restore` list the contents.
async fn contents(
    shelf: &Shelf,
    manifest: &Manifest,
    identities: Option<Identities>,
    deadline: &Deadline,
) -> Result<()> {
    let program = program("pg_restore", major(&manifest.pg_dump_version)).await?;
    let mut command = program.command();
    command.arg("--list").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let started =
        |error: std::io::Error| Error::unavailable(format!("pg_restore cannot be started: {error}"));
    let mut listing = Listing(command.spawn().map_err(started)?);
    let reader = Reader(listing.0.stdin.take());
    let read = fetch(&shelf.objects, manifest, identities, reader, deadline).await?;
    drop(read);
    let ended = tokio::task::spawn_blocking(move || listing.0.wait()).await.map_err(Error::internal)?;
    match ended.map_err(Error::internal)?.success() {
        true => Ok(()),
        false => Err(Error::Tampered { at: format!("dump {}: pg_restore cannot read it", manifest.name) }),
    }
}

/// The major version in one such as `15.18`; 0 where there is none.
pub(super) fn major(version: &str) -> u32 {
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..digits).and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

/// A program that lists; it ends with this.
struct Listing(Child);

impl Drop for Listing {
    fn drop(&mut self) {
        // One that has ended already is not there to be told.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a program reads, as far as it wants to: it lists what stands at the front, and leaves the rest.
struct Reader(Option<ChildStdin>);

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(pipe) = &mut self.0
            && pipe.write_all(bytes).is_err()
        {
            self.0 = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
