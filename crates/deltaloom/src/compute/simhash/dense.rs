//! Dense weights as they are multiplied exactly: BF16 where every weight is one, F32 otherwise.
//! It is the measure of the experiment's speed, on one thread; products of many tokens at once have faster kernels elsewhere.

use deltaloom_kernels::quantised::{add_bf16_scaled, add_f32_scaled, bf16_product, f32_product};

use super::matrix::{Matrix, check_cols};
use crate::error::Result;

#[derive(Debug, Clone)]
enum Weights {
    Bf16(Vec<u16>),
    F32(Vec<f32>),
}

/// A matrix ready for products in single precision.
#[derive(Debug, Clone)]
pub struct Dense {
    cols: usize,
    weights: Weights,
}

/// The upper half of an F32, which is its BF16 when the lower half is zero.
fn upper(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

impl Dense {
    /// The same numbers.
    #[must_use]
    pub fn new(matrix: &Matrix) -> Self {
        let is_bf16 = matrix.values().iter().all(|v| v.to_bits() & 0xffff == 0);
        let weights = if is_bf16 {
            Weights::Bf16(matrix.values().iter().map(|v| upper(*v)).collect())
        } else {
            Weights::F32(matrix.values().to_vec())
        };
        Self { cols: matrix.cols(), weights }
    }

    /// Bits that a weight takes.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        match self.weights {
            Weights::Bf16(_) => 16.0,
            Weights::F32(_) => 32.0,
        }
    }

    /// The product with each row of `x`: a row of results for each.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] when the rows of `x` do not have as many elements as there are columns.
    pub fn product(&self, x: &Matrix) -> Result<Vec<f32>> {
        check_cols(self.cols, x)?;
        let rows = match &self.weights {
            Weights::Bf16(weights) => weights.len(),
            Weights::F32(weights) => weights.len(),
        } / self.cols;
        let mut out = vec![0.0; rows * x.rows()];
        // A row of weights is used for all tokens while it is in the cache.
        let mut put = |row: usize, product: &dyn Fn(&[f32]) -> f32| {
            for (x, out) in x.each_row().zip(out.chunks_exact_mut(rows)) {
                out[row] = product(x);
            }
        };
        match &self.weights {
            Weights::Bf16(weights) => {
                let rows = weights.chunks_exact(self.cols).enumerate();
                rows.for_each(|(i, row)| put(i, &|x| bf16_product(row, x)));
            }
            Weights::F32(weights) => {
                let rows = weights.chunks_exact(self.cols).enumerate();
                rows.for_each(|(i, row)| put(i, &|x| f32_product(row, x)));
            }
        }
        Ok(out)
    }

    /// Adds row `row` times `factor`.
    pub(super) fn add_row(&self, row: usize, factor: f32, out: &mut [f32]) {
        let place = row * self.cols..(row + 1) * self.cols;
        match &self.weights {
            Weights::Bf16(weights) => add_bf16_scaled(&weights[place], factor, out),
            Weights::F32(weights) => add_f32_scaled(&weights[place], factor, out),
        }
    }
}
