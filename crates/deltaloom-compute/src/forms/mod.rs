//! Resident forms of the differences between a matrix and its base, built row by row. Each patches
//! panels of rows; [`super::dense`] computes the product.

mod bitmap;
mod csr;
mod planes;
mod tiles;

pub(super) use bitmap::Bitmap;
pub(super) use csr::Csr;
pub(super) use planes::Planes;
pub(super) use tiles::Tiles;

use deltaloom_kernels::patch::{WORD_ELEMS, row_words};

use super::dense::MatrixShape;
use deltaloom::{Error, Result};

/// Appends a mask of the elements of a row that differ from the base. Calls `changed` with the
/// column, old bytes and new bytes of each.
fn push_mask<'a>(
    shape: MatrixShape,
    base: &'a [u8],
    tuned: &'a [u8],
    mask: &mut Vec<u64>,
    mut changed: impl FnMut(usize, &'a [u8], &'a [u8]),
) {
    let bytes = shape.weight.bytes();
    let (first, block) = (mask.len(), WORD_ELEMS * bytes);
    mask.resize(first + row_words(shape.cols), 0);
    let blocks = base.chunks(block).zip(tuned.chunks(block)).enumerate();
    for (number, (base, tuned)) in blocks.filter(|(_, (base, tuned))| base != tuned) {
        let elements = base.chunks_exact(bytes).zip(tuned.chunks_exact(bytes)).enumerate();
        for (bit, (from, to)) in elements.filter(|(_, (from, to))| from != to) {
            mask[first + number] |= 1 << bit;
            changed(number * WORD_ELEMS + bit, from, to);
        }
    }
}

/// Moves values into memory of their exact size. Allocators may keep the memory that shrinking a
/// block frees: mimalloc keeps blocks that stay more than half full.
fn fit<T: Copy>(values: &mut Vec<T>) {
    if values.capacity() > values.len() {
        *values = values.as_slice().to_vec();
    }
}

/// Converts a count that must fit in 32 bits.
fn narrow_count(count: usize) -> Result<u32> {
    u32::try_from(count).map_err(|_| Error::LimitExceeded {
        what: "the size of the differences of one matrix",
        found: count as u64,
        limit: u64::from(u32::MAX),
    })
}

/// Number of bytes of a vector's elements.
fn vec_bytes<T>(values: &[T]) -> u64 {
    size_of_val(values) as u64
}
