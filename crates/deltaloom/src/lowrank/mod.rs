//! Low-rank factors of the difference between a tensor and its reference, such as a merged LoRA adapter leaves: found without the adapter.
//! Whether they are used is decided where predictors are chosen; that the result is exact is the residual's work.

mod algebra;
mod detect;
mod intervals;
mod quantise;
mod range;
mod refine;

use deltaloom_kernels::Number;
use deltaloom_kernels::product::{self, ProductRule};

use crate::predict::Factors;
pub(crate) use detect::{looks_low_rank, sampled_rows};
use refine::{Norm, Pass};

/// A tensor and its reference as matrices of the same shape: little-endian rows of `cols` elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    number: Number,
    rows: usize,
    cols: usize,
    target: &'a [u8],
    reference: &'a [u8],
}

/// Factors before they are rounded.
#[derive(Debug, Clone)]
struct Real {
    rank: usize,
    /// One row of `rank` for each row of the sample.
    left: Vec<f64>,
    /// `rank` rows of as many as the matrix has columns.
    right: Vec<f64>,
}

impl<'a> Matrix<'a> {
    /// `None` when tensors like this are never predicted by a product.
    pub(crate) fn new(number: Number, cols: usize, target: &'a [u8], reference: &'a [u8]) -> Option<Self> {
        let row_bytes = cols.checked_mul(number.bytes()).filter(|bytes| *bytes > 0)?;
        let is_whole = target.len().is_multiple_of(row_bytes) && target.len() == reference.len();
        let rows = target.len() / row_bytes;
        (product::is_supported(number) && is_whole && rows.min(cols) >= MIN_SIDE).then_some(Self {
            number,
            rows,
            cols,
            target,
            reference,
        })
    }

    fn row_bytes(&self) -> usize {
        self.cols * self.number.bytes()
    }

    fn target_row(&self, row: usize) -> &'a [u8] {
        &self.target[row * self.row_bytes()..][..self.row_bytes()]
    }

    fn reference_row(&self, row: usize) -> &'a [u8] {
        &self.reference[row * self.row_bytes()..][..self.row_bytes()]
    }

    fn intervals(&self, rule: ProductRule, row: usize, centres: &mut [f64], halves: &mut [f64]) {
        let (target, reference) = (self.target_row(row), self.reference_row(row));
        intervals::intervals(self.number, rule, target, reference, centres, halves);
    }
}

/// Rows and columns below which factors are no smaller than what they save.
const MIN_SIDE: usize = 32;
/// Rank that is found at most: the time of a pass grows with its square.
const MAX_FITTED_RANK: usize = 64;
/// Elements from which the right factor is found.
const FITTED_ELEMS: usize = 1 << 21;
/// Passes over them: in two of least squares the factors settle, three more bring them between the bounds.
const SQUARES_PASSES: usize = 2;
const SIXTH_PASSES: usize = 3;
/// Part of the middle half width that is added to all.
const FLOOR: f64 = 0.1;

/// Whether tensors of this number and size can gain from factors at all.
pub(crate) fn is_worth_a_look(number: Number, rows: u64, cols: u64) -> bool {
    product::is_supported(number) && rows.min(cols) >= MIN_SIDE as u64
}

/// Factors that make `matrix` smaller, with their residual, than it is without; `None` when there are none.
pub(crate) fn fit(matrix: &Matrix<'_>) -> Option<Factors> {
    // The right factor is found on a part of the rows, and the left one then row by row.
    let step = (matrix.rows * matrix.cols).div_ceil(FITTED_ELEMS).clamp(1, matrix.rows / MIN_SIDE);
    let sample: Vec<usize> = (0..matrix.rows).step_by(step).collect();
    let scan = range::scan(matrix, &sample, MAX_FITTED_RANK)?;
    let mut real = scan.factors;
    let floor = scan.middle_half * FLOOR;
    let squares = Pass { rule: ProductRule::Sum, norm: Norm::Squares, floor };
    for _ in 0..SQUARES_PASSES {
        refine::pass(matrix, &sample, squares, &mut real, true);
    }
    let rule = quantise::choose_rank_and_rule(matrix, &sample, &mut real, scan.middle_half)?;
    let sixth = Pass { rule, norm: Norm::Sixth, floor };
    for _ in 0..SIXTH_PASSES {
        refine::pass(matrix, &sample, sixth, &mut real, true);
    }
    let (step, mut real) = quantise::quantise(matrix, &sample, sixth, real, scan.middle_half)?;
    let rows: Vec<usize> = (0..matrix.rows).collect();
    if sample.len() < rows.len() {
        real.left = vec![0.0; rows.len() * real.rank];
        refine::pass(matrix, &rows, Pass { rule, ..squares }, &mut real, false);
        refine::pass(matrix, &rows, sixth, &mut real, false);
    }
    let factors = quantise::rounded(&real, rule, step)?;
    let bits = quantise::total_bits(matrix, &rows, &factors);
    (bits < quantise::cost(matrix, &rows, None)).then_some(factors)
}

#[cfg(test)]
mod tests;
