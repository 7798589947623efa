//! Whether a difference looks like a product of small factors, from a sample as small as the cube root of the tensor on each side.
//! It says yes too often rather than fit every tensor; the fit has the last word.

use deltaloom_kernels::product::ProductRule;

use super::{Matrix, intervals};

/// Columns that are sampled side by side.
const RUN: usize = 16;
/// Sampled rows and columns.
const SIDES: std::ops::RangeInclusive<usize> = 32..=192;
/// Ranks that are seen, as a part of the side.
const SIDES_PER_RANK: usize = 3;
/// Most that may be left, in mean squares of what rounding leaves, and least by which the difference must be above that.
const MOST_LEFT: f64 = 2.0;
const LEAST_EXPLAINED: f64 = 6.0;

/// Takes a time that grows with the number of elements, far below that of packing them.
pub(super) fn looks_low_rank(matrix: &Matrix<'_>) -> bool {
    let side = cube_root(matrix.rows.saturating_mul(matrix.cols)).next_multiple_of(RUN).clamp(*SIDES.start(), *SIDES.end());
    let (rows, runs) = (side.min(matrix.rows), side.min(matrix.cols) / RUN);
    let cols = runs * RUN;
    // A row for every sampled column of the matrix.
    let mut sample = differences(matrix, rows, runs);
    let whole: f64 = sample.iter().map(|d| d * d).sum();
    let ranks = rows.min(cols) / SIDES_PER_RANK;
    let left = without_largest(&mut sample, rows, ranks);
    let freedom = ((rows - ranks) * cols) as f64;
    left <= MOST_LEFT * freedom && whole * freedom >= LEAST_EXPLAINED * left * (rows * cols) as f64
}

/// Differences of a sample in units of what rounding leaves in their row and column, a row of `rows` for every column.
fn differences(matrix: &Matrix<'_>, rows: usize, runs: usize) -> Vec<f64> {
    let size = matrix.number.bytes();
    let cols = runs * RUN;
    let place = |i: usize, count: usize, all: usize| if count > 1 { i * all / (count - 1) } else { 0 };
    let (mut centres, mut halves) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
    for (i, (centres, halves)) in centres.chunks_exact_mut(cols).zip(halves.chunks_exact_mut(cols)).enumerate() {
        let row = place(i, rows, matrix.rows - 1);
        let (target, reference) = (matrix.target_row(row), matrix.reference_row(row));
        for (j, (centres, halves)) in centres.chunks_exact_mut(RUN).zip(halves.chunks_exact_mut(RUN)).enumerate() {
            let start = place(j, runs, matrix.cols - RUN) * size;
            let bytes = start..start + RUN * size;
            let (target, reference) = (&target[bytes.clone()], &reference[bytes]);
            intervals::intervals(matrix.number, ProductRule::Sum, target, reference, centres, halves);
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
    let inverses: Vec<f64> = sums.iter().map(|sum| (3.0 * rows as f64 / sum.max(f64::MIN_POSITIVE)).sqrt()).collect();
    (0..cols).flat_map(|j| (0..rows).map(move |i| (i, j))).map(|(i, j)| centres[i * cols + j] * inverses[j]).collect()
}

/// Sum of the squares after as many directions were taken out, each time that of the longest row that is left.
fn without_largest(rows: &mut [f64], cols: usize, directions: usize) -> f64 {
    let mut squares: Vec<f64> = rows.chunks_exact(cols).map(|row| dot(row, row)).collect();
    let mut direction = vec![0.0; cols];
    for _ in 0..directions {
        let Some((longest, square)) = squares.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) else { break };
        if *square <= 0.0 || !square.is_finite() {
            break;
        }
        let inverse = 1.0 / square.sqrt();
        direction.iter_mut().zip(&rows[longest * cols..]).for_each(|(d, x)| *d = x * inverse);
        for (row, square) in rows.chunks_exact_mut(cols).zip(&mut squares) {
            let part = dot(row, &direction);
            row.iter_mut().zip(&direction).for_each(|(x, d)| *x -= part * d);
            *square = dot(row, row);
        }
    }
    squares.iter().sum()
}

/// In eight sums, so that it is vectorised.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
}

fn cube_root(n: usize) -> usize {
    (1..=SIDES.end() + 1).find(|root| root * root * root >= n).unwrap_or(*SIDES.end())
}
