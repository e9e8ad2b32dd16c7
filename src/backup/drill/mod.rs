//! The drill: the newest dump is restored into a database of its own, counted, and its log verified; only that proves a dump.
//!
//! The keyring is not in a dump. Whom the dump tells of, and nobody has erased, is taken for living here; that the keyring's own
//! backup has their keys is for a restore to show.

mod scratch;

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use diesel::dsl::sql;
use diesel::sql_types::Timestamptz;
use diesel_async::RunQueryDsl;
use tokio_util::sync::CancellationToken;

use super::fetch::{Identities, fetch};
use super::manifest::Manifest;
use super::proof::{FORMAT, Proof};
use super::run::program;
use super::shelf::{Dump, Shelf, Unread};
use super::snapshot::{self, Contents};
use super::verify::major;
use super::{child, place, policy};
use crate::audit::document::Signed;
use crate::audit::verify::{Break, Range, Scope};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::objects::Trouble;
use crate::records::{Records, consent};
use crate::store::libpq::Libpq;
use crate::store::{Deadline, Pinned, Store, migrations};
use scratch::Scratch;

/// Who stands in for the keyring: the deployment itself, and everybody whom a table names and no tombstone does.
const STAND_INS: &str = "DO $$ DECLARE c record; BEGIN \
    INSERT INTO sidekeep.subjects (subject_id, user_id, wrapped_key, kek_id) VALUES (0, NULL, '', ''); \
    FOR c IN SELECT t.relname, a.attname FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace \
        JOIN pg_attribute a ON a.attrelid = t.oid \
        WHERE n.nspname = 'sidekeep' AND t.relkind IN ('r', 'p') AND NOT t.relispartition \
        AND a.attname IN ('subject_id', 'actor_id') AND t.relname NOT IN ('subjects', 'subject_erasures') LOOP \
        EXECUTE format('INSERT INTO sidekeep.subjects (subject_id, user_id, wrapped_key, kek_id) \
            SELECT DISTINCT r.%1$I, ''stand-in '' || r.%1$I, ''''::bytea, '''' FROM sidekeep.%2$I r WHERE r.%1$I > 0 \
            AND NOT EXISTS (SELECT FROM sidekeep.subjects s WHERE s.subject_id = r.%1$I) \
            AND NOT EXISTS (SELECT FROM sidekeep.subject_erasures e WHERE e.subject_id = r.%1$I)', c.attname, c.relname); \
    END LOOP; END $$";

/// Migrations grant to it.
const ROLE: &str = "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'sidekeep_app') THEN \
    CREATE ROLE sidekeep_app; END IF; END $$";

/// Of our tables alone: PostgreSQL warns who may not analyze all of them, and a warning is never a success.
const ANALYZE: &str = "DO $$ DECLARE t oid; BEGIN FOR t IN SELECT c.oid FROM pg_class c \
    WHERE c.relnamespace = 'sidekeep'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition LOOP \
    EXECUTE format('ANALYZE %s', t::regclass); END LOOP; END $$";

/// What a drill has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// How many rows were restored.
    pub rows: i64,
    /// How many entries of the log were verified.
    pub entries: i64,
}

/// Restores the newest dump, counts and verifies it, and says so beside it. The scratch database is gone on return.
///
/// # Errors
/// [`Error::Tampered`] where the dump is not what it should be: then a proof that it had is taken away. [`Error::Conflict`]
/// where something is missing here, with what to do.
pub async fn run(records: &Records, config: &Config, deadline: &Deadline) -> Result<Done> {
    records.log().signer()?;
    place::stands(records.store(), config, deadline).await?;
    let shelf = Shelf::open(config, records.log().public_keys())?;
    let shelf = shelf.ok_or_else(|| Error::conflict("backup.destination is not set"))?;
    let dump = newest(&shelf).await?;
    let name = dump.manifest.name.clone();
    match try_out(records, config, (&shelf, &dump.manifest), deadline).await {
        Ok(done) => {
            let proof = Proof {
                format: FORMAT.to_owned(),
                deployment: dump.manifest.deployment,
                name,
                sha256: dump.manifest.sha256,
                proved_at: now(records.store(), deadline).await?.into(),
                rows: done.rows,
                entries: done.entries,
            };
            shelf.prove(&Signed::sign(records.log(), proof)?).await?;
            policy::proved(records.store(), dump.manifest.snapshot_at.utc(), deadline).await?;
            Ok(done)
        }
        Err(error) => {
            if matches!(error, Error::Tampered { .. }) {
                shelf.disprove(&name).await?;
            }
            Err(error)
        }
    }
}

