//! What a run has done so far, counted by the transactions that do it: so it is true whoever goes on with the run. The rows are
//! written by `claim`.

use futures_util::FutureExt;

use super::Counts;
use super::claim::Run;
use crate::error::{Error, Result};
use crate::store::{Deadline, Store, Tally};

/// A run that counts.
pub(super) struct Counting<'a> {
    store: &'a Store,
    run: Run,
}

impl<'a> Counting<'a> {
    /// The run of a job that this daemon carries out, with at least zero of each of these kinds.
    ///
    /// # Errors
    /// [`Error::Conflict`] where another daemon has it; the store's.
    pub(super) async fn begin(
        store: &'a Store,
        job: &str,
        kinds: &[&'static str],
        deadline: &Deadline,
    ) -> Result<Self> {
        let run = Run::of(store, job, deadline).await?;
        let run = run.ok_or_else(|| Error::conflict("another daemon has ended this run"))?;
        for kind in kinds.iter().copied() {
            store.transact(deadline, "jobs.counting", async |tx| run.count(tx, (kind, 0)).await).await?;
        }
        Ok(Self { store, run })
    }

    /// Its id.
    pub(super) fn run(&self) -> &str {
        &self.run.run
    }

    /// Counts, as long as the run is this holder's.
    pub(super) fn tally(&self) -> Box<Tally<'_>> {
        Box::new(move |tx, counted| {
            let run = self.run.clone();
            async move { run.count(tx, counted).await }.boxed()
        })
    }

    /// What was counted of these kinds, by every holder.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn counts(&self, kinds: &[&'static str], deadline: &Deadline) -> Result<Counts> {
        let run = Run::of(self.store, &self.run.name, deadline).await?;
        let counts = run.and_then(|run| run.counts).unwrap_or_default();
        Ok(kinds.iter().filter_map(|kind| Some((*kind, counts.get(*kind)?.as_i64()?))).collect())
    }
}
