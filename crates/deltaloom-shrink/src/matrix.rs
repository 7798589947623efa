//! Matrices in FP64 with one order of additions, so that a student has the same bits on every
//! machine and for every number of threads.
//!
//! Products of matrices are our own loops: those of nalgebra choose an instruction set, and with it
//! an order, when they run. Its factorisations do not.

use deltaloom::{Error, Result};
use deltaloom_compute::{DenseMatrix, Mode, Run, WeightType};
use nalgebra::{DMatrix, SymmetricEigen};
use rayon::prelude::*;

/// A matrix, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

/// Eigenvalues of a symmetric matrix in descending order, with their vectors as columns.
pub struct Eigen {
    /// Descending.
    pub values: Vec<f64>,
    /// Column `i` belongs to value `i`.
    pub vectors: Matrix,
}

impl Matrix {
    /// A matrix of these values, row by row; `None` unless there are `rows * cols`.
    #[must_use]
    pub fn new(rows: usize, cols: usize, values: Vec<f64>) -> Option<Self> {
        (rows.checked_mul(cols) == Some(values.len())).then_some(Self { rows, cols, values })
    }

    /// A matrix of zeros.
    #[must_use]
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: vec![0.0; rows * cols] }
    }

    /// A matrix of FP32 values.
    ///
    /// # Panics
    /// Unless there are `rows * cols`.
    #[must_use]
    pub fn of_f32(rows: usize, cols: usize, values: &[f32]) -> Self {
        assert_eq!(rows * cols, values.len(), "values of a matrix [{rows}, {cols}]");
        Self { rows, cols, values: values.iter().map(|value| f64::from(*value)).collect() }
    }

    /// Its values in FP32.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "rounded to the nearest")]
    pub fn to_f32(&self) -> Vec<f32> {
        self.values.iter().map(|value| *value as f32).collect()
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values, row by row.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Values for changes.
    pub fn values_mut(&mut self) -> &mut [f64] {
        &mut self.values
    }

    /// A row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.cols..][..self.cols]
    }

    /// One element.
    #[must_use]
    pub fn at(&self, row: usize, col: usize) -> f64 {
        self.values[row * self.cols + col]
    }

    /// The diagonal.
    pub fn diagonal(&self) -> impl Iterator<Item = f64> {
        (0..self.rows.min(self.cols)).map(|at| self.at(at, at))
    }

    /// Mean of the diagonal; 0 for an empty matrix.
    #[must_use]
    pub fn mean_diagonal(&self) -> f64 {
        self.diagonal().sum::<f64>() / self.rows.min(self.cols).max(1) as f64
    }

    /// Rows as columns.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let mut values = Vec::with_capacity(self.values.len());
        for col in 0..self.cols {
            values.extend(self.values.iter().skip(col).step_by(self.cols));
        }
        Self { rows: self.cols, cols: self.rows, values }
    }

    /// The first `count` columns.
    #[must_use]
    pub fn first_cols(&self, count: usize) -> Self {
        let values = self.values.chunks_exact(self.cols.max(1)).flat_map(|row| &row[..count]).copied();
        Self { rows: self.rows, cols: count, values: values.collect() }
    }

    /// Some columns, in this order.
    #[must_use]
    pub fn with_cols(&self, order: &[usize]) -> Self {
        let values =
            self.values.chunks_exact(self.cols.max(1)).flat_map(|row| order.iter().map(|col| row[*col]));
        Self { rows: self.rows, cols: order.len(), values: values.collect() }
    }

    /// All elements times a factor.
    #[must_use]
    pub fn scaled(mut self, factor: f64) -> Self {
        self.values.iter_mut().for_each(|value| *value *= factor);
        self
    }

    /// Each row times a factor.
    #[must_use]
    pub fn scaled_rows(&self, factors: impl IntoIterator<Item = f64>) -> Self {
        let mut scaled = self.clone();
        for (row, factor) in scaled.values.chunks_exact_mut(self.cols.max(1)).zip(factors) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
        scaled
    }

    /// Each column times a factor.
    #[must_use]
    pub fn scaled_cols(&self, factors: &[f64]) -> Self {
        let mut scaled = self.clone();
        for row in scaled.values.chunks_exact_mut(self.cols.max(1)) {
            row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        }
        scaled
    }

    /// The product with another matrix. Each element is added up in the order of the inner index.
    ///
    /// # Panics
    /// Never for `self.cols() == other.rows()`.
    #[must_use]
    pub fn times(&self, other: &Self) -> Self {
        assert_eq!(self.cols, other.rows, "inner dimensions of a product");
        let mut product = Self::zeros(self.rows, other.cols);
        let width = other.cols.max(1);
        // A few rows share each pass over the other matrix, which is then read from a cache.
        const ROWS: usize = 8;
        let parts =
            product.values.par_chunks_mut(ROWS * width).zip(self.values.par_chunks(ROWS * self.cols.max(1)));
        parts.for_each(|(out, left)| {
            for inner in 0..self.cols {
                let right = other.row(inner);
                for (out, left) in out.chunks_exact_mut(width).zip(left.chunks_exact(self.cols)) {
                    let factor = left[inner];
                    out.iter_mut().zip(right).for_each(|(out, right)| *out += factor * right);
                }
            }
        });
        product
    }

    /// `self + factor * other`.
    #[must_use]
    pub fn plus(&self, factor: f64, other: &Self) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a + factor * b).collect();
        Self { rows: self.rows, cols: self.cols, values }
    }

    /// With `share` of the mean diagonal added to the diagonal.
    #[must_use]
    pub fn damped(&self, share: f64) -> Self {
        let more = share * self.mean_diagonal();
        let mut damped = self.clone();
        damped.values.iter_mut().step_by(self.cols + 1).for_each(|value| *value += more);
        damped
    }

    /// The sum of element-wise products: `tr(A B^T)`.
    #[must_use]
    pub fn dot(&self, other: &Self) -> f64 {
        self.values.iter().zip(&other.values).map(|(a, b)| a * b).sum()
    }

    fn to_nalgebra(&self) -> DMatrix<f64> {
        DMatrix::from_row_slice(self.rows, self.cols, &self.values)
    }

    fn of_nalgebra(matrix: &DMatrix<f64>) -> Self {
        Self { rows: matrix.nrows(), cols: matrix.ncols(), values: matrix.transpose().as_slice().to_vec() }
    }

    /// The inverse of a symmetric positive definite matrix; `None` if it is not.
    #[must_use]
    pub fn inverse(&self) -> Option<Self> {
        let inverse = self.to_nalgebra().cholesky()?.inverse();
        inverse.iter().all(|value| value.is_finite()).then(|| Self::of_nalgebra(&inverse))
    }

    /// The upper triangular `U` with `U^T U` = the inverse of this symmetric matrix, as error
    /// feedback needs it (Frantar et al., 2022, arXiv 2210.17323); `None` if it is not positive
    /// definite.
    #[must_use]
    pub fn inverse_root(&self) -> Option<Self> {
        let lower = self.inverse()?.to_nalgebra().cholesky()?.l();
        lower.iter().all(|value| value.is_finite()).then(|| Self::of_nalgebra(&lower.transpose()))
    }

    /// Eigenvalues and vectors of a symmetric matrix.
    #[must_use]
    pub fn eigen(&self) -> Eigen {
        let found = SymmetricEigen::new(self.to_nalgebra());
        let mut order: Vec<usize> = (0..self.rows).collect();
        order.sort_by(|a, b| found.eigenvalues[*b].total_cmp(&found.eigenvalues[*a]));
        let values = order.iter().map(|at| found.eigenvalues[*at]).collect();
        let vectors =
            DMatrix::from_fn(self.rows, self.rows, |row, col| found.eigenvectors[(row, order[col])]);
        Eigen { values, vectors: Self::of_nalgebra(&vectors) }
    }
}

