//! How a command ends: the exit codes, in one place.

use std::fmt::{self, Display};

use crate::app::OpenError;
use crate::config::ConfigError;
use crate::error::Error;
use crate::keyring::StartError;
use crate::store::migrations::MigrateError;

/// An exit code other than 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// Wrong usage, or the daemon was not reached.
    Usage,
    /// A living daemon owns the socket (sysexits.h, EX_TEMPFAIL).
    Busy,
    /// The configuration is wrong (sysexits.h, EX_CONFIG).
    Config,
}

/// An error that ends the command with a code of its own.
#[derive(Debug)]
struct Coded {
    code: Code,
    message: String,
}

impl Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Coded {}

/// This error, to end with that code.
pub(super) fn coded(code: Code, message: impl Display) -> anyhow::Error {
    anyhow::Error::new(Coded { code, message: message.to_string() })
}

/// The exit code for a command's error. 0 where a reader such as `head` has had enough.
pub(super) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(coded) = error.downcast_ref::<Coded>() {
        return match coded.code {
            Code::Usage => 2,
            Code::Busy => 75,
            Code::Config => 78,
        };
    }
    // The database was not reached, which says nothing about what is in it.
    let away = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(Error::Unavailable { .. }))
            || matches!(cause.downcast_ref(), Some(OpenError::Connect(_) | OpenError::Database(_)))
            // An error that says what another one says is no cause of its own in the chain.
            || matches!(cause.downcast_ref(), Some(OpenError::Keyring(StartError::Database(Error::Unavailable { .. }))))
            || matches!(cause.downcast_ref(), Some(MigrateError::Connect(_)))
    };
    if error.chain().any(away) {
        return 2;
    }
    let closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    if error.downcast_ref::<super::output::Unwritten>().is_some_and(|unwritten| closed(&unwritten.0)) {
        return 0;
    }
    if error.chain().any(|cause| cause.is::<ConfigError>()) { 78 } else { 1 }
}

/// What to print for a command's error: each of its causes, unless the one before says it already.
pub(super) fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::super::output::Unwritten;
    use super::*;

    #[test]
    fn every_kind_of_end_has_its_code() {
        assert_eq!(exit_code(&anyhow::anyhow!("x")), 1);
        assert_eq!(exit_code(&coded(Code::Usage, "x")), 2);
        assert_eq!(exit_code(&coded(Code::Busy, "x")), 75);
        assert_eq!(exit_code(&coded(Code::Config, "x").context("about it")), 78);
        let away = || Error::unavailable("PostgreSQL cannot be reached");
        assert_eq!(exit_code(&away().into()), 2);
        assert_eq!(exit_code(&anyhow::Error::new(OpenError::Keyring(away().into())).context("the log")), 2);
        assert_eq!(exit_code(&Unwritten(ErrorKind::BrokenPipe.into()).into()), 0);
        assert_eq!(exit_code(&Unwritten(ErrorKind::StorageFull.into()).into()), 1);
        assert_eq!(
            exit_code(&std::io::Error::from(ErrorKind::BrokenPipe).into()),
            1,
            "a broken socket is no closed terminal"
        );
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("disk full").context("a: disk full").context("b");
        assert_eq!(message(&error), "b: a: disk full");
    }
}
