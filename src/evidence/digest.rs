//! A SHA-256 that grows with what is written, and how much that was. Pure.

use aws_lc_rs::digest::{Context, SHA256};

use crate::audit::merkle::Hash;

/// Bytes so far.
#[derive(Clone)]
pub(super) struct Digest {
    context: Context,
    size: u64,
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digest").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self { context: Context::new(&SHA256), size: 0 }
    }
}

impl Digest {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.size = self.size.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn end(self) -> Hash {
        // SHA-256 has 32 bytes.
        Hash::read(self.context.finish().as_ref()).unwrap_or_else(|| Hash::of(&[]))
    }
}