impl Eigen {
    /// The symmetric matrix with the same vectors and the values `f` gives.
    #[must_use]
    pub fn with_values(&self, f: impl Fn(f64) -> f64) -> Matrix {
        let values: Vec<f64> = self.values.iter().map(|value| f(*value)).collect();
        self.vectors.scaled_cols(&values).times(&self.vectors.transposed())
    }
}

/// Tokens whose products are added up in FP32 before they are added in FP64.
const TOKENS_AT_ONCE: usize = 256;

/// The sum over tokens of `x y^T`, with `x` as `[tokens, n]` and `y` as `[tokens, m]`: `[n, m]`.
///
/// # Errors
/// [`Error::InvalidArgument`] if the lengths do not fit.
pub fn moments(x: &[f32], n: usize, y: &[f32], m: usize) -> Result<Matrix> {
    let mut sum = Matrix::zeros(n, m);
    let mut part = vec![0.0; n * m];
    let parts = x.chunks(TOKENS_AT_ONCE * n.max(1)).zip(y.chunks(TOKENS_AT_ONCE * m.max(1)));
    for (x, y) in parts {
        let tokens = x.len() / n.max(1);
        let bytes = turned(y, m).into_iter().flat_map(f32::to_le_bytes).collect();
        let weights = DenseMatrix::new(m, tokens, WeightType::F32, bytes)?;
        weights.matmul(&turned(x, n), &mut part, &Run::new(Mode::Exact))?;
        sum.values.par_iter_mut().zip(&part).for_each(|(sum, part)| *sum += f64::from(*part));
    }
    if x.len().checked_div(n) == y.len().checked_div(m) {
        return Ok(sum);
    }
    let what = format!("{} and {} numbers are not tokens of {n} and {m}", x.len(), y.len());
    Err(Error::InvalidArgument(what))
}

