//! The Merkle tree of RFC 6962 §2.1: pure, no I/O. A tree is known by its frontier; proofs read the few subtrees they need.

use std::collections::HashMap;
use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// SHA-256 of these bytes.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        parts.iter().for_each(|part| context.update(part));
        let mut hash = [0; 32];
        // SHA-256 has 32 bytes, so nothing is cut off or left.
        hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(hash)
    }

    /// A leaf over these bytes: `SHA-256(0x00 || bytes)`.
    pub fn leaf(bytes: &[u8]) -> Self {
        Self::of(&[&[0], bytes])
    }

    /// An inner node: `SHA-256(0x01 || left || right)`.
    pub fn node(left: Self, right: Self) -> Self {
        Self::of(&[&[1], &left.0, &right.0])
    }

    /// The bytes of a digest as they were stored.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// A digest in hexadecimal.
    pub fn from_hex(text: &str) -> Option<Self> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        Self::read(&pairs.iter().map(byte).collect::<Option<Vec<u8>>>()?)
    }

    /// Lower-case hexadecimal.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
        text
    })
}

/// A complete subtree: `2^level` leaves, the first of them leaf `index << level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// How high it is; a leaf is at 0.
    pub level: u32,
    /// Which of its level, from 0.
    pub index: u64,
}

impl Node {
    /// The first leaf under it.
    pub fn first(self) -> u64 {
        self.index.checked_shl(self.level).unwrap_or(u64::MAX)
    }

    /// How many leaves are under it.
    pub fn width(self) -> u64 {
        1_u64.checked_shl(self.level).unwrap_or(0)
    }
}

/// What of a tree is needed to append to it and to know its root: the complete subtrees that it falls into, the largest
/// first. There are as many as the size has bits set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// A frontier as it was stored, or nothing when the peaks are not as many as the size asks for.
    pub fn new(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (peaks.len() == usize::try_from(size.count_ones()).ok()?).then_some(Self { size, peaks })
    }

    /// How many leaves there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The peaks, the largest first.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Appends a leaf; `complete` hears of each subtree that it completes above the leaf itself.
    pub fn push(&mut self, leaf: Hash, mut complete: impl FnMut(Node, Hash)) {
        let (mut hash, mut level) = (leaf, 0_u32);
        let mut index = self.size;
        while index & 1 == 1 {
            let Some(left) = self.peaks.pop() else { break };
            hash = Hash::node(left, hash);
            level = level.saturating_add(1);
            index >>= 1;
            complete(Node { level, index }, hash);
        }
        self.peaks.push(hash);
        self.size = self.size.saturating_add(1);
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        fold(&self.peaks)
    }

    /// The peaks one after another, as they are stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.peaks.iter().flat_map(|peak| peak.0).collect()
    }

    /// A frontier from what [`Frontier::to_bytes`] gave.
    pub fn from_bytes(size: u64, bytes: &[u8]) -> Option<Self> {
        let (chunks, []) = bytes.as_chunks::<32>() else { return None };
        Self::new(size, chunks.iter().map(|chunk| Hash(*chunk)).collect())
    }
}

/// The root over peaks, the largest first; of none, the root of the empty tree.
fn fold(peaks: &[Hash]) -> Hash {
    match peaks.split_last() {
        None => Hash::of(&[]),
        Some((last, rest)) => rest.iter().rev().fold(*last, |root, peak| Hash::node(*peak, root)),
    }
}

/// The complete subtrees that the leaves `from .. to` fall into, in order, where `from` begins a subtree of that size.
pub fn cover(mut from: u64, to: u64) -> Vec<Node> {
    let mut nodes = Vec::new();
    while from < to {
        let aligned = if from == 0 { u64::BITS.saturating_sub(1) } else { from.trailing_zeros() };
        let fitting = to.saturating_sub(from).ilog2();
        let level = aligned.min(fitting);
        nodes.push(Node { level, index: from >> level });
        from = from.saturating_add(1_u64.checked_shl(level).unwrap_or(u64::MAX));
    }
    nodes
}

