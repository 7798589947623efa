//! What coders read and write: tensors in memory, and coded frames one after another.

use anyhow::Result;
use deltaloom::tensor::TensorInfo;

/// A tensor, and the bytes of its counterpart in a base, if there is one.
pub(super) struct Tensor<'a> {
    pub(super) info: &'a TensorInfo,
    /// The bytes to encode; decoders use only their length.
    pub(super) bytes: &'a [u8],
    pub(super) reference: Option<&'a [u8]>,
}

/// Encoded frames, one after another in memory that is allocated beforehand. Their lengths are not
/// counted, although a file would have to store them too.
pub(super) struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Frames {
    /// With room for these tensors, even if they grow.
    pub(super) fn new(tensors: &[Tensor<'_>]) -> Self {
        let room = |tensor: &Tensor<'_>| tensor.bytes.len() + tensor.bytes.len() / 8 + 4096;
        Self { bytes: vec![0; tensors.iter().map(room).sum()], ends: Vec::new() }
    }

    pub(super) fn clear(&mut self) {
        self.ends.clear();
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Appends what `write` puts at the start of the free space; `write` returns its length.
    pub(super) fn push(&mut self, write: impl FnOnce(&mut [u8]) -> Result<usize>) -> Result<()> {
        let start = self.len_bytes();
        let length = write(&mut self.bytes[start..])?;
        self.ends.push(start + length);
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[*start..*end])
    }
}
