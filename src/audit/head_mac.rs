//! What the MAC of a stream's head is over: the key for it is derived from the deployment's, and the owner of the tables
//! has it not.

use tokio_postgres::Row;

use super::growth::Growth;
use super::merkle::Hash;
use crate::keyring::Deployment;

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

/// The tree of a stream that was taken, where a daemon has sealed its head and the edge leads to it.
pub(super) fn sealed_tree(own: &Deployment, row: &Row) -> Option<Growth> {
    let number: i32 = row.get("stream");
    let size = u64::try_from(row.get::<_, i64>("size")).ok()?;
    let root = Hash::read(row.get("root"))?;
    let tree = Growth::read(size, row.get("edge"))?;
    let sealed = head_parts(own.name(), number, row.get("sealed_epoch"), size, root);
    let leads = tree.root() == root && tree.frontier().to_bytes() == row.get::<_, &[u8]>("frontier");
    (leads && own.verifies(HEAD, &sealed.parts(), row.get("head_mac"))).then_some(tree)
}
