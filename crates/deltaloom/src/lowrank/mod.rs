//! Low-rank factors of the difference between a tensor and its reference, such as a merged LoRA
//! adapter leaves. They are found without the adapter.
//! The choice of predictors decides whether they are used. The residual makes the result exact.

mod algebra;
mod detect;
mod intervals;
mod quantise;
mod range;
mod refine;

use std::ops::Range;

use deltaloom_kernels::Number;
use deltaloom_kernels::product::{self, ProductRule};

use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::Factors;
use crate::progress::{Progress, check_cancelled};
use algebra::packed;
pub(crate) use detect::looks_low_rank;
use refine::{Norm, Pass};

/// Some rows of a tensor and of its reference, in order, as little-endian rows of `cols` elements.
#[derive(Debug, Clone, Copy)]
struct Matrix<'a> {
    number: Number,
    /// Rows of the tensor.
    of_rows: usize,
    /// Rows of this sample.
    rows: usize,
    cols: usize,
    target: &'a [u8],
    reference: &'a [u8],
}

/// Sizes of a tensor that a product may predict.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    number: Number,
    rows: usize,
    cols: usize,
}

/// Bytes of rows of a tensor and of its reference.
pub(crate) type Rows = (Vec<u8>, Vec<u8>);

/// Factors before they are rounded.
#[derive(Debug, Clone)]
struct Real {
    rank: usize,
    /// One row of `rank` for each row of the sample.
    left: Vec<f64>,
    /// `rank` rows, each with one number per column of the matrix.
    right: Vec<f64>,
}

impl Shape {
    /// `None` if such tensors are never predicted by a product.
    pub(crate) fn new(number: Number, rows: u64, cols: u64) -> Option<Self> {
        let is_large = rows.min(cols) >= MIN_SIDE as u64;
        let shape = Self { number, rows: to_usize(rows), cols: to_usize(cols) };
        let is_counted = shape.rows.checked_mul(shape.cols)?.checked_mul(number.bytes()).is_some();
        (product::is_supported(number) && is_large && is_counted && shape.cols <= MAX_COLS).then_some(shape)
    }

    /// Rows that were read.
    fn matrix<'a>(&self, rows: &'a Rows) -> Matrix<'a> {
        let (target, reference) = (&rows.0[..], &rows.1[..]);
        let Self { number, rows: of_rows, cols } = *self;
        Matrix { number, of_rows, rows: target.len() / (cols * number.bytes()), cols, target, reference }
    }

    /// Reads every `step`th row.
    fn read_every(&self, step: usize, read: ReadRows<'_>) -> Result<Rows> {
        if step == 1 {
            return read(0..self.rows);
        }
        let (mut target, mut reference) = (Vec::new(), Vec::new());
        for row in (0..self.rows).step_by(step) {
            let of_row = read(row..row + 1)?;
            target.extend(of_row.0);
            reference.extend(of_row.1);
        }
        Ok((target, reference))
    }
}

impl<'a> Matrix<'a> {
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

/// With fewer rows or columns than this, factors are no smaller than what they save.
const MIN_SIDE: usize = 32;
/// Highest rank that is tried: the time of a pass grows with its square.
const MAX_FITTED_RANK: usize = 64;
/// Elements from which the right factor is found.
const FITTED_ELEMS: usize = 1 << 21;
/// With more columns, the fitted elements would have fewer than [`MIN_SIDE`] rows.
const MAX_COLS: usize = FITTED_ELEMS / MIN_SIDE;
/// Most sums for solving columns, in doubles: 64 MiB.
const MAX_COLUMN_SUMS: usize = 1 << 23;
/// Passes over the sample. After two of least squares the factors are stable; three more bring them
/// between the bounds.
const SQUARES_PASSES: usize = 2;
const SIXTH_PASSES: usize = 3;
/// Share of the median half width that is added to every half width.
const FLOOR: f64 = 0.1;

/// Reads rows.
pub(crate) type ReadRows<'a> = &'a dyn Fn(Range<usize>) -> Result<Rows>;

/// Factors that make a tensor and its residual together smaller than the tensor without them.
/// `None` if there are none. Only a sample and one block of rows are in memory at a time.
pub(crate) fn fit(shape: Shape, read: ReadRows<'_>, progress: &dyn Progress) -> Result<Option<Factors>> {
    // The right factor is found from a part of the rows, then the left one row by row.
    let step = (shape.rows * shape.cols).div_ceil(FITTED_ELEMS).clamp(1, shape.rows / MIN_SIDE);
    let sample = shape.read_every(step, read)?;
    let matrix = &shape.matrix(&sample);
    let Some(scan) = range::scan(matrix, max_rank(shape.cols), progress)? else { return Ok(None) };
    let mut real = scan.factors;
    let floor = scan.middle_half * FLOOR;
    let squares = Pass { rule: ProductRule::Sum, norm: Norm::Squares, floor };
    for _ in 0..SQUARES_PASSES {
        refine::pass(matrix, squares, &mut real, true, progress)?;
    }
    let Some(rule) = quantise::choose_rank_and_rule(matrix, &mut real, scan.middle_half) else {
        return Ok(None);
    };
    let sixth = Pass { rule, norm: Norm::Sixth, floor };
    for _ in 0..SIXTH_PASSES {
        refine::pass(matrix, sixth, &mut real, true, progress)?;
    }
    let Some((step_of_factors, real)) = quantise::quantise(matrix, sixth, real, scan.middle_half, progress)?
    else {
        return Ok(None);
    };
    let factors = quantise::rounded(&real, rule, step_of_factors);
    let Some(mut factors) = factors else { return Ok(None) };
    if step == 1 {
        return Ok(quantise::is_worth_it(matrix, &factors, &factors.left).then_some(factors));
    }
    drop(sample);
    factors.left = Vec::new();
    let mut block = Real { left: Vec::new(), ..real };
    let per_block = refine::rows_per_block(shape.cols);
    for start in (0..shape.rows).step_by(per_block) {
        let rows = start..(start + per_block).min(shape.rows);
        block.left = vec![0.0; rows.len() * block.rank];
        let read = read(rows)?;
        let matrix = shape.matrix(&read);
        refine::pass(&matrix, Pass { rule, ..squares }, &mut block, false, progress)?;
        refine::pass(&matrix, sixth, &mut block, false, progress)?;
        let Some(left) = quantise::integers(&block.left, step_of_factors) else { return Ok(None) };
        factors.left.extend(left);
    }
    let step = quantise::step_of_costed_rows(shape.rows, shape.cols);
    let costed = shape.read_every(step, read)?;
    let left = factors.left.chunks_exact(factors.rank).step_by(step).flatten().copied().collect::<Vec<_>>();
    check_cancelled(progress)?;
    Ok(quantise::is_worth_it(&shape.matrix(&costed), &factors, &left).then_some(factors))
}

/// Highest rank for which the sums for solving all columns fit in memory.
fn max_rank(cols: usize) -> usize {
    (1..=MAX_FITTED_RANK).take_while(|rank| cols * packed(*rank, 0) <= MAX_COLUMN_SUMS).last().unwrap_or(0)
}

#[cfg(test)]
mod tests;
