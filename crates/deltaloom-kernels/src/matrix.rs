//! Products of matrices and sums for fitting factors, with one order of additions on every machine.
//! Nothing that is decoded depends on it.

use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Sub, SubAssign};

use crate::isa::per_isa;

/// A matrix whose element (i, k) is `values[i * row_stride + k * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a, T> {
    /// The elements.
    pub values: &'a [T],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a, T> Strided<'a, T> {
    /// A matrix of rows of `cols` elements, one after another.
    #[must_use]
    pub fn rows(values: &'a [T], cols: usize) -> Self {
        Self { values, row_stride: cols, col_stride: 1 }
    }

    /// Exchanges rows and columns.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// What a step of a fit makes small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// The squares of the distances to the centres.
    Squares,
    /// Almost the largest distance in half widths: sixth powers, as weighted least squares with
    /// shortened steps.
    Sixth,
}

/// The numbers that factors are fitted in: f32 or f64.
pub trait Scalar:
    Copy
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + From<f32>
    + Into<f64>
    + Send
    + Sync
    + 'static
{
    /// The nearest one.
    fn rounded(x: f64) -> Self;

    /// Adds `a * b` to `out`, which has rows of `cols` elements; `b` has `inner` such rows.
    /// Products are added in the order of `inner`, not fused.
    ///
    /// # Panics
    /// If a slice is too short.
    fn add_product(a: Strided<'_, Self>, b: &[Self], inner: usize, cols: usize, out: &mut [Self]);

    /// Removes `directions` directions from `rows`, runs of `cols` elements: each time the
    /// direction of the longest row left. Returns the sum of the squares that remain.
    fn without_longest(rows: &mut [Self], cols: usize, directions: usize) -> f64;

    /// Weights of elements, and their distances to the centres times the weights. `inverses` are
    /// those of the squares of half widths.
    fn weigh(
        norm: Norm,
        bounds: (&[Self], &[Self]),
        products: &[Self],
        weights: &mut [Self],
        weighted: &mut [Self],
    );

    /// How far to go along a change of products: its sum with the weighted distances over the
    /// weighted sum of its squares, or 0.
    fn length(weights: &[Self], weighted: &[Self], change: &[Self]) -> Self;

    /// Adds both sums of [`Self::length`] for each column of a row.
    fn add_length_sums(
        weights: &[Self],
        weighted: &[Self],
        change: &[Self],
        along: &mut [Self],
        squares: &mut [Self],
    );

    /// Adds `factor * x` to `out`.
    fn add_multiple(out: &mut [Self], factor: Self, x: &[Self]);
}

macro_rules! scalar {
    ($type:ident, $cols:literal, $nearest:expr) => {
        mod $type {
            use super::*;
            pub(super) fn add_product_rows(a: Strided<'_, $type>, b: &[$type], cols: usize, out: &mut [$type]) {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(
                        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,bmi1,bmi2,lzcnt,popcnt"
                    )]
                    fn with_avx512(a: Strided<'_, $type>, b: &[$type], cols: usize, out: &mut [$type]) {
                        add_product_body::<$type, { 2 * $cols }>(a, b, cols, out);
                    }
                    if crate::isa::isa() >= crate::isa::Isa::Avx512 {
                        // SAFETY: `isa` returns Avx512 or more only if it has detected
                        // these features.
                        #[expect(unsafe_code, reason = "calling a function with detected target features")]
                        return unsafe { with_avx512(a, b, cols, out) };
                    }
                }
                add_product_narrow(a, b, cols, out);
            }
            per_isa! {
                fn add_product_narrow(a: Strided<'_, $type>, b: &[$type], cols: usize, out: &mut [$type]) =
                    add_product_body::<$type, $cols>;
            }
            per_isa! {
                pub(super) fn without_longest(rows: &mut [$type], cols: usize, directions: usize) -> f64 =
                    without_longest_body::<$type>;
            }
            per_isa! {
                pub(super) fn weigh(
                    norm: Norm, bounds: (&[$type], &[$type]), products: &[$type], weights: &mut [$type], weighted: &mut [$type],
                ) = weigh_body::<$type>;
            }
            per_isa! {
                pub(super) fn length(weights: &[$type], weighted: &[$type], change: &[$type]) -> $type =
                    length_body::<$type>;
            }
            per_isa! {
                pub(super) fn add_length_sums(
                    weights: &[$type], weighted: &[$type], change: &[$type], along: &mut [$type], squares: &mut [$type],
                ) = add_length_sums_body::<$type>;
            }
            per_isa! {
                pub(super) fn add_multiple(out: &mut [$type], factor: $type, x: &[$type]) =
                    add_multiple_body::<$type>;
            }
        }

        impl Scalar for $type {
            fn rounded(x: f64) -> Self {
                $nearest(x)
            }

            fn add_product(a: Strided<'_, Self>, b: &[Self], inner: usize, cols: usize, out: &mut [Self]) {
                if cols > 0 && inner > 0 {
                    $type::add_product_rows(a, &b[..inner * cols], cols, out);
                }
            }

            fn without_longest(rows: &mut [Self], cols: usize, directions: usize) -> f64 {
                $type::without_longest(rows, cols, directions)
            }

            fn weigh(
                norm: Norm,
                bounds: (&[Self], &[Self]),
                products: &[Self],
                weights: &mut [Self],
                weighted: &mut [Self],
            ) {
                $type::weigh(norm, bounds, products, weights, weighted);
            }

            fn length(weights: &[Self], weighted: &[Self], change: &[Self]) -> Self {
                $type::length(weights, weighted, change)
            }

            fn add_length_sums(
                weights: &[Self],
                weighted: &[Self],
                change: &[Self],
                along: &mut [Self],
                squares: &mut [Self],
            ) {
                $type::add_length_sums(weights, weighted, change, along, squares);
            }

            fn add_multiple(out: &mut [Self], factor: Self, x: &[Self]) {
                $type::add_multiple(out, factor, x);
            }
        }
    };
}

