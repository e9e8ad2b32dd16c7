//! Where the bytes of a dump go: digested, encrypted where there are recipients, digested again, and into the object. With
//! little of them in memory at any time.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use age::stream::StreamWriter;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

use crate::audit::merkle::hex;
use crate::config::Recipient;
use crate::error::{Error, Result};
use crate::objects::{Objects, Trouble, Upload};

/// How many bytes there were, and their SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// How many bytes.
    pub size: u64,
    /// In hexadecimal.
    pub sha256: String,
}

/// A digest that grows.
pub struct Digesting {
    size: u64,
    context: Context,
}

impl std::fmt::Debug for Digesting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digesting").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Default for Digesting {
    fn default() -> Self {
        Self { size: 0, context: Context::new(&SHA256) }
    }
}

impl Digesting {
    /// Goes on with these bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.size = self.size.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.context.update(bytes);
    }

    /// How many bytes there were.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What has come out.
    pub fn end(self) -> Digest {
        Digest { size: self.size, sha256: hex(self.context.finish().as_ref()) }
    }
}

/// What a writer has written, to be taken away.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<u8>>>);

impl Taken {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Taken {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An object on its way.
pub(super) struct Sink<'a> {
    upload: Upload,
    plain: Digesting,
    stored: Digesting,
    sealing: Option<(StreamWriter<Taken>, Taken)>,
    url: &'a str,
    progress: &'a AtomicU64,
}

/// What was written.
pub(super) struct Written {
    /// The dump itself.
    pub(super) plain: Digest,
    /// The object.
    pub(super) stored: Digest,
}

impl<'a> Sink<'a> {
    /// Begins an object, for these recipients alone where there are any. Bytes that the store takes are counted in `progress`.
    pub(super) async fn begin(
        objects: &'a Objects,
        name: &str,
        recipients: &[Recipient],
        progress: &'a AtomicU64,
    ) -> Result<Self> {
        let sealing = match recipients {
            [] => None,
            recipients => {
                let recipients = recipients.iter().map(|recipient| {
                    let recipient: &dyn age::Recipient = recipient.age();
                    recipient
                });
                let taken = Taken::default();
                let encryptor = age::Encryptor::with_recipients(recipients).map_err(Error::internal)?;
                Some((encryptor.wrap_output(taken.clone()).map_err(Error::internal)?, taken))
            }
        };
        let url = objects.url();
        let upload = objects.upload(name).await.map_err(|trouble| away(url, &trouble))?;
        let (plain, stored) = (Digesting::default(), Digesting::default());
        Ok(Self { upload, plain, stored, sealing, url, progress })
    }

    /// Adds bytes of the dump, as fast as the store takes them.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.plain.add(&bytes);
        let bytes = match &mut self.sealing {
            None => bytes,
            Some((writer, taken)) => {
                writer.write_all(&bytes).map_err(Error::internal)?;
                Bytes::from(taken.take())
            }
        };
        self.store(bytes).await
    }

    async fn store(&mut self, bytes: Bytes) -> Result<()> {
        self.stored.add(&bytes);
        self.progress.store(self.stored.size(), Ordering::Relaxed);
        self.upload.write(bytes).await.map_err(|trouble| away(self.url, &trouble))
    }

    /// Ends the object: on return it is there, whole and durable.
    pub(super) async fn finish(mut self) -> Result<Written> {
        if let Some((writer, taken)) = self.sealing.take() {
            let sealed = writer.finish().map_err(Error::internal);
            let stored = match sealed {
                Ok(_) => self.store(Bytes::from(taken.take())).await,
                Err(error) => Err(error),
            };
            if let Err(error) = stored {
                self.abort().await;
                return Err(error);
            }
        }
        self.upload.finish().await.map_err(|trouble| away(self.url, &trouble))?;
        Ok(Written { plain: self.plain.end(), stored: self.stored.end() })
    }

    /// Gives it up, and what the store has of it.
    pub(super) async fn abort(self) {
        if let Err(trouble) = self.upload.abort().await {
            tracing::warn!(%trouble, "what a dump has left at its destination goes in a day");
        }
    }
}

/// A destination that does not do what it is for.
pub(super) fn away(url: &str, trouble: &Trouble) -> Error {
    Error::unavailable(format!("{url}: {trouble}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;

    use super::{Digesting, Sink};
    use crate::config::{Config, Destination, Recipient};
    use crate::objects::Objects;

    #[tokio::test]
    async fn an_encrypted_object_opens_to_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let destination = Destination::Directory(directory.path().to_path_buf());
        let objects = Objects::open(&destination, &Config::default()).unwrap();
        let identity = age::x25519::Identity::generate();
        let recipients: Vec<Recipient> = vec![identity.to_public().to_string().parse().unwrap()];
        let progress = AtomicU64::new(0);
        let mut sink = Sink::begin(&objects, "dump", &recipients, &progress).await.unwrap();
        let part = Bytes::from((0..=255).cycle().take(300_001).collect::<Vec<u8>>());
        for _ in 0..3 {
            sink.write(part.clone()).await.unwrap();
        }
        let written = sink.finish().await.unwrap();
        let stored = std::fs::read(directory.path().join("dump")).unwrap();
        let mut digest = Digesting::default();
        digest.add(&stored);
        assert_eq!(
            (digest.end(), written.stored.size),
            (written.stored.clone(), progress.load(Ordering::Relaxed))
        );
        let opened = age::decrypt(&identity, &stored).unwrap();
        let size = u64::try_from(opened.len()).unwrap();
        assert_eq!((size, opened.get(..300_001)), (written.plain.size, Some(&part[..])));
        let mut digest = Digesting::default();
        digest.add(&opened);
        assert_eq!(digest.end(), written.plain);
    }
}
