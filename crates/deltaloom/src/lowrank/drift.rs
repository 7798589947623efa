//! Factors of the strongest part of a difference that is only nearly low rank, such as training
//! leaves. What they cost is weighed against what they save.
//! Sources: Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53
//! (2011); the sparse start is that of Clarkson and Woodruff, "Low rank approximation and
//! regression in input sparsity time", STOC 2013.

use std::ops::Range;

use deltaloom_kernels::matrix::{Scalar as _, Strided};

use super::algebra::{eigen, gram, straighten};
use super::range::signs;
use super::{ReadRows, Shape, refine};
use crate::entropy::log2::{self, ONE_BIT};
use crate::error::Result;
use crate::plan;
use crate::predict::{DriftFactors, Element, MAX_NUMBER, ReadyFactors, load_singles};
use crate::progress::{Progress, check_cancelled};

/// Directions that are searched: a part of the elements for each number of a pair of factors,
/// within bounds. A multiple of what products take at once.
const ELEMS_PER_NUMBER: usize = 4;
const AT_ONCE: usize = 8;
const DIRECTIONS: std::ops::RangeInclusive<usize> = 16..=56;
/// The last directions of a search are not the best ones.
const OVERSAMPLING: usize = 4;
/// Ranks are multiples of this.
const RANK_STEP: usize = 4;
/// Differences up to so many elements are kept from one pass to the next.
const KEPT_ELEMS: usize = 1 << 21;
/// Elements of a block of rows.
const BLOCK_ELEMS: usize = 1 << 16;
/// Elements on which costs are compared.
const COSTED_ELEMS: usize = 1 << 14;
/// Steps are multiples of a unit, of which the largest step has so many.
const LARGEST_STEP: f64 = 127.0;
/// Entropy of a normal number of a variance of 1 in steps of 1, in 1/65536 bits: the logarithm of
/// the root of 2 pi e.
const NORMAL_BITS: i64 = 134_147;

/// The strongest directions of a difference.
struct Directions {
    count: usize,
    /// Orthonormal runs, `count` of them, each with a number for every row.
    left: Vec<f32>,
    /// The same for every column.
    right: Vec<f32>,
    singular: Vec<f64>,
    /// Sum of the squares of all differences.
    energy: f64,
}

/// Factors that make a tensor and its residual together smaller than the tensor with its reference
/// alone, if there are any that save one part in `least_saving`. All rows are read a few times.
pub(crate) fn fit_drift(
    shape: Shape,
    element: Element,
    least_saving: u64,
    read: ReadRows<'_>,
    progress: &dyn Progress,
) -> Result<Option<DriftFactors>> {
    let Some(found) = directions(shape, element, read, progress)? else { return Ok(None) };
    let most = (found.count - OVERSAMPLING) / RANK_STEP * RANK_STEP;
    let guess = found.guess(shape, most);
    if guess == 0 {
        return Ok(None);
    }
    let step = (shape.rows * shape.cols).div_ceil(COSTED_ELEMS).max(1).min(shape.rows.div_ceil(8));
    let (target, reference) = shape.read_every(step, read)?;
    let sampled = shape.rows.div_ceil(step);
    let whole = |cost: u64| cost * shape.rows as u64 / sampled as u64;
    let residual_of_rank = |rank: usize| -> Result<Option<u64>> {
        check_cancelled(progress)?;
        let Some(factors) = found.factors(shape, rank, step) else { return Ok(None) };
        let ready = ReadyFactors::of_drift(shape.number, (sampled, shape.cols), &factors)?;
        let mut prediction = reference.clone();
        ready.apply(0, &mut prediction);
        Ok(Some(whole(plan::residual_cost(shape.number, &target, &prediction))))
    };
    let of_rank = |rank: usize| -> Result<Option<u64>> {
        Ok(residual_of_rank(rank)?.map(|cost| cost.saturating_add_signed(found.cost(shape, rank))))
    };
    // Costs fall and then rise, so downhill from a guess finds the least.
    let mut best = of_rank(guess)?.map(|cost| (cost, guess));
    for is_up in [false, true] {
        let mut stride = 2 * RANK_STEP;
        while let Some((least, rank)) = best {
            let next = if is_up { rank + stride } else { rank.saturating_sub(stride) };
            let tried = if (RANK_STEP..=most).contains(&next) { of_rank(next)? } else { None };
            match tried.filter(|cost| *cost < least) {
                Some(cost) => best = Some((cost, next)),
                None if stride > RANK_STEP => stride = RANK_STEP,
                None => break,
            }
        }
        if best.is_none_or(|(_, rank)| rank != guess) {
            break;
        }
    }
    let alone = whole(plan::residual_cost(shape.number, &target, &reference));
    let best = best.filter(|(cost, _)| *cost < alone - alone / least_saving);
    Ok(best.and_then(|(_, rank)| found.factors(shape, rank, 1)))
}

