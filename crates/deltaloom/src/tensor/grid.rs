//! How a tensor is cut into chunks of whole rows; docs/format.md section 2.
//! It knows sizes only.

use std::ops::Range;

use super::{DType, TensorInfo};

/// log2 of the target size of an opaque file's chunk, in bytes.
const OPAQUE_FILE_CHUNK_LOG2: u32 = 20;

/// Rows, columns and chunks of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkGrid {
    /// Rows. For a tensor that is not cut along rows: its elements.
    pub rows: u64,
    /// Elements of a row.
    pub cols: u64,
    /// Whether rows and columns are those of a matrix, so that they can have scales.
    pub is_matrix: bool,
    /// Bytes of an element.
    pub element_bytes: u64,
    rows_per_chunk: u64,
}

impl ChunkGrid {
    /// The grid of a tensor of a safetensors file for chunks of about 2^`chunk_log2` elements.
    #[must_use]
    pub fn new(tensor: &TensorInfo, chunk_log2: u32) -> Self {
        let target = 1u64 << chunk_log2;
        let element_bytes = tensor.number().bytes() as u64;
        let elems = tensor.len_bytes() / element_bytes;
        let matrix_cols = match &tensor.shape[..] {
            [_, .., cols] if tensor.dtype.number().is_some() && elems > 0 && *cols <= target => Some(*cols),
            _ => None,
        };
        let cols = matrix_cols.unwrap_or(1);
        let rows = elems / cols;
        let chunks = (elems.saturating_add(target / 2) / target).max(1);
        let rows_per_chunk = rows.div_ceil(chunks).max(1);
        Self { rows, cols, is_matrix: matrix_cols.is_some(), element_bytes, rows_per_chunk }
    }

    /// The grid of an opaque file.
    #[must_use]
    pub fn of_opaque_file(tensor: &TensorInfo) -> Self {
        Self::new(tensor, OPAQUE_FILE_CHUNK_LOG2)
    }

    /// The same grid of elements of another dtype.
    #[must_use]
    pub(crate) fn of_dtype(self, dtype: &DType) -> Self {
        let bits = dtype.number().map_or(8, |number| number.bits());
        Self { element_bytes: u64::from(bits) / 8, ..self }
    }

    /// Number of chunks; 0 for a tensor without elements.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        self.rows.div_ceil(self.rows_per_chunk)
    }

    /// Rows of chunk `i`.
    #[must_use]
    pub fn chunk_rows(&self, i: u64) -> Range<u64> {
        let first = i * self.rows_per_chunk;
        first..(first + self.rows_per_chunk).min(self.rows)
    }

    /// Bytes of chunk `i`, from the start of the tensor.
    #[must_use]
    pub fn chunk_bytes(&self, i: u64) -> Range<u64> {
        let rows = self.chunk_rows(i);
        rows.start * self.row_bytes()..rows.end * self.row_bytes()
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.cols * self.element_bytes
    }

    /// The chunks that hold any of a byte range of the tensor, each with the bytes that it holds.
    pub(crate) fn cut(self, range: &Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> + use<> {
        let (start, end) = (range.start, range.end);
        let rows = start / self.row_bytes()..end.div_ceil(self.row_bytes());
        let rows = if start == end { 0..0 } else { rows };
        self.chunks_of_rows(&rows).map(move |i| {
            let place = self.chunk_bytes(i);
            (i, start.max(place.start)..end.min(place.end))
        })
    }

    /// Chunks that hold any of `rows`.
    #[must_use]
    pub fn chunks_of_rows(&self, rows: &Range<u64>) -> Range<u64> {
        if rows.is_empty() {
            return 0..0;
        }
        rows.start / self.rows_per_chunk..(rows.end - 1) / self.rows_per_chunk + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(dtype: DType, shape: &[u64], log2: u32) -> ChunkGrid {
        let bytes = shape.iter().product::<u64>() * dtype.bits().unwrap_or(8) / 8;
        let tensor = TensorInfo { name: String::new(), dtype, shape: shape.to_vec(), begin: 0, end: bytes };
        let grid = ChunkGrid::new(&tensor, log2);
        let covered: u64 =
            (0..grid.chunk_count()).map(|i| grid.chunk_bytes(i).end - grid.chunk_bytes(i).start).sum();
        assert_eq!(covered, bytes);
        grid
    }

    #[test]
    fn chunks_are_whole_rows_and_even() {
        let wide = grid(DType::BF16, &[864, 320], 17);
        assert_eq!((wide.chunk_count(), wide.chunk_rows(0), wide.chunk_rows(1)), (2, 0..432, 432..864));
        assert_eq!(grid(DType::BF16, &[8192, 320], 17).chunk_count(), 20);
        assert_eq!(grid(DType::F32, &[3, 5, 7], 17).rows, 15);
        assert_eq!(wide.chunks_of_rows(&(431..433)), 0..2);
        assert_eq!(wide.chunks_of_rows(&(432..433)), 1..2);
    }

    #[test]
    fn vectors_scalars_long_rows_and_nothing() {
        assert_eq!(grid(DType::F32, &[], 17).chunk_count(), 1);
        assert_eq!(grid(DType::F32, &[0], 17).chunk_count(), 0);
        assert_eq!(grid(DType::F32, &[5, 0], 17).chunk_count(), 0);
        assert_eq!(grid(DType::F32, &[300_000], 17).chunk_count(), 2);
        assert!(!grid(DType::F32, &[2, 1 << 18], 17).is_matrix);
        let opaque = grid(DType::from_name("F4"), &[64, 64], 10);
        assert_eq!((opaque.rows, opaque.element_bytes, opaque.is_matrix), (2048, 1, false));
    }
}
