//! A database that has lost what its keyring's backup tells, because it was brought back from a physical copy or failed over to a server
//! that lacked some of it: whoever was erased since is erased again, and holds and keys of that time come back.
//!
//! Erasures come first, of all shards: whoever came back since has the same user id under another number, in whichever shard. Then each
//! shard is one transaction, after which the shard is this database's; the manifest is taken over last. A crash between two leaves
//! a database that is still behind, which serves nothing, and the next run goes on from there.

use std::collections::HashSet;

use diesel::QueryableByName;
use diesel::sql_types::{Array, Int2, Int8, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use schemars::JsonSchema;
use serde::Serialize;

use super::keyring::{MANIFEST, Ring, SHARDS, behind, shard_name};
use super::rows::{Part, populate, records};
use crate::audit::entry::Outcome;
use crate::audit::{By, Pinned, restored};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::keyring::Deployment;
use crate::records::Records;
use crate::store::{Connection, Deadline, Store};
use crate::subjects::erase::deletions;
use crate::values::RecordId;

/// What the log calls it.
const METHOD: &str = "database.recover";

/// Two who recover at once: the second waits, and finds nothing left to do.
const ALONE: &str = "SELECT pg_advisory_xact_lock(hashtext('sidekeep.keyring_recover'))";
const UNBURIED: &str = "SELECT e.id AS number FROM unnest($1::bigint[]) AS e (id) \
    WHERE NOT EXISTS (SELECT FROM sidekeep.subject_erasures t WHERE t.subject_id = e.id) ORDER BY 1";
const ALIVE: &str =
    "SELECT s.subject_id AS number FROM sidekeep.subjects s WHERE s.subject_id = ANY ($1) ORDER BY 1";
/// An erasure is refused while a hold stands, so each of theirs was released before, in the time that is lost.
const RELEASE: &str = "UPDATE sidekeep.legal_holds SET released_at = clock_timestamp(), release_reason_sealed = '\\x' \
    WHERE released_at IS NULL AND subject_id = ANY ($1)";
/// Those whom this database has not: never one that it has erased itself.
const NEW_PERSON: &str = " WHERE NOT EXISTS (SELECT FROM sidekeep.subject_erasures e WHERE e.subject_id = p.subject_id) \
    AND NOT EXISTS (SELECT FROM sidekeep.subjects s WHERE s.subject_id = p.subject_id OR s.user_id = p.user_id)";
/// Keys that were re-wrapped, and restrictions.
const NEWER: &str = "UPDATE sidekeep.subjects s SET wrapped_key = p.wrapped_key, kek_id = p.kek_id, \
    restricted_at = coalesce(s.restricted_at, p.restricted_at) FROM ";
const IS_NEWER: &str = " WHERE s.subject_id = p.subject_id AND s.user_id IS NOT DISTINCT FROM p.user_id \
    AND (s.wrapped_key, s.kek_id, s.restricted_at) \
        IS DISTINCT FROM (p.wrapped_key, p.kek_id, coalesce(s.restricted_at, p.restricted_at))";
const NEW_HOLD: &str = " WHERE EXISTS (SELECT FROM sidekeep.subjects s WHERE s.subject_id = p.subject_id) \
    AND NOT EXISTS (SELECT FROM sidekeep.legal_holds h WHERE h.id = p.id)";
const REFUSED: &str = " ON CONFLICT (digest) DO UPDATE SET refused_until = greatest(subject_refusals.refused_until, EXCLUDED.refused_until)";
const SHARD: &str = "UPDATE sidekeep.keyring_shards SET generation = greatest(generation, $2) + 1, stored = 0, sealed_under = NULL, \
    kek_ids = '{}', raised_at = coalesce(raised_at, clock_timestamp()) WHERE shard = $1";
/// An erasure raises the generation of its shard: one that is behind by that alone stays so.
const STAY_BEHIND: &str = "UPDATE sidekeep.keyring_shards SET generation = least(generation, $2 - 1) \
    WHERE shard = $1 AND EXISTS (SELECT FROM sidekeep.keyring_writes w WHERE w.id = $3)";
const WRITE: &str = "INSERT INTO sidekeep.keyring_writes (id, object) VALUES ($1, $2) ON CONFLICT DO NOTHING";
const WHOLE: &str = "UPDATE sidekeep.keyring_backups SET generation = greatest(generation, $1) + 1, stored = 0, destination = $2";
const ABOUT: &str = "SELECT greatest((SELECT max(recorded_at) FROM sidekeep.audit_logs WHERE recorded_at <= $1), \
    (SELECT max(begun_at) FROM sidekeep.keyring_writes WHERE begun_at <= $1)) AS last, \
    (SELECT count(*) FROM sidekeep.legal_holds WHERE released_at IS NULL) AS holds";

/// What a recovery came to, or would come to.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Recovered {
    /// Whether the keyring's backup tells of anything that the database has lost.
    pub behind: bool,
    /// The last entry of the log, or write of the keyring's backup, that is not lost; null where nothing is.
    pub lost_from: Option<Timestamp>,
    /// The last that is known of what was lost; null where nothing is.
    pub lost_until: Option<Timestamp>,
    /// How many persons were erased since, and are erased again.
    pub erased_again: i64,
    /// How many tombstones came back: of those, and of persons who were first named in the lost time.
    pub tombstones: i64,
    /// How many entries of erasures were written again.
    pub entries_staged: i64,
    /// How many persons who were first named in the lost time have their keys again, though no records.
    pub persons: i64,
    /// How many legal holds came back.
    pub holds: i64,
    /// How many legal holds are open; those that were released in the lost time are open again.
    pub open_holds: i64,
    /// The generation of the keyring's backup.
    pub keyring_generation: i64,
    /// True where something is lost: whether somebody withdrew a consent in that time is not known.
    pub withdrawals_unknown: bool,
}