/// Calls `take` with the first row of each block and its differences. One that is not finite counts
/// as 0.
fn for_blocks(
    shape: Shape,
    element: Element,
    read: ReadRows<'_>,
    progress: &dyn Progress,
    mut take: impl FnMut(usize, &[f32]),
) -> Result<()> {
    let per_block = (BLOCK_ELEMS / shape.cols).max(4).next_multiple_of(4);
    for first in (0..shape.rows).step_by(per_block) {
        check_cancelled(progress)?;
        take(first, &differences(element, read, first..(first + per_block).min(shape.rows))?);
    }
    Ok(())
}

fn differences(element: Element, read: ReadRows<'_>, rows: Range<usize>) -> Result<Vec<f32>> {
    let (target, reference) = read(rows)?;
    let mut differences = load_singles(element, &target);
    for (difference, reference) in differences.iter_mut().zip(load_singles(element, &reference)) {
        let exact = *difference - reference;
        *difference = if exact.is_finite() { exact } else { 0.0 };
    }
    Ok(differences)
}

/// The sum of squares, in one order.
fn squares(row: &[f32]) -> f64 {
    let mut sums = [0f32; 16];
    let (parts, rest) = row.as_chunks::<16>();
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x * x);
    }
    sums.iter().chain(rest.iter().map(|x| x * x).collect::<Vec<_>>().iter()).map(|x| f64::from(*x)).sum()
}

fn directions(
    shape: Shape,
    element: Element,
    read: ReadRows<'_>,
    progress: &dyn Progress,
) -> Result<Option<Directions>> {
    let (rows, cols) = (shape.rows, shape.cols);
    let count = rows * cols / (rows + cols) / ELEMS_PER_NUMBER / AT_ONCE * AT_ONCE;
    let count = count.clamp(*DIRECTIONS.start(), *DIRECTIONS.end());
    let kept = rows * cols <= KEPT_ELEMS;
    let mut whole = Vec::new();
    // A first guess: sums of rows with random signs.
    let signs: Vec<f32> = signs(rows);
    let (mut sums, mut energy) = (vec![0f32; count * cols], 0.0);
    for_blocks(shape, element, read, progress, |first, block| {
        for (i, row) in block.chunks_exact(cols).enumerate() {
            energy += squares(row);
            f32::add_multiple(&mut sums[(first + i) % count * cols..][..cols], signs[first + i], row);
        }
        if kept {
            whole.extend_from_slice(block);
        }
    })?;
    if !energy.is_finite() || energy <= 0.0 {
        return Ok(None);
    }
    let mut columns = refine::transposed(&sums, count);
    straighten(&mut columns, count);
    let mut left = vec![0f32; rows * count];
    let mut multiply = |first: usize, block: &[f32]| {
        let out = &mut left[first * count..][..block.len() / cols * count];
        f32::add_product(Strided::rows(block, cols), &columns, cols, count, out);
    };
    if kept {
        multiply(0, &whole)
    } else {
        for_blocks(shape, element, read, progress, multiply)?
    }
    straighten(&mut left, count);
    columns.fill(0.0);
    let mut multiply = |first: usize, block: &[f32]| {
        let rows = block.len() / cols;
        let left = &left[first * count..][..rows * count];
        f32::add_product(Strided::rows(block, cols).transposed(), left, rows, count, &mut columns);
    };
    if kept {
        multiply(0, &whole)
    } else {
        for_blocks(shape, element, read, progress, multiply)?
    }
    check_cancelled(progress)?;
    let (values, vectors) = eigen(&gram(&columns, count), count);
    let singular: Vec<f64> = values.iter().map(|value| value.max(0.0).sqrt()).collect();
    if singular.iter().any(|value| !value.is_finite()) {
        return Ok(None);
    }
    let turned = |rows: &[f32], scale: &dyn Fn(usize) -> f64| {
        let turn: Vec<f32> = (0..count * count)
            .map(|at| f32::rounded(vectors[at % count * count + at / count] * scale(at % count)))
            .collect();
        let mut out = vec![0f32; rows.len()];
        f32::add_product(Strided::rows(rows, count), &turn, count, count, &mut out);
        out
    };
    let inverse = |k: usize| if singular[k] > 0.0 { 1.0 / singular[k] } else { 0.0 };
    let (left, right) = (turned(&left, &|_| 1.0), turned(&columns, &inverse));
    let (left, right) = (refine::transposed(&left, rows), refine::transposed(&right, cols));
    Ok(Some(Directions { count, left, right, singular, energy }))
}

