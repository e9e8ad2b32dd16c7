//! Objects as files of a directory, each written once.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use super::object;
use super::place::{LARGEST, PATIENCE, Trouble};
use crate::durable;

/// A directory. One access at a time: one that a dead file server never ends must not gather others behind it.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    url: String,
    turn: Arc<Semaphore>,
}

impl Directory {
    pub(super) fn new(path: PathBuf, url: String) -> Self {
        Self { path, url, turn: Arc::new(Semaphore::new(1)) }
    }

    pub(super) fn name(&self) -> &str {
        &self.url
    }

    pub(super) async fn newest(&self) -> Result<Option<u64>, Trouble> {
        self.access(|path| {
            let entries = match std::fs::read_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                entries => entries?,
            };
            let mut newest = None;
            for entry in entries {
                newest = newest.max(entry?.file_name().to_str().and_then(object::size));
            }
            Ok(newest)
        })
        .await
    }

    pub(super) async fn get(&self, size: u64) -> Result<Vec<u8>, Trouble> {
        self.access(move |path| {
            let mut bytes = Vec::new();
            let file = std::fs::File::open(path.join(object::name(size)))?;
            file.take(LARGEST).read_to_end(&mut bytes)?;
            Ok(bytes)
        })
        .await
    }

    /// The directory itself is made for the first object alone: later, one that is missing is not mounted.
    pub(super) async fn put(&self, size: u64, bytes: Vec<u8>, first: bool) -> Result<(), Trouble> {
        self.access(move |path| {
            if first {
                durable::create_directory(path, 0o755)?;
            }
            durable::create_new(&path.join(object::name(size)), &bytes, 0o444)
        })
        .await
    }

    /// In a thread of its own: one that never comes back keeps nobody waiting, not even the end of the daemon.
    async fn access<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Trouble> {
        let path = self.path.clone();
        let accessing = async {
            let turn = self.turn.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (reply, answer) = oneshot::channel();
            std::thread::Builder::new().name("publication".into()).spawn(move || {
                let result = work(&path);
                drop(turn);
                // Nobody may be waiting any more.
                let _ = reply.send(result);
            })?;
            answer.await.map_err(io::Error::other)?
        };
        match tokio::time::timeout(PATIENCE, accessing).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(error)) if error.kind() == io::ErrorKind::AlreadyExists => Err(Trouble::Exists),
            Ok(Err(error)) => Err(Trouble::Away(error.to_string())),
            Err(_) => Err(Trouble::Away(format!(
                "it did not answer within {}",
                humantime::format_duration(PATIENCE)
            ))),
        }
    }
}
