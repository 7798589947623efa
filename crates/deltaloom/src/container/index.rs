//! The contents of a container: members, tensors, chunks and table sets, checked and in memory.
//! It holds no payloads.

use std::borrow::Cow;
use std::sync::Arc;

use crate::checkpoint::{Layout, Member, Roles};
use crate::codec::{Codec, Coding};
use crate::entropy::table::TableSet;
use crate::error::Error;
use crate::predict::Predictor;
use crate::tensor::{ChunkGrid, TensorInfo};

use super::{Digest, Identity};

/// What an index knows of a reference's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KnownDigest {
    Whole(Digest),
    /// Of the many ancestors in a history. The digest of the result reveals a wrong one.
    Start([u8; DIGEST_START_BYTES]),
}

/// Known bytes of an ancestor's digest.
pub(crate) const DIGEST_START_BYTES: usize = 8;

impl KnownDigest {
    pub(crate) fn start_of(digest: &Digest) -> Self {
        Self::Start(std::array::from_fn(|i| digest.as_bytes()[i]))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Whole(digest) => digest.as_bytes(),
            Self::Start(bytes) => bytes,
        }
    }

    pub(crate) fn is_of(&self, digest: &Digest) -> bool {
        digest.as_bytes().starts_with(self.as_bytes())
    }

    pub(crate) fn whole(&self) -> Option<Digest> {
        match self {
            Self::Whole(digest) => Some(*digest),
            Self::Start(_) => None,
        }
    }

    pub(crate) fn to_hex(self) -> String {
        let hex = self.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Whole(_) => hex,
            Self::Start(_) => format!("{hex}.."),
        }
    }
}

/// The index of a container.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    /// Version of the format.
    pub(crate) version: u16,
    pub(crate) layout: Layout,
    pub(crate) chunk_log2: u8,
    /// Shared with the checkpoint that is packed: headers and names may be long.
    pub(crate) members: Arc<[Member]>,
    /// In the order of members and places.
    pub(crate) tensors: Vec<PackedTensor>,
    pub(crate) table_sets: Vec<TableSet>,
    pub(crate) identity: Identity,
}

/// How a tensor is packed.
#[derive(Debug, Clone)]
pub(crate) struct PackedTensor {
    /// Its member, and its number in the member.
    pub(crate) place: (usize, usize),
    pub(crate) predictor: Predictor,
    pub(crate) grid: ChunkGrid,
    /// Elements that differ from the prediction; 0 if there is none.
    pub(crate) changed: u64,
    pub(crate) groups: Vec<GroupEntry>,
    /// The payload before those of the chunks, if the predictor is LowRank or LowRanks.
    pub(crate) factors: Option<PayloadEntry>,
    pub(crate) chunks: Vec<ChunkEntry>,
    pub(crate) digest: Digest,
    /// One for each reference of the predictor, in the same order.
    pub(crate) reference_digests: Vec<KnownDigest>,
}

/// What the chunks of a group share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupEntry {
    pub(crate) coding: Coding,
    /// The number of its table set, if its family has one.
    pub(crate) tables: Option<usize>,
}

/// Where a chunk's payload is and how it is coded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkEntry {
    pub(crate) codec: Codec,
    pub(crate) group: usize,
    pub(crate) payload: PayloadEntry,
}

/// Where a payload is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PayloadEntry {
    pub(crate) offset: u64,
    pub(crate) len_bytes: usize,
    pub(crate) crc: u32,
}

impl PackedTensor {
    /// A tensor that has no chunks and digests yet.
    pub(crate) fn new(place: (usize, usize), predictor: Predictor, grid: ChunkGrid) -> Self {
        Self {
            place,
            predictor,
            grid,
            changed: 0,
            groups: Vec::new(),
            factors: None,
            chunks: Vec::new(),
            digest: Digest::from([0; 32]),
            reference_digests: Vec::new(),
        }
    }

    /// The grid of what is coded.
    pub(crate) fn coded_grid(&self) -> ChunkGrid {
        self.predictor.coded_dtype().map_or(self.grid, |dtype| self.grid.of_dtype(dtype))
    }

    /// All payloads, in the order in which they lie in the file.
    pub(crate) fn payloads(&self) -> impl Iterator<Item = &PayloadEntry> {
        self.factors.iter().chain(self.chunks.iter().map(|chunk| &chunk.payload))
    }

    /// Bytes of all payloads.
    pub(crate) fn packed_bytes(&self) -> u64 {
        self.payloads().map(|payload| payload.len_bytes as u64).sum()
    }
}

impl Index {
    /// Name, dtype, shape and place of a tensor.
    pub(crate) fn info(&self, tensor: &PackedTensor) -> &TensorInfo {
        &self.members[tensor.place.0].tensors[tensor.place.1]
    }

    /// Which tensors are weights.
    pub(crate) fn roles(&self) -> Roles {
        Roles::of(&self.members)
    }

    /// What is coded of a tensor: the tensor itself, or the one that it is converted from.
    pub(crate) fn coded_info<'a>(&'a self, tensor: &'a PackedTensor) -> Cow<'a, TensorInfo> {
        tensor.predictor.coded(self.info(tensor)).0
    }

    /// A tensor and all tensors of the file that decoding it needs.
    pub(crate) fn needed_for(&self, number: usize) -> Vec<usize> {
        let mut needed = vec![number];
        let mut next = 0;
        // Ends because levels decrease from each tensor to those it needs.
        while let Some(tensor) = needed.get(next) {
            needed.extend(self.tensors[*tensor].predictor.internals());
            next += 1;
        }
        needed
    }

    /// Adds the names of the needed bases to an error about bases.
    pub(crate) fn named_in(&self, error: Error) -> Error {
        match error {
            Error::BaseMismatch { tensor, expected, found, .. } => {
                Error::BaseMismatch { tensor, expected, found, needed: self.identity.needed() }
            }
            other => other,
        }
    }

    /// Whether any tensor is taken from a base.
    pub(crate) fn needs_base(&self) -> bool {
        self.tensors.iter().any(|tensor| !tensor.reference_digests.is_empty())
    }

    /// Size of all tensors.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.members.iter().map(Member::data_bytes).sum()
    }

    /// Size of all files.
    pub(crate) fn original_bytes(&self) -> u64 {
        self.members.iter().map(Member::len_bytes).sum()
    }
}
