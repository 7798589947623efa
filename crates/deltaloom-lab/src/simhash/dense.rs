//! Dense weights for exact products: BF16 if every weight fits, F32 otherwise.
//!
//! They are the reference for the experiment's speed; products are those of
//! [`deltaloom_compute::DenseMatrix`].

use deltaloom_kernels::quantised::add_scaled;

use super::matrix::{Matrix, check_cols};
use deltaloom::Result;
use deltaloom_compute::{DenseMatrix, Mode, Run, WeightType};

/// A matrix ready for products in single precision.
#[derive(Debug, Clone)]
pub struct Dense(DenseMatrix);

impl Dense {
    /// Copies the numbers.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the matrix does not fit in memory.
    pub fn new(matrix: &Matrix) -> Result<Self> {
        let is_bf16 = matrix.values().iter().all(|v| v.to_bits() & 0xffff == 0);
        let weight = if is_bf16 { WeightType::Bf16 } else { WeightType::F32 };
        let bytes = matrix.values().iter().flat_map(|v| v.to_le_bytes().into_iter().skip(4 - weight.bytes()));
        DenseMatrix::new(matrix.rows(), matrix.cols(), weight, bytes.collect()).map(Self)
    }

    /// Bits per weight.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        match self.0.shape().weight {
            WeightType::Bf16 => 16.0,
            WeightType::F32 => 32.0,
        }
    }

    /// Computes the product with each row of `x`: a row of results for each.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if the rows of `x` do not have as many elements as there
    /// are columns.
    pub fn product(&self, x: &Matrix) -> Result<Vec<f32>> {
        check_cols(self.0.shape().cols, x)?;
        let mut out = vec![0.0; self.0.shape().rows * x.rows()];
        self.0.matmul(x.values(), &mut out, &Run::new(Mode::Fast))?;
        Ok(out)
    }

    /// Adds row `row` times `factor` to `out`.
    pub(super) fn add_row(&self, row: usize, factor: f32, out: &mut [f32]) {
        add_scaled(self.0.shape().weight.weights(self.0.rows(row..row + 1)), factor, out);
    }
}
