//! Whether an archive is what it says, from itself alone: no database, no daemon, no key but the public ones. All breaks are told,
//! not the first.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tokio_util::task::TaskTracker;

use super::FOLDER;
use super::manifest::{self, Body, ENDS, LARGEST};
use super::run::{beside, removal};
use super::unpack::{Flaw, unpack};
use crate::audit::merkle::Hash;
use crate::audit::note::VerifierKey;
use crate::objects::{Objects, Trouble};

/// So many breaks are listed; of more there is the number.
const LISTED: usize = 1000;

/// What a verification found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// `intact` or `broken`.
    pub verdict: &'static str,
    /// Whose log it is.
    pub deployment: Option<String>,
    /// How many streams.
    pub streams: u64,
    /// How many months of streams.
    pub months: u64,
    /// How many entries were verified.
    pub entries: u64,
    /// Of how many months the entries were deleted, as a signed document beside the manifest says.
    pub removed: u64,
    /// The public keys that have signed.
    pub keys: Vec<String>,
    /// Whether they were compared with given ones: without that, whoever wrote the archive may have made them.
    pub keys_checked: bool,
    /// Everything that is not what it has to be.
    pub breaks: Vec<Break>,
    /// How many breaks are not listed.
    pub more_breaks: u64,
}

/// Something that is not what it has to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Break {
    /// The object's URL.
    pub object: String,
    /// The stream.
    pub stream: Option<i32>,
    /// The position in it.
    pub position: Option<u64>,
    /// What it is about.
    pub what: String,
    /// What it has to be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

/// How far a verification is, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Months of streams that were looked at.
    pub months: AtomicU64,
    /// All of them.
    pub all: AtomicU64,
}

/// One manifest.
struct Named<'a> {
    objects: &'a Objects,
    name: String,
}

/// A verification under way.
struct Check<'a> {
    given: Option<&'a [VerifierKey]>,
    tracker: &'a TaskTracker,
    report: Report,
}

