//! Factors rounded to integers. The step minimises the bits of factors and residual together.
//! Costs are those of the plan; nothing is encoded.

use deltaloom_kernels::bounds::Bounded;
use deltaloom_kernels::matrix::{Scalar, Strided};
use deltaloom_kernels::product::ProductRule;

use super::algebra::{eigen, factorise, gram, packed, solve_upper};
use super::bounds::{Bounds, Whitening};
use super::refine::{Left, transposed};
use super::{Matrix, Real};
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::plan;
use crate::predict::Factors;
use crate::progress::{Progress, check_cancelled};

/// Elements on which costs are compared.
const SAMPLE_ELEMS: usize = 1 << 18;
/// Elements on which steps are tried.
const TRIED_ELEMS: usize = 1 << 16;
/// The first step has an error of this share of the median half width.
const FIRST_ERROR: f64 = 0.05;
/// Largest magnitude of a factor.
const MAX_FACTOR: f64 = (1u32 << 30) as f64;

/// One in this many rows of a tensor is enough to compare costs.
pub(super) fn step_of_costed_rows(rows: usize, cols: usize) -> usize {
    rows.div_ceil((SAMPLE_ELEMS / cols).max(1)).max(1)
}

/// Bits of the tensor's residual, estimated on some of the rows of `matrix`. With factors, whose
/// left one belongs to these rows, or without.
pub(super) fn cost(matrix: &Matrix<'_>, factors: Option<(&Factors, &[i32])>) -> u64 {
    let (mut target, mut prediction) = (Vec::new(), Vec::new());
    let ready =
        factors.and_then(|(factors, left)| Some((factors, left, factors.right_factor(matrix.number).ok()?)));
    let mut sampled = 0;
    for row in (0..matrix.rows).step_by(step_of_costed_rows(matrix.rows, matrix.cols)) {
        target.extend_from_slice(matrix.target_row(row));
        let start = prediction.len();
        prediction.extend_from_slice(matrix.reference_row(row));
        if let Some((factors, left, right)) = &ready {
            let left = &left[row * factors.rank..][..factors.rank];
            right.predict(factors.rule, left, &mut prediction[start..]);
        }
        sampled += 1;
    }
    let bits = plan::residual_cost(matrix.number, &target, &prediction) / ONE_BIT;
    bits * matrix.of_rows as u64 / sampled.max(1)
}

/// Whether factors and residual cost less than the residual without them. `left` is the left factor
/// for the rows of `matrix`.
pub(super) fn is_worth_it(matrix: &Matrix<'_>, factors: &Factors, left: &[i32]) -> bool {
    cost(matrix, Some((factors, left))) + 8 * (factors.to_bytes().len() as u64) < cost(matrix, None)
}

/// Cuts the rank where the singular values drop most, if that costs less than keeping all. Returns
/// the rule that costs less.
pub(super) fn choose_rank_and_rule<T: Bounded>(
    matrix: &Matrix<'_>,
    real: &mut Real<T>,
    unit: f64,
) -> Option<ProductRule> {
    let singular = balance(real, matrix.of_rows as f64 / matrix.rows as f64);
    let fall = |rank: &usize| singular[*rank - 1] / singular[*rank].max(f64::MIN_POSITIVE);
    let steepest = (1..real.rank).max_by(|a, b| fall(a).total_cmp(&fall(b)));
    let ranks = std::iter::once(real.rank).chain(steepest.filter(|rank| fall(rank) > 2.0));
    let mut best: Option<(u64, Real<T>, ProductRule)> = None;
    for rank in ranks {
        let cut = cut(real, rank);
        let step = first_step(&cut);
        for rule in [ProductRule::Sum, ProductRule::RoundedProduct] {
            let Some(factors) = rounded(&cut, rule, step, unit) else { continue };
            let bits = total_bits(matrix, &factors);
            if best.as_ref().is_none_or(|(least, ..)| bits < *least) {
                best = Some((bits, cut.clone(), rule));
            }
        }
    }
    let (_, cut, rule) = best?;
    *real = cut;
    Some(rule)
}

/// The first `rank` directions.
fn cut<T: Scalar>(real: &Real<T>, rank: usize) -> Real<T> {
    let cols = real.right.len() / real.rank;
    let left = real.left.chunks_exact(real.rank).flat_map(|row| &row[..rank]).copied().collect();
    Real { rank, left, right: real.right[..rank * cols].to_vec() }
}

/// Bits of residual and factors, assuming that all other rows are like those of `matrix`.
fn total_bits(matrix: &Matrix<'_>, factors: &Factors) -> u64 {
    let factor_bits = 8 * factors.to_bytes().len() as u64;
    let whole = factor_bits * (matrix.of_rows + matrix.cols) as u64 / (matrix.rows + matrix.cols) as u64;
    cost(matrix, Some((factors, &factors.left))) + whole
}

