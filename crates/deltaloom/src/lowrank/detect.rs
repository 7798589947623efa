//! Tells from a small sample whether a difference looks like a product of small factors, and of
//! about which rank.
//! It says yes too often, to spare most tensors a fit. The fit decides.

use deltaloom_kernels::bounds::{Bounded, differences};

use super::{ReadRows, Shape};
use crate::error::Result;
use crate::predict::MAX_FACTORS_RANK;

/// Number of adjacent columns that are sampled together.
const RUN: usize = 16;
/// Number of sampled rows and columns, first and at most.
const SIDES: std::ops::RangeInclusive<usize> = 32..=192;
const MOST_SIDE: usize = 4 * MAX_FACTORS_RANK;
/// The cube of the largest side, as a multiple of the elements: removing directions takes a ninth.
const MOST_WORK: usize = 64;
/// Detectable ranks, as a part of the side.
const SIDES_PER_RANK: usize = 3;
/// Ranks that are worth a larger sample: directions of a sample are not the best ones.
const MOST_RANK: usize = MAX_FACTORS_RANK + MAX_FACTORS_RANK / 4;
/// Factors of a higher rank, as a part of the shorter side of the tensor, do not pay.
const SHORT_SIDES_PER_RANK: usize = 4;
/// Bits of a number of a factor, at least.
const FACTOR_BITS: f64 = 9.0;
/// Times that the remainder is looked at while directions are removed.
const LOOKS: usize = 6;
/// Growth of the number of directions that seem to be needed, from the first look to the last, with
/// which a larger sample is taken.
const MOST_GROWTH: usize = 3;
/// Largest remainder, in mean squares of what rounding leaves, and how far above that the
/// difference must be.
const MOST_LEFT: f64 = 2.0;
/// Directions of a sample are not the best ones: so many leave another mean square of rounding.
const RANK_PER_LEFT: f64 = 256.0;
const LEAST_EXPLAINED: f64 = 6.0;

/// Number of rows, or columns, of a matrix to sample first. Their cost grows with the number of
/// elements, but stays far below that of packing them.
fn first_side(shape: Shape) -> usize {
    cube_root(shape.rows.saturating_mul(shape.cols), *SIDES.end()).clamp(*SIDES.start(), *SIDES.end())
}

/// The rows of a matrix to sample, in order.
fn sampled_rows(side: usize, rows: usize) -> impl Iterator<Item = usize> {
    let count = side.min(rows);
    (0..count).map(move |i| place(i, count, rows.saturating_sub(1)))
}

/// Place `i` of `count` evenly spaced ones from 0 to `last`.
fn place(i: usize, count: usize, last: usize) -> usize {
    if count > 1 { i * last / (count - 1) } else { 0 }
}

/// About the rank of the difference of a tensor and its reference, if it looks low. Rows are read
/// one by one.
pub(crate) fn expected_rank(shape: Shape, read: ReadRows<'_>) -> Result<Option<usize>> {
    match shape.number.bits() {
        16 => expected_in::<f32>(shape, read),
        _ => expected_in::<f64>(shape, read),
    }
}

fn expected_in<T: Bounded>(shape: Shape, read: ReadRows<'_>) -> Result<Option<usize>> {
    let shorter = shape.rows.min(shape.cols);
    let mut side = first_side(shape);
    let most_side =
        cube_root(MOST_WORK.saturating_mul(shape.rows).saturating_mul(shape.cols), MOST_SIDE).min(shorter);
    loop {
        let sampled: Vec<usize> = sampled_rows(side, shape.rows).collect();
        let runs = side.min(shape.cols) / RUN;
        // One row for every sampled column of the matrix.
        let mut sample = whitened::<T>(shape, &sampled, runs, read)?;
        match without_directions(&mut sample, sampled.len(), runs * RUN, shape) {
            Look::Explained(rank) => return Ok(Some(rank)),
            Look::AtLeast(rank) if side < most_side => {
                let wanted = (rank + rank / 4) * SIDES_PER_RANK;
                side = wanted.max(2 * side).min(most_side);
            }
            Look::AtLeast(_) | Look::NoProduct => return Ok(None),
        }
    }
}

/// What removing directions from a sample shows.
enum Look {
    /// So many leave no more than rounding does.
    Explained(usize),
    /// At least about so many would be needed, which is more than the sample can show.
    AtLeast(usize),
    /// Factors would not pay, or the directions are those of training.
    NoProduct,
}

