//! A mask of the changed elements, and their values one after another: one bit per element, and two
//! or four bytes per changed element.
//!
//! Bits are copied, so it can hold any value.

use std::ops::Range;

use deltaloom_kernels::patch::{RowShape, bitmap_rows, row_words};

use super::super::dense::MatrixShape;
use super::{fit, narrow_count, push_mask, vec_bytes};
use deltaloom::Result;

/// Differences as a mask and values.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Bitmap {
    mask: Vec<u64>,
    values: Vec<u8>,
    /// For every row, the element at which its values begin.
    starts: Vec<u32>,
}

impl Bitmap {
    /// Adds a row.
    pub(in super::super) fn push_row(&mut self, shape: MatrixShape, base: &[u8], tuned: &[u8]) -> Result<()> {
        self.starts.push(narrow_count(self.values.len() / shape.weight.bytes())?);
        let Self { mask, values, .. } = self;
        push_mask(shape, base, tuned, mask, |_, _, to| values.extend_from_slice(to));
        Ok(())
    }

    /// Frees unused memory.
    pub(in super::super) fn shrink(&mut self) {
        fit(&mut self.mask);
        fit(&mut self.values);
        fit(&mut self.starts);
    }

    /// Number of bytes in memory.
    pub(in super::super) fn resident_bytes(&self) -> u64 {
        vec_bytes(&self.mask) + vec_bytes(&self.values) + vec_bytes(&self.starts)
    }

    /// Number of bytes that this many changed elements would need.
    pub(in super::super) fn bytes_for(shape: MatrixShape, changed: u64) -> u64 {
        let mask = shape.rows * row_words(shape.cols) * size_of::<u64>();
        (mask + shape.rows * size_of::<u32>()) as u64 + changed * shape.weight.bytes() as u64
    }

    /// Writes some rows into `out`; `base` has these rows of the base.
    pub(in super::super) fn rows_into(
        &self,
        shape: MatrixShape,
        rows: Range<usize>,
        base: &[u8],
        out: &mut [u8],
    ) {
        let (words, bytes) = (row_words(shape.cols), shape.weight.bytes());
        let first = self.starts.get(rows.start).map_or(0, |start| *start as usize);
        let shape = RowShape { cols: shape.cols, element_bytes: bytes };
        let mask = &self.mask[rows.start * words..rows.end * words];
        bitmap_rows(shape, base, mask, &self.values[first * bytes..], out);
    }
}
