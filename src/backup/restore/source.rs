//! The dump that is to be restored: where it is, what its manifest says, and a copy of it that `pg_restore` can read more than once.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::super::fetch::{Identities, fetch};
use super::super::manifest::{self, Manifest};
use super::super::name;
use super::super::shelf::Shelf;
use crate::audit::document::Signed;
use crate::config::{Config, Destination};
use crate::error::{Error, Result};
use crate::objects::{Objects, Trouble};
use crate::store::Deadline;

/// What the manifest is called that stands beside a dump.
const MANIFEST: &str = "manifest.json";

/// A dump that was found.
#[derive(Debug)]
pub struct Source {
    objects: Objects,
    /// What is said of it.
    pub manifest: Manifest,
}

fn refused(what: &str, why: impl std::fmt::Display) -> Error {
    Error::conflict(format!("{what}: {why}"))
}

impl Source {
    /// The dump of this name at `backup.destination`; or the one in this file or folder, with its manifest beside it.
    ///
    /// # Errors
    /// [`Error::Conflict`] where it is not there, or its manifest is not to be trusted.
    pub async fn find(config: &Config, what: &str, keys: Vec<Vec<u8>>) -> Result<Self> {
        if name::time(what).is_none() {
            return Self::in_folder(config, Path::new(what), &keys).await;
        }
        let shelf = Shelf::open(config, keys)?;
        let shelf = shelf.ok_or_else(|| Error::conflict("backup.destination is not set"))?;
        let manifest = shelf.manifest(what).await.map_err(|error| refused(what, error))?;
        Ok(Self { objects: shelf.objects, manifest })
    }

    async fn in_folder(config: &Config, path: &Path, keys: &[Vec<u8>]) -> Result<Self> {
        let shown = path.display().to_string();
        let path = std::fs::canonicalize(path).map_err(|error| {
            refused(&shown, format!("{error}; name a dump of `sidekeep backup list`, or the file of one"))
        })?;
        let folder = if path.is_dir() { Some(path.as_path()) } else { path.parent() };
        let folder = folder.ok_or_else(|| refused(&shown, "is in no folder"))?;
        let objects = Objects::open(&Destination::Directory(folder.to_owned()), config)
            .map_err(|trouble| refused(&shown, trouble))?;
        let (bytes, _) = objects.get(MANIFEST, manifest::LARGEST).await.map_err(|trouble| match trouble {
            Trouble::Absent => refused(&shown, "there is no manifest.json beside it: it is no dump"),
            trouble => refused(&shown, trouble),
        })?;
        let (signed, _) = Signed::<Manifest>::read(&bytes).map_err(|error| refused(&shown, error))?;
        let deployment = config.deployment.name.as_str();
        let mut manifest = Manifest::read(&bytes, &signed.body.name, deployment, keys)
            .map_err(|error| refused(&shown, error))?;
        if let Some((_, last)) = manifest.object.rsplit_once('/') {
            manifest.object = last.to_owned();
        }
        Ok(Self { objects, manifest })
    }

    /// Copies the dump into a file without a name in this folder, comparing all of it with its manifest.
    ///
    /// # Errors
    /// [`Error::Tampered`] where it is not what the manifest says; [`Error::Conflict`] where it is encrypted and there is no
    /// key, or the folder cannot be used.
    pub async fn copy(
        &self,
        scratch: &Path,
        identities: Option<Identities>,
        deadline: &Deadline,
    ) -> Result<Copy> {
        if self.manifest.encrypted && identities.is_none() {
            return Err(refused(
                &self.manifest.name,
                "it is encrypted; --identity FILE names a private key of age",
            ));
        }
        let file = unnamed(scratch)?;
        let fetched = fetch(&self.objects, &self.manifest, identities, file, deadline).await?;
        let file = fetched.ok_or_else(|| refused(&self.manifest.name, "it could not be opened"))?;
        Copy::inherited(file)
    }
}

/// A file without a name in this folder, that ends with whoever has it open.
///
/// # Errors
/// [`Error::Conflict`] where the folder cannot be used.
pub fn unnamed(scratch: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    options.open(scratch).map_err(|error| refused(&scratch.display().to_string(), error))
}

/// A copy of a dump, that ends with this.
#[derive(Debug)]
pub struct Copy(File);

impl Copy {
    /// Lets programs that are started from here on have it.
    fn inherited(file: File) -> Result<Self> {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(Error::internal)?;
        Ok(Self(file))
    }

    /// How a program names it that was started from here.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}
