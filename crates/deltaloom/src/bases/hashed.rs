//! Remembers the digests of tensors of bases, so that a reference is found without hashing anything
//! twice, whatever its name is now.

use std::collections::{BTreeMap, HashMap};

use crate::container::{Digest, KnownDigest};

/// Tensors of one base that are alike: the number of the base, and where these tensors start in
/// `Base::alike`.
pub(super) type Kind = (usize, usize);

/// The known digests of all kinds.
#[derive(Default)]
pub(super) struct Hashed(HashMap<Kind, OfKind>);

#[derive(Default)]
struct OfKind {
    /// Number of a tensor in its base, by its digest.
    by_digest: BTreeMap<[u8; 32], usize>,
    /// How many of the kind, in its order, are in the map.
    in_order: usize,
}

impl Hashed {
    /// The tensor of a kind with a digest, if it is known.
    pub(super) fn find(&self, kind: Kind, expected: KnownDigest) -> Option<usize> {
        let mut lowest = [0; 32];
        lowest[..expected.as_bytes().len()].copy_from_slice(expected.as_bytes());
        let (digest, tensor) = self.0.get(&kind)?.by_digest.range(lowest..).next()?;
        digest.starts_with(expected.as_bytes()).then_some(*tensor)
    }

    /// How many of a kind, in its order, were hashed.
    pub(super) fn in_order(&self, kind: Kind) -> usize {
        self.0.get(&kind).map_or(0, |known| known.in_order)
    }

    pub(super) fn insert(&mut self, kind: Kind, digest: Digest, tensor: usize) {
        self.0.entry(kind).or_default().by_digest.insert(*digest.as_bytes(), tensor);
    }

    /// Notes that this many of a kind, in its order, were inserted.
    pub(super) fn set_in_order(&mut self, kind: Kind, count: usize) {
        let in_order = &mut self.0.entry(kind).or_default().in_order;
        *in_order = count.max(*in_order);
    }
}
