//! Low-rank factors of the difference between a tensor and its reference, such as a merged LoRA adapter leaves: found without the adapter.
//! Whether they are used is decided where predictors are chosen; that the result is exact is the residual's work.

mod algebra;
mod detect;
mod factors;
mod intervals;
mod quantise;
mod range;
mod refine;

use deltaloom_kernels::Number;
use deltaloom_kernels::product::{self, ProductRule};

pub(crate) use factors::Factors;
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
/// Part of the middle half width that is added to all.
const FLOOR: f64 = 0.1;

/// Factors that make `matrix` smaller, with their residual, than it is without; `None` when there are none.
pub(crate) fn fit(matrix: &Matrix<'_>) -> Option<Factors> {
    if !detect::looks_low_rank(matrix) {
        return None;
    }
    let rows: Vec<usize> = (0..matrix.rows).collect();
    let scan = range::scan(matrix, &rows, MAX_FITTED_RANK)?;
    let mut real = scan.factors;
    let floor = scan.middle_half * knob("FLOOR", FLOOR);
    let squares = Pass { rule: ProductRule::Sum, norm: Norm::Squares, floor };
    refine::pass(matrix, &rows, squares, &mut real, true);
    refine::pass(matrix, &rows, squares, &mut real, true);
    let rule = quantise::choose_rank_and_rule(matrix, &rows, &mut real, scan.middle_half)?;
    let sixth = Pass { rule, norm: Norm::Sixth, floor };
    for _ in 0..knob("PASSES", 3.0) as usize {
        refine::pass(matrix, &rows, sixth, &mut real, true);
    }
    let (bits, factors) = quantise::quantise(matrix, &rows, sixth, real, scan.middle_half)?;
    (bits < quantise::cost(matrix, &rows, None)).then_some(factors)
}

fn knob(name: &str, default: f64) -> f64 {
    std::env::var(name).map_or(default, |v| v.parse().unwrap_or(default))
}

#[cfg(test)]
mod tests;
