//! A run of the job `backup`: a dump, its manifest, and the rotation of those before it.
//!
//! What a crash leaves at each step: an upload that nobody sees; an object without a manifest, which is no dump; or a dump, with
//! those that are due to go after the next one. The next run clears it. Once more does no harm: each makes a dump of its own.

use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, Utc};

use super::dump::Order;
use super::manifest::{FORMAT, Manifest};
use super::rotation::{self, Aged};
use super::shelf::Shelf;
use super::sink::{Written, away};
use super::snapshot::{self, About, Contents, LEFT_OUT};
use super::{keyring, name, place, policy};
use crate::audit::document::Signed;
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::records::Records;
use crate::store::programs::Program;
use crate::store::{Deadline, Pinned};

/// How far the run of this process is.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// How many bytes its destination has taken.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a run has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The size of the object.
    pub bytes: u64,
    /// How many rows are in it.
    pub rows: i64,
    /// How many dumps there are now.
    pub kept: usize,
    /// How many went.
    pub pruned: usize,
}

/// Why there is no backup to be made: the key of the configuration that is to be set first.
///
/// # Errors
/// [`Error::Conflict`].
pub fn destined(config: &Config) -> Result<()> {
    if config.keyring.backup.is_none() {
        return Err(Error::conflict(
            "keyring.backup is not set: a dump holds no keys, and opens nothing without the keyring's own backup; set it \
             to a destination of its own",
        ));
    }
    Ok(())
}

/// Dumps the database, and lets go of the dumps whose time is over. On return the dump is at its destination, durable, read
/// back and listed.
///
/// # Errors
/// [`Error::Conflict`] where something is not set up, with what to do; [`Error::Unavailable`]; nothing is listed then that is
/// not whole.
pub async fn run(
    records: &Records,
    config: &Config,
    progress: &Progress,
    deadline: &Deadline,
) -> Result<Done> {
    progress.0.store(0, Ordering::Relaxed);
    destined(config)?;
    // Before anything is written: a dump without its manifest is none.
    records.log().signer()?;
    place::stands(records.store(), config, deadline).await?;
    let shelf = Shelf::open(config, records.log().public_keys())?;
    let shelf = shelf.ok_or_else(|| Error::conflict("backup.destination is not set"))?;
    let url = config::direct_url(config).map_err(|error| Error::conflict(error.to_string()))?;
    let pinned = Pinned::begin(&config.database, &url, records.store().tracker(), deadline).await?;
    let about = snapshot::about(&pinned, deadline).await?;
    let program = program("pg_dump", about.major).await?;
    let name = name::of(about.at)?;
    let store = records.store();
    // Before the database says that a dump is there.
    place::mark(&shelf, config).await?;
    if let Some(before) = policy::begin(store, config, (&name, about.at), deadline).await? {
        // It was killed. First of all: what it has left may be what the destination has no room for.
        let cleared = deadline.run(clear(&shelf, &before)).await;
        cleared.map_err(|_| Error::unavailable("what is left of a run before was not removed in time"))??;
    }
    let making = Making { records, config, shelf: &shelf, name: &name, progress };
    let made = making.make(&pinned, (&about, &program), deadline).await;
    let manifest = match made {
        Ok(manifest) => manifest,
        Err(error) => {
            // What cannot be removed now, a later run removes.
            if let Err(trouble) = shelf.objects.clear(&name::folder(&name)).await {
                tracing::warn!(name, %trouble, "what a failed dump has left goes in a day");
            }
            return Err(error);
        }
    };
    let promised = policy::promised(store, deadline).await?;
    let rotation = Rotation { shelf: &shelf, config, promised, made: (&name, about.at) };
    let rotated = deadline.run(rotation.carry_out()).await;
    let Left { kept, pruned, oldest, proved } =
        rotated.map_err(|_| Error::unavailable("older dumps were not removed in time"))??;
    policy::end(store, shelf.objects.url(), (oldest, proved), deadline).await?;
    Ok(Done { bytes: manifest.size, rows: manifest.tables.values().sum(), kept, pruned })
}

/// A program of PostgreSQL's, of at least this version.
///
/// # Errors
/// [`Error::Conflict`], with what to install.
pub(super) async fn program(program: &'static str, least: u32) -> Result<Program> {
    let found = tokio::task::spawn_blocking(move || Program::find(program, least)).await;
    found.map_err(Error::internal)?.map_err(|error| Error::conflict(error.to_string()))
}

struct Making<'a> {
    records: &'a Records,
    config: &'a Config,
    shelf: &'a Shelf,
    name: &'a str,
    progress: &'a Progress,
}

