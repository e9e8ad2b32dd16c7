//! What an export says of itself: whose it is, when and how it was made, and what is in it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::part::Part;
use super::{FORMAT, Scope, Surroundings};
use crate::clock::{self, Timestamp};
use crate::keyring::Subject;

/// How long a part is kept where nothing is set.
const UNTIL_DELETED: &str = "until it is deleted, or the person is erased";

/// What a document begins with, and what a manifest says beside its files.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Head {
    pub(super) format: &'static str,
    pub(super) deployment: String,
    pub(super) schema: String,
    pub(super) scope: Scope,
    pub(super) user_id: String,
    pub(super) exported_at: Timestamp,
    pub(super) counts: BTreeMap<&'static str, u64>,
    pub(super) retention: BTreeMap<&'static str, String>,
}

impl Head {
    pub(super) fn new(
        subject: &Subject,
        scope: Scope,
        around: &Surroundings,
        parts: &[Part],
        counts: &BTreeMap<&'static str, u64>,
    ) -> Self {
        let period = |part: &Part| around.period(part).unwrap_or(UNTIL_DELETED).to_owned();
        Self {
            format: FORMAT,
            deployment: around.deployment.clone(),
            schema: around.schema.clone(),
            scope,
            user_id: subject.user_id.clone(),
            exported_at: clock::now(),
            counts: counts.clone(),
            retention: parts.iter().map(|part| (part.name, period(part))).collect(),
        }
    }
}

/// A file of an archive.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// What is signed of an archive.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Manifest {
    #[serde(flatten)]
    pub(super) head: Head,
    /// Every file but the manifest itself.
    pub(super) files: Vec<Listed>,
}
