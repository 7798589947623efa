//! Tensors as files describe them: dtype, shape, place, and the grid of chunks.
//! It holds no weights.

mod dtype;
mod grid;

pub use dtype::DType;
pub use grid::ChunkGrid;

use std::ops::{Bound, Range, RangeBounds};

use crate::error::{Error, Result};
use crate::limits::to_usize;

/// Bytes of a tensor that are read at a time where all of it is looked at.
const BLOCK_BYTES: u64 = 1 << 20;

/// Name, dtype, shape and place of a tensor in the data of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Name, unique in its file.
    pub name: String,
    /// Type of the elements.
    pub dtype: DType,
    /// Sizes of the dimensions; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file's data.
    pub begin: u64,
    /// Byte after the last.
    pub end: u64,
}

impl TensorInfo {
    /// A description without a place in a file, for a dtype of known size.
    #[must_use]
    pub fn sized(name: String, dtype: DType, shape: Vec<u64>) -> Self {
        let bits = dtype.bits().unwrap_or(0);
        let end = shape.iter().fold(1u64, |n, d| n.saturating_mul(*d)).saturating_mul(bits) / 8;
        Self { name, dtype, shape, begin: 0, end }
    }

    /// The same tensor in another dtype of known size.
    pub(crate) fn of_dtype(&self, dtype: DType) -> Self {
        Self::sized(self.name.clone(), dtype, self.shape.clone())
    }

    /// Size in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.end - self.begin
    }

    /// Number of elements; opaque dtypes are coded as bytes.
    pub(crate) fn elems(&self) -> u64 {
        self.len_bytes() / self.number().bytes() as u64
    }

    /// Bit layout in which the elements are coded; opaque dtypes are coded as bytes. For the crates
    /// of this workspace only, since the type belongs to deltaloom-kernels.
    #[doc(hidden)]
    #[must_use]
    pub fn number(&self) -> deltaloom_kernels::Number {
        self.dtype.number().unwrap_or(deltaloom_kernels::Number::unsigned(8))
    }

    /// Offsets and lengths of blocks of about 1 MiB that fill the tensor. Each but the last is a
    /// multiple of `unit` bytes, at least one.
    pub(crate) fn blocks(&self, unit: u64) -> impl Iterator<Item = (u64, usize)> + use<> {
        let total = self.len_bytes();
        let block = (BLOCK_BYTES / unit).max(1) * unit;
        (0..total).step_by(to_usize(block)).map(move |offset| (offset, to_usize(block.min(total - offset))))
    }

    /// Whether the other tensor has the same dtype and shape.
    #[must_use]
    pub fn same_type(&self, other: &Self) -> bool {
        self.dtype == other.dtype && self.shape == other.shape
    }

    /// Whether the other tensor has the same dtype, shape and length. If the size of a dtype is
    /// unknown, the length does not follow from the other two.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.same_type(other) && self.len_bytes() == other.len_bytes()
    }

    /// Checks that the byte range has the length that dtype and shape require.
    pub(crate) fn check_size(&self) -> Result<()> {
        let Some(bits) = self.dtype.bits() else { return Ok(()) };
        let expected = self
            .shape
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .and_then(|n| n.checked_mul(bits))
            .filter(|bits| bits.is_multiple_of(8));
        if expected.map(|bits| bits / 8) == self.end.checked_sub(self.begin) {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "tensor {:?}: {} of shape {:?} does not take bytes {}..{}",
            self.name, self.dtype, self.shape, self.begin, self.end
        )))
    }

    /// Byte range of rows, which are those of the first dimension.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for rows that do not exist or are not whole bytes.
    pub(crate) fn bytes_of_rows(&self, rows: &impl RangeBounds<u64>) -> Result<Range<u64>> {
        let name = &self.name;
        let Some(&count) = self.shape.first() else {
            return Err(Error::InvalidArgument(format!(
                "tensor {name:?} is a single number and has no rows"
            )));
        };
        let start = match rows.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match rows.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => count,
        };
        if start > end.min(count) || end > count {
            let asked = if rows.end_bound() == Bound::Unbounded {
                format!("{start}.. was")
            } else {
                format!("{start}..{end} was")
            };
            let message = format!("tensor {name:?} has {count} rows, {asked} asked for");
            return Err(Error::InvalidArgument(message));
        }
        if count > 0 && !self.len_bytes().is_multiple_of(count) {
            let message = format!("the rows of tensor {name:?} of {} are not whole bytes", self.dtype);
            return Err(Error::InvalidArgument(message));
        }
        let row_bytes = self.len_bytes().checked_div(count).unwrap_or(0);
        Ok(start * row_bytes..end * row_bytes)
    }
}