/// `[tokens, width]` as `[width, tokens]`.
fn turned(x: &[f32], width: usize) -> Vec<f32> {
    let tokens = x.len() / width.max(1);
    let mut turned = vec![0.0; tokens * width];
    for (token, row) in x.chunks_exact(width.max(1)).enumerate() {
        for (feature, value) in row.iter().enumerate() {
            turned[feature * tokens + token] = *value;
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
        };
        Matrix::new(rows, cols, std::iter::repeat_with(next).take(rows * cols).collect()).unwrap()
    }

    fn distance(a: &Matrix, b: &Matrix) -> f64 {
        a.values().iter().zip(b.values()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    fn unit(n: usize) -> Matrix {
        Matrix::zeros(n, n).plus(
            1.0,
            &Matrix {
                rows: n,
                cols: n,
                values: (0..n * n).map(|at| f64::from(u8::from(at % (n + 1) == 0))).collect(),
            },
        )
    }

    #[test]
    fn products_factors_and_inverses_fit_together() {
        let a = random(13, 29, 1);
        let h = a.times(&a.transposed()).damped(0.01);
        assert!(distance(&h.times(&h.inverse().unwrap()), &unit(13)) < 1e-9);
        let root = h.inverse_root().unwrap();
        assert!(distance(&root.transposed().times(&root).times(&h), &unit(13)) < 1e-9);
        assert!((1..13).all(|row| (0..row).all(|col| root.at(row, col) == 0.0)));
        let eigen = h.eigen();
        assert!(eigen.values.is_sorted_by(|a, b| a >= b));
        assert!(distance(&eigen.with_values(|value| value), &h) < 1e-9);
        assert!(Matrix::zeros(3, 3).inverse_root().is_none());
    }

    #[test]
    fn moments_are_sums_over_tokens() {
        let (x, y) = (random(700, 5, 2), random(700, 3, 3));
        let found = moments(&x.to_f32(), 5, &y.to_f32(), 3).unwrap();
        assert!(distance(&found, &x.transposed().times(&y)) < 1e-4);
        assert!(moments(&[0.0; 10], 5, &[0.0; 3], 3).is_err());
    }
}