/// The cheapest step, and the right factor in multiples of it. The left one will be fitted to
/// compensate for that.
pub(super) fn quantise<T: Bounded>(
    matrix: &Matrix<'_>,
    rule: ProductRule,
    unit: f64,
    whitening: &Whitening<T>,
    mut real: Real<T>,
    progress: &dyn Progress,
) -> Result<Option<(f64, Vec<T>)>> {
    balance(&mut real, matrix.of_rows as f64 / matrix.rows as f64);
    // Some of the rows tell the step.
    let every = matrix.elems().div_ceil(TRIED_ELEMS).clamp(1, (matrix.rows / real.rank.max(16)).max(1));
    let tried = matrix.every(every);
    let tried =
        Matrix { rows: matrix.rows.div_ceil(every), target: &tried.0, reference: &tried.1, ..*matrix };
    let bounds = Bounds::<T>::new(&tried, rule, unit);
    let left: Vec<T> = real.left.chunks_exact(real.rank).step_by(every).flatten().copied().collect();
    let mut best: Option<(u64, f64, Vec<T>)> = None;
    let mut try_step = |step: f64| -> Result<bool> {
        check_cancelled(progress)?;
        let to_multiple = |v: &T| T::rounded(((*v).into() / step).round() * step);
        let right: Vec<T> = real.right.iter().map(to_multiple).collect();
        let left = Left::new(&right, matrix.cols, whitening).improved(&bounds, left.clone());
        let own = Real { rank: real.rank, left, right };
        let Some(factors) = rounded(&own, rule, step, unit) else { return Ok(false) };
        let bits = total_bits(&tried, &factors);
        let is_better = best.as_ref().is_none_or(|(least, ..)| bits < *least);
        if is_better {
            best = Some((bits, step, own.right));
        }
        Ok(is_better)
    };
    // Downhill from the first step, in either direction.
    let first = first_step(&real);
    try_step(first)?;
    for factor in [std::f64::consts::FRAC_1_SQRT_2, std::f64::consts::SQRT_2] {
        let mut step = first * factor;
        while try_step(step)? {
            step *= factor;
        }
        if step != first * factor {
            break;
        }
    }
    Ok(best.map(|(_, step, right)| (step, right)))
}

/// A step with which the product is off by a small share of the half width.
fn first_step<T: Scalar>(real: &Real<T>) -> f64 {
    let mean_square = |factor: &[T]| {
        let squares = factor.iter().map(|x| {
            let x: f64 = (*x).into();
            x * x
        });
        squares.sum::<f64>() * real.rank as f64 / factor.len() as f64
    };
    (12.0 * FIRST_ERROR * FIRST_ERROR / (mean_square(&real.left) + mean_square(&real.right))).sqrt()
}

/// Factors in multiples of a step. `None` if they are too large for it.
fn rounded<T: Scalar>(real: &Real<T>, rule: ProductRule, step: f64, unit: f64) -> Option<Factors> {
    factors(integers(&real.left, step)?, real.rank, &real.right, rule, (step, unit))
}

/// The same with a left factor that is rounded already.
pub(super) fn factors<T: Scalar>(
    left: Vec<i32>,
    rank: usize,
    right: &[T],
    rule: ProductRule,
    (step, unit): (f64, f64),
) -> Option<Factors> {
    #[expect(clippy::cast_possible_truncation, reason = "any scale will do if it is the one that is stored")]
    let scale = (step * step * unit) as f32;
    if !scale.is_normal() || scale >= deltaloom_kernels::product::MAX_SCALE {
        return None;
    }
    Some(Factors { rule, scale, rank, left, right: integers(right, step)? })
}

/// One factor in multiples of a step. `None` if it is too large for it.
pub(super) fn integers<T: Scalar>(factor: &[T], step: f64) -> Option<Vec<i32>> {
    let values = || factor.iter().map(|x| -> f64 { (*x).into() });
    let largest = values().fold(0.0f64, |most, x| most.max(x.abs()));
    #[expect(clippy::cast_possible_truncation, reason = "below 2^30")]
    let integers = || values().map(|x| (x / step).round() as i32).collect();
    (largest / step < MAX_FACTOR).then(integers)
}

/// Makes the columns of the left factor and the rows of the right one orthogonal, and gives each
/// pair the same length, without changing the product. With a single step, the product then has the
/// least error for its bits. Returns the singular values.
fn balance<T: Scalar>(real: &mut Real<T>, rows_per_row: f64) -> Vec<f64> {
    let rank = real.rank;
    let cols = real.right.len() / rank;
    // left = Q L^T, so the singular values are those of L^T right.
    let mut lower = gram(&real.left, rank);
    factorise(&mut lower, rank);
    let mut upper = vec![T::default(); rank * rank];
    for i in 0..rank {
        for j in 0..=i {
            let entry = lower[packed(i, j)];
            upper[j * rank + i] = T::rounded(if entry.is_finite() { entry } else { 0.0 });
        }
    }
    let mut turned = vec![T::default(); real.right.len()];
    T::add_product(Strided::rows(&upper, rank), &real.right, rank, cols, &mut turned);
    let (values, vectors) = eigen(&gram(&transposed(&turned, rank), rank), rank);
    let singular: Vec<f64> = values.iter().map(|value| value.max(0.0).sqrt()).collect();
    // The lengths should match for all rows of the tensor, of which there are `rows_per_row` for
    // each row of the sample.
    let tilt = rows_per_row.sqrt().sqrt();
    let root = |k: usize| singular[k].sqrt() / tilt;
    // right becomes S^-1/2 E L^T right, and left becomes left L^-T E^T S^1/2.
    let mut right = vec![T::default(); real.right.len()];
    let vectors_rounded: Vec<T> = vectors.iter().map(|x| T::rounded(*x)).collect();
    T::add_product(Strided::rows(&vectors_rounded, rank), &turned, rank, cols, &mut right);
    for (k, row) in right.chunks_exact_mut(cols).enumerate() {
        let inverse = T::rounded(if root(k) > 0.0 { 1.0 / root(k) } else { 0.0 });
        row.iter_mut().for_each(|v| *v *= inverse);
    }
    let mut turn = vec![T::default(); rank * rank];
    for k in 0..rank {
        let mut column = vectors[k * rank..(k + 1) * rank].to_vec();
        solve_upper(&lower, &mut column);
        (0..rank).for_each(|i| turn[i * rank + k] = T::rounded(column[i] * root(k)));
    }
    let mut left = vec![T::default(); real.left.len()];
    T::add_product(Strided::rows(&real.left, rank), &turn, rank, rank, &mut left);
    (real.left, real.right) = (left, right);
    singular
}