/// The largest power of two below `n`, for `n` of 2 or more.
fn split(n: u64) -> u64 {
    n.saturating_sub(1).checked_ilog2().map_or(0, |log| 1_u64 << log)
}

/// One step of a proof: the complete subtrees whose root, taken together from the left, is the hash at this step.
pub type Step = Vec<Node>;

/// The steps of the inclusion proof of a leaf in the tree of the first `size` leaves (RFC 6962 §2.1.1), from the leaf up.
pub fn inclusion(leaf: u64, size: u64) -> Option<Vec<Step>> {
    if leaf >= size {
        return None;
    }
    let (mut from, mut to) = (0_u64, size);
    let mut steps = Vec::new();
    while to.saturating_sub(from) > 1 {
        let middle = from.saturating_add(split(to.saturating_sub(from)));
        if leaf < middle {
            steps.push(cover(middle, to));
            to = middle;
        } else {
            steps.push(cover(from, middle));
            from = middle;
        }
    }
    steps.reverse();
    Some(steps)
}

/// The steps of the consistency proof between the trees of the first `old` and the first `new` leaves (RFC 6962 §2.1.2).
pub fn consistency(old: u64, new: u64) -> Option<Vec<Step>> {
    if old > new {
        return None;
    }
    if old == 0 || old == new {
        return Some(Vec::new());
    }
    let (mut from, mut to) = (0_u64, new);
    let mut steps = Vec::new();
    // Whether the subtree at hand is one that the old tree has as a whole from its beginning.
    let mut whole = true;
    while to != old {
        let middle = from.saturating_add(split(to.saturating_sub(from)));
        if old <= middle {
            steps.push(cover(middle, to));
            to = middle;
        } else {
            steps.push(cover(from, middle));
            from = middle;
            whole = false;
        }
    }
    if !whole {
        steps.push(cover(from, to));
    }
    steps.reverse();
    Some(steps)
}

/// The hashes of a proof, given those of the complete subtrees it names.
pub fn resolve(steps: &[Step], known: &HashMap<Node, Hash>) -> Option<Vec<Hash>> {
    steps
        .iter()
        .map(|step| {
            let hashes: Option<Vec<Hash>> = step.iter().map(|node| known.get(node).copied()).collect();
            hashes.map(|hashes| fold(&hashes))
        })
        .collect()
}

/// The root that an inclusion proof leads to (RFC 9162 §2.1.3.2), or nothing when it has not as many steps as it must.
pub fn root_by_inclusion(leaf: Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut node, mut last) = (index, size.saturating_sub(1));
    let mut root = leaf;
    for step in path {
        if last == 0 {
            return None;
        }
        if node & 1 == 1 || node == last {
            root = Hash::node(*step, root);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            root = Hash::node(root, *step);
        }
        node >>= 1;
        last >>= 1;
    }
    (last == 0).then_some(root)
}

/// Whether a consistency proof leads to both roots (RFC 9162 §2.1.4.2).
pub fn is_consistent(old: (u64, Hash), new: (u64, Hash), path: &[Hash]) -> bool {
    let ((old_size, old_root), (new_size, new_root)) = (old, new);
    if old_size == new_size || old_size == 0 {
        return path.is_empty() && (old_size == 0 || old_root == new_root);
    }
    let mut steps = path.iter().copied();
    let (mut node, mut last) = (old_size.saturating_sub(1), new_size.saturating_sub(1));
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let Some(first) = (if old_size.is_power_of_two() { Some(old_root) } else { steps.next() }) else {
        return false;
    };
    let (mut old_found, mut new_found) = (first, first);
    for step in steps {
        if last == 0 {
            return false;
        }
        if node & 1 == 1 || node == last {
            old_found = Hash::node(step, old_found);
            new_found = Hash::node(step, new_found);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_found = Hash::node(new_found, step);
        }
        node >>= 1;
        last >>= 1;
    }
    old_found == old_root && new_found == new_root && last == 0
}