/// The newest dump that is finished; one whose manifest is not sound is not passed over.
async fn newest(shelf: &Shelf) -> Result<Dump> {
    for name in shelf.names().await? {
        match shelf.dump(&name).await {
            Ok(dump) => return Ok(dump),
            Err(Unread::Manifest(Trouble::Absent)) => {}
            Err(Unread::Manifest(trouble)) => return Err(super::sink::away(shelf.objects.url(), &trouble)),
            Err(error) => return Err(Error::Tampered { at: format!("dump {name}: {error}") }),
        }
    }
    Err(Error::conflict("there is no dump yet; make one with `sidekeep backup`"))
}

fn late() -> Error {
    Error::unavailable("the drill was not done in time")
}

async fn now(store: &Store, deadline: &Deadline) -> Result<DateTime<Utc>> {
    let asked = store.single(deadline, "backup.drill.now", async |connection| {
        Ok(diesel::select(sql::<Timestamptz>("clock_timestamp()")).get_result(connection).await?)
    });
    asked.await
}

async fn try_out(
    records: &Records,
    config: &Config,
    (shelf, manifest): (&Shelf, &Manifest),
    deadline: &Deadline,
) -> Result<Done> {
    let identities = identities(config, manifest)?;
    if migrations::known().last().is_none_or(|newest| manifest.schema_version > *newest) {
        return Err(Error::conflict(format!(
            "the newest dump was made by sidekeep {}, whose schema ({}) this one ({}) does not know; try it out with that \
             version or a later one",
            manifest.sidekeep_version,
            manifest.schema_version,
            env!("CARGO_PKG_VERSION")
        )));
    }
    let least = major(&manifest.server_version).max(major(&manifest.pg_dump_version));
    let restorer = program("pg_restore", major(&manifest.pg_dump_version)).await?;
    let scratch = Scratch::open(config, least, records.store().tracker(), deadline).await?;
    let tried = async {
        let path = scratch.directory().join("dump");
        let file = scratch::create(&path)?;
        fetch(&shelf.objects, manifest, identities, file, deadline).await?;
        let trial = Trial { records, scratch: &scratch, restorer: &restorer, manifest, dump: &path };
        trial.carry_out(deadline).await
    };
    let tried = tried.await;
    // However it ended: nothing stays of it.
    scratch.close().await;
    tried
}

/// The private keys that open an encrypted dump.
fn identities(config: &Config, manifest: &Manifest) -> Result<Option<Identities>> {
    if !manifest.encrypted {
        return Ok(None);
    }
    let Some(file) = &config.backup.drill_identity_file else {
        return Err(Error::conflict(
            "the newest dump is encrypted for backup.recipients, and only who has a private key can try it out: name \
             one in backup.drill_identity_file. Until a newer dump is proved, none is removed",
        ));
    };
    let read = Identities::read(file).map(Some);
    read.map_err(|why| Error::conflict(format!("backup.drill_identity_file: {why}")))
}

struct Trial<'a> {
    records: &'a Records,
    scratch: &'a Scratch,
    restorer: &'a crate::store::programs::Program,
    manifest: &'a Manifest,
    dump: &'a Path,
}