/// log2 in 1/65536 of a number that is not tiny.
fn log2_of(x: f64) -> i64 {
    const SCALE: f64 = (1u64 << 24) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let scaled = (x * SCALE).clamp(1.0, SCALE * SCALE) as u64;
    log2::log2(scaled).cast_signed() - 24 * ONE_BIT.cast_signed()
}

impl Directions {
    /// The variance that the first `rank` directions leave, per element.
    fn left_by(&self, shape: Shape, rank: usize) -> f64 {
        let explained: f64 = self.singular[..rank].iter().map(|s| s * s).sum();
        let (rows, cols) = (shape.rows as f64, shape.cols as f64);
        let left = (self.energy - explained).max(self.energy * 1e-6) / (rows * cols);
        left * (1.0 + rank as f64 * (1.0 / rows + 1.0 / cols))
    }

    /// About how many bits the numbers of the first `rank` directions take, in 1/65536: those of
    /// normal numbers.
    fn cost(&self, shape: Shape, rank: usize) -> i64 {
        let left = self.left_by(shape, rank);
        let numbers = |side: usize| {
            let of_one = |s: &f64| (log2_of(s * s / (12.0 * left * side as f64)) / 2 + NORMAL_BITS).max(0);
            side as i64 * self.singular[..rank].iter().map(of_one).sum::<i64>()
        };
        numbers(shape.rows) + numbers(shape.cols)
    }

    /// The rank that would cost least if nothing were rounded to a dtype. 0 if none saves anything.
    fn guess(&self, shape: Shape, most: usize) -> usize {
        let whole = self.left_by(shape, 0);
        let elems = (shape.rows * shape.cols) as i64;
        let cost = |rank: usize| {
            let saved = elems * (log2_of(whole / self.left_by(shape, rank)) / 2);
            self.cost(shape, rank) - saved
        };
        let ranks = (RANK_STEP..=most).step_by(RANK_STEP).filter(|rank| self.singular[rank - 1] > 0.0);
        ranks.map(|rank| (cost(rank), rank)).min().filter(|(cost, _)| *cost < 0).map_or(0, |(_, rank)| rank)
    }

    /// Rounded factors of the first directions, for every `step`th row. A number is as coarse as
    /// costs least: the steps of a column are such that its errors are as large as those of every
    /// other one.
    fn factors(&self, shape: Shape, rank: usize, step: usize) -> Option<DriftFactors> {
        let error = 12.0 * self.left_by(shape, rank);
        let largest = error / self.singular[rank - 1];
        let unit = f32::rounded(largest / LARGEST_STEP);
        if !unit.is_normal() {
            return None;
        }
        let mut steps = Vec::with_capacity(rank);
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let runs = self.left.chunks_exact(shape.rows).zip(self.right.chunks_exact(shape.cols));
        for (singular, (of_rows, of_cols)) in self.singular[..rank].iter().zip(runs) {
            let multiple = (error / singular / f64::from(unit)).round().clamp(1.0, LARGEST_STEP);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 127")]
            steps.push(multiple as u16);
            let inverse = f32::rounded((singular / (multiple * f64::from(unit))).sqrt());
            left.extend(of_rows.iter().step_by(step).map(|x| integer(*x * inverse)));
            right.extend(of_cols.iter().map(|x| integer(*x * inverse)));
        }
        let factors = DriftFactors { unit, steps, left, right };
        factors.is_bounded().then_some(factors)
    }
}

/// The nearest integer, ties to even. What is too large for factors comes out as a number that they
/// cannot have.
fn integer(x: f32) -> i16 {
    // A sum with this has no bits below the point.
    const SHIFT: f32 = 1.5 * (1u32 << 23) as f32;
    const TOO_LARGE: f32 = MAX_NUMBER as f32 + 1.0;
    let rounded = (x.clamp(-TOO_LARGE, TOO_LARGE) + SHIFT) - SHIFT;
    if rounded.abs() >= TOO_LARGE {
        return i16::MIN;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below what is too large")]
    let integer = rounded as i16;
    integer
}
