//! What the MAC of a stream's head is over: the key for it is derived from the deployment's, and the owner of the tables
//! has it not.

use super::merkle::Hash;

/// What the MAC of a head is for.
pub(super) const HEAD: &str = "sidekeep head";

/// What the MAC of a head is over.
pub(super) struct HeadParts<'a> {
    name: &'a str,
    numbers: [[u8; 8]; 3],
    root: Hash,
}

impl HeadParts<'_> {
    pub(super) fn parts(&self) -> [&[u8]; 5] {
        let [stream, epoch, size] = &self.numbers;
        [self.name.as_bytes(), stream, epoch, size, self.root.bytes()]
    }
}

pub(super) fn head_parts(name: &str, stream: i32, epoch: i64, size: u64, root: Hash) -> HeadParts<'_> {
    HeadParts {
        name,
        numbers: [i64::from(stream).to_be_bytes(), epoch.to_be_bytes(), size.to_be_bytes()],
        root,
    }
}
