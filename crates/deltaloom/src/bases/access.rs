//! What callers may ask of a container's tensors by number: how they are stored, and parts of them.
//! Products on packed weights are built on this. A number is a tensor's place in
//! [`ResolvedContainer::tensors`]. Methods that give no error panic for a number that no tensor
//! has.

use std::ops::{Range, RangeBounds};
use std::sync::Arc;

use deltaloom_kernels::changes::collect_changes;
use rayon::prelude::*;

use super::resolved::{ResolvedContainer, wrong_length};
use super::source::TensorSource;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::pipeline::{self, WINDOW_CHUNKS};
use crate::predict::Predictor;
use crate::scratch::{Bytes, Scratch};
use crate::tensor::TensorInfo;

/// Elements of a chunk that differ from those of the tensor's reference, in order.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Changes<'a> {
    /// The first element of the chunk, counted from the start of the tensor.
    pub first: u64,
    /// Their places, counted from `first`.
    pub offsets: &'a [u32],
    /// Their bytes, one element after another.
    pub values: &'a [u8],
}

impl ResolvedContainer {
    /// The number of the tensor with this name.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`]; [`crate::Error::InvalidArgument`] when several files have one.
    pub fn find(&self, name: &str) -> Result<usize> {
        self.container().find(name)
    }

    /// Name, dtype and shape.
    #[must_use]
    pub fn info(&self, number: usize) -> &TensorInfo {
        self.container().index().info(self.tensor(number))
    }

    /// The tensors that count as weights, with their numbers.
    pub fn weights(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        let index = self.container().index();
        let roles = index.roles();
        self.tensors().enumerate().filter(move |(number, _)| roles.is_weights(index.tensors[*number].place))
    }

    /// Whether the tensor equals its reference, so that nothing else is stored of it.
    #[must_use]
    pub fn is_identical(&self, number: usize) -> bool {
        matches!(self.tensor(number).predictor, Predictor::Identical(_))
    }

    /// A reference with the tensor's dtype and shape in a plain checkpoint, with the member and the
    /// tensor there; `None` where the tensor has none, or has it in a container.
    #[must_use]
    pub fn plain_reference(&self, number: usize) -> Option<(&Arc<Checkpoint>, usize, &TensorInfo)> {
        self.references(number).iter().find_map(|reference| match reference {
            TensorSource::Plain { checkpoint, member, .. } if reference.is_like(self.info(number)) => {
                Some((checkpoint, *member, reference.info()))
            }
            _ => None,
        })
    }

    /// Rows of a matrix that are coded together; the last chunk may have fewer. 1 for all else, and
    /// for matrices whose rows are longer than a chunk.
    #[must_use]
    pub fn rows_per_chunk(&self, number: usize) -> usize {
        let grid = self.tensor(number).grid;
        if grid.is_matrix && grid.chunk_count() > 0 { to_usize(grid.chunk_rows(0).end).max(1) } else { 1 }
    }

    /// Bytes of the tensor's payloads.
    #[must_use]
    pub fn packed_bytes(&self, number: usize) -> u64 {
        self.tensor(number).packed_bytes()
    }

