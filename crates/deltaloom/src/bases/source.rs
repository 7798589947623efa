//! One tensor that the reader has, in a plain file or in a container. It is read and hashed the
//! same way.
//! It does not know what the tensor is for.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::history::Memo;
use super::resolved::ResolvedContainer;
use crate::checkpoint::{Checkpoint, Contents, Member};
use crate::container::Digest;
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::Predictor;
use crate::scratch::{Bytes, Scratch};
use crate::tensor::TensorInfo;

/// A tensor that the reader has.
#[derive(Clone)]
pub(crate) enum TensorSource {
    /// In a plain file: the number of the file, and of the tensor in it. The number after the last
    /// is a framed file as a whole.
    Plain { checkpoint: Arc<Checkpoint>, member: usize, place: usize, digest: Arc<OnceLock<Digest>> },
    /// In a container, by number.
    Packed { resolved: Arc<ResolvedContainer>, number: usize },
}

/// Which tensor of which open file or container it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TensorId {
    /// Address of the open file or container, which lives as long as the bases do.
    origin: usize,
    member: usize,
    place: u64,
}

impl TensorSource {
    pub(crate) fn id(&self) -> TensorId {
        match self {
            Self::Plain { checkpoint, member, place, .. } => {
                TensorId { origin: Arc::as_ptr(checkpoint).addr(), member: *member, place: *place as u64 }
            }
            Self::Packed { resolved, number } => {
                TensorId { origin: Arc::as_ptr(resolved).addr(), member: 0, place: *number as u64 }
            }
        }
    }

    pub(crate) fn info(&self) -> &TensorInfo {
        match self {
            Self::Plain { checkpoint, member, place, .. } => {
                let member = &checkpoint.members[*member];
                match &member.contents {
                    Contents::Framed(frame) if *place == member.tensors.len() => frame.whole(),
                    _ => &member.tensors[*place],
                }
            }
            Self::Packed { resolved, number } => resolved.info(*number),
        }
    }

    /// Whether it is in a container, so that any part of it costs a chunk.
    pub(crate) fn is_in_container(&self) -> bool {
        matches!(self, Self::Packed { .. })
    }

    /// Whether it is stored as patches of another file, so that any part of it may cost a part of
    /// that one.
    pub(crate) fn is_patched(&self) -> bool {
        match self {
            Self::Plain { .. } => false,
            Self::Packed { resolved, number } => {
                matches!(resolved.tensor(*number).predictor, Predictor::Text(_))
            }
        }
    }

    /// Whether it is more than bytes: no small file of a directory, and no frame.
    pub(crate) fn is_typed(&self) -> bool {
        let (members, (member, _)) = self.place();
        members[member].is_typed(self.info())
    }

    /// The files that it is among, and its place in them.
    pub(crate) fn place(&self) -> (&[Member], (usize, usize)) {
        match self {
            Self::Plain { checkpoint, member, place, .. } => (&checkpoint.members, (*member, *place)),
            Self::Packed { resolved, number } => {
                (&resolved.container().index().members, resolved.tensor(*number).place)
            }
        }
    }

    /// Whether it comes from the same checkpoint or container as another tensor.
    pub(crate) fn has_origin_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain { checkpoint: a, .. }, Self::Plain { checkpoint: b, .. }) => Arc::ptr_eq(a, b),
            (Self::Packed { resolved: a, .. }, Self::Packed { resolved: b, .. }) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Whether it has the dtype, shape and length of another tensor.
    pub(crate) fn is_like(&self, other: &TensorInfo) -> bool {
        self.info().is_like(other)
    }

    /// Bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len_bytes];
        self.read_into(offset, &mut buffer)?;
        Ok(buffer)
    }

    /// The bytes of a range: borrowed if they are in memory, else read.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Result<Bytes<'_>> {
        match self {
            Self::Plain { checkpoint, member, .. } => checkpoint.bytes(*member, self.info(), range),
            Self::Packed { .. } => {
                let mut bytes = Scratch::of_len(to_usize(range.end - range.start));
                self.read_into(range.start, &mut bytes)?;
                Ok(Bytes::Read(bytes))
            }
        }
    }

    /// Fills `buffer` with bytes from `offset` on.
    pub(crate) fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::Plain { checkpoint, member, .. } => checkpoint.read(*member, self.info(), offset, buffer),
            Self::Packed { resolved, number } => resolved.read_part_into(*number, offset, buffer),
        }
    }

    /// The same, reusing what was read for the chunk before.
    pub(super) fn read_with(&self, memo: &mut Memo, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::Plain { .. } => self.read_into(offset, buffer),
            Self::Packed { resolved, number } => resolved.read_part_with(memo, *number, offset, buffer),
        }
    }

    /// BLAKE3 of the tensor. Computed once for plain files, and taken from the index for
    /// containers: their chunks have checksums, and whatever is decoded whole is checked again.
    pub(crate) fn digest(&self) -> Result<Digest> {
        match self {
            Self::Packed { resolved, number } => Ok(resolved.tensor(*number).digest),
            Self::Plain { checkpoint, member, digest, .. } => match digest.get() {
                Some(digest) => Ok(*digest),
                None => {
                    let found = checkpoint.digest(*member, self.info(), |_| Ok(()))?;
                    Ok(*digest.get_or_init(|| found))
                }
            },
        }
    }
}
