//! What stands beside a dump that was proved: a signed document at the destination, which the loss of the database does not
//! take away.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use crate::audit::document::Signed;
use crate::clock::Timestamp;

/// What the body of a proof says it is.
pub const FORMAT: &str = "sidekeep-dump-proof-1";

/// What a drill found of a dump: that it was restored, counted, and that its log verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Proof {
    /// What this is: [`FORMAT`].
    pub format: String,
    /// Whose records these are.
    pub deployment: String,
    /// The dump.
    pub name: String,
    /// Its SHA-256, as it is stored, in hexadecimal.
    pub sha256: String,
    /// When it was proved, by PostgreSQL's clock.
    pub proved_at: Timestamp,
    /// How many rows were restored.
    pub rows: i64,
    /// How many entries of the log were verified.
    pub entries: i64,
}

impl Proof {
    /// Reads the proof of this dump; nothing where it is of another one, or signed by somebody else.
    pub fn read(bytes: &[u8], of: &Manifest, keys: &[Vec<u8>]) -> Option<Self> {
        let (Signed { body, .. }, key) = Signed::<Self>::read(bytes).ok()?;
        let same = body.format == FORMAT
            && (&body.deployment, &body.name, &body.sha256) == (&of.deployment, &of.name, &of.sha256);
        (same && keys.contains(&key)).then_some(body)
    }
}