/// Verifies the archives at these destinations as one. Without `keys` those that the archive itself names are taken.
///
/// # Errors
/// Where a destination cannot be read, or has no archive.
pub async fn check(
    places: &[Objects],
    keys: Option<&[VerifierKey]>,
    tracker: &TaskTracker,
    progress: &Progress,
) -> Result<Report, Trouble> {
    let mut streams: BTreeMap<i32, BTreeMap<String, Named<'_>>> = BTreeMap::new();
    let mut check = Check { given: keys, tracker, report: Report::default() };
    for objects in places {
        for found in objects.list(FOLDER).await? {
            let Some(stem) = found.name.strip_suffix(ENDS) else { continue };
            let stream = stem.rsplit_once("/stream-").and_then(|(_, stream)| stream.parse().ok());
            let named = Named { objects, name: found.name.clone() };
            match stream {
                Some(stream) => {
                    streams.entry(stream).or_default().insert(found.name, named);
                }
                None => check.add(&named, None, flaw("name", "month/stream-N.manifest.json", &found.name)),
            }
        }
    }
    let all = streams.values().fold(0, |all: usize, months| all.saturating_add(months.len()));
    if all == 0 && check.report.breaks.is_empty() {
        return Err(Trouble::Away("there is no archive: no manifest in archive/".into()));
    }
    progress.all.store(u64::try_from(all).unwrap_or(u64::MAX), Ordering::Relaxed);
    check.report.keys_checked = keys.is_some();
    for (stream, months) in streams {
        check.report.streams = check.report.streams.saturating_add(1);
        let mut end = Some((0, Hash::of(&[])));
        for named in months.into_values() {
            end = check.month(&named, stream, end).await?;
            progress.months.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut report = check.report;
    report.verdict = if report.breaks.is_empty() { "intact" } else { "broken" };
    Ok(report)
}

impl Check<'_> {
    /// One month, which has to begin where the one before ended; answers where this one ends, where that is known.
    async fn month(
        &mut self,
        named: &Named<'_>,
        stream: i32,
        begins: Option<(u64, Hash)>,
    ) -> Result<Option<(u64, Hash)>, Trouble> {
        self.report.months = self.report.months.saturating_add(1);
        let bytes = match named.objects.get(&named.name, LARGEST).await {
            Ok((bytes, _)) => bytes,
            Err(Trouble::TooLarge(_)) => {
                self.add(named, Some(stream), flaw("manifest", "a manifest", "something larger than any"));
                return Ok(None);
            }
            Err(trouble) => return Err(trouble),
        };
        let (body, keys) = match self.manifest(&bytes, named, stream) {
            Ok(sound) => sound,
            Err(flaw) => {
                self.add(named, Some(stream), flaw);
                return Ok(None);
            }
        };
        let mut flaws = body.proof(&keys);
        let Some((part, before)) = body.part().zip(body.before()) else {
            self.add(named, Some(stream), flaw("manifest", "positions and peaks that fit", "others"));
            return Ok(None);
        };
        if let Some((end, root)) = begins {
            if end != part.first {
                let what = if end == 0 { "beginning" } else { "gap" };
                let expected = format!("entries from position {end}");
                flaws.push(at(end, what, &expected, &format!("entries from position {}", part.first)));
            } else if root != before.root() {
                flaws.push(at(end, "peaks", &root.hex(), &before.root().hex()));
            }
        }
        let name = beside(&part, &body.object);
        match unpack(named.objects, &name, before, HashSet::new(), self.tracker).await {
            Ok(found) => {
                self.report.entries = self.report.entries.saturating_add(body.entries);
                flaws.extend(body.compare(&found));
            }
            Err(Trouble::Absent) if self.is_removed(named, &body, &keys).await? => {
                self.report.removed = self.report.removed.saturating_add(1);
            }
            Err(Trouble::Absent) => flaws.push(flaw("object", &body.object, "nothing")),
            Err(trouble) => return Err(trouble),
        }
        flaws.into_iter().for_each(|flaw| self.add(named, Some(stream), flaw));
        Ok(Hash::from_hex(&body.root).map(|root| (part.end(), root)))
    }

    /// Reads a manifest: whether it is signed by a key to trust, and is of its place.
    fn manifest(
        &mut self,
        bytes: &[u8],
        named: &Named<'_>,
        stream: i32,
    ) -> Result<(Body, Vec<VerifierKey>), Flaw> {
        let (body, key) = manifest::read(bytes).map_err(|why| flaw("manifest", "a signed manifest", &why))?;
        let of = self.report.deployment.get_or_insert_with(|| body.deployment.clone());
        if *of != body.deployment {
            return Err(flaw("deployment", of, &body.deployment));
        }
        let own: Vec<_> = body.keys.iter().filter_map(|key| VerifierKey::decode(key)).collect();
        let keys = self.given.map_or(own, <[_]>::to_vec);
        let signer = VerifierKey::new(&body.deployment, &key);
        if !keys.contains(&signer) {
            return Err(flaw("key", "one of the keys", &signer.encode()));
        }
        if !self.report.keys.contains(&signer.encode()) {
            self.report.keys.push(signer.encode());
        }
        let sound =
            body.part().is_some_and(|part| part.stream == stream && manifest::name(&part) == named.name);
        let plain = !body.object.contains('/');
        (sound && plain)
            .then_some((body, keys))
            .ok_or_else(|| flaw("name", "the manifest of its stream and month", "another"))
    }

    async fn is_removed(
        &self,
        named: &Named<'_>,
        body: &Body,
        keys: &[VerifierKey],
    ) -> Result<bool, Trouble> {
        match named.objects.get(&removal(&named.name), LARGEST).await {
            Ok((bytes, _)) => Ok(manifest::is_removed(&bytes, body, keys)),
            Err(Trouble::Absent | Trouble::TooLarge(_)) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    fn add(&mut self, named: &Named<'_>, stream: Option<i32>, flaw: Flaw) {
        if self.report.breaks.len() == LISTED {
            self.report.more_breaks = self.report.more_breaks.saturating_add(1);
            return;
        }
        self.report.breaks.push(Break {
            object: format!("{}/{}", named.objects.url().trim_end_matches('/'), named.name),
            stream,
            position: flaw.position,
            what: flaw.what.into(),
            expected: flaw.expected,
            found: flaw.found,
        });
    }
}

fn flaw(what: &'static str, expected: &str, found: &str) -> Flaw {
    Flaw { position: None, what, expected: expected.into(), found: found.into() }
}

fn at(position: u64, what: &'static str, expected: &str, found: &str) -> Flaw {
    Flaw { position: Some(position), ..flaw(what, expected, found) }
}
