//! How retention goes through what is due: person by person, in batches that hold no lock for long, each one transaction with
//! its entries in the log. What is due of a kind, and how it is removed, its own module says.
//!
//! Takes the persons' rows first, shared, and waits for nobody: who is erased, held or restricted at this moment is left for
//! the next time. A hold or a restriction that was placed before a batch is seen by it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryableByName;
use diesel::sql_types::{Int8, Timestamptz};
use diesel_async::RunQueryDsl;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::Records;
use crate::audit::{By, Pinned, Staged};
use crate::error::{Error, Result, chain};
use crate::keyring::{Person, Subject};
use crate::store::{Connection, Deadline, Tally};

/// The action of the entries that tell of it.
pub const ACTION: &str = "retention";
/// So many persons are looked for in one go.
const PAGE: i64 = 10_000;
/// The persons of one batch.
const PERSONS: usize = 20;
/// How long a batch may take: others wait that long at the most for what it holds.
const TARGET: Duration = Duration::from_millis(30);
/// So often in a row it may stay unknown how a batch ended.
const UNKNOWN: u32 = 5;

/// One run of retention.
pub struct Retiring<'a> {
    /// Its id, which the entries bear.
    pub run: &'a str,
    /// When it began, by PostgreSQL's clock: what becomes due later is left.
    pub at: DateTime<Utc>,
    /// When it must have ended.
    pub deadline: &'a Deadline,
    /// Counts what a transaction removes.
    pub tally: &'a Tally<'a>,
}

impl Retiring<'_> {
    /// An entry about what was removed.
    pub fn by(&self, kind: &'static str, id: impl Into<String>) -> By {
        let mut by =
            By::new(self.deadline.clone(), Pinned::default(), ACTION, nix::unistd::geteuid().as_raw());
        // Whatever `audit.access` says: what is gone without an entry is what somebody has taken.
        by.stages = true;
        by.about(kind, id);
        by.tells("run", self.run);
        by
    }
}

/// What became of what was due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// How much was removed.
    pub removed: i64,
    /// How much was left, since somebody else was at it: for the next run.
    pub busy: i64,
    /// How much did not go although nothing was in the way.
    pub stuck: i64,
}

/// One batch.
#[derive(Default)]
pub(crate) struct Batch {
    /// How many of the kind were removed.
    pub(crate) removed: i64,
    /// As in [`Retired`].
    pub(crate) busy: i64,
    /// As in [`Retired`].
    pub(crate) stuck: i64,
    /// Whether it removed anything, so that there may be more.
    pub(crate) more: bool,
    /// The entries, to be handed over once they are committed.
    pub(crate) entries: Vec<(By, Staged)>,
}

/// A kind of record.
pub(crate) trait Kind: Sync {
    /// What it is called in counts.
    fn name(&self) -> &'static str;

    /// The query for persons who have something due as of `$1`, in the order of their numbers, behind `$2`, at most `$3` of them;
    /// it answers `number`.
    fn persons(&self) -> &'static str;

    /// Removes about so many rows of what is due of these persons.
    fn batch<'c>(
        &'c self,
        tx: &'c mut Connection,
        retiring: &'c Retiring<'_>,
        persons: &'c [i64],
        rows: i64,
    ) -> BoxFuture<'c, Result<Batch>>;
}

/// A number of a row.
#[derive(QueryableByName)]
pub(crate) struct Number {
    #[diesel(sql_type = Int8)]
    pub(crate) number: i64,
}

/// How many rows a batch takes, by how long those before took.
#[derive(Debug)]
struct Pace(i64);

impl Pace {
    const FIRST: i64 = 250;
    const LEAST: i64 = 8;
    const MOST: i64 = 5000;

    fn took(&mut self, time: Duration) {
        if time > TARGET {
            self.0 = (self.0 / 2).max(Self::LEAST);
        } else if time < TARGET / 3 {
            self.0 = self.0.saturating_mul(2).min(Self::MOST);
        }
    }
}