#[derive(QueryableByName)]
struct Number {
    #[diesel(sql_type = Int8)]
    number: i64,
}

#[derive(QueryableByName)]
struct About {
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last: Option<chrono::DateTime<chrono::Utc>>,
    #[diesel(sql_type = Int8)]
    holds: i64,
}

/// What one shard comes to.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    erased_again: i64,
    tombstones: i64,
    entries: i64,
    persons: i64,
    holds: i64,
}

impl Recovered {
    fn add(&mut self, tally: Tally) {
        self.behind = true;
        self.erased_again = self.erased_again.saturating_add(tally.erased_again);
        self.tombstones = self.tombstones.saturating_add(tally.tombstones);
        self.entries_staged = self.entries_staged.saturating_add(tally.entries);
        self.persons = self.persons.saturating_add(tally.persons);
        self.holds = self.holds.saturating_add(tally.holds);
    }
}

/// How to go about it.
#[derive(Clone, Copy, Debug)]
pub enum Way<'a> {
    /// Change nothing, and only count.
    Look,
    /// Bring back the keys alone: those of the database may be wrapped by a key-encryption key that is destroyed by now.
    Keys,
    /// Do it.
    Recover(&'a Records),
}

/// What is done with one shard.
#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Look,
    Keys,
    /// Erase again, and leave the rest for later.
    Erase(&'a Deployment),
    /// All of it.
    Take(&'a Deployment),
}

impl<'a> Way<'a> {
    fn steps(self) -> Result<Vec<Step<'a>>> {
        Ok(match self {
            Self::Look => vec![Step::Look],
            Self::Keys => vec![Step::Keys],
            Self::Recover(records) => {
                let own = records.keyring().own()?;
                vec![Step::Erase(own), Step::Take(own)]
            }
        })
    }
}

/// Enters in the log that a database was taken up.
///
/// # Errors
/// As [`crate::audit::Log::note`].
pub async fn enter(
    records: &Records,
    (found, gaps): (Option<&Recovered>, usize),
    deadline: &Deadline,
) -> Result<()> {
    let mut by = By::new(deadline.clone(), Pinned::default(), METHOD, nix::unistd::geteuid().as_raw());
    by.id = Some(RecordId::generate());
    by.tells("gaps", gaps);
    if let Some(found) = found.filter(|found| found.behind) {
        by.tells("keyring_generation", found.keyring_generation);
        by.tells("erased_again", found.erased_again);
        let times = [("lost_from", found.lost_from), ("lost_until", found.lost_until)];
        for (name, at) in times.into_iter().filter_map(|(name, at)| Some((name, at?))) {
            by.tells(name, at);
        }
    }
    records.log().note(&by, Outcome::Success, deadline).await
}

