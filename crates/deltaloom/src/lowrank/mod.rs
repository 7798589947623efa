//! Low-rank factors of the difference between a tensor and its reference, such as a merged LoRA
//! adapter leaves. They are found without the adapter.
//! The choice of predictors decides whether they are used. The residual makes the result exact.

mod algebra;
mod bounds;
mod detect;
mod drift;
mod quantise;
mod range;
mod refine;

use std::ops::Range;

use deltaloom_kernels::Number;
use deltaloom_kernels::bounds::Bounded;
use deltaloom_kernels::matrix::Norm;
use deltaloom_kernels::product::{self, ProductRule};

use crate::error::Result;
use crate::limits::to_usize;
use crate::predict::{Factors, MAX_FACTORS_RANK};
use crate::progress::{Progress, check_cancelled};
use bounds::Bounds;
pub(crate) use detect::expected_rank;
pub(crate) use drift::fit_drift;
use refine::Left;

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

/// Factors before they are rounded. Their product is in units of the middle half width.
#[derive(Debug, Clone)]
struct Real<T> {
    rank: usize,
    /// One row of `rank` for each row of the sample.
    left: Vec<T>,
    /// `rank` rows, each with one number per column of the matrix.
    right: Vec<T>,
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

    fn elems(&self) -> usize {
        self.rows * self.cols
    }

    fn target_row(&self, row: usize) -> &'a [u8] {
        &self.target[row * self.row_bytes()..][..self.row_bytes()]
    }

    fn reference_row(&self, row: usize) -> &'a [u8] {
        &self.reference[row * self.row_bytes()..][..self.row_bytes()]
    }

    /// Every `step`th row: bytes of the tensor and of its reference.
    fn every(&self, step: usize) -> Rows {
        let rows = || (0..self.rows).step_by(step);
        (
            rows().flat_map(|row| self.target_row(row)).copied().collect(),
            rows().flat_map(|row| self.reference_row(row)).copied().collect(),
        )
    }
}

/// With fewer rows or columns than this, factors are no smaller than what they save.
const MIN_SIDE: usize = 32;
/// Elements from which the right factor is found, unless a high rank needs more rows.
const FITTED_ELEMS: usize = 1 << 21;
/// Rows of the sample, as a multiple of the rank that is expected, up to twice as many elements.
const ROWS_PER_RANK: usize = 16;
/// With more columns, the fitted elements would have fewer than [`MIN_SIDE`] rows.
const MAX_COLS: usize = FITTED_ELEMS / MIN_SIDE;
/// Steps of both factors over the sample. After those of least squares the factors are stable; the
/// others bring products between the bounds.
const SQUARES_PASSES: usize = 2;
const SIXTH_PASSES: usize = 6;

/// Reads rows.
pub(crate) type ReadRows<'a> = &'a dyn Fn(Range<usize>) -> Result<Rows>;

/// Factors that make a tensor and its residual together smaller than the tensor without them.
/// `None` if there are none. `expected` is about their rank. Only a sample and one block of rows
/// are in memory at a time.
pub(crate) fn fit(
    shape: Shape,
    expected: usize,
    read: ReadRows<'_>,
    progress: &dyn Progress,
) -> Result<Option<Factors>> {
    // Products of 16-bit numbers are compared with bounds of at most 12 bits.
    match shape.number.bits() {
        16 => fit_in::<f32>(shape, expected, read, progress),
        _ => fit_in::<f64>(shape, expected, read, progress),
    }
}

fn fit_in<T: Bounded>(
    shape: Shape,
    expected: usize,
    read: ReadRows<'_>,
    progress: &dyn Progress,
) -> Result<Option<Factors>> {
    // The right factor is found from a part of the rows, then the left one row by row.
    let sample = shape.read_every(sample_step(shape, expected), read)?;
    let matrix = &shape.matrix(&sample);
    let Some(unit) = bounds::middle_half(matrix) else { return Ok(None) };
    let bounds = Bounds::<T>::new(matrix, ProductRule::Sum, unit);
    let most = MAX_FACTORS_RANK.min(matrix.rows / 2).min(matrix.cols / 2);
    let Some(scan) = range::scan(&bounds, most, expected, progress)? else { return Ok(None) };
    let (mut real, whitening) = (scan.factors, scan.whitening);
    let mut products = Vec::new();
    for _ in 0..SQUARES_PASSES {
        refine::pass(&bounds, Norm::Squares, &whitening, &mut real, &mut products, progress)?;
    }
    let Some(rule) = quantise::choose_rank_and_rule(matrix, &mut real, unit) else { return Ok(None) };
    let bounds = match rule {
        ProductRule::Sum => bounds,
        ProductRule::RoundedProduct => {
            drop(bounds);
            Bounds::new(matrix, rule, unit)
        }
    };
    for _ in 0..SIXTH_PASSES {
        refine::pass(&bounds, Norm::Sixth, &whitening, &mut real, &mut products, progress)?;
    }
    drop((bounds, products));
    let Some((step, right)) = quantise::quantise(matrix, rule, unit, &whitening, real, progress)? else {
        return Ok(None);
    };
    drop(sample);
    let rank = right.len() / shape.cols;
    let mut solver = Left::new(&right, shape.cols, &whitening);
    let mut left = Vec::new();
    let per_block = refine::rows_per_block(shape.cols);
    for start in (0..shape.rows).step_by(per_block) {
        check_cancelled(progress)?;
        let read = read(start..(start + per_block).min(shape.rows))?;
        let bounds = Bounds::new(&shape.matrix(&read), rule, unit);
        let Some(found) = quantise::integers(&solver.solve(&bounds), step) else { return Ok(None) };
        left.extend(found);
    }
    let Some(factors) = quantise::factors(left, rank, &right, rule, (step, unit)) else { return Ok(None) };
    let step = quantise::step_of_costed_rows(shape.rows, shape.cols);
    let costed = shape.read_every(step, read)?;
    let left = factors.left.chunks_exact(factors.rank).step_by(step).flatten().copied().collect::<Vec<_>>();
    check_cancelled(progress)?;
    Ok(quantise::is_worth_it(&shape.matrix(&costed), &factors, &left).then_some(factors))
}

/// The distance between the rows of the sample.
fn sample_step(shape: Shape, expected: usize) -> usize {
    let of_elems = (shape.rows * shape.cols).div_ceil(FITTED_ELEMS);
    let rows = (ROWS_PER_RANK * expected).clamp(MIN_SIDE, (2 * FITTED_ELEMS / shape.cols).max(MIN_SIDE));
    of_elems.clamp(1, (shape.rows / rows).max(1))
}

#[cfg(test)]
mod tests;
