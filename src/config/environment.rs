//! The only reader of the environment: sidekeep's own variables, and those that systemd sets. Decides nothing about them.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What the variables of single keys begin with.
const PREFIX: &str = "SIDEKEEP__";

/// The variables that choose and change the configuration, as they were at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    /// `$SIDEKEEP_CONFIG`: the file, where the command line names none.
    pub(super) file: Option<OsString>,
    /// `$SIDEKEEP__…`: the names in order, with their values.
    pub(super) overrides: Vec<(String, OsString)>,
}

impl Environment {
    /// The variables of this process.
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub(super) fn of_process() -> Self {
        let mut overrides: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value)))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .collect();
        overrides.sort();
        Self { file: std::env::var_os("SIDEKEEP_CONFIG").filter(|file| !file.is_empty()), overrides }
    }
}

/// The key that a variable sets, as its parts: `SIDEKEEP__LIMITS__CALLS` is `limits`, `calls`.
pub(super) fn key(variable: &str) -> Vec<String> {
    variable
        .strip_prefix(PREFIX)
        .unwrap_or(variable)
        .split("__")
        .map(|part| part.to_ascii_lowercase())
        .collect()
}

/// Where systemd put the credentials of this service.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub(super) fn credentials_directory() -> Option<OsString> {
    std::env::var_os("CREDENTIALS_DIRECTORY")
}

/// What the clouds' own variables say of their object stores (`AWS_…`, `GOOGLE_…`), as every tool for them reads it.
pub fn of_object_stores() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("AWS_") || name.starts_with("GOOGLE_"))
        .collect()
}

/// Where work of this process may take much room for a while: the service's own folder under systemd, else the system's for
/// temporary files.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn scratch_directory() -> PathBuf {
    let own = std::env::var_os("STATE_DIRECTORY").filter(|own| !own.is_empty());
    own.map_or_else(std::env::temp_dir, PathBuf::from)
}

/// The device and inode of the journal's stream, where systemd connected standard error to one (systemd.exec(5)).
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn journal_stream() -> Option<(u64, u64)> {
    parse_stream(&std::env::var_os("JOURNAL_STREAM")?)
}

fn parse_stream(text: &OsStr) -> Option<(u64, u64)> {
    let (device, inode) = text.to_str()?.split_once(':')?;
    Some((device.parse().ok()?, inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{key, parse_stream};

    #[test]
    fn a_variable_names_its_key() {
        assert_eq!(key("SIDEKEEP__LIMITS__CALL_TIMEOUT"), ["limits", "call_timeout"]);
        assert_eq!(key("SIDEKEEP__"), [""]);
    }

    #[test]
    fn the_journals_stream_is_a_device_and_an_inode() {
        assert_eq!(parse_stream("8:21".as_ref()), Some((8, 21)));
        for text in ["", "8", "8:", ":21", "8:21:3", "x:y"] {
            assert_eq!(parse_stream(text.as_ref()), None, "{text}");
        }
    }
}