impl Records {
    /// Counts what a query numbers, as of the time of the run.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn due(
        &self,
        query: &'static str,
        at: DateTime<Utc>,
        deadline: &Deadline,
    ) -> Result<i64> {
        let counted: Number = self
            .store
            .single(deadline, "retention.count", async |connection| {
                Ok(diesel::sql_query(query).bind::<Timestamptz, _>(at).get_result(connection).await?)
            })
            .await?;
        Ok(counted.number)
    }

    /// Removes what is due of a kind.
    ///
    /// # Errors
    /// The store's; what was removed before is committed, and counted.
    pub(crate) async fn retire(&self, retiring: &Retiring<'_>, kind: &dyn Kind) -> Result<Retired> {
        let (mut pace, mut retired, mut after) = (Pace(Pace::FIRST), Retired::default(), 0);
        loop {
            let page: Vec<i64> = self
                .store
                .single(retiring.deadline, "retention.due", async |connection| {
                    let query = diesel::sql_query(kind.persons()).bind::<Timestamptz, _>(retiring.at);
                    let query = query.bind::<Int8, _>(after).bind::<Int8, _>(PAGE);
                    let found: Vec<Number> = query.load(connection).await?;
                    Ok(found.into_iter().map(|person| person.number).collect())
                })
                .await?;
            let Some(last) = page.last() else { return Ok(retired) };
            after = *last;
            for persons in page.chunks(PERSONS) {
                self.retire_of(retiring, kind, persons, (&mut pace, &mut retired)).await?;
            }
        }
    }

    async fn retire_of(
        &self,
        retiring: &Retiring<'_>,
        kind: &dyn Kind,
        persons: &[i64],
        (pace, retired): (&mut Pace, &mut Retired),
    ) -> Result<()> {
        let mut unknown = 0_u32;
        loop {
            let (began, rows) = (Instant::now(), pace.0);
            let done = self
                .store
                .transact(retiring.deadline, "retention", async |tx| {
                    let batch = kind.batch(tx, retiring, persons, rows).await?;
                    if batch.removed > 0 {
                        (retiring.tally)(tx, (kind.name(), batch.removed)).await?;
                    }
                    Ok(batch)
                })
                .await;
            let batch = match done {
                // Its counts were committed with it, or nothing was: what is left is found again.
                Err(Error::UnknownOutcome) if unknown < UNKNOWN => {
                    unknown = unknown.saturating_add(1);
                    continue;
                }
                done => done?,
            };
            pace.took(began.elapsed());
            for (by, staged) in batch.entries {
                self.log.hand_over(&by, staged);
            }
            retired.removed = retired.removed.saturating_add(batch.removed);
            if !batch.more {
                retired.busy = retired.busy.saturating_add(batch.busy);
                retired.stuck = retired.stuck.saturating_add(batch.stuck);
                return Ok(());
            }
        }
    }

    /// Takes those of these persons who are free, with their keys. Whose key does not open is left, and logged: what is
    /// removed of a person is entered under the person's key.
    pub(crate) async fn free(&self, tx: &mut Connection, persons: &[i64]) -> Result<Vec<Subject>> {
        let found = Person::share_free(tx, persons).await?;
        let open = |person: Person| {
            let number = person.subject_id();
            let opened = self.keyring.open(person);
            opened
                .inspect_err(
                    |error| tracing::error!(subject = number, error = %chain(error), "left by retention"),
                )
                .ok()
        };
        Ok(found.into_iter().filter_map(open).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Pace, TARGET};

    #[test]
    fn batches_become_as_large_as_the_time_allows() {
        let mut pace = Pace(Pace::FIRST);
        (0..10).for_each(|_| pace.took(Duration::from_millis(1)));
        assert_eq!(pace.0, Pace::MOST);
        pace.took(TARGET);
        assert_eq!(pace.0, Pace::MOST);
        (0..20).for_each(|_| pace.took(TARGET * 2));
        assert_eq!(pace.0, Pace::LEAST);
    }
}
