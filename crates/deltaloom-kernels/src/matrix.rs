//! Products of matrices in double precision, for fitting, with one order of additions on every
//! machine. Nothing that is decoded depends on it.

use crate::isa::per_isa;

/// A matrix whose element (i, k) is `values[i * row_stride + k * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Strided<'a> {
    /// The elements.
    pub values: &'a [f64],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a> Strided<'a> {
    /// A matrix of rows of `cols` elements, one after another.
    #[must_use]
    pub fn rows(values: &'a [f64], cols: usize) -> Self {
        Self { values, row_stride: cols, col_stride: 1 }
    }

    /// Exchanges rows and columns.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Rows and columns of the sums that stay in registers.
const TILE_ROWS: usize = 4;
const TILE_COLS: usize = 8;
/// Numbers of `b` that are reused: 24 KiB.
const BLOCK_NUMBERS: usize = 3 << 10;

/// Adds `a * b` to `out`, which has rows of `cols` elements; `b` has `inner` such rows. Products
/// are added in the order of `inner`, not fused.
///
/// # Panics
/// If a slice is too short.
pub fn add_product(a: Strided<'_>, b: &[f64], inner: usize, cols: usize, out: &mut [f64]) {
    if cols > 0 && inner > 0 {
        add_product_rows(a, &b[..inner * cols], cols, out);
    }
}

per_isa! {
    /// As [`add_product`], for sizes above 0.
    fn add_product_rows(a: Strided<'_>, b: &[f64], cols: usize, out: &mut [f64]) = add_product_body;
}

#[inline(always)]
fn add_product_body(a: Strided<'_>, b: &[f64], cols: usize, out: &mut [f64]) {
    // Multiplies one part of `b` with all of `a`, so that the part stays in the fastest cache.
    let depth = (BLOCK_NUMBERS / cols).max(16);
    let mut packed = vec![[0.0; TILE_ROWS]; depth];
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
            add_tile_rows(&packed[..b.len() / cols], b, cols, out);
        }
    }
}

/// Adds the product of at most four packed rows.
#[inline(always)]
fn add_tile_rows(packed: &[[f64; TILE_ROWS]], b: &[f64], cols: usize, out: &mut [f64]) {
    let whole_cols = if out.len() == TILE_ROWS * cols { cols - cols % TILE_COLS } else { 0 };
    for col in (0..whole_cols).step_by(TILE_COLS) {
        let mut sums = [[0.0; TILE_COLS]; TILE_ROWS];
        for (sums, out) in sums.iter_mut().zip(out.chunks_exact(cols)) {
            sums.copy_from_slice(&out[col..][..TILE_COLS]);
        }
        for (factors, b) in packed.iter().zip(b.chunks_exact(cols)) {
            let mut run = [0.0; TILE_COLS];
            run.copy_from_slice(&b[col..][..TILE_COLS]);
            for (sums, factor) in sums.iter_mut().zip(factors) {
                for c in 0..TILE_COLS {
                    sums[c] += factor * run[c];
                }
            }
        }
        for (sums, out) in sums.iter().zip(out.chunks_exact_mut(cols)) {
            out[col..][..TILE_COLS].copy_from_slice(sums);
        }
    }
    for (factors, b) in packed.iter().zip(b.chunks_exact(cols)) {
        for (out, factor) in out.chunks_exact_mut(cols).zip(factors) {
            let rest = out[whole_cols..].iter_mut().zip(&b[whole_cols..]);
            rest.for_each(|(out, b)| *out += factor * b);
        }
    }
}

per_isa! {
    /// Removes `directions` directions from `rows`, runs of `cols` elements: each time the
    /// direction of the longest row left. Returns the sum of the squares that remain.
    pub fn without_longest(rows: &mut [f64], cols: usize, directions: usize) -> f64 = without_longest_body;
}

#[inline(always)]
fn without_longest_body(rows: &mut [f64], cols: usize, directions: usize) -> f64 {
    let cols = cols.max(1);
    let mut squares: Vec<f64> = rows.chunks_exact(cols).map(|row| dot(row, row)).collect();
    let mut direction = vec![0.0; cols];
    for _ in 0..directions {
        let Some((longest, square)) = squares.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) else {
            break;
        };
        if *square <= 0.0 || !square.is_finite() {
            break;
        }
        let inverse = 1.0 / square.sqrt();
        direction.iter_mut().zip(&rows[longest * cols..]).for_each(|(d, x)| *d = x * inverse);
        for (row, square) in rows.chunks_exact_mut(cols).zip(&mut squares) {
            let part = dot(row, &direction);
            row.iter_mut().zip(&direction).for_each(|(x, d)| *x -= part * d);
            // The removed part is orthogonal to the rest.
            *square -= part * part;
        }
    }
    rows.chunks_exact(cols).map(|row| dot(row, row)).sum()
}

/// Sums in sixteen lanes, so that it is vectorised.
#[inline(always)]
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 16];
    let (a, rest_a) = a.as_chunks::<16>();
    let (b, rest_b) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
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
                add_product(a, &b, inner, cols, &mut out);
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
            let left = without_longest(&mut matrix, cols, rank);
            let size = (rows * cols) as f64;
            assert!(
                left < size * (10.0 * noise * noise + 1e-18) && left >= 0.1 * size * noise * noise,
                "{noise} {left}"
            );
        }
        assert_eq!(without_longest(&mut [], 0, 3), 0.0);
    }
}