impl Making<'_> {
    async fn make(
        &self,
        pinned: &Pinned,
        (about, program): (&About, &Program),
        deadline: &Deadline,
    ) -> Result<Manifest> {
        let recipients = &self.config.backup.recipients;
        let object = name::object(self.name, !recipients.is_empty());
        let objects = &self.shelf.objects;
        let order =
            Order { pinned, program, objects, object: &object, recipients, progress: &self.progress.0 };
        // Side by side: each has a connection of its own. Both end before the run does, however the other one ended.
        let (written, contents) =
            tokio::join!(order.carry_out(deadline), snapshot::contents(pinned, deadline));
        let (written, contents) = (written?, contents?);
        let created_at = snapshot::clock(pinned, deadline).await?;
        let keyring_generation = self.keyring_generation(deadline).await?;
        let times = (about.at, created_at);
        let manifest = self.manifest(times, (about, program), (object.clone(), written, contents));
        let manifest = Manifest { keyring_generation, ..manifest };
        let signed = Signed::sign(self.records.log(), manifest)?;
        policy::still_mine(self.records.store(), self.name, deadline).await?;
        let put = deadline.run(self.shelf.put(&signed)).await;
        put.map_err(|_| Error::unavailable("the manifest was not written in time"))??;
        let read = self.shelf.manifest(self.name).await;
        let read = read.map_err(|error| Error::unavailable(error.to_string()))?;
        if read != signed.body {
            return Err(Error::unavailable("the manifest that was written is not the one that is read back"));
        }
        Ok(read)
    }

    /// A dump opens nothing without the keys of its time: before it is listed, they are stored. Answers the generation of a
    /// stored backup of the keyring that is newer than the snapshot, which was taken before this is called.
    async fn keyring_generation(&self, deadline: &Deadline) -> Result<i64> {
        Ok(keyring::bring_up_to_date(self.records, self.config, deadline).await?.generation)
    }

    fn manifest(
        &self,
        (snapshot_at, created_at): (DateTime<Utc>, DateTime<Utc>),
        (about, program): (&About, &Program),
        (object, written, contents): (String, Written, Contents),
    ) -> Manifest {
        let Written { plain, stored } = written;
        Manifest {
            format: FORMAT.to_owned(),
            deployment: self.config.deployment.name.as_str().to_owned(),
            name: self.name.to_owned(),
            snapshot_at: snapshot_at.into(),
            created_at: created_at.into(),
            object,
            size: stored.size,
            sha256: stored.sha256,
            dump_size: plain.size,
            dump_sha256: plain.sha256,
            encrypted: !self.config.backup.recipients.is_empty(),
            tables: contents.tables,
            left_out: LEFT_OUT.map(str::to_owned).to_vec(),
            persons: contents.persons,
            server_version: about.server_version.clone(),
            pg_dump_version: program.version.clone(),
            schema_version: contents.schema_version,
            sidekeep_version: env!("CARGO_PKG_VERSION").to_owned(),
            keyring_generation: 0,
            kek_ids: contents.kek_ids,
            audit: contents.audit,
        }
    }
}

/// The dumps that there are when a run has made one, and what becomes of them.
struct Rotation<'a> {
    shelf: &'a Shelf,
    config: &'a Config,
    /// Certificates say that dumps from before are gone.
    promised: Option<DateTime<Utc>>,
    /// The dump that was made, and when its snapshot was taken.
    made: (&'a str, DateTime<Utc>),
}

/// What is there afterwards.
struct Left {
    kept: usize,
    pruned: usize,
    oldest: Option<DateTime<Utc>>,
    proved: Option<DateTime<Utc>>,
}

impl Rotation<'_> {
    /// Removes the dumps whose time is over, and what runs that were killed have left.
    async fn carry_out(&self) -> Result<Left> {
        let names = self.shelf.names().await?;
        let mut dumps: Vec<Aged> = self
            .shelf
            .dumps(&names)
            .await?
            .into_iter()
            .map(|dump| Aged {
                name: dump.manifest.name,
                at: dump.manifest.snapshot_at.utc(),
                proved: dump.proof.is_some(),
            })
            .collect();
        rotation::newest_first(&mut dumps);
        if !dumps.iter().any(|dump| dump.name == self.made.0) {
            return Err(Error::unavailable(format!(
                "{}: the dump was written, and is not listed; none was removed",
                self.shelf.objects.url()
            )));
        }
        let expired = rotation::expired(&dumps, self.config.backup.keep, self.promised);
        for name in &expired {
            self.shelf.remove(name).await?;
            tracing::info!(name, "a dump was removed: its time is over, and a newer one is proved");
        }
        for name in names.iter().filter(|name| !dumps.iter().any(|dump| dump.name == **name)) {
            let age = name::time(name).map(|at| self.made.1.signed_duration_since(at));
            if age.is_some_and(|age| age > rotation::LEFT_ALONE) {
                clear(self.shelf, name).await?;
            }
        }
        let proved = dumps.iter().find(|dump| dump.proved).map(|dump| dump.at);
        let oldest = dumps.iter().rev().find(|dump| !expired.contains(&dump.name.as_str()));
        let (kept, pruned) = (dumps.len().saturating_sub(expired.len()), expired.len());
        Ok(Left { kept, pruned, oldest: oldest.map(|dump| dump.at), proved })
    }
}

/// Removes what a run that was killed has left under a name, unless it is a dump.
async fn clear(shelf: &Shelf, name: &str) -> Result<()> {
    if shelf.is_unfinished(name).await? {
        let cleared = shelf.objects.clear(&name::folder(name)).await;
        cleared.map_err(|trouble| away(shelf.objects.url(), &trouble))?;
        tracing::info!(name, "what a run that was killed has left was removed");
    }
    Ok(())
}