scalar!(f32, 16, single);
scalar!(f64, 8, std::convert::identity);

#[expect(clippy::cast_possible_truncation, reason = "the nearest one is wanted")]
fn single(x: f64) -> f32 {
    x as f32
}

/// Rows of the sums that stay in registers.
const TILE_ROWS: usize = 4;
/// Numbers of `b` that are reused: at most 24 KiB.
const BLOCK_NUMBERS: usize = 3 << 10;
/// Lanes of a sum, so that it is vectorised.
const LANES: usize = 16;

#[inline(always)]
fn add_product_body<T: Scalar, const COLS: usize>(a: Strided<'_, T>, b: &[T], cols: usize, out: &mut [T]) {
    // Multiplies one part of `b` with all of `a`, so that the part stays in the fastest cache.
    let depth = (BLOCK_NUMBERS / cols).max(16);
    let mut packed = vec![[T::default(); TILE_ROWS]; depth];
    for (block, b) in b.chunks(depth * cols).enumerate() {
        for (tile, out) in out.chunks_mut(TILE_ROWS * cols).enumerate() {
            let rows = out.len() / cols;
            for (k, packed) in packed[..b.len() / cols].iter_mut().enumerate() {
                let start = tile * TILE_ROWS * a.row_stride + (block * depth + k) * a.col_stride;
                packed[..rows]
                    .iter_mut()
                    .enumerate()
                    .for_each(|(i, x)| *x = a.values[start + i * a.row_stride]);
            }
            add_tile_rows::<T, COLS>(&packed[..b.len() / cols], b, cols, out);
        }
    }
}

/// Adds the product of at most four packed rows.
#[inline(always)]
fn add_tile_rows<T: Scalar, const COLS: usize>(
    packed: &[[T; TILE_ROWS]],
    b: &[T],
    cols: usize,
    out: &mut [T],
) {
    let mut done = 0;
    if out.len() == TILE_ROWS * cols {
        done = add_tiles::<T, COLS>(packed, b, cols, done, out);
        done = add_tiles::<T, 16>(packed, b, cols, done, out);
        done = add_tiles::<T, 8>(packed, b, cols, done, out);
        done = add_tiles::<T, 4>(packed, b, cols, done, out);
    }
    if done == cols {
        return;
    }
    for (factors, b) in packed.iter().zip(b.chunks_exact(cols)) {
        for (out, factor) in out.chunks_exact_mut(cols).zip(factors) {
            let rest = out[done..].iter_mut().zip(&b[done..]);
            rest.for_each(|(out, b)| *out += *factor * *b);
        }
    }
}

