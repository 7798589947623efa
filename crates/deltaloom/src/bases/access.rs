//! What callers may ask of a container's tensors by number: how they are stored, and parts of them.
//! Products on packed weights are built on this. A number is a tensor's place in
//! [`ResolvedContainer::tensors`]; every method panics for a number that no tensor has.

use std::sync::Arc;

use super::resolved::ResolvedContainer;
use super::source::TensorSource;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::Predictor;
use crate::tensor::TensorInfo;

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

    /// Fills `out` with the bytes of a tensor from `offset` on. Decodes only the chunks that hold
    /// them, so that rows of a whole chunk cost least.
    ///
    /// # Errors
    /// What reading or decoding gives.
    pub fn read_part_into(&self, number: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        self.for_parts(number, offset, out, |i, part| self.chunk_into(number, i, part))
    }
}
