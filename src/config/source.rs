//! One file: found, read, parsed, and its bytes turned into lines and columns.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue, Error};

use super::check::{self, Checked};
use super::problem::{Origin, Problem};

/// Longer than any configuration.
const MAX_BYTES: u64 = 1024 * 1024;

/// What a file says.
#[derive(Debug)]
pub(super) struct Parsed {
    /// What was understood.
    pub(super) checked: Checked,
    /// It is not TOML from some place on.
    pub(super) partial: bool,
}

/// Why a source was not read.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) problem: Problem,
    /// It is not for this user to read, or it is not there and nobody asked for it: to a client it says nothing.
    pub(super) hidden: bool,
}

/// Reads the text of a file. Where it is missing, `is_default` says that nobody asked for this one.
pub(super) fn read(path: &Path, is_default: bool) -> Result<String, Unread> {
    let mut bytes = Vec::new();
    let outcome = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
    let hidden = outcome.as_ref().is_err_and(|error| match error.kind() {
        ErrorKind::NotFound => is_default,
        kind => kind == ErrorKind::PermissionDenied,
    });
    let message = match outcome {
        Ok(length) if u64::try_from(length).is_ok_and(|length| length <= MAX_BYTES) => {
            return String::from_utf8(bytes).map_err(|error| {
                let valid = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default());
                let at = Lines::of(&text).place(path, valid);
                let message = "is not UTF-8 text from here on".into();
                Unread { problem: Problem { at, key: String::new(), message }, hidden: false }
            });
        }
        Ok(_) => "is over 1 MiB, which no configuration is".into(),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => missing(is_default),
            ErrorKind::IsADirectory => "is a directory; name the file in it".into(),
            ErrorKind::PermissionDenied => {
                "may not be read by this user; members of the group sidekeep may, and root".into()
            }
            _ => format!("cannot be read: {error}"),
        },
    };
    let at = Origin::Source(path.to_owned());
    Err(Unread { problem: Problem { at, key: String::new(), message }, hidden })
}

fn missing(is_default: bool) -> String {
    let help = "`sidekeep setup` writes one for this host, `sidekeep dev --dir DIR` one to try it with";
    if is_default {
        format!("there is no such file, and neither --config nor $SIDEKEEP_CONFIG names another; {help}")
    } else {
        format!("there is no such file; {help}")
    }
}

/// The files of `conf.d` beside `main`, in name order.
pub(super) fn fragments(main: &Path) -> Result<Vec<PathBuf>, Unread> {
    let dir = main.parent().unwrap_or(Path::new("")).join("conf.d");
    let unreadable = |error: std::io::Error| Unread {
        hidden: error.kind() == ErrorKind::PermissionDenied,
        problem: Problem {
            at: Origin::Source(dir.clone()),
            key: String::new(),
            message: format!("cannot be read: {error}"),
        },
    };
    let entries = match std::fs::read_dir(&dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other.map_err(unreadable)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        // What begins with a full stop is an editor's.
        let hidden = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
        if !hidden && path.extension() == Some(OsStr::new("toml")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Parses and checks a file. Of one that is not TOML to its end, the keys before the first fault are checked too.
pub(super) fn parse(path: &Path, text: &str) -> Parsed {
    let lines = Lines::of(text);
    let place = |span: Range<usize>| lines.place(path, span.start);
    let (mut table, faults) = DeTable::parse_recoverable(text);
    if let Some(first) = faults.iter().map(|fault| start(fault, text)).min() {
        cut(table.get_mut(), first);
    }
    let mut checked = check::table(table.get_ref(), &place);
    let mut last = 0;
    let partial = !faults.is_empty();
    let mut faults: Vec<_> = faults.iter().map(|fault| (start(fault, text), message(fault, text))).collect();
    faults.sort();
    for (offset, message) in faults {
        let at = lines.place(path, offset);
        // One fault often brings others with it on its line.
        if let Origin::File { line, .. } = at
            && line > last
        {
            last = line;
            let message = format!("is not TOML: {message}");
            checked.problems.push(Problem { at, key: String::new(), message });
        }
    }
    Parsed { checked, partial }
}

fn start(fault: &Error, text: &str) -> usize {
    fault.span().map_or(text.len(), |span| span.start)
}

/// The parser takes a bare word for a misspelt number; who writes one has forgotten the quotes.
fn message(fault: &Error, text: &str) -> String {
    let (before, after) = text.split_at_checked(start(fault, text)).unwrap_or((text, ""));
    let is_value = before.trim_end_matches([' ', '\t']).ends_with('=');
    if is_value && after.starts_with(|c: char| c.is_alphabetic() || c == '/') {
        "a value is text in quotes, a number, true or false".into()
    } else {
        fault.message().to_owned()
    }
}

/// Drops what ends after `limit`: the parser guessed it.
fn cut(table: &mut DeTable<'_>, limit: usize) {
    let mut kept = DeTable::new();
    for (key, mut value) in std::mem::take(table) {
        let mut keep = value.span().end < limit;
        if let DeValue::Table(table) = value.get_mut() {
            cut(table, limit);
            keep |= !table.is_empty();
        }
        if keep {
            kept.insert(key, value);
        }
    }
    *table = kept;
}

/// Where the lines of a text begin.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let starts =
            std::iter::once(0).chain(text.match_indices('\n').map(|(newline, _)| newline + 1)).collect();
        Self { text, starts }
    }

    fn place(&self, path: &Path, offset: usize) -> Origin {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|index| self.starts.get(index)).copied().unwrap_or(0);
        let before = self.text.get(start..offset).unwrap_or_default();
        let column = before.chars().filter(|c| *c != '\u{feff}').count() + 1;
        Origin::File { path: path.to_owned(), line, column }
    }
}
