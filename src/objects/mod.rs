//! Objects outside of the database: in a directory, in S3 or in Google Cloud Storage, behind one set of operations.
//!
//! Knows nothing of what is in an object. Credentials are read when a destination is opened. Names are parts of ASCII letters, digits,
//! `.`, `-`, `_` and `=` with slashes between them, below the destination's own prefix.

mod open;
mod upload;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    UpdateVersion,
};

pub use upload::Upload;

/// The most objects that a list holds.
pub const LISTED: usize = 1_000_000;

/// Who is asked for credentials where none are set: only a machine in a cloud has an answer.
const METADATA: [&str; 2] = ["169.254.169.254", "metadata.google.internal"];
const CREDENTIALS: &str = "s3.credentials_file, gs.credentials_file";

/// An open destination.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    /// Where it is one: conditional writes need a lock there.
    directory: Option<PathBuf>,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// There is no object of that name.
    #[error("there is no such object")]
    Absent,
    /// There is one already.
    #[error("there is an object of that name already")]
    Exists,
    /// It is not the one that was read.
    #[error("it was changed by somebody else")]
    Changed,
    /// It is larger than what was to be read.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// The destination cannot be reached, or not read or written; in words for an operator.
    #[error("{0}")]
    Away(String),
}

/// Which version of an object was read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(UpdateVersion);

impl Tag {
    fn names_version(&self) -> bool {
        self.0.version.as_deref().is_some_and(|version| !version.is_empty() && version != "null")
    }
}

/// One object of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name below the destination.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

impl Objects {
    /// The destination, for messages and for the database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether the store keeps older versions of an object that was written so: S3 names a version only where it does. Google's
    /// always has a generation, which says nothing.
    pub fn keeps_versions(&self, written: &Tag) -> bool {
        self.url.starts_with("s3:") && written.names_version()
    }

    fn path(&self, name: &str) -> Path {
        Path::from_iter(self.prefix.parts().chain(Path::from(name).parts()))
    }

    /// Writes an object where there is none of its name. On return it is durable.
    ///
    /// # Errors
    /// [`Trouble::Exists`] where there is one, whatever is in it.
    pub async fn create(&self, name: &str, bytes: Bytes) -> Result<Tag, Trouble> {
        self.put(name, bytes, PutMode::Create).await
    }

    /// Writes an object in place of the version that was read, or where there is none. On return it is durable.
    ///
    /// # Errors
    /// [`Trouble::Changed`] where there is another version, or none, or one where there was none.
    pub async fn replace(&self, name: &str, bytes: Bytes, read: Option<Tag>) -> Result<Tag, Trouble> {
        let Some(Tag(version)) = read else {
            return self.create(name, bytes).await.map_err(|trouble| match trouble {
                Trouble::Exists => Trouble::Changed,
                other => other,
            });
        };
        let Some(directory) = self.directory.clone() else {
            return self.put(name, bytes, PutMode::Update(version)).await.map_err(changed);
        };
        // A directory knows no condition: whoever writes holds this lock, which goes with the file handle.
        let lock = tokio::task::spawn_blocking(move || open::lock(&directory)).await;
        let _lock = lock.map_err(|error| error.to_string()).and_then(|lock| lock).map_err(Trouble::Away)?;
        let now = self.store.head(&self.path(name)).await.map_err(|error| changed(trouble(error)))?;
        if now.e_tag != version.e_tag {
            return Err(Trouble::Changed);
        }
        self.put(name, bytes, PutMode::Overwrite).await
    }

    async fn put(&self, name: &str, bytes: Bytes, mode: PutMode) -> Result<Tag, Trouble> {
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.store.put_opts(&self.path(name), PutPayload::from_bytes(bytes), options).await;
        put.map(|put| Tag(put.into())).map_err(trouble)
    }