/// Goes through the shards that the database is behind of.
///
/// # Errors
/// The store's; [`crate::error::Error::Conflict`] where the backup is damaged: nothing is changed before all of it was looked at.
pub async fn recover(store: &Store, ring: &Ring, way: Way<'_>, deadline: &Deadline) -> Result<Recovered> {
    ring.check().await?;
    let mut recovered = Recovered { keyring_generation: ring.manifest.generation, ..Recovered::default() };
    let written_at = ring.manifest.written_at;
    recovered.lost_from = about(store, written_at, deadline).await?.last.map(Timestamp::from);
    for step in way.steps()? {
        for number in 0..SHARDS {
            let Some(part) = Part::read(ring, number).await? else { continue };
            if let Some(tally) = one(store, &part, step, deadline).await? {
                recovered.add(tally);
            }
        }
    }
    let manifest = ring.manifest.clone();
    let later = store.single(deadline, "recover.manifest", async |connection| {
        Ok(!behind(connection, &[], Some(&manifest)).await?.is_empty())
    });
    recovered.behind |= later.await?;
    if let Way::Recover(_) = way {
        take_over(store, ring, deadline).await?;
    }
    if recovered.behind {
        recovered.lost_until = Some(written_at);
        recovered.withdrawals_unknown = true;
    } else {
        recovered.lost_from = None;
    }
    recovered.open_holds = about(store, written_at, deadline).await?.holds;
    Ok(recovered)
}

async fn about(store: &Store, until: Timestamp, deadline: &Deadline) -> Result<About> {
    let about = store.single(deadline, "recover.about", async |connection| {
        Ok(diesel::sql_query(ABOUT).bind::<Timestamptz, _>(until.utc()).get_result(connection).await?)
    });
    about.await
}

/// One shard in one transaction; nothing where the database has done all that it tells.
async fn one(store: &Store, part: &Part, step: Step<'_>, deadline: &Deadline) -> Result<Option<Tally>> {
    let done = store.transact(deadline, "recover.shard", async |tx| {
        diesel::sql_query(ALONE).execute(tx).await?;
        if behind(tx, std::slice::from_ref(&part.header), None).await?.is_empty() {
            return Ok(None);
        }
        let (unburied, mut tally) = count(tx, part).await?;
        if let Step::Erase(own) | Step::Take(own) = step {
            erase_again(tx, part, &unburied).await?;
            let from = format!("the keyring's backup, {}", shard_name(part.header.shard));
            tally.entries = restored::stage_missing(tx, own, &part.erased, &from).await?;
        }
        match step {
            Step::Look => {}
            Step::Keys => bring_keys(tx, part).await?,
            Step::Erase(_) => {
                // Counted when they are brought.
                tally = Tally { persons: 0, holds: 0, ..tally };
                stay_behind(tx, part).await?;
            }
            Step::Take(_) => {
                bring_keys(tx, part).await?;
                bring_rest(tx, part).await?;
            }
        }
        Ok(Some(tally))
    });
    done.await
}

/// Who has no tombstone here, and what there is to do.
async fn count(tx: &mut Connection, part: &Part) -> Result<(Vec<i64>, Tally)> {
    let all: Vec<i64> = part.erased.iter().map(|erased| erased.subject_id).collect();
    let unburied = numbers(tx, UNBURIED, &all).await?;
    let alive = numbers(tx, ALIVE, &unburied).await?;
    let mut tally = Tally { erased_again: length(&alive), tombstones: length(&unburied), ..Tally::default() };
    for rows in &part.subjects {
        tally.persons = tally.persons.saturating_add(matching(tx, ("subjects", NEW_PERSON), rows).await?);
    }
    // Of persons who come back as well.
    let known = NEW_HOLD.replacen(
        "EXISTS (SELECT FROM sidekeep.subjects s WHERE s.subject_id = p.subject_id)",
        "true",
        1,
    );
    for rows in &part.holds {
        tally.holds = tally.holds.saturating_add(matching(tx, ("legal_holds", &known), rows).await?);
    }
    Ok((unburied, tally))
}

fn length(ids: &[i64]) -> i64 {
    i64::try_from(ids.len()).unwrap_or(i64::MAX)
}

async fn numbers(tx: &mut Connection, query: &str, ids: &[i64]) -> Result<Vec<i64>> {
    let rows: Vec<Number> = diesel::sql_query(query).bind::<Array<Int8>, _>(ids).load(tx).await?;
    Ok(rows.into_iter().map(|row| row.number).collect())
}

