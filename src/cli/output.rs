//! Writing results to standard output, where the reader may go away at any time.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Global;

/// Standard output took no more.
#[derive(Debug, thiserror::Error)]
#[error("standard output: {0}")]
pub(super) struct Unwritten(#[from] pub(super) std::io::Error);

/// Whether anything was written to standard output: it is the process's own, and so is this.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Whether a result, or a part of one, is on standard output.
pub(super) fn is_written() -> bool {
    WRITTEN.load(Ordering::Relaxed)
}

/// Writes the text and a newline.
pub(super) fn line(text: &str) -> Result<(), Unwritten> {
    WRITTEN.store(true, Ordering::Relaxed);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Writes a result as a line for people, or with `--json` as it came.
pub(super) fn shown<T: DeserializeOwned>(
    global: &Global,
    result: &RawValue,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if global.json {
        return Ok(line(result.get())?);
    }
    Ok(line(&text(&serde_json::from_str(result.get())?))?)
}

/// Writes the bytes as they are.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Unwritten> {
    WRITTEN.store(true, Ordering::Relaxed);
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Whether a person reads standard output.
pub(super) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Shows how far a long work is, in one line that the next one replaces; an empty text takes it away.
pub(super) fn progress(text: &str) {
    let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
}

/// Tells a person what a long command is doing. Nothing depends on it, so that a closed standard error stops nothing.
pub(super) fn note(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}
