//! What a writer has begun with: it belongs to a caller who waits, or is durable already and waits for its place.

use std::collections::{HashMap, HashSet, VecDeque};

use super::draft::{Draft, Known};
use super::queue::{Group, Receipt, Request};
use super::stream::{Placed, Sealed};
use crate::error::{Error, Result};
use crate::keyring::Deployment;

/// How often a batch is prepared anew because persons changed under it.
const TRIES: usize = 8;

/// A request that was begun with.
#[derive(Debug)]
pub(super) enum Work {
    /// A caller waits for it.
    Append(Group),
    /// It is durable already, and waits for its place.
    Staged(Box<Sealed>),
}

impl Work {
    pub(super) fn begin(request: Request) -> Option<Self> {
        match request {
            Request::Append(group) => (!group.is_withdrawn()).then_some(Self::Append(group)),
            Request::Staged(sealed) => Some(Self::Staged(sealed)),
        }
    }

    /// Notes that it is under way; false when its caller has taken it back.
    pub(super) fn send(&self) -> bool {
        match self {
            Self::Append(group) => group.send(),
            Self::Staged(_) => true,
        }
    }

    /// Notes that nothing of it is in the log.
    pub(super) fn not_sent(&self) {
        if let Self::Append(group) = self {
            group.not_sent();
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Append(group) => group.drafts.len(),
            Self::Staged(_) => 1,
        }
    }

    pub(super) fn drafts(&self) -> impl Iterator<Item = &Draft> {
        match self {
            Self::Append(group) => group.drafts.as_slice(),
            Self::Staged(_) => &[],
        }
        .iter()
    }

    /// Seals what is not sealed yet.
    ///
    /// # Errors
    /// The system's randomness failed.
    pub(super) fn seal(&mut self, known: &HashMap<String, Known>, own: &Deployment) -> Result<()> {
        match self {
            Self::Append(group) => group.drafts.iter_mut().try_for_each(|draft| draft.seal(known, own)),
            Self::Staged(_) => Ok(()),
        }
    }

    /// Its entries, to be given their places.
    pub(super) fn entries(&mut self) -> impl Iterator<Item = Placed<'_>> {
        let (drafts, staged) = match self {
            Self::Append(group) => (group.drafts.as_mut_slice(), None),
            Self::Staged(sealed) => (<&mut [Draft]>::default(), Some((&mut sealed.entry, sealed.staged))),
        };
        drafts.iter_mut().map(|draft| (&mut draft.entry, None)).chain(staged)
    }

    pub(super) fn is_repeatable(&self) -> bool {
        self.drafts().any(|draft| draft.given_id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        let staged = match self {
            Self::Staged(sealed) => Some(sealed.entry.id.as_str()),
            Self::Append(_) => None,
        };
        self.drafts().map(|draft| draft.entry.id.as_str()).chain(staged)
    }

    /// Those of its ids that may come again: nobody but this daemon knows an id of its own making yet.
    fn known_ids(&self) -> impl Iterator<Item = &str> {
        let staged = match self {
            Self::Staged(sealed) => Some(sealed.entry.id.as_str()),
            Self::Append(_) => None,
        };
        self.drafts().filter(|draft| draft.given_id).map(|draft| draft.entry.id.as_str()).chain(staged)
    }

    pub(super) fn number(&self) -> Option<i64> {
        match self {
            Self::Staged(sealed) => sealed.staged,
            Self::Append(_) => None,
        }
    }
}

/// Takes from the front as long as no id comes twice: the second of an id is compared with the first once that is written.
pub(super) fn distinct(waiting: &mut VecDeque<Work>) -> Vec<Work> {
    let mut ids = HashSet::new();
    let mut batch = Vec::new();
    while let Some(work) = waiting.pop_front() {
        if work.known_ids().any(|id| ids.contains(id)) {
            waiting.push_front(work);
            break;
        }
        ids.extend(work.known_ids().map(str::to_owned));
        batch.push(work);
    }
    batch
}

/// Tells the callers where their entries are now.
pub(super) fn answer(batch: Vec<Work>) {
    for work in batch {
        let Work::Append(mut group) = work else { continue };
        let receipts = std::mem::take(&mut group.drafts).into_iter().map(|draft| Receipt {
            id: draft.entry.id,
            stream: draft.entry.stream,
            position: draft.entry.position,
            recorded_at: draft.entry.recorded_at.into(),
        });
        let receipts = receipts.collect();
        group.appended(receipts);
    }
}

pub(super) fn refuse(batch: Vec<Work>, error: impl Fn() -> Error) {
    for work in batch {
        if let Work::Append(group) = work {
            group.answer(Err(error()));
        }
    }
}

/// Refuses what applications say of persons who were erased and are refused for a while. An access entry, which is not theirs
/// to leave out, names nobody then.
pub(super) fn without(batch: Vec<Work>, refused: &[String]) -> Vec<Work> {
    let names = |draft: &Draft| {
        !draft.own && draft.people().any(|person| refused.iter().any(|refused| refused == person.as_str()))
    };
    let mut left = Vec::with_capacity(batch.len());
    for work in batch {
        match work {
            Work::Append(group) if !refused.is_empty() && group.drafts.iter().any(names) => {
                group.answer(Err(crate::keyring::refused()));
            }
            work => left.push(work),
        }
    }
    left
}

/// Leaves out those whose callers have gone: nothing of them is in the log.
pub(super) fn still_wanted(batch: Vec<Work>) -> Vec<Work> {
    batch
        .into_iter()
        .filter(|work| !matches!(work, Work::Append(group) if group.is_abandoned() || group.is_withdrawn()))
        .collect()
}

pub(super) fn one_try_less(batch: Vec<Work>) -> Vec<Work> {
    let mut left = Vec::with_capacity(batch.len());
    for work in batch {
        match work {
            Work::Append(mut group) => {
                if group.tried() > TRIES {
                    group.answer(Err(Error::unavailable(
                        "the persons of this entry are created and erased again and again",
                    )));
                } else {
                    left.push(Work::Append(group));
                }
            }
            staged => left.push(staged),
        }
    }
    left
}
