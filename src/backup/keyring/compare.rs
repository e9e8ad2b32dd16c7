//! The database beside its keyring's backup: whether the backup tells of anything that this database has not done.
//!
//! The objects are read first: what they tell was committed before, so the database has it too, unless it was lost. Changes nothing.

use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Int8, Text};
use diesel_async::RunQueryDsl;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::kept::{self, LARGEST, MANIFEST, SHARDS_FOLDER, shard_name};
use super::manifest::{self, Manifest};
use super::standing::Standing;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::keyring::Keks;
use crate::keyring::shard::{self, Header};
use crate::objects::{Objects, Trouble};
use crate::records::Records;
use crate::store::watch::SERVER_RUN;
use crate::store::{Connection, Deadline, Store};

/// How long reading the backup may take: nobody is answered meanwhile.
const READING: Duration = Duration::from_secs(10);
/// How many shards are looked at at once.
const LANES: usize = 16;
/// How much of a shard is read at first: its line is much shorter.
const LINE: u64 = 4 << 10;

/// Which of these objects were not begun by this database, or are of a later generation than it knows.
const LATER: &str = "SELECT o.object FROM unnest($1::text[], $2::text[], $3::bigint[]) AS o (object, write, generation) \
    WHERE NOT EXISTS (SELECT FROM sidekeep.keyring_writes w WHERE w.id = o.write) \
    OR o.generation > coalesce((SELECT k.generation FROM sidekeep.keyring_shards k \
        WHERE o.object = 'shards/' || lpad(to_hex(k.shard::int), 2, '0')), \
        (SELECT b.generation FROM sidekeep.keyring_backups b))";

/// Whether this database has stored a manifest at this destination.
const STORED: &str =
    "SELECT EXISTS (SELECT FROM sidekeep.keyring_backups WHERE stored > 0 AND destination = $1) AS known";
/// What is said where it is not there any more.
const MISSING: &str = "manifest.json is not there, though this database has stored one: mount the destination, or put its objects \
    back. Where they are lost for good the job keyring_backup writes them anew, and nobody knows who was erased since a copy of the \
    database was made";

/// An object of the backup, as its own words describe it.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) object: String,
    pub(super) write: String,
    pub(super) generation: i64,
}

impl Told {
    pub(super) fn of_shard(header: &Header) -> Self {
        Self { object: shard_name(header.shard), write: header.write.clone(), generation: header.generation }
    }

    pub(super) fn of_manifest(manifest: &Manifest) -> Self {
        Self { object: MANIFEST.to_owned(), write: manifest.write.clone(), generation: manifest.generation }
    }
}

#[derive(QueryableByName)]
struct Later {
    #[diesel(sql_type = Text)]
    object: String,
}

#[derive(QueryableByName)]
struct Stored {
    #[diesel(sql_type = Bool)]
    known: bool,
}

#[derive(QueryableByName)]
struct Run {
    #[diesel(sql_type = Text)]
    run: String,
}

/// Which of these shards, and of this manifest, tell of something that this database has not done.
///
/// # Errors
/// The database's.
pub async fn behind(
    connection: &mut Connection,
    shards: &[Header],
    manifest: Option<&Manifest>,
) -> Result<Vec<String>> {
    let shards = shards.iter().map(Told::of_shard);
    let told: Vec<Told> = shards.chain(manifest.map(Told::of_manifest)).collect();
    later(connection, &told).await
}

/// The names of those objects that tell of something that this database has not done.
///
/// # Errors
/// The database's.
pub(super) async fn later(connection: &mut Connection, told: &[Told]) -> Result<Vec<String>> {
    let objects: Vec<&str> = told.iter().map(|told| told.object.as_str()).collect();
    let writes: Vec<&str> = told.iter().map(|told| told.write.as_str()).collect();
    let generations: Vec<i64> = told.iter().map(|told| told.generation).collect();
    let query = diesel::sql_query(LATER).bind::<Array<Text>, _>(&objects);
    let query = query.bind::<Array<Text>, _>(&writes).bind::<Array<Int8>, _>(&generations);
    let rows: Vec<Later> = query.load(connection).await?;
    Ok(rows.into_iter().map(|row| row.object).collect())
}

/// Refuses a backup of which nothing is there though this database has stored it: a destination that is not mounted looks so.
///
/// # Errors
/// [`Error::Conflict`]; the store's.
pub async fn refuse_missing(store: &Store, config: &Config, deadline: &Deadline) -> Result<()> {
    let Some(destination) = &config.keyring.backup else { return Ok(()) };
    let objects = Objects::open(destination, config).map_err(|trouble| kept::away(&trouble))?;
    let known = store.single(deadline, "keyring_backup.stored", async |connection| {
        stored(connection, objects.url()).await
    });
    if known.await? { Err(Error::conflict(format!("keyring.backup: {MISSING}"))) } else { Ok(()) }
}

async fn stored(connection: &mut Connection, url: &str) -> Result<bool> {
    Ok(diesel::sql_query(STORED).bind::<Text, _>(url).get_result::<Stored>(connection).await?.known)
}

