//! Entries into the bytes of an object: lines, compressed, with the tree that they make. Pure; little of it in memory.

use std::io::Write as _;

use bytes::Bytes;

use super::digest::Digest;
use super::line;
use crate::audit::archive::{Part, Portion};
use crate::audit::merkle::{Frontier, Hash};
use crate::error::{Error, Result};

/// Level 3: sealed bytes do not shrink, and what remains shrinks well at any level.
const LEVEL: i32 = 3;

/// An object under way.
pub(super) struct Packer {
    part: Part,
    tree: Frontier,
    encoder: zstd::Encoder<'static, Vec<u8>>,
    content: Digest,
    object: Digest,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("part", &self.part).finish_non_exhaustive()
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) size: u64,
    pub(super) sha256: Hash,
    pub(super) content_sha256: Hash,
    pub(super) root: Hash,
}

impl Packer {
    pub(super) fn new(part: Part, before: Frontier) -> Result<Self> {
        let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL).map_err(Error::internal)?;
        encoder.include_checksum(true).map_err(Error::internal)?;
        Ok(Self { part, tree: before, encoder, content: Digest::default(), object: Digest::default() })
    }

    /// Takes entries in order; answers what is to be written.
    ///
    /// # Errors
    /// [`Error::Tampered`] where an entry is missing, or its leaf is not the one beside it.
    pub(super) fn take(&mut self, portion: Portion) -> Result<Bytes> {
        for (entry, stored) in portion.read()? {
            let at = || Error::Tampered {
                at: format!("audit_logs, stream {} position {}", self.part.stream, self.tree.size()),
            };
            let (leaf, line) = line::encode(&entry).ok_or_else(at)?;
            let in_turn = u64::try_from(entry.position).is_ok_and(|position| position == self.tree.size());
            (in_turn && leaf == stored).then_some(()).ok_or_else(at)?;
            self.tree.push(leaf, |_, _| ());
            self.content.add(line.as_bytes());
            self.encoder.write_all(line.as_bytes()).map_err(Error::internal)?;
        }
        Ok(self.drain())
    }

    /// Ends the object; answers its last bytes.
    ///
    /// # Errors
    /// [`Error::Tampered`] where entries are missing at the end.
    pub(super) fn end(mut self) -> Result<(Bytes, Packed)> {
        if self.tree.size() != self.part.end() {
            let at = format!("audit_logs, stream {} position {}", self.part.stream, self.tree.size());
            return Err(Error::Tampered { at });
        }
        let last = self.encoder.finish().map_err(Error::internal)?;
        self.object.add(&last);
        let packed = Packed {
            size: self.object.size(),
            sha256: self.object.end(),
            content_sha256: self.content.end(),
            root: self.tree.root(),
        };
        Ok((last.into(), packed))
    }

    fn drain(&mut self) -> Bytes {
        let bytes = std::mem::take(self.encoder.get_mut());
        self.object.add(&bytes);
        bytes.into()
    }
}
