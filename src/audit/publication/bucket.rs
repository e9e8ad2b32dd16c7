//! Objects in an object store, each written once. The newest is found by looking from the last known one on: a year has half a
//! million of them, which nobody can list each minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::object;
use super::place::{LARGEST, PATIENCE, Trouble};
use crate::config::{Config, Destination};
use crate::objects::{self, Objects};

/// So many names are listed at once.
const PAGE: usize = 1000;
/// How far the first leap goes where there are more.
const LEAP: u64 = 1000;

/// A bucket. What is open stays open until something fails: then credentials are read anew.
#[derive(Debug)]
pub(super) struct Bucket {
    destination: Destination,
    config: Box<Config>,
    url: String,
    open: Mutex<Option<Arc<Objects>>>,
    /// The newest that was ever seen here.
    known: AtomicU64,
}

impl Bucket {
    pub(super) fn new(destination: &Destination, config: &Config) -> Self {
        // Nothing but how the stores are reached is looked at.
        let config = Config { s3: config.s3.clone(), gs: config.gs.clone(), ..Config::default() };
        Self {
            destination: destination.clone(),
            config: Box::new(config),
            url: destination.to_string(),
            open: Mutex::default(),
            known: AtomicU64::new(0),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.url
    }

    pub(super) async fn newest(&self) -> Result<Option<u64>, Trouble> {
        let known = self.known.load(Ordering::Relaxed);
        let newest = self.access(async |objects| newest(objects, known).await).await?;
        self.known.store(newest.unwrap_or(0), Ordering::Relaxed);
        Ok(newest)
    }

    pub(super) async fn get(&self, size: u64) -> Result<Vec<u8>, Trouble> {
        let name = object::name(size);
        self.access(async |objects| Ok(objects.get(&name, LARGEST).await?.0.into())).await
    }

    pub(super) async fn put(&self, size: u64, bytes: Vec<u8>) -> Result<(), Trouble> {
        let (name, bytes) = (object::name(size), bytes::Bytes::from(bytes));
        self.access(async |objects| objects.create(&name, bytes.clone()).await.map(drop)).await
    }

    async fn access<T>(
        &self,
        work: impl AsyncFnOnce(&Objects) -> Result<T, objects::Trouble>,
    ) -> Result<T, Trouble> {
        let accessing = async {
            let objects = self.objects().await?;
            work(&objects).await
        };
        let done = match tokio::time::timeout(PATIENCE, accessing).await {
            Ok(Ok(output)) => return Ok(output),
            Ok(Err(objects::Trouble::Exists)) => return Err(Trouble::Exists),
            Ok(Err(trouble)) => trouble.to_string(),
            Err(_) => format!("it did not answer within {}", humantime::format_duration(PATIENCE)),
        };
        *self.open.lock().await = None;
        Err(Trouble::Away(done))
    }

    async fn objects(&self) -> Result<Arc<Objects>, objects::Trouble> {
        let mut open = self.open.lock().await;
        if let Some(objects) = &*open {
            return Ok(objects.clone());
        }
        let objects = Arc::new(Objects::open(&self.destination, &self.config)?);
        *open = Some(objects.clone());
        Ok(objects)
    }
}

/// The newest size: from the known one on, by leaps that double, then by halves, so that few lists are asked for.
async fn newest(objects: &Objects, known: u64) -> Result<Option<u64>, objects::Trouble> {
    let mut page = Page::from(objects, known).await?;
    if page.newest.is_none() && known > 0 {
        // The known one is gone; what is left tells.
        page = Page::from(objects, 0).await?;
    }
    let Some(mut least) = page.newest else { return Ok(None) };
    let (mut leap, mut beyond) = (LEAP, None::<u64>);
    while page.more {
        let probe = beyond.map_or(least.saturating_add(leap), |beyond| least.midpoint(beyond));
        page = Page::from(objects, probe.max(least.saturating_add(1))).await?;
        match page.newest {
            Some(newest) => (least, leap) = (newest, leap.saturating_mul(2)),
            None if probe <= least => return Ok(Some(least)),
            // There is more after `least`, and nothing from here on.
            None => (beyond, page.more) = (Some(probe), true),
        }
    }
    Ok(Some(least))
}

/// Names from one on.
struct Page {
    /// The newest in it.
    newest: Option<u64>,
    /// Whether there may be others after it.
    more: bool,
}

impl Page {
    async fn from(objects: &Objects, size: u64) -> Result<Self, objects::Trouble> {
        // The name just before it: what is listed begins after that.
        let before = object::name(size.saturating_sub(1));
        let listed = objects.list_after("", &before, PAGE).await?;
        let sizes: Vec<u64> = listed.iter().map_while(|found| object::size(&found.name)).collect();
        Ok(Self { newest: sizes.last().copied(), more: sizes.len() == PAGE })
    }
}
