//! An object that is written piece by piece, with little of it in memory. Decides nothing about its name.

use bytes::Bytes;
use object_store::{MultipartUpload, WriteMultipart};

use super::{Tag, Trouble, trouble};

/// How much is sent at once, in bytes: an object of S3 has at most 10,000 parts, so up to 78 GiB.
const PART: usize = 8 << 20;
/// How many parts are on their way at once.
const AT_ONCE: usize = 2;

/// An object that is not there yet. One that is dropped unfinished never is; what a store keeps of it, its own rules remove: the
/// library lists no uploads, so that nobody here finds them again.
#[derive(Debug)]
pub struct Upload {
    writing: WriteMultipart,
}

impl Upload {
    pub(super) fn new(upload: Box<dyn MultipartUpload>) -> Self {
        Self { writing: WriteMultipart::new_with_chunk_size(upload, PART) }
    }

    /// Adds bytes, as fast as they are taken.
    ///
    /// # Errors
    /// Where the store refuses; then nothing more can be added.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Trouble> {
        self.writing.wait_for_capacity(AT_ONCE).await.map_err(trouble)?;
        self.writing.put(bytes);
        Ok(())
    }

    /// Ends the object. On return it is there, whole and durable.
    ///
    /// # Errors
    /// Where the store refuses; then it is not there.
    pub async fn finish(self) -> Result<Tag, Trouble> {
        self.writing.finish().await.map(|put| Tag(put.into())).map_err(trouble)
    }

    /// Gives it up, and what the store has of it.
    ///
    /// # Errors
    /// Where the store refuses.
    pub async fn abort(self) -> Result<(), Trouble> {
        self.writing.abort().await.map_err(trouble)
    }
}