impl Trial<'_> {
    async fn carry_out(&self, deadline: &Deadline) -> Result<Done> {
        self.restore("pre-data", deadline).await?;
        self.restore("data", deadline).await?;
        let tracker = self.records.store().tracker();
        let pinned = Pinned::begin(self.scratch.database(), self.scratch.url(), tracker, deadline).await?;
        let contents = snapshot::contents(&pinned, deadline).await?;
        drop(pinned);
        self.compare(&contents)?;
        let watching = CancellationToken::new();
        let _watching = watching.clone().drop_guard();
        let store = self.scratch.store(tracker, &watching)?;
        self.execute(&store, STAND_INS, deadline).await?;
        self.restore("post-data", deadline).await?;
        self.migrate(&store, deadline).await?;
        self.execute(&store, ANALYZE, deadline).await?;
        let entries = self.verify(store, deadline).await?;
        Ok(Done { rows: contents.tables.values().sum(), entries })
    }

    fn broken(&self, what: impl std::fmt::Display) -> Error {
        Error::Tampered { at: format!("dump {}: {what}", self.manifest.name) }
    }

    /// Restores a section. The server is there for nothing else: what it refuses is the dump's fault, unless it ran full.
    async fn restore(&self, section: &str, deadline: &Deadline) -> Result<()> {
        let libpq = Libpq::to(self.scratch.database(), self.scratch.url(), self.records.store().tracker());
        let libpq = libpq.map_err(|error| Error::conflict(format!("the scratch database: {error}")))?;
        let mut command = self.restorer.command();
        command.args(["--exit-on-error", "--no-owner", "--no-privileges", &format!("--section={section}")]);
        libpq.tell(&mut command).map_err(Error::internal)?;
        command.arg(self.dump);
        match child::run("pg_restore", command, deadline).await? {
            Ok(()) => Ok(()),
            Err(why) if why.contains("No space left") || why.contains("connection to server") => {
                Err(Error::unavailable(format!("the scratch database: {why}")))
            }
            Err(why) => Err(self.broken(format!("{section}: {why}"))),
        }
    }

    /// Brings the schema of a dump from before an upgrade to what this sidekeep verifies, as a restore would.
    async fn migrate(&self, store: &Store, deadline: &Deadline) -> Result<()> {
        if migrations::known().last() == Some(&self.manifest.schema_version) {
            return Ok(());
        }
        let failed = |why: String| {
            Error::conflict(format!("the schema of the dump cannot be brought up to date: {why}"))
        };
        let role = self.execute(store, ROLE, deadline).await;
        role.map_err(|error| failed(crate::error::chain(&error)))?;
        let (tracker, scratch) = (self.records.store().tracker(), self.scratch);
        let applied = deadline.run(migrations::apply(scratch.database(), scratch.url(), tracker)).await;
        applied.map_err(|_| late())?.map(drop).map_err(|error| failed(error.to_string()))
    }

    /// What was restored is what the snapshot held.
    fn compare(&self, found: &Contents) -> Result<()> {
        let manifest = self.manifest;
        let names = manifest.tables.keys().chain(found.tables.keys());
        for table in names {
            let (told, there) = (manifest.tables.get(table), found.tables.get(table));
            if told != there {
                let number = |count: Option<&i64>| count.map_or("no".to_owned(), i64::to_string);
                let what = format!("{table} has {} rows, and should have {}", number(there), number(told));
                return Err(self.broken(what));
            }
        }
        if found.audit != manifest.audit {
            return Err(self.broken("the heads of its log are not those of its manifest"));
        }
        if found.schema_version != manifest.schema_version {
            return Err(self.broken("its schema is not the one of its manifest"));
        }
        Ok(())
    }

    async fn execute(&self, store: &Store, statement: &'static str, deadline: &Deadline) -> Result<()> {
        let done = store.autocommit(deadline, "backup.drill", async |connection| {
            diesel::sql_query(statement).execute(connection).await?;
            Ok(())
        });
        done.await
    }

    /// Verifies the whole log as it stands in the scratch database, from its entries up to the heads that were compared.
    async fn verify(&self, store: Arc<Store>, deadline: &Deadline) -> Result<i64> {
        let log = self.records.log().elsewhere(store);
        let scope = Scope::Within(Range::EVERYTHING);
        let report = log.verify_at_rest(scope, consent::digests, deadline).await?;
        match <[Break]>::first(&report.breaks) {
            None => Ok(i64::try_from(report.entries).unwrap_or(i64::MAX)),
            Some(first) => Err(self.broken(format!(
                "its log is broken in {} places, the first: stream {} position {}: {}",
                u64::try_from(report.breaks.len()).unwrap_or(u64::MAX).saturating_add(report.more_breaks),
                first.stream,
                first.position,
                first.what
            ))),
        }
    }
}
