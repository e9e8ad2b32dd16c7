//! What can go wrong in a way that a caller can act on: one closed enum, from which `rpc::error` alone makes JSON-RPC codes.
//!
//! Never holds personal data, a key, a path or SQL in a variant that a caller is shown.

use std::time::Duration;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter is missing, unknown or not of its form. `field` is its path, as in `messages[2].role`.
    #[error("{field}: {message}")]
    Invalid {
        /// The path of the parameter.
        field: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// There is no such record, entry or subject.
    #[error("{}", none_of(what))]
    NotFound {
        /// The noun, as in `profile`.
        what: &'static str,
    },
    /// There is no such entry any more: retention has dropped its month.
    #[error("the entry is no longer here: retention has dropped its month, {month}{}", place(.object.as_deref()))]
    Archived {
        /// The month.
        month: String,
        /// The archive's object, where it is still kept.
        object: Option<String>,
    },
    /// It exists already, the same id has other content, or the expected version is not the current one.
    #[error("{message}")]
    Conflict {
        /// What it conflicts with.
        message: String,
        /// The version that stands, where the caller expected another one.
        current_version: Option<i64>,
    },
    /// The peer may not call this method.
    #[error("uid {uid} may not call {method}")]
    Forbidden {
        /// The method that was asked for.
        method: String,
        /// The peer's user id, as the kernel says.
        uid: u32,
    },
    /// A legal hold forbids it.
    #[error("a legal hold on this person forbids it; subject.release ends one")]
    Held {
        /// The ids of the holds that stand, the oldest first; a person who is held very often has more.
        holds: Vec<String>,
    },
    /// The person's processing is restricted: store only.
    #[error("the processing of this person's data is restricted")]
    Restricted,
    /// A message, record or answer is over its limit.
    #[error("{what} is over its limit of {max}{}", advised(*.instead))]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit: bytes, or a number of items.
        max: u64,
        /// What to do instead, where there is something.
        instead: Option<&'static str>,
    },
    /// A queue or pool was full for longer than the caller may wait. Nothing was done.
    #[error("too busy: {what}")]
    Overloaded {
        /// What was full.
        what: &'static str,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// PostgreSQL is away or this daemon is draining, and nothing was committed.
    #[error("unavailable: {why}")]
    Unavailable {
        /// Why, in words for an operator.
        why: String,
    },
    /// Stored bytes do not open, or do not verify.
    #[error("stored bytes do not open: {at}")]
    Tampered {
        /// `table.column`, with the record's id where it has one.
        at: String,
    },
    /// A commit was sent and its answer did not arrive, or PostgreSQL warned about it.
    #[error("the outcome of the commit is not known; retry with the same id")]
    UnknownOutcome,
    /// A fault of sidekeep or of its surroundings that the caller cannot act on. The log has its cause.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// A parameter that is not of its form.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// Something over its limit, where there is nothing to do but to send less.
    pub fn too_large(what: impl Into<String>, max: u64) -> Self {
        Self::TooLarge { what: what.into(), max, instead: None }
    }

    /// Something over its limit, and what to do instead.
    pub fn too_large_but(what: impl Into<String>, max: u64, instead: &'static str) -> Self {
        Self::TooLarge { what: what.into(), max, instead: Some(instead) }
    }

    /// A conflict that is not about versions.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::Conflict { message: message.into(), current_version: None }
    }

    /// Something that must not happen, or that only an operator can mend.
    pub fn internal(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(cause.into())
    }

    /// PostgreSQL is away, and nothing was committed.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable { why: why.into() }
    }
}

/// That there is none, and for what is listed elsewhere, where.
fn none_of(what: &str) -> String {
    match what {
        "preferences" => "there are no preferences".to_owned(),
        "dump" => "there is no such dump; `sidekeep backup list` names them".to_owned(),
        _ => format!("there is no such {what}"),
    }
}

fn advised(instead: Option<&str>) -> String {
    instead.map(|instead| format!("; {instead}")).unwrap_or_default()
}

fn place(object: Option<&str>) -> String {
    object.map_or_else(
        || "; its archive is gone too".to_owned(),
        |object| format!("; it is in the archive: {object}"),
    )
}

/// An error with what caused it, for the log.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
