//! What the proof costs: sealing, canonical bytes, hashes and the tree, measured alone, against all the work that an entry is.
//!
//! The release has no way to append without them, so the rate without is computed: on processors that are busy all the time, a rate is
//! the inverse of the work for one. The columns that hold proofs and tags still count.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sidekeep::audit::Draft;
use sidekeep::audit::entry::Append;
use sidekeep::audit::merkle::Frontier;
use sidekeep::config;
use sidekeep::keyring::{Kek, Keks, Keyring, Listed, Person, Subject};
use sidekeep::store::{Deadline, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cost::Cost;
use crate::entries::entry;
use crate::support::place::Place;
use crate::support::report::{Report, median};

/// Entries that are sealed and hashed in one turn.
const ENTRIES: u32 = 1000;

/// The rate as it would be without.
pub(crate) fn of_the_proof(report: &Report, place: &Place, rate: f64, cost: Cost) -> anyhow::Result<()> {
    let (sealing, hashing) = alone(place)?;
    report.figure("sealing alone", &format!("{sealing:>24.2} us"));
    report.figure("canonical bytes, leaf and tree alone", &format!("{hashing:>24.2} us"));
    let share = (sealing + hashing) / cost.total();
    report.figure(
        "two streams without sealing and hashing (computed)",
        &format!("{:>9.0}/s   the proof is {:.1} % of the work", rate / (1.0 - share), share * 100.0),
    );
    Ok(())
}

/// Microseconds for each entry: of sealing, and of canonical bytes, leaf and tree.
fn alone(place: &Place) -> anyhow::Result<(f64, f64)> {
    let config = config::load(Some(&place.configure("work", "")?))?.config;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut drafts: Vec<Draft> = (0..ENTRIES)
        .map(|number| Ok(Draft::new(serde_json::from_str::<Append>(&entry(number).to_string())?, None)?))
        .collect::<anyhow::Result<_>>()?;
    let (keyring, people) = runtime.block_on(async {
        let file = config.keyring.key_files.first().ok_or_else(|| anyhow::anyhow!("no key file"))?;
        let kek = Kek::parse(file.path().map_err(anyhow::Error::msg)?, &config::secret(file)?)?;
        let keyring = Keyring::new(config.deployment.name.as_str(), Keks::new(vec![(kek_path(file)?, kek)])?);
        let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
        let store = Arc::new(Store::new(&config.database, &config::database_url(&config)?, tracker.clone())?);
        let (watched, watching) = (store.clone(), end.clone());
        tracker.spawn(async move { watched.observe(watching).await });
        let deadline = Deadline::after(Duration::from_secs(10), end.clone());
        keyring.check(&store, &deadline, Listed::No).await?;
        let ids: Vec<&str> =
            drafts.iter().flat_map(Draft::people).map(sidekeep::values::UserId::as_str).collect();
        let found = store
            .single(&deadline, "bench.people", async |connection| Person::find(connection, &ids).await)
            .await?;
        end.cancel();
        anyhow::Ok((keyring, found))
    })?;
    let mut known = HashMap::new();
    for person in people {
        let wrapped_key = person.wrapped_key().to_vec();
        let Subject { id, user_id, key, .. } = keyring.open(person)?;
        known.insert(user_id, sidekeep::audit::Known { id, key: Some(key), wrapped_key });
    }
    let own = keyring.own()?;
    let (mut sealing, mut hashing) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let begun = Instant::now();
        drafts.iter_mut().try_for_each(|draft| draft.seal(&known, own))?;
        sealing.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(ENTRIES));
        let begun = Instant::now();
        let mut frontier = Frontier::default();
        drafts.iter().for_each(|draft| frontier.push(draft.entry.leaf(), |_, _| ()));
        std::hint::black_box(frontier.root());
        hashing.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(ENTRIES));
    }
    Ok((median(&mut sealing), median(&mut hashing)))
}

fn kek_path(file: &config::SecretFile) -> anyhow::Result<std::path::PathBuf> {
    file.path().map_err(anyhow::Error::msg)
}