/// Compares. Answers also which run of the server was compared.
///
/// # Errors
/// The store's: nothing has become known.
pub(super) async fn compare(
    records: &Records,
    config: &Config,
    deadline: &Deadline,
) -> Result<(String, Standing)> {
    let read = Backup::open(records, config);
    let read = match read {
        Ok(backup) => match deadline.within(READING).run(backup.read()).await {
            Ok(told) => told.map(|told| (backup, told)),
            Err(_) => Err("it took too long to answer".to_owned()),
        },
        Err(why) => Err(why),
    };
    let told: &[Told] = read.as_ref().map_or(&[], |(_, told)| told);
    let looked = records.store().snapshot(deadline, "keyring_backup.compare", async |connection| {
        let run: Run = diesel::sql_query(SERVER_RUN).get_result(connection).await?;
        let later = if told.is_empty() { Vec::new() } else { later(connection, told).await? };
        let missing = match &read {
            Ok((backup, told)) if !told.iter().any(|told| told.object == MANIFEST) => {
                stored(connection, backup.objects.url()).await?
            }
            _ => false,
        };
        Ok((run.run, later, missing))
    });
    let (run, later, missing) = looked.await?;
    let standing = match &read {
        Err(why) => Standing::Away(why.clone()),
        Ok(_) if later.is_empty() && missing => Standing::Away(MISSING.to_owned()),
        Ok(_) if later.is_empty() => Standing::Whole,
        Ok((backup, _)) => backup.prove(&later).await,
    };
    Ok((run, standing))
}

struct Backup {
    objects: Objects,
    deployment: String,
    keks: Keks,
    keys: Vec<Vec<u8>>,
}

impl Backup {
    fn open(records: &Records, config: &Config) -> Result<Self, String> {
        let destination = config.keyring.backup.as_ref().ok_or("it is not set")?;
        let keyring = records.keyring();
        Ok(Self {
            objects: Objects::open(destination, config).map_err(|trouble| trouble.to_string())?,
            deployment: keyring.deployment().to_owned(),
            keks: (*keyring.keks()).clone(),
            keys: records.log().public_keys(),
        })
    }

    /// What is there says of itself.
    async fn read(&self) -> Result<Vec<Told>, String> {
        let mut told = match self.objects.get(MANIFEST, manifest::LARGEST).await {
            Ok((bytes, _)) => vec![Told::of_manifest(&self.manifest(&bytes)?)],
            Err(Trouble::Absent) => Vec::new(),
            Err(trouble) => return Err(trouble.to_string()),
        };
        let listed = self.objects.list(SHARDS_FOLDER).await.map_err(|trouble| trouble.to_string())?;
        let headers = futures_util::stream::iter(listed)
            .map(|found| async move { self.header(&found.name).await })
            .buffer_unordered(LANES)
            .try_collect::<Vec<_>>()
            .await?;
        told.extend(headers.into_iter().flatten());
        Ok(told)
    }

    fn manifest(&self, bytes: &[u8]) -> Result<Manifest, String> {
        // A daemon that signs nothing may know no key to check it by.
        let read = if self.keys.is_empty() {
            let own = |manifest: &Manifest| manifest.deployment == self.deployment;
            Manifest::peek(bytes).filter(own).ok_or_else(|| "it is not of this deployment".to_owned())
        } else {
            Manifest::read(bytes, &self.deployment, &self.keys).map_err(|why| why.to_string())
        };
        read.map_err(|why| format!("{MANIFEST}: {why}"))
    }

    /// What a shard says of itself, which is not proved; nothing where something else is there.
    async fn header(&self, name: &str) -> Result<Option<Told>, String> {
        let (_, mut stream) = match self.objects.read(name, Some(0..LINE)).await {
            Ok(read) => read,
            Err(Trouble::Absent) => return Ok(None),
            Err(trouble) => return Err(format!("{name}: {trouble}")),
        };
        let mut bytes = Vec::new();
        while let Some(part) = stream.try_next().await.map_err(|trouble| format!("{name}: {trouble}"))? {
            bytes.extend_from_slice(&part);
        }
        let read = Header::read(&bytes).ok().map(|(header, ..)| header);
        Ok(read.filter(|header| shard_name(header.shard) == name).map(|header| Told::of_shard(&header)))
    }

    /// Whether what these say of themselves is true: nobody is kept out by an object that somebody else has put there.
    async fn prove(&self, later: &[String]) -> Standing {
        let mut unproved = Vec::new();
        for name in later {
            match self.proved(name).await {
                Ok(()) => return Standing::Behind(name.clone()),
                Err(why) => unproved.push(format!("{name}: {why}")),
            }
        }
        Standing::Away(unproved.into_iter().next().unwrap_or_default())
    }

    async fn proved(&self, name: &str) -> Result<(), String> {
        if name == MANIFEST {
            // Its signature was looked at when it was read.
            return Ok(());
        }
        let (bytes, _) = self.objects.get(name, LARGEST).await.map_err(|trouble| trouble.to_string())?;
        let header = Header::read(&bytes).map(|(header, ..)| header).map_err(|why| why.to_string())?;
        let opened = shard::open(&self.keks, (&self.deployment, header.shard), &bytes);
        opened.map(drop).map_err(|why| why.to_string())
    }
}

/// An object that this database did not write.
pub(super) fn foreign(name: &str) -> Error {
    Error::conflict(format!(
        "keyring.backup: {name} is of a later state of this database, or of another one, and is not replaced; after a restore or \
         a fail-over run `sidekeep recover`, else name another destination"
    ))
}