#[cfg(test)]
#[allow(clippy::as_conversions, reason = "small numbers")]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// The leaves of the test vectors of Certificate Transparency's reference implementation.
    fn vectors() -> Vec<Vec<u8>> {
        let inputs = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let byte = |text: &[u8]| u8::from_str_radix(std::str::from_utf8(text).unwrap(), 16).unwrap();
        inputs.iter().map(|input| input.as_bytes().chunks(2).map(byte).collect()).collect()
    }

    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    /// The definition of RFC 6962 §2.1, by recursion.
    fn plain(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::of(&[]),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(usize::try_from(split(leaves.len() as u64)).unwrap());
                Hash::node(plain(left), plain(right))
            }
        }
    }

    fn tree(size: u64) -> (Vec<Hash>, HashMap<Node, Hash>, Frontier) {
        let leaves: Vec<Hash> = (0..size).map(|leaf| Hash::leaf(&leaf.to_be_bytes())).collect();
        let (mut known, mut frontier) = (HashMap::new(), Frontier::default());
        for (index, leaf) in leaves.iter().enumerate() {
            known.insert(Node { level: 0, index: index as u64 }, *leaf);
            frontier.push(*leaf, |node, hash| {
                known.insert(node, hash);
            });
        }
        (leaves, known, frontier)
    }

    #[test]
    fn roots_are_those_of_the_published_vectors() {
        let mut frontier = Frontier::default();
        assert_eq!(frontier.root().hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for (input, root) in vectors().iter().zip(ROOTS) {
            frontier.push(Hash::leaf(input), |_, _| {});
            assert_eq!(frontier.root().hex(), root);
            assert_eq!(Frontier::from_bytes(frontier.size(), &frontier.to_bytes()), Some(frontier.clone()));
        }
        assert_eq!(Frontier::new(3, vec![]), None);
    }

    #[test]
    fn every_proof_of_small_trees_verifies_and_no_other_does() {
        let (leaves, known, _) = tree(70);
        for size in 1..=70 {
            let root = plain(&leaves[..size as usize]);
            for leaf in 0..size {
                let path = resolve(&inclusion(leaf, size).unwrap(), &known).unwrap();
                assert_eq!(
                    root_by_inclusion(leaves[leaf as usize], leaf, size, &path),
                    Some(root),
                    "{leaf} of {size}"
                );
                assert_ne!(
                    root_by_inclusion(leaves[leaf as usize], (leaf + 1) % size, size, &path),
                    Some(root).filter(|_| size > 1)
                );
                let mut longer = path.clone();
                longer.push(root);
                assert_ne!(root_by_inclusion(leaves[leaf as usize], leaf, size, &longer), Some(root));
            }
            for old in 1..=size {
                let before = (old, plain(&leaves[..old as usize]));
                let path = resolve(&consistency(old, size).unwrap(), &known).unwrap();
                assert!(is_consistent(before, (size, root), &path), "{old} of {size}");
                if old < size {
                    assert!(!is_consistent((old, Hash::leaf(b"other")), (size, root), &path));
                    assert!(!is_consistent(before, (size, Hash::leaf(b"other")), &path));
                }
            }
            assert_eq!(inclusion(size, size), None);
            assert_eq!(consistency(size + 1, size), None);
        }
    }

    proptest! {
        #[test]
        fn the_frontier_has_the_root_of_the_definition(size in 0_u64..700) {
            let (leaves, _, frontier) = tree(size);
            prop_assert_eq!(frontier.root(), plain(&leaves));
        }

        #[test]
        fn proofs_of_large_trees_verify(size in 2_u64..5000, leaf: prop::sample::Index, old: prop::sample::Index) {
            let (leaves, known, frontier) = tree(size);
            let leaf = leaf.index(size as usize) as u64;
            let path = resolve(&inclusion(leaf, size).unwrap(), &known).unwrap();
            prop_assert_eq!(root_by_inclusion(leaves[leaf as usize], leaf, size, &path), Some(frontier.root()));
            let old = old.index(size as usize) as u64 + 1;
            let path = resolve(&consistency(old, size).unwrap(), &known).unwrap();
            prop_assert!(is_consistent((old, plain(&leaves[..old as usize])), (size, frontier.root()), &path));
        }
    }
}