/// The largest rank that may pay in a tensor whose difference is `whole`, in mean squares of what
/// rounding leaves: factors save at most that many bits of each element, and cost their own.
fn most_rank(shape: Shape, whole: f64) -> usize {
    let (rows, cols) = (shape.rows as f64, shape.cols as f64);
    #[expect(clippy::cast_possible_truncation, reason = "rounded towards 0, as it is meant")]
    let affordable = (whole.log2() / 2.0 * rows * cols / ((rows + cols) * FACTOR_BITS)) as usize;
    MOST_RANK.min(shape.rows.min(shape.cols) / SHORT_SIDES_PER_RANK).min(affordable)
}

/// Removes directions until the rest is what rounding leaves, or until it is clear that too few can
/// be removed. The more are removed, the less each takes away. So the last ones tell how many are
/// needed at least. `shape` is that of the tensor.
fn without_directions<T: Bounded>(sample: &mut [T], rows: usize, cols: usize, shape: Shape) -> Look {
    let per_element = |left: f64, removed: usize| left / ((rows - removed) * cols).max(1) as f64;
    let whole = T::without_longest(sample, rows, 0) / (rows * cols).max(1) as f64;
    if whole < LEAST_EXPLAINED {
        return Look::NoProduct;
    }
    let most = most_rank(shape, whole);
    let last = rows.min(cols) / SIDES_PER_RANK;
    let (mut removed, mut before, mut first, mut needed) = (0, whole, None, 0);
    for look in 1..=LOOKS {
        let now = last * look / LOOKS;
        let left = per_element(T::without_longest(sample, rows, now - removed), now);
        let most_left = MOST_LEFT + now as f64 / RANK_PER_LEFT;
        if left <= most_left {
            let pays = whole >= LEAST_EXPLAINED * left && now <= most;
            return if pays { Look::Explained(now) } else { Look::NoProduct };
        }
        let each = (before - left) / (now - removed).max(1) as f64;
        #[expect(clippy::cast_possible_truncation, reason = "rounded towards 0, as it is meant")]
        let more = if each > 0.0 { ((left - most_left) / each) as usize } else { usize::MAX };
        needed = now.saturating_add(more);
        if needed > most {
            return Look::NoProduct;
        }
        first.get_or_insert(needed);
        (removed, before) = (now, left);
    }
    // The directions of a product are alike. Those of training fall from the first one on.
    let is_alike = first.is_some_and(|first| needed <= MOST_GROWTH * first);
    if is_alike { Look::AtLeast(needed) } else { Look::NoProduct }
}

/// Differences of a sample in units of what rounding leaves in their row and column. The result has
/// a row of `rows` for every column.
fn whitened<T: Bounded>(shape: Shape, rows: &[usize], runs: usize, read: ReadRows<'_>) -> Result<Vec<T>> {
    let size = shape.number.bytes();
    let cols = runs * RUN;
    let (mut centres, mut halves) = (vec![T::default(); rows.len() * cols], vec![T::default(); cols]);
    let mut sums = vec![0.0; cols];
    for (row, centres) in rows.iter().zip(centres.chunks_exact_mut(cols)) {
        let (target, reference) = read(*row..row + 1)?;
        for (j, (centres, halves)) in
            centres.chunks_exact_mut(RUN).zip(halves.chunks_exact_mut(RUN)).enumerate()
        {
            let start = place(j, runs, shape.cols - RUN) * size;
            let bytes = start..start + RUN * size;
            differences(shape.number, (&target[bytes.clone()], &reference[bytes]), centres, halves);
        }
        // An element without bounds has no difference.
        T::whiten(centres, &halves, &mut sums);
    }
    // Errors are evenly spread between the bounds: a third of the square of the half width.
    let by_col: Vec<T> = sums
        .iter()
        .map(|sum| T::rounded((3.0 * rows.len() as f64 / sum.max(f64::MIN_POSITIVE)).sqrt()))
        .collect();
    let mut ordered = vec![T::default(); centres.len()];
    for (i, centres) in centres.chunks_exact(cols).enumerate() {
        let places = ordered[i..].iter_mut().step_by(rows.len());
        places.zip(centres.iter().zip(&by_col)).for_each(|(out, (centre, by_col))| *out = *centre * *by_col);
    }
    Ok(ordered)
}

/// The largest number up to `most` whose cube is at most `n`.
fn cube_root(n: usize, most: usize) -> usize {
    (1..=most).take_while(|root| root * root * root <= n).last().unwrap_or(0)
}
