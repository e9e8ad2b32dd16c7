//! What a check is and what it finds. Knows none.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::patient::Patient;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// Somebody should look at it in the daytime.
    Warn,
    /// Something does not work, or will lose what it must not.
    Fail,
    /// It could not be looked at, or there is nothing to look at.
    Skipped,
}

impl Status {
    /// As it is printed.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
            Self::Skipped => "skip",
        }
    }
}

/// What a check found. Holds no secret and nothing about a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// How it is.
    pub(super) status: Status,
    /// Why that is said.
    pub(super) why: String,
    /// What to do.
    pub(super) advice: Option<String>,
}

impl Finding {
    pub(super) fn ok(why: impl Into<String>) -> Self {
        Self { status: Status::Ok, why: why.into(), advice: None }
    }

    pub(super) fn warn(why: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Warn, why: why.into(), advice: Some(advice.into()) }
    }

    pub(super) fn fail(why: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { status: Status::Fail, why: why.into(), advice: Some(advice.into()) }
    }

    pub(super) fn skipped(why: impl Into<String>) -> Self {
        Self { status: Status::Skipped, why: why.into(), advice: None }
    }
}

/// What has to be there before a check can look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// This host alone.
    Nothing,
    /// The daemon's own connection to PostgreSQL.
    Server,
    /// And a schema that this version knows.
    Schema,
}

/// How a check looks.
#[derive(Clone, Copy)]
pub(super) enum Look {
    /// At this host: it may stand still as long as a dead file server does.
    Here(fn(&Patient) -> Finding),
    /// By asking others.
    There(fn(Arc<Patient>) -> BoxFuture<'static, Finding>),
}

/// One check.
#[derive(Clone, Copy)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) needs: Needs,
    pub(super) look: Look,
}

impl Check {
    pub(super) const fn here(name: &'static str, look: fn(&Patient) -> Finding) -> Self {
        Self { name, needs: Needs::Nothing, look: Look::Here(look) }
    }

    pub(super) const fn asking(
        name: &'static str,
        needs: Needs,
        look: fn(Arc<Patient>) -> BoxFuture<'static, Finding>,
    ) -> Self {
        Self { name, needs, look: Look::There(look) }
    }
}