    /// Decodes a whole tensor, as [`Self::read_into`] does.
    ///
    /// # Errors
    /// As [`Self::read_into`].
    pub fn read(&self, number: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(self.info(number).len_bytes())];
        self.read_into(number, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `out` with rows of a tensor, which are those of its first dimension. Decodes only the
    /// chunks that hold them, on the threads of the current rayon pool, and checks their CRC-32.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown number, rows that do not exist or are not whole
    /// bytes, or a buffer of another length; what reading or decoding gives. `out` may be partly
    /// written then.
    pub fn read_rows_into(&self, number: usize, rows: impl RangeBounds<u64>, out: &mut [u8]) -> Result<()> {
        self.check_number(number)?;
        let range = self.info(number).bytes_of_rows(&rows)?;
        let needed = range.end - range.start;
        if out.len() as u64 != needed {
            return Err(wrong_length(out.len() as u64, needed));
        }
        let mut rest = out;
        let mut parts = Vec::new();
        for (_, place) in self.tensor(number).grid.cut(&range) {
            let (part, after) = rest.split_at_mut(to_usize(place.end - place.start));
            parts.push((place.start, part));
            rest = after;
        }
        parts.into_par_iter().try_for_each(|(offset, part)| self.read_part_into(number, offset, part))
    }

    /// Calls `each` with the elements of some rows that differ from the tensor's reference, chunk
    /// by chunk in order. Rows are those of the first dimension. Decodes only chunks that hold
    /// them, on the threads of the current rayon pool, and nothing of a tensor that equals its
    /// reference.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown number, rows that do not exist or are not whole
    /// bytes, or a tensor without a reference of its dtype and shape; what decoding or `each`
    /// gives.
    pub fn changes(
        &self,
        number: usize,
        rows: impl RangeBounds<u64>,
        mut each: impl FnMut(Changes<'_>) -> Result<()> + Send,
    ) -> Result<()> {
        self.check_number(number)?;
        let info = self.info(number);
        let range = info.bytes_of_rows(&rows)?;
        let reference = self.references(number).iter().find(|reference| reference.is_like(info));
        let Some(reference) = reference else {
            let fault = format!("tensor {:?} has no reference of its dtype and shape", info.name);
            return Err(Error::InvalidArgument(fault));
        };
        if self.is_identical(number) {
            return Ok(());
        }
        self.each_change(
            number,
            &range,
            |place| reference.bytes(place),
            |_, changes| {
                if changes.offsets.is_empty() { Ok(()) } else { each(changes) }
            },
        )
    }

    /// Calls `each` with the elements of a tensor that differ from `values`, which has its length,
    /// for every chunk in order. Returns the digest of the tensor that was decoded, for
    /// [`Self::check_digest`]. `values` need not be a reference of it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown number or `values` of another length; what
    /// decoding or `each` gives.
    pub fn changes_from(
        &self,
        number: usize,
        values: &[u8],
        mut each: impl FnMut(Changes<'_>) -> Result<()> + Send,
    ) -> Result<blake3::Hash> {
        self.check_number(number)?;
        let needed = self.info(number).len_bytes();
        if values.len() as u64 != needed {
            return Err(wrong_length(values.len() as u64, needed));
        }
        let mut hasher = blake3::Hasher::new();
        let held = |place: Range<u64>| Ok(Bytes::Held(&values[to_usize(place.start)..to_usize(place.end)]));
        self.each_change(number, &(0..needed), held, |new, changes| {
            hasher.update(new);
            each(changes)
        })?;
        Ok(hasher.finalize())
    }

    /// Calls `each` with the bytes of every chunk in a range, and with their elements that differ
    /// from those that `old` gives.
    fn each_change<'a>(
        &self,
        number: usize,
        range: &Range<u64>,
        old: impl Fn(Range<u64>) -> Result<Bytes<'a>> + Sync,
        mut each: impl FnMut(&[u8], Changes<'_>) -> Result<()> + Send,
    ) -> Result<()> {
        let size = self.info(number).number().bytes();
        let find = |place: &Range<u64>| {
            let mut new = Scratch::of_len(to_usize(place.end - place.start));
            self.read_part_into(number, place.start, &mut new)?;
            let (mut offsets, mut values) = (Vec::new(), Vec::new());
            collect_changes(size, 0, &old(place.clone())?, &new, &mut offsets, &mut values);
            Ok((place.start / size as u64, offsets, values, new))
        };
        let places: Vec<Range<u64>> = self.tensor(number).grid.cut(range).map(|(_, place)| place).collect();
        pipeline::overlapped(
            places.chunks(WINDOW_CHUNKS),
            |window| window.par_iter().map(find).collect::<Result<Vec<_>>>(),
            |window| {
                window.iter().try_for_each(|(first, offsets, values, new)| {
                    each(new, Changes { first: *first, offsets, values })
                })
            },
        )
    }

    /// Fills `out` with the bytes of a tensor from `offset` on. Decodes only the chunks that hold
    /// them, so that rows of a whole chunk cost least.
    ///
    /// # Errors
    /// What reading or decoding gives.
    pub fn read_part_into(&self, number: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        self.for_parts(number, offset, out, |i, part| self.chunk_into(number, i, part))
    }
}
