//! How the log stands to its publication, as health, status and refusals tell it.

use schemars::JsonSchema;
use serde::Serialize;

use super::super::gap::Gap;
use crate::clock::Timestamp;
use crate::error::Error;

/// How the log stands to its publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is to be published.
    Off,
    /// It was not compared yet.
    #[default]
    Unknown,
    /// The log has all that was published.
    Whole,
    /// The publication cannot be read or written: nothing is signed.
    Away(String),
    /// The log lacks heads that were published; these streams have lost entries.
    Behind(Vec<Gap>),
    /// The log contradicts what was published.
    Forked(String),
}

/// What `system.status` says of it.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Report {
    /// `off`, `unknown`, `whole`, `unreachable`, `behind` or `forked`.
    pub state: &'static str,
    /// How many heads the newest published checkpoint covers.
    pub size: Option<u64>,
    /// When its last head was taken.
    pub at: Option<Timestamp>,
    /// How long ago that was.
    pub age_seconds: Option<u64>,
    /// What is wrong, and what to do.
    pub message: Option<String>,
    /// Streams that have lost entries, while that is not declared.
    pub gaps: Vec<Gap>,
}

impl Standing {
    /// All the words.
    pub const WORDS: [&'static str; 6] = ["off", "unknown", "whole", "unreachable", "behind", "forked"];

    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Unknown => "unknown",
            Self::Whole => "whole",
            Self::Away(_) => "unreachable",
            Self::Behind(_) => "behind",
            Self::Forked(_) => "forked",
        }
    }

    /// What is wrong, and what to do.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Off | Self::Unknown | Self::Whole => None,
            Self::Away(why) => Some(format!("the publication cannot be used, so nothing is signed: {why}")),
            Self::Behind(gaps) if gaps.is_empty() => Some(
                "the log lacks heads that were published, though no entry; a daemon that has the signing key takes \
                 them over, or `sidekeep recover`"
                    .into(),
            ),
            Self::Behind(gaps) => Some(format!(
                "the log is behind its publication: {} streams have lost entries, by a restore or a fail-over; nothing is \
                 appended or signed until `sidekeep recover --accept-gap` has declared it",
                gaps.len()
            )),
            Self::Forked(why) => Some(format!(
                "the log contradicts its publication, and nothing is signed: {why}. It was rewritten, or is another log: \
                 keep both, and find out which is true"
            )),
        }
    }

    /// Why nothing may be appended.
    pub fn refusal(&self) -> Option<Error> {
        match self {
            Self::Behind(gaps) if !gaps.is_empty() => Some(Error::unavailable(self.message()?)),
            _ => None,
        }
    }

    /// Why nothing may be signed.
    pub fn objection(&self) -> Option<Error> {
        match self {
            Self::Off | Self::Whole => None,
            Self::Unknown => Some(Error::unavailable("the log was not compared with its publication yet")),
            Self::Away(_) => Some(Error::unavailable(self.message()?)),
            Self::Behind(_) | Self::Forked(_) => Some(Error::conflict(self.message()?)),
        }
    }
}
