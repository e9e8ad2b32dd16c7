//! A dump on its way back: digested as it is stored, opened where it is encrypted and there is a key, digested again, and
//! compared with its manifest. With little of it in memory at any time.

use std::io::{Read, Write};

use bytes::{Buf as _, Bytes};
use futures_util::TryStreamExt as _;
use tokio::sync::mpsc;

use super::manifest::Manifest;
use super::sink::{Digest, Digesting, away};
use crate::config::{self, SecretFile};
use crate::error::{Error, Result};
use crate::objects::{Objects, Trouble};
use crate::store::Deadline;

/// So many parts wait to be opened.
const WAITING: usize = 4;
/// How much is opened at once.
const OPENED: usize = 64 << 10;

/// Private keys of age.
pub struct Identities(Vec<age::x25519::Identity>);

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identities").field(&self.0.len()).finish()
    }
}

impl Identities {
    /// Reads a file as `age-keygen` writes it.
    ///
    /// # Errors
    /// Says what is wrong with the file, never what is in it.
    pub fn read(file: &SecretFile) -> Result<Self, String> {
        let text = config::secret(file).map_err(|error| error.to_string())?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Option<Vec<_>> = lines.map(|line| line.parse().ok()).collect();
        let keys = keys.filter(|keys| !keys.is_empty());
        keys.map(Self)
            .ok_or_else(|| format!("{file}: must hold private keys of age, `AGE-SECRET-KEY-1…`, one a line"))
    }
}

/// Reads a dump into `into`, as `pg_restore` reads it, and compares all of it with its manifest. What is encrypted and cannot
/// be opened without a key is only compared as it is stored, and nothing is written. Answers whether it was opened.
///
/// # Errors
/// [`Error::Tampered`] where it is not what the manifest says; what was written is worth nothing then. The destination's.
pub async fn fetch<W: Write + Send + 'static>(
    objects: &Objects,
    manifest: &Manifest,
    identities: Option<Identities>,
    into: W,
    deadline: &Deadline,
) -> Result<Option<W>> {
    let (sending, receiving) = mpsc::channel(WAITING);
    let opened = !manifest.encrypted || identities.is_some();
    let opening = tokio::task::spawn_blocking(move || {
        let parts = Parts { receiving, part: Bytes::new() };
        match (opened, identities) {
            (false, _) => Ok(None),
            (true, Some(identities)) => {
                open(parts, &identities).and_then(|plain| copy(plain, into)).map(Some)
            }
            (true, None) => copy(parts, into).map(Some),
        }
    });
    let stored = deadline.run(send(objects, &manifest.object, sending)).await.map_err(|_| late())?;
    let plain = deadline.run(opening).await.map_err(|_| late())?.map_err(Error::internal)?;
    let broken = |what: String| Error::Tampered { at: format!("dump {}: {what}", manifest.name) };
    match stored {
        Err(Trouble::Absent) => return Err(broken("there is no such object".into())),
        Err(trouble) => return Err(away(objects.url(), &trouble)),
        Ok(stored) => compare(&stored, (manifest.size, &manifest.sha256)).map_err(broken)?,
    }
    let Some((plain, into)) = plain.map_err(broken)? else { return Ok(None) };
    compare(&plain, (manifest.dump_size, &manifest.dump_sha256)).map_err(broken)?;
    Ok(Some(into))
}

fn compare(found: &Digest, (size, sha256): (u64, &str)) -> Result<(), String> {
    if found.size != size {
        Err(format!("it has {} bytes, and should have {size}", found.size))
    } else if found.sha256 != sha256 {
        Err("its SHA-256 is not the one of its manifest: it was changed".to_owned())
    } else {
        Ok(())
    }
}

fn late() -> Error {
    Error::unavailable("the dump was not read in time")
}

/// Reads the object, and hands its bytes on as long as somebody takes them.
async fn send(objects: &Objects, name: &str, to: mpsc::Sender<Bytes>) -> Result<Digest, Trouble> {
    let (_, mut parts) = objects.read(name, None).await?;
    let (mut digest, mut taken) = (Digesting::default(), true);
    while let Some(part) = parts.try_next().await? {
        digest.add(&part);
        taken = taken && to.send(part).await.is_ok();
    }
    Ok(digest.end())
}

/// The parts of an object as a reader, on a thread that may wait for them.
struct Parts {
    receiving: mpsc::Receiver<Bytes>,
    part: Bytes,
}

impl Read for Parts {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.part.is_empty() {
            match self.receiving.blocking_recv() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let some = self.part.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..some), self.part.get(..some)) {
            to.copy_from_slice(from);
        }
        self.part.advance(some);
        Ok(some)
    }
}

fn open(parts: Parts, identities: &Identities) -> Result<impl Read + use<>, String> {
    let keys = identities.0.iter().map(|identity| {
        let identity: &dyn age::Identity = identity;
        identity
    });
    age::Decryptor::new(parts)
        .and_then(|sealed| sealed.decrypt(keys))
        .map_err(|error| format!("age: {error}"))
}

fn copy<W: Write>(mut from: impl Read, mut into: W) -> Result<(Digest, W), String> {
    let (mut digest, mut buffer) = (Digesting::default(), vec![0; OPENED]);
    loop {
        let read = from.read(&mut buffer).map_err(|error| error.to_string())?;
        let some = buffer.get(..read).unwrap_or_default();
        if some.is_empty() {
            into.flush().map_err(|error| error.to_string())?;
            return Ok((digest.end(), into));
        }
        digest.add(some);
        into.write_all(some).map_err(|error| format!("it cannot be written here: {error}"))?;
    }
}