async fn matching(tx: &mut Connection, (table, condition): (&str, &str), rows: &str) -> Result<i64> {
    let query = format!("SELECT count(*) AS number FROM {}{condition}", records(table));
    let found: Number = diesel::sql_query(query).bind::<Text, _>(rows).get_result(tx).await?;
    Ok(found.number)
}

/// Deletes whoever was erased since, as their erasure did, and leaves their tombstones.
async fn erase_again(tx: &mut Connection, part: &Part, unburied: &[i64]) -> Result<()> {
    let lock = format!("{ALIVE} FOR UPDATE");
    numbers(tx, &lock, unburied).await?;
    diesel::sql_query(RELEASE).bind::<Array<Int8>, _>(unburied).execute(tx).await?;
    let unburied: HashSet<i64> = unburied.iter().copied().collect();
    for keep in [false, true] {
        let gone: Vec<i64> = part
            .erased
            .iter()
            .filter(|erased| erased.keeps_consents() == keep && unburied.contains(&erased.subject_id))
            .map(|erased| erased.subject_id)
            .collect();
        if gone.is_empty() {
            continue;
        }
        for statement in deletions(keep) {
            diesel::sql_query(statement).bind::<Array<Int8>, _>(&gone).execute(tx).await?;
        }
    }
    for rows in &part.erasures {
        let bury = populate("subject_erasures", " ON CONFLICT DO NOTHING");
        diesel::sql_query(bury).bind::<Text, _>(rows).execute(tx).await?;
    }
    Ok(())
}

async fn stay_behind(tx: &mut Connection, part: &Part) -> Result<()> {
    let stay = diesel::sql_query(STAY_BEHIND).bind::<Int2, _>(part.header.shard);
    stay.bind::<Int8, _>(part.header.generation).bind::<Text, _>(&part.header.write).execute(tx).await?;
    Ok(())
}

async fn bring_keys(tx: &mut Connection, part: &Part) -> Result<()> {
    for rows in &part.subjects {
        let newer = format!("{NEWER}{}{IS_NEWER}", records("subjects"));
        diesel::sql_query(newer).bind::<Text, _>(rows).execute(tx).await?;
        let new = populate("subjects", &format!("{NEW_PERSON} ON CONFLICT DO NOTHING"));
        diesel::sql_query(new).bind::<Text, _>(rows).execute(tx).await?;
    }
    Ok(())
}

/// Holds and refusals; and the shard is this database's from here on.
async fn bring_rest(tx: &mut Connection, part: &Part) -> Result<()> {
    let hold = populate("legal_holds", &format!("{NEW_HOLD} ON CONFLICT DO NOTHING"));
    for rows in &part.holds {
        diesel::sql_query(&hold).bind::<Text, _>(rows).execute(tx).await?;
    }
    let refuse = populate("subject_refusals", REFUSED);
    for rows in &part.refusals {
        diesel::sql_query(&refuse).bind::<Text, _>(rows).execute(tx).await?;
    }
    let (number, name) = (part.header.shard, shard_name(part.header.shard));
    let raise = diesel::sql_query(SHARD).bind::<Int2, _>(number).bind::<Int8, _>(part.header.generation);
    raise.execute(tx).await?;
    let write = diesel::sql_query(WRITE).bind::<Text, _>(&part.header.write);
    write.bind::<Text, _>(&name).execute(tx).await?;
    Ok(())
}

/// The manifest is this database's from here on, which ends that it is behind.
async fn take_over(store: &Store, ring: &Ring, deadline: &Deadline) -> Result<()> {
    let taken = store.transact(deadline, "recover.manifest", async |tx| {
        diesel::sql_query(ALONE).execute(tx).await?;
        if behind(tx, &[], Some(&ring.manifest)).await?.is_empty() {
            return Ok(());
        }
        let write = diesel::sql_query(WRITE).bind::<Text, _>(&ring.manifest.write);
        write.bind::<Text, _>(MANIFEST).execute(tx).await?;
        let whole = diesel::sql_query(WHOLE).bind::<Int8, _>(ring.manifest.generation);
        whole.bind::<Text, _>(ring.url()).execute(tx).await?;
        Ok(())
    });
    taken.await
}
