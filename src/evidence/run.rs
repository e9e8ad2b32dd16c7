//! Archiving: each part is written, read back and verified, and gets its manifest; then it is recorded.
//!
//! Cut off before the object is finished, nothing is there; before the manifest, an object that the next run takes up; before
//! the record, a manifest that the next run finds, verifies again, and records. Nothing is ever overwritten: an object has a
//! name of its own, a manifest is written where there is none.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::manifest::{self, Body, ENDS};
use super::pack::{Packed, Packer};
use super::unpack::{Flaw, Unpacked, unpack};
use crate::audit::Log;
use crate::audit::archive::{Archived, Evidence, Part};
use crate::audit::document::Signed;
use crate::audit::merkle::Frontier;
use crate::audit::note::VerifierKey;
use crate::error::{Error, Result};
use crate::objects::{Objects, Trouble, Upload};
use crate::store::{Deadline, Tally};
use crate::values::RecordId;

/// What the names of objects end with.
const OBJECT: &str = ".jsonl.zst";

/// An archive, and the log that goes into it.
#[derive(Debug)]
pub struct Archive<'a> {
    /// Where it is.
    pub objects: Objects,
    /// The log.
    pub log: &'a Log,
    /// Its deployment.
    pub deployment: &'a str,
    /// Where tasks are spawned.
    pub tracker: &'a TaskTracker,
    /// Until when.
    pub deadline: &'a Deadline,
}

