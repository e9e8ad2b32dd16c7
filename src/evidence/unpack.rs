//! The bytes of an object back into entries: decompressed, each leaf recomputed, with the tree that they make. In memory is one
//! line at a time.

use std::collections::HashSet;
use std::io::{self, Write};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tokio_util::task::TaskTracker;

use super::digest::Digest;
use super::line::{self, Persons};
use crate::audit::merkle::{Frontier, Hash};
use crate::objects::{Objects, Trouble};

/// The longest line, in bytes: the largest record that can be configured, in base64, with what is around it.
const LONGEST: usize = 512 << 20;
/// The largest window that is decompressed with, as a power of two: archives have at most 8 MiB.
const WINDOW: u32 = 23;
/// Of one object, so many breaks are told.
pub(super) const TOLD: usize = 1000;

/// Something is not what it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    /// The position of the entry, where it is one's.
    pub(super) position: Option<u64>,
    pub(super) what: &'static str,
    pub(super) expected: String,
    pub(super) found: String,
}

/// What an object turned out to be.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) size: u64,
    pub(super) sha256: Hash,
    pub(super) content_size: u64,
    pub(super) content_sha256: Hash,
    /// The tree with what was before the object, and with it.
    pub(super) tree: Frontier,
    pub(super) flaws: Vec<Flaw>,
    /// Whether one of the persons that were looked for is named in it.
    pub(super) names: bool,
}

/// Reads an object to its end, on top of the tree before it. `looked_for` are persons; entries are parsed only where there are
/// some.
///
/// # Errors
/// [`Trouble`], where it cannot be read; what is wrong in it is told in [`Unpacked::flaws`].
pub(super) async fn unpack(
    objects: &Objects,
    name: &str,
    before: Frontier,
    looked_for: HashSet<i64>,
    tracker: &TaskTracker,
) -> Result<Unpacked, Trouble> {
    let (_, mut stream) = objects.read(name, None).await?;
    let mut reading = Reading::new(before, looked_for).map_err(|error| Trouble::Away(error.to_string()))?;
    let mut working: Option<tokio::task::JoinHandle<Reading>> = None;
    loop {
        let next = stream.try_next().await;
        let mut at_hand = match working.take() {
            Some(working) => working.await.map_err(|error| Trouble::Away(error.to_string()))?,
            None => reading,
        };
        let Some(bytes) = next? else { return Ok(at_hand.end()) };
        reading = Reading::nothing();
        // The next bytes come meanwhile.
        working = Some(tracker.spawn_blocking(move || {
            at_hand.take(&bytes);
            at_hand
        }));
    }
}

/// An object under way.
struct Reading {
    /// Nothing once it failed, and while another task has it.
    decoder: Option<zstd::stream::write::Decoder<'static, Lines>>,
    lines: Option<Lines>,
    object: Digest,
}

impl Reading {
    fn new(before: Frontier, looked_for: HashSet<i64>) -> io::Result<Self> {
        let lines = Lines { tree: before, looked_for, ..Lines::default() };
        let mut decoder = zstd::stream::write::Decoder::new(lines)?;
        decoder.window_log_max(WINDOW)?;
        Ok(Self { decoder: Some(decoder), lines: None, object: Digest::default() })
    }

    fn nothing() -> Self {
        Self { decoder: None, lines: None, object: Digest::default() }
    }

    fn take(&mut self, bytes: &Bytes) {
        self.object.add(bytes);
        if let Some(decoder) = &mut self.decoder
            && let Err(error) = decoder.write_all(bytes)
        {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &io::Error) {
        if let Some(decoder) = self.decoder.take() {
            let mut lines = decoder.into_inner();
            let position = Some(lines.tree.size());
            lines.flaw(position, "compression", "a zstd frame".into(), error.to_string());
            self.lines = Some(lines);
        }
    }

    fn end(mut self) -> Unpacked {
        if let Some(decoder) = &mut self.decoder
            && let Err(error) = decoder.flush()
        {
            self.fail(&error);
        }
        let mut lines = match self.decoder.take() {
            Some(decoder) => decoder.into_inner(),
            None => self.lines.take().unwrap_or_default(),
        };
        if !lines.pending.is_empty() {
            let position = Some(lines.tree.size());
            lines.flaw(position, "line", "a newline at its end".into(), "the end of the object".into());
        }
        Unpacked {
            size: self.object.size(),
            sha256: self.object.end(),
            content_size: lines.content.size(),
            content_sha256: lines.content.end(),
            tree: lines.tree,
            flaws: lines.flaws,
            names: lines.names,
        }
    }
}

/// Takes decompressed bytes, and cuts them into lines.
#[derive(Default)]
struct Lines {
    pending: Vec<u8>,
    content: Digest,
    tree: Frontier,
    flaws: Vec<Flaw>,
    looked_for: HashSet<i64>,
    names: bool,
}

impl Lines {
    fn flaw(&mut self, position: Option<u64>, what: &'static str, expected: String, found: String) {
        if self.flaws.len() < TOLD {
            self.flaws.push(Flaw { position, what, expected, found });
        }
    }

    fn line(&mut self, bytes: &[u8]) {
        let position = Some(self.tree.size());
        let text = std::str::from_utf8(bytes).ok();
        let Some((text, told)) = text.and_then(|text| Some((text, line::decode(text)?))) else {
            self.flaw(
                position,
                "entry",
                "a canonical entry with its sealed parts".into(),
                "another line".into(),
            );
            self.tree.push(Hash::leaf(bytes), |_, _| ());
            return;
        };
        if told.leaf != told.said {
            self.flaw(position, "leaf_hash", told.leaf.hex(), told.said.hex());
        }
        if !told.sealed {
            self.flaw(
                position,
                "sealed",
                "sealed bytes with the digests of the entry".into(),
                "other bytes".into(),
            );
        }
        if !self.looked_for.is_empty() {
            // Of a line that does not say whom it names nobody can say that it names none.
            let named = Persons::of(text);
            self.names |= named.is_none_or(|mut named| named.any(|person| self.looked_for.contains(&person)));
        }
        self.tree.push(told.leaf, |_, _| ());
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.content.add(bytes);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            if self.pending.is_empty() {
                self.line(line);
            } else {
                let mut pending = std::mem::take(&mut self.pending);
                pending.extend_from_slice(line);
                self.line(&pending);
                pending.clear();
                self.pending = pending;
            }
            rest = after.get(1..).unwrap_or(&[]);
        }
        if self.pending.len().saturating_add(rest.len()) > LONGEST {
            return Err(io::Error::other("a line is longer than any entry"));
        }
        self.pending.extend_from_slice(rest);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