    /// A whole object of at most `largest` bytes.
    ///
    /// # Errors
    /// [`Trouble::Absent`], [`Trouble::TooLarge`].
    pub async fn get(&self, name: &str, largest: u64) -> Result<(Bytes, Tag), Trouble> {
        let got = self.store.get_opts(&self.path(name), GetOptions::default()).await.map_err(trouble)?;
        if got.meta.size > largest {
            return Err(Trouble::TooLarge(largest));
        }
        let tag = Tag(UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() });
        let mut bytes = BytesMut::with_capacity(usize::try_from(got.meta.size).unwrap_or_default());
        let mut stream = got.into_stream();
        while let Some(part) = stream.try_next().await.map_err(trouble)? {
            bytes.extend_from_slice(&part);
        }
        Ok((bytes.freeze(), tag))
    }

    /// An object as a stream, with its size; a part of it where a range is given.
    ///
    /// # Errors
    /// [`Trouble::Absent`].
    pub async fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<(u64, BoxStream<'static, Result<Bytes, Trouble>>), Trouble> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let got = self.store.get_opts(&self.path(name), options).await.map_err(trouble)?;
        Ok((got.meta.size, got.into_stream().map_err(trouble).boxed()))
    }

    /// The objects whose names begin with `prefix`, which ends at a slash, in the order of their names.
    ///
    /// # Errors
    /// Where there are over [`LISTED`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<Found>, Trouble> {
        let found = self.found(self.store.list(Some(&self.path(prefix))), LISTED.saturating_add(1)).await?;
        if found.len() > LISTED {
            return Err(Trouble::Away(format!("has over {LISTED} objects under {prefix:?}")));
        }
        Ok(found)
    }

    /// As [`Objects::list`], the first of those that come after this name, `most` of them: a store is not asked for others.
    ///
    /// # Errors
    /// Where the store refuses.
    pub async fn list_after(&self, prefix: &str, name: &str, most: usize) -> Result<Vec<Found>, Trouble> {
        let listed = self.store.list_with_offset(Some(&self.path(prefix)), &self.path(name));
        // A directory is in no order before it was read.
        let enough = if self.directory.is_some() { LISTED } else { most };
        let mut found = self.found(listed, enough).await?;
        found.truncate(most);
        Ok(found)
    }

    /// What is listed, until it is enough.
    async fn found(
        &self,
        mut listed: BoxStream<'static, object_store::Result<ObjectMeta>>,
        enough: usize,
    ) -> Result<Vec<Found>, Trouble> {
        let mut found = Vec::new();
        while found.len() < enough
            && let Some(meta) = listed.try_next().await.map_err(trouble)?
        {
            if let Some(parts) = meta.location.prefix_match(&self.prefix) {
                let name = parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/");
                // The lock of a directory is no object.
                if name != open::LOCK {
                    found.push(Found { name, size: meta.size });
                }
            }
        }
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The names of the folders in a folder, in order, also of those in which there is no finished object.
    ///
    /// # Errors
    /// Where there are over [`LISTED`].
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>, Trouble> {
        let listed = self.store.list_with_delimiter(Some(&self.path(folder))).await;
        let listed = match listed.map_err(trouble) {
            Err(Trouble::Absent) => return Ok(Vec::new()),
            listed => listed?,
        };
        if listed.common_prefixes.len() > LISTED {
            return Err(Trouble::Away(format!("has over {LISTED} folders under {folder:?}")));
        }
        let last = |path: &Path| path.parts().next_back().map(|part| part.as_ref().to_owned());
        let mut names: Vec<_> = listed.common_prefixes.iter().filter_map(last).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Removes a folder with all that is in it, also what an upload that was killed has left in a directory.
    ///
    /// # Errors
    /// Where the store refuses.
    pub async fn clear(&self, folder: &str) -> Result<(), Trouble> {
        for found in self.list(folder).await? {
            self.delete(&found.name).await?;
        }
        let Some(directory) = &self.directory else { return Ok(()) };
        let directory = directory.join(folder);
        let cleared = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory)).await;
        match cleared.map_err(|error| Trouble::Away(error.to_string()))? {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Trouble::Away(format!("{}: {error}", self.url)))
            }
            _ => Ok(()),
        }
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// Where the store refuses.
    pub async fn delete(&self, name: &str) -> Result<(), Trouble> {
        match self.store.delete(&self.path(name)).await.map_err(trouble) {
            Err(Trouble::Absent) => Ok(()),
            other => other,
        }
    }

    /// Begins an object of any size, which replaces what is there: its name has to be one that nobody else takes. Nobody sees
    /// it before it is finished.
    ///
    /// # Errors
    /// Where the store refuses.
    pub async fn upload(&self, name: &str) -> Result<Upload, Trouble> {
        let upload = self.store.put_multipart(&self.path(name)).await.map_err(trouble)?;
        Ok(Upload::new(upload))
    }
}

/// What was read is gone.
fn changed(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Absent => Trouble::Changed,
        other => other,
    }
}

/// What the library says, as what a caller can act on.
fn trouble(error: object_store::Error) -> Trouble {
    use object_store::Error;
    match error {
        Error::NotFound { .. } => Trouble::Absent,
        Error::AlreadyExists { .. } => Trouble::Exists,
        Error::Precondition { .. } | Error::NotModified { .. } => Trouble::Changed,
        error => {
            let mut said = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                let inner_said = inner.to_string();
                if !said.contains(&inner_said) {
                    said = format!("{said}: {inner_said}");
                }
                cause = inner.source();
            }
            if METADATA.iter().any(|host| said.contains(host)) {
                said =
                    format!("no credentials are set ({CREDENTIALS}), and this machine has no role: {said}");
            }
            Trouble::Away(said)
        }
    }
}