impl Archive<'_> {
    /// How many months of streams, with how many entries, have been over for so long and are not archived.
    ///
    /// # Errors
    /// The store's.
    pub async fn due(&self, after: Duration) -> Result<(i64, i64)> {
        let parts = self.log.unarchived(after, self.deadline).await?;
        let entries = parts.iter().map(Part::entries).fold(0, u64::saturating_add);
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        Ok((i64::try_from(parts.len()).unwrap_or(i64::MAX), number(entries)))
    }

    /// Archives what has been over for so long and is not archived, and counts it where it is recorded. What of the log does not
    /// verify is left out, and told at the end.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the archive or PostgreSQL is away; [`Error::Conflict`] where something else is in the archive
    /// under the same name; [`Error::Tampered`].
    pub async fn run(&self, after: Duration, tally: &Tally<'_>) -> Result<()> {
        let mut wrong = None;
        for part in self.log.unarchived(after, self.deadline).await? {
            match self.part(&part, tally).await {
                Err(error @ (Error::Tampered { .. } | Error::Conflict { .. })) => {
                    tracing::error!(part = part.name(), %error, "it was not archived");
                    wrong.get_or_insert(error);
                }
                done => done?,
            }
        }
        wrong.map_or(Ok(()), Err)
    }

    async fn part(&self, part: &Part, tally: &Tally<'_>) -> Result<()> {
        let evidence = self.log.evidence(part, self.deadline).await?;
        let body = match self.known(part, &evidence).await? {
            Some(body) => body,
            None => self.make(part, &evidence).await?,
        };
        let archived = Archived {
            part: *part,
            object: self.url(&beside(part, &body.object)),
            manifest: self.url(&manifest::name(part)),
            size: body.size,
            sha256: crate::audit::merkle::Hash::from_hex(&body.sha256)
                .ok_or_else(|| Error::internal("a digest that is none"))?,
        };
        self.log.record_archived(&archived, tally, self.deadline).await
    }

    /// What a manifest that is there says, once its object was read and verified.
    async fn known(&self, part: &Part, evidence: &Evidence) -> Result<Option<Body>> {
        let name = manifest::name(part);
        let bytes = match self.objects.get(&name, manifest::LARGEST).await {
            Err(Trouble::Absent) => return Ok(None),
            got => got.map_err(away)?.0,
        };
        let wrong = |why: String| Error::conflict(format!("archive.destination: {name}: {why}"));
        let (body, key) = manifest::read(&bytes).map_err(wrong)?;
        manifest::is_of(&body, self.deployment, part, evidence.root)?;
        if !evidence.keys.contains(&VerifierKey::new(self.deployment, &key)) {
            return Err(wrong("none of signing.key_files or signing.lost_keys has signed it".into()));
        }
        let found = self.read_back(&beside(part, &body.object), evidence.before.clone()).await?;
        let flaws = [body.proof(&evidence.keys), body.compare(&found)].concat();
        flaws.first().map_or(Ok(Some(body)), |flaw| Err(wrong(said(flaw))))
    }

    async fn make(&self, part: &Part, evidence: &Evidence) -> Result<Body> {
        let (object, found) = match self.left_over(part, evidence).await? {
            Some(left) => left,
            None => self.written(part, evidence).await?,
        };
        let file = object.rsplit('/').next().unwrap_or(&object);
        let body = Body::new(self.deployment, (part, file), evidence, &found);
        if let Some(flaw) = body.proof(&evidence.keys).first() {
            return Err(Error::Tampered { at: format!("{}: {}", part.name(), said(flaw)) });
        }
        let signed = manifest::encode(&Signed::sign(self.log, body.clone())?)?;
        match self.objects.create(&manifest::name(part), signed).await {
            Ok(_) => Ok(body),
            // Another daemon was faster, with an object of its own.
            Err(Trouble::Exists) => {
                let known = self.known(part, evidence).await?;
                known.ok_or_else(|| Error::unavailable("archive.destination: a manifest came and went"))
            }
            Err(trouble) => Err(away(trouble)),
        }
    }

    /// A whole object of the part that a run has left without a manifest.
    async fn left_over(&self, part: &Part, evidence: &Evidence) -> Result<Option<(String, Unpacked)>> {
        let stem = format!("{}-", manifest::stem(part));
        let folder = stem.rsplit_once('/').map_or("", |(folder, _)| folder);
        let listed = self.objects.list(&format!("{folder}/")).await.map_err(away)?;
        let ours =
            listed.into_iter().filter(|found| found.name.starts_with(&stem) && found.name.ends_with(OBJECT));
        for left in ours {
            let found = self.read_back(&left.name, evidence.before.clone()).await?;
            if found.flaws.is_empty() && found.tree.size() == part.end() && found.tree.root() == evidence.root
            {
                return Ok(Some((left.name, found)));
            }
        }
        Ok(None)
    }

    async fn written(&self, part: &Part, evidence: &Evidence) -> Result<(String, Unpacked)> {
        let name = format!("{}-{}{OBJECT}", manifest::stem(part), RecordId::generate().as_str());
        let mut upload = self.objects.upload(&name).await.map_err(away)?;
        let packed = match self.fill(&mut upload, part, evidence).await {
            Ok(packed) => packed,
            Err(error) => {
                // What is left of it is never seen; the first error is what counts.
                let _ = upload.abort().await;
                return Err(error);
            }
        };
        upload.finish().await.map_err(away)?;
        let found = self.read_back(&name, evidence.before.clone()).await?;
        let same = packed
            == Packed {
                size: found.size,
                sha256: found.sha256,
                content_sha256: found.content_sha256,
                root: found.tree.root(),
            };
        if packed.root != evidence.root {
            return Err(Error::Tampered {
                at: format!("{}: its entries do not lead to its root", part.name()),
            });
        }
        if !same || !found.flaws.is_empty() {
            return Err(Error::unavailable(format!(
                "archive.destination: {name} was read back, and is not what was written"
            )));
        }
        Ok((name, found))
    }

    /// Writes the entries. What is read, packed and sent is so at the same time.
    async fn fill(&self, upload: &mut Upload, part: &Part, evidence: &Evidence) -> Result<Packed> {
        let mut rows = self.log.part_rows(part, self.deadline).await?;
        let mut packer = Some(Packer::new(*part, evidence.before.clone())?);
        let mut working: Option<JoinHandle<Result<(Packer, bytes::Bytes)>>> = None;
        loop {
            let portion = rows.next(self.deadline).await?;
            if let Some(working) = working.take() {
                let (at_hand, bytes) = working.await.map_err(Error::internal)??;
                packer = Some(at_hand);
                upload.write(bytes).await.map_err(away)?;
            }
            let Some(mut at_hand) = packer.take() else {
                return Err(Error::internal("an object that nobody packs"));
            };
            let Some(portion) = portion else {
                let (last, packed) = at_hand.end()?;
                upload.write(last).await.map_err(away)?;
                return Ok(packed);
            };
            working = Some(self.tracker.spawn_blocking(move || {
                let bytes = at_hand.take(portion)?;
                Ok((at_hand, bytes))
            }));
        }
    }

    pub(super) async fn read_back(&self, name: &str, before: Frontier) -> Result<Unpacked> {
        unpack(&self.objects, name, before, HashSet::new(), self.tracker).await.map_err(|trouble| {
            match trouble {
                Trouble::Absent => Error::conflict(format!("archive.destination: {name} is not there")),
                other => away(other),
            }
        })
    }

    fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.objects.url().trim_end_matches('/'))
    }
}

/// The name of an object that a part's manifest names.
pub(super) fn beside(part: &Part, object: &str) -> String {
    let name = manifest::name(part);
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{folder}/{object}")
}

/// The name of what says that the object of this manifest was deleted.
pub(super) fn removal(manifest: &str) -> String {
    format!("{}.removed.json", manifest.strip_suffix(ENDS).unwrap_or(manifest))
}

fn said(flaw: &Flaw) -> String {
    let place = flaw.position.map_or_else(String::new, |position| format!(" at position {position}"));
    format!("{}{place}: expected {}, found {}", flaw.what, flaw.expected, flaw.found)
}

pub(super) fn away(trouble: Trouble) -> Error {
    Error::unavailable(format!("archive.destination: {trouble}"))
}