/// Adds the product of four packed rows from column `first` on, for runs of columns. Returns the
/// column behind the last run.
#[inline(always)]
fn add_tiles<T: Scalar, const COLS: usize>(
    packed: &[[T; TILE_ROWS]],
    b_rows: &[T],
    cols: usize,
    first: usize,
    out: &mut [T],
) -> usize {
    let mut col = first;
    while col + COLS <= cols {
        let sums = std::array::from_fn(|row| out[row * cols + col..].first_chunk().copied());
        let [Some(mut a), Some(mut b), Some(mut c), Some(mut d)] = sums else { break };
        for (factors, run) in packed.iter().zip(b_rows.chunks_exact(cols)) {
            let Some(run) = run[col..].first_chunk::<COLS>() else { break };
            add_run(&mut a, factors[0], run);
            add_run(&mut b, factors[1], run);
            add_run(&mut c, factors[2], run);
            add_run(&mut d, factors[3], run);
        }
        for (row, sums) in [a, b, c, d].iter().enumerate() {
            out[row * cols + col..][..COLS].copy_from_slice(sums);
        }
        col += COLS;
    }
    col
}

#[inline(always)]
fn add_run<T: Scalar, const COLS: usize>(sums: &mut [T; COLS], factor: T, run: &[T; COLS]) {
    for c in 0..COLS {
        sums[c] += factor * run[c];
    }
}

#[inline(always)]
fn without_longest_body<T: Scalar>(rows: &mut [T], cols: usize, directions: usize) -> f64 {
    let cols = cols.max(1);
    let mut squares: Vec<f64> = rows.chunks_exact(cols).map(|row| dot(row, row).into()).collect();
    let mut direction = vec![T::default(); cols];
    for _ in 0..directions {
        let Some((longest, square)) = squares.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) else {
            break;
        };
        if *square <= 0.0 || !square.is_finite() {
            break;
        }
        let inverse = T::rounded(1.0 / square.sqrt());
        direction.iter_mut().zip(&rows[longest * cols..]).for_each(|(d, x)| *d = *x * inverse);
        for (row, square) in rows.chunks_exact_mut(cols).zip(&mut squares) {
            let part = dot(row, &direction);
            row.iter_mut().zip(&direction).for_each(|(x, d)| *x -= part * *d);
            // The removed part is orthogonal to the rest.
            *square -= (part * part).into();
        }
    }
    rows.chunks_exact(cols).map(|row| -> f64 { dot(row, row).into() }).sum()
}

#[inline(always)]
fn weigh_body<T: Scalar>(
    norm: Norm,
    (centres, inverses): (&[T], &[T]),
    products: &[T],
    weights: &mut [T],
    weighted: &mut [T],
) {
    let (least, most, shortened) = (T::from(1e-6), T::from(9.0), T::rounded(0.2));
    let bounds = centres.iter().zip(inverses).zip(products);
    let outs = weights.iter_mut().zip(weighted);
    if norm == Norm::Squares {
        for (((centre, inverse), product), (weight, weighted)) in bounds.zip(outs) {
            *weight = *inverse;
            *weighted = *inverse * (*centre - *product);
        }
        return;
    }
    for (((centre, inverse), product), (weight, weighted)) in bounds.zip(outs) {
        let off = *centre - *product;
        // Fourth power of the distance in half widths, limited at both ends.
        let squared = off * off * *inverse;
        let squared = if squared > least { squared } else { least };
        let squared = if squared < most { squared } else { most };
        *weight = squared * squared * *inverse;
        *weighted = *weight * off * shortened;
    }
}

