//! Where a fine-tune differs from its base: numbers for each row of each tensor, and any part of a
//! tensor as a grid for pictures.
//!
//! Differences are in F64 and only for display; nothing is coded with them.

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;

use super::case::LayerCase;
use deltaloom::__internals::{Element, load, to_usize};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::TensorInfo;
use deltaloom::{Error, Missing, Result};

/// How much changed in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RowDelta {
    /// Number of elements whose bits differ.
    pub changed_elems: u64,
    /// Mean of the absolute difference over all elements.
    pub mean_abs: f64,
    /// Largest absolute difference.
    pub max_abs: f64,
}

/// One tensor in two versions. A vector has one row.
pub struct TensorDelta {
    name: String,
    shape: [usize; 2],
    rows: Vec<RowDelta>,
    base: Version,
    tuned: Version,
    element: Element,
}

struct Version {
    checkpoint: Arc<Checkpoint>,
    member: usize,
    info: TensorInfo,
}

impl Version {
    fn of(checkpoint: &Arc<Checkpoint>, name: &str) -> Result<Self> {
        let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?} of the layer"));
        let (member, info) = checkpoint.tensors().find(|(_, info)| info.name == name).ok_or_else(missing)?;
        Ok(Self { checkpoint: Arc::clone(checkpoint), member, info: info.clone() })
    }

    fn rows(&self, rows: Range<usize>, row_bytes: usize) -> &[u8] {
        let bytes = self.checkpoint.in_memory(self.member, &self.info).unwrap_or_default();
        bytes.get(rows.start * row_bytes..rows.end * row_bytes).unwrap_or_default()
    }
}

impl TensorDelta {
    /// All tensors of a layer in the order of their roles, matrices first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a dtype without arithmetic.
    pub fn all(case: &LayerCase) -> Result<Vec<Self>> {
        let names = case.names();
        let matrices = names.matrices().map(|(_, name)| name);
        matrices.chain(names.vectors().map(|(_, name)| name)).map(|name| Self::new(case, name)).collect()
    }

    fn new(case: &LayerCase, name: &str) -> Result<Self> {
        let (base, tuned) = (Version::of(case.base(), name)?, Version::of(case.tuned(), name)?);
        let dtype = &tuned.info.dtype;
        let unknown =
            || Error::InvalidArgument(format!("tensor {name:?} has dtype {dtype}, not F32, BF16 or F16"));
        let element = Element::of(dtype).ok_or_else(unknown)?;
        let shape = match tuned.info.shape[..] {
            [rows, cols] => [to_usize(rows), to_usize(cols)],
            _ => [1, to_usize(tuned.info.len_bytes()) / element.bytes()],
        };
        let mut delta = Self { name: name.to_owned(), shape, rows: Vec::new(), base, tuned, element };
        let mut differences = vec![0.0; shape[1]];
        for row in 0..shape[0] {
            let changed_elems = delta.differences(row, &mut differences);
            delta.rows.push(RowDelta {
                changed_elems,
                mean_abs: mean(differences.iter().copied()).unwrap_or(0.0),
                max_abs: differences.iter().copied().fold(0.0, f64::max),
            });
        }
        Ok(delta)
    }

    /// Computes the absolute differences of a row. Returns how many of its elements differ.
    fn differences(&self, row: usize, out: &mut [f64]) -> u64 {
        let bytes = self.element.bytes();
        let [base, tuned] =
            [&self.base, &self.tuned].map(|version| version.rows(row..row + 1, self.shape[1] * bytes));
        let mut before = vec![0.0; out.len()];
        load(self.element, base, &mut before);
        load(self.element, tuned, out);
        out.iter_mut().zip(&before).for_each(|(out, before)| *out = (*out - before).abs());
        base.chunks_exact(bytes).zip(tuned.chunks_exact(bytes)).map(|(a, b)| u64::from(a != b)).sum()
    }

    /// Name of the tensor.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows and columns.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Every row.
    #[must_use]
    pub fn rows(&self) -> &[RowDelta] {
        &self.rows
    }

    /// Mean absolute difference of some rows, in cells of `cell` rows and columns; the last cells
    /// in each direction may be smaller.
    #[must_use]
    pub fn grid(&self, rows: Range<usize>, cell: [usize; 2]) -> Vec<Vec<Option<f64>>> {
        let rows = rows.start.min(self.shape[0])..rows.end.min(self.shape[0]);
        let [row_step, col_step] = cell.map(|size| size.max(1));
        let mut differences = vec![0.0; self.shape[1]];
        let mut grid = Vec::new();
        for start in rows.clone().step_by(row_step) {
            let band = start..(start + row_step).min(rows.end);
            let mut sums = vec![0.0; self.shape[1].div_ceil(col_step)];
            for row in band.clone() {
                self.differences(row, &mut differences);
                for (sum, cells) in sums.iter_mut().zip(differences.chunks(col_step)) {
                    *sum += mean(cells.iter().copied()).unwrap_or(0.0);
                }
            }
            let count = band.len() as f64;
            grid.push(sums.into_iter().map(|sum| Some(sum / count)).collect());
        }
        grid
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let count = values.len() as f64;
    (count > 0.0).then(|| values.sum::<f64>() / count)
}
