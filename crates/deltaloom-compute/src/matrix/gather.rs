//! Some rows of a matrix as numbers, in any order: the look-up of embeddings.

use deltaloom_kernels::dense::widen;

use super::{PackedMatrix, Stored, no_base};
use deltaloom::{Error, Result};

impl PackedMatrix {
    /// Writes these rows in FP32 to `out`, `[rows, cols]`. Of tiles, it decodes each that has one
    /// of the rows once.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a row that the matrix does not have, or an `out` of another
    /// length; errors of decoding tiles.
    pub fn gather(&self, rows: &[usize], out: &mut [f32]) -> Result<()> {
        let shape = self.shape;
        if let Some(row) = rows.iter().find(|row| **row >= shape.rows) {
            return Err(Error::InvalidArgument(format!("row {row} of a matrix with {} rows", shape.rows)));
        }
        if rows.len().checked_mul(shape.cols) != Some(out.len()) {
            let what = format!("{} rows of {} do not fit {} numbers", rows.len(), shape.cols, out.len());
            return Err(Error::InvalidArgument(what));
        }
        if out.is_empty() {
            return Ok(());
        }
        if let Stored::Tiles(tiles) = &self.stored {
            let rows_per_tile = tiles.rows_per_tile();
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.sort_by_key(|place| rows[*place]);
            let mut tile = Vec::new();
            for places in order.chunk_by(|a, b| rows[*a] / rows_per_tile == rows[*b] / rows_per_tile) {
                let start = rows[places[0]] / rows_per_tile * rows_per_tile;
                let end = (start + rows_per_tile).min(shape.rows);
                tile.resize((end - start) * shape.row_bytes(), 0);
                tiles.rows_into(shape, start..end, &mut tile)?;
                for place in places {
                    let row = &tile[(rows[*place] - start) * shape.row_bytes()..][..shape.row_bytes()];
                    widen(shape.weight.weights(row), &mut out[place * shape.cols..][..shape.cols]);
                }
            }
            return Ok(());
        }
        let mut patched = vec![0; shape.row_bytes()];
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(shape.cols)) {
            let row = *row..row + 1;
            if let Stored::Dense(matrix) = &self.stored {
                widen(shape.weight.weights(matrix.rows(row)), out);
                continue;
            }
            let base = self.base.as_ref().ok_or_else(no_base)?.rows(row.clone());
            match &self.stored {
                Stored::Planes(planes) => planes.rows_into(shape, row, base, &mut patched),
                Stored::Bitmap(bitmap) => bitmap.rows_into(shape, row, base, &mut patched),
                Stored::Csr(csr) => {
                    widen(shape.weight.weights(base), out);
                    csr.patch(shape, row, out);
                    continue;
                }
                Stored::Base | Stored::Tiles(_) | Stored::Dense(_) => patched.copy_from_slice(base),
            }
            widen(shape.weight.weights(&patched), out);
        }
        Ok(())
    }
}