#[inline(always)]
fn length_body<T: Scalar>(weights: &[T], weighted: &[T], change: &[T]) -> T {
    let (mut along, mut squares) = ([T::default(); LANES], [T::default(); LANES]);
    let [(a, rest_a), (b, rest_b), (c, rest_c)] = [weights, weighted, change].map(<[T]>::as_chunks::<LANES>);
    for ((weights, weighted), change) in a.iter().zip(b).zip(c) {
        for i in 0..LANES {
            along[i] += weighted[i] * change[i];
            squares[i] += weights[i] * change[i] * change[i];
        }
    }
    for (i, ((weight, weighted), change)) in rest_a.iter().zip(rest_b).zip(rest_c).enumerate() {
        along[i] += *weighted * *change;
        squares[i] += *weight * *change * *change;
    }
    let sum = |lanes: [T; LANES]| lanes.into_iter().fold(T::default(), |sum, x| sum + x);
    let (along, squares) = (sum(along), sum(squares));
    if squares > T::default() { along / squares } else { T::default() }
}

#[inline(always)]
fn add_length_sums_body<T: Scalar>(
    weights: &[T],
    weighted: &[T],
    change: &[T],
    along: &mut [T],
    squares: &mut [T],
) {
    let inputs = weights.iter().zip(weighted).zip(change);
    for (((weight, weighted), change), (along, squares)) in inputs.zip(along.iter_mut().zip(squares)) {
        *along += *weighted * *change;
        *squares += *weight * *change * *change;
    }
}

#[inline(always)]
fn add_multiple_body<T: Scalar>(out: &mut [T], factor: T, x: &[T]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out += factor * *x);
}

#[inline(always)]
fn dot<T: Scalar>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::default(); LANES];
    let (a, rest_a) = a.as_chunks::<LANES>();
    let (b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += *a * *b);
    }
    let whole = sums.into_iter().fold(T::default(), |sum, x| sum + x);
    rest_a.iter().zip(rest_b).fold(whole, |sum, (a, b)| sum + *a * *b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_isa_adds_in_the_same_order(
            rows in 0usize..11, inner in 0usize..40, cols in prop_oneof![0usize..21, Just(200usize)], is_transposed in any::<bool>(), seed in any::<u32>(),
        ) {
            let value = |i: usize| f64::from((u32::try_from(i).unwrap() + 1).wrapping_mul(seed | 1)) / 7.0 - 1e8;
            let values: Vec<f64> = (0..rows * inner).map(value).collect();
            let a = if is_transposed { Strided::rows(&values, rows).transposed() } else { Strided::rows(&values, inner) };
            let b: Vec<f64> = (0..inner * cols).map(|i| value(i + 1000)).collect();
            let mut expected: Vec<f64> = (0..rows * cols).map(|i| value(i + 2000)).collect();
            let before = expected.clone();
            for (i, sum) in expected.iter_mut().enumerate() {
                for k in 0..inner {
                    *sum += a.values[i / cols * a.row_stride + k * a.col_stride] * b[k * cols + i % cols];
                }
            }
            for_each_isa(|isa| {
                let mut out = before.clone();
                f64::add_product(a, &b, inner, cols, &mut out);
                prop_assert_eq!(&out, &expected, "{:?}", isa);
                Ok(())
            })?;
        }
    }

    #[test]
    fn what_is_left_of_a_product_is_what_was_added_to_it() {
        let (rows, cols, rank) = (20, 24, 3);
        let factor = |i: usize, k: usize| ((i * 31 + k * 17) % 23) as f64 - 11.0;
        for noise in [0.0, 1e-3] {
            let matrix = (0..rows * cols).map(|at| {
                let (i, j) = (at / cols, at % cols);
                let product: f64 = (0..rank).map(|k| factor(i, k) * factor(j + 50, k)).sum();
                product + if (i + j) % 2 == 0 { noise } else { -noise * ((i * j) % 5) as f64 }
            });
            let mut matrix: Vec<f64> = matrix.collect();
            let left = f64::without_longest(&mut matrix, cols, rank);
            let size = (rows * cols) as f64;
            assert!(
                left < size * (10.0 * noise * noise + 1e-18) && left >= 0.1 * size * noise * noise,
                "{noise} {left}"
            );
        }
        assert_eq!(f64::without_longest(&mut [], 0, 3), 0.0);
    }
}
