//! Tells from a small sample whether a difference looks like a product of small factors. Each side
//! of the sample is about the cube root of the tensor's size.
//! It says yes too often, to spare most tensors a fit. The fit decides.

use deltaloom_kernels::matrix;

use super::{ReadRows, Shape, intervals};
use crate::error::Result;

/// Number of adjacent columns that are sampled together.
const RUN: usize = 16;
/// Number of sampled rows and columns.
const SIDES: std::ops::RangeInclusive<usize> = 32..=192;
/// Detectable ranks, as a part of the side.
const SIDES_PER_RANK: usize = 3;
/// Largest remainder, in mean squares of what rounding leaves, and how far above that the
/// difference must be.
const MOST_LEFT: f64 = 2.0;
const LEAST_EXPLAINED: f64 = 6.0;

/// Number of rows, or columns, of a matrix to sample. Their cost grows with the number of elements,
/// but stays far below that of packing them.
fn side(rows: usize, cols: usize) -> usize {
    cube_root(rows.saturating_mul(cols)).clamp(*SIDES.start(), *SIDES.end())
}

/// The rows of a matrix to sample, in order.
fn sampled_rows(rows: usize, cols: usize) -> impl Iterator<Item = usize> {
    let count = side(rows, cols).min(rows);
    (0..count).map(move |i| place(i, count, rows.saturating_sub(1)))
}

/// Place `i` of `count` evenly spaced ones from 0 to `last`.
fn place(i: usize, count: usize, last: usize) -> usize {
    if count > 1 { i * last / (count - 1) } else { 0 }
}

/// Whether the difference of a tensor and its reference looks low-rank. Rows are read one by one.
pub(crate) fn looks_low_rank(shape: Shape, read: ReadRows<'_>) -> Result<bool> {
    let sampled: Vec<usize> = sampled_rows(shape.rows, shape.cols).collect();
    let runs = side(shape.rows, shape.cols).min(shape.cols) / RUN;
    let rows = sampled.len();
    let cols = runs * RUN;
    // One row for every sampled column of the matrix.
    let mut sample = differences(shape, &sampled, runs, read)?;
    let whole: f64 = sample.iter().map(|d| d * d).sum();
    let ranks = rows.min(cols) / SIDES_PER_RANK;
    let left = matrix::without_longest(&mut sample, rows, ranks);
    let freedom = ((rows - ranks) * cols) as f64;
    Ok(left <= MOST_LEFT * freedom && whole * freedom >= LEAST_EXPLAINED * left * (rows * cols) as f64)
}

/// Differences of a sample in units of what rounding leaves in their row and column. The result has
/// a row of `rows` for every column.
fn differences(shape: Shape, rows: &[usize], runs: usize, read: ReadRows<'_>) -> Result<Vec<f64>> {
    let size = shape.number.bytes();
    let cols = runs * RUN;
    let (mut centres, mut halves) = (vec![0.0; rows.len() * cols], vec![0.0; rows.len() * cols]);
    for (row, (centres, halves)) in
        rows.iter().zip(centres.chunks_exact_mut(cols).zip(halves.chunks_exact_mut(cols)))
    {
        let (target, reference) = read(*row..row + 1)?;
        for (j, (centres, halves)) in
            centres.chunks_exact_mut(RUN).zip(halves.chunks_exact_mut(RUN)).enumerate()
        {
            let start = place(j, runs, shape.cols - RUN) * size;
            let bytes = start..start + RUN * size;
            let (target, reference) = (&target[bytes.clone()], &reference[bytes]);
            intervals::differences(shape.number, target, reference, centres, halves);
        }
        // An element without bounds counts as one without a difference.
        let squares = halves.iter_mut().map(|half| {
            *half = if half.is_finite() { *half * *half } else { 0.0 };
            *half
        });
        let inverse = 1.0 / (squares.sum::<f64>() / cols as f64).max(f64::MIN_POSITIVE);
        halves.iter_mut().for_each(|half| *half *= inverse);
        let inverse = inverse.sqrt();
        centres.iter_mut().for_each(|centre| *centre *= inverse);
    }
    let mut sums = vec![0.0; cols];
    for halves in halves.chunks_exact(cols) {
        sums.iter_mut().zip(halves).for_each(|(sum, half)| *sum += half);
    }
    // Errors are evenly spread between the bounds: a third of the square of the half width.
    let inverses: Vec<f64> =
        sums.iter().map(|sum| (3.0 * rows.len() as f64 / sum.max(f64::MIN_POSITIVE)).sqrt()).collect();
    let ordered = (0..cols)
        .flat_map(|j| (0..rows.len()).map(move |i| (i, j)))
        .map(|(i, j)| centres[i * cols + j] * inverses[j]);
    Ok(ordered.collect())
}

fn cube_root(n: usize) -> usize {
    (1..=*SIDES.end()).take_while(|root| root * root * root <= n).last().unwrap_or(0)
}
