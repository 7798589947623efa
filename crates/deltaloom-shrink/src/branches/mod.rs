//! Makers of forms: each takes a matrix and what its inputs look like, and gives a smaller form.

pub mod embedding;
pub mod low_rank;
pub mod quantise;
pub mod sparsity;

mod feedback;
mod ladder;

use crate::matrix::{Matrix, moments};
use deltaloom::Result;

/// The inputs `x` of a matrix.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Mean over tokens of `x x^T`.
    pub second_moment: Matrix,
    /// Number of tokens.
    pub tokens: u64,
}

/// Shares of the mean diagonal that are tried when a second moment has no inverse.
const DAMPINGS: [f64; 3] = [0.1, 1.0, 10.0];

impl Statistics {
    /// Of inputs `[tokens, width]`.
    ///
    /// # Errors
    /// [`deltaloom::Error::InvalidArgument`] for another number of elements.
    pub fn of(x: &[f32], width: usize) -> Result<Self> {
        let tokens = x.len() / width.max(1);
        let second_moment = moments(x, width, x, width)?.scaled(1.0 / tokens.max(1) as f64);
        Ok(Self { second_moment, tokens: tokens as u64 })
    }

    /// Inputs of which nothing is known: all alike.
    #[must_use]
    pub fn unknown(width: usize) -> Self {
        let mut second_moment = Matrix::zeros(width, width);
        second_moment.values_mut().iter_mut().step_by(width + 1).for_each(|value| *value = 1.0);
        Self { second_moment, tokens: 0 }
    }

    /// The root of the inverse that feedback needs, with the damping that it took; `None` if no
    /// damping helps, because the inputs are all 0 or not finite.
    #[must_use]
    pub fn inverse_root(&self, damping: f64) -> Option<(Matrix, f64)> {
        let dampings = [damping].into_iter().chain(DAMPINGS.into_iter().filter(|more| *more > damping));
        let mut tries = dampings.map(|share| (self.second_moment.damped(share).inverse_root(), share));
        tries.find_map(|(root, share)| Some((root?, share)))
    }

    /// The error that `error = W - W'` makes in outputs, as a share of the mean square of those of
    /// `weights`.
    #[must_use]
    pub fn distortion(&self, weights: &Matrix, error: &Matrix) -> f64 {
        let size = |matrix: &Matrix| matrix.times(&self.second_moment).dot(matrix);
        let of_weights = size(weights);
        if of_weights > 0.0 { (size(error) / of_weights).max(0.0) } else { 0.0 }
    }
}

#[cfg(test)]
pub(crate) mod test_matrices {
    use super::Statistics;
    use crate::matrix::Matrix;

    /// Numbers that look Gaussian, the same on every run.
    pub(crate) fn weights(rows: usize, cols: usize) -> Matrix {
        let mut state = 7_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
        };
        let values = (0..rows * cols).map(|_| (0..6).map(|_| uniform()).sum::<f64>() / 20.0);
        Matrix::new(rows, cols, values.collect()).unwrap()
    }

    /// Inputs whose elements depend on each other and differ in size.
    pub(crate) fn inputs(width: usize) -> Statistics {
        let sizes: Vec<f64> =
            (0..width).map(|at| if at % 7 == 0 { 6.0 } else { 1.0 + at as f64 / width as f64 }).collect();
        let mix = weights(width, width / 3 + 1).scaled_rows(sizes);
        Statistics { second_moment: mix.times(&mix.transposed()).damped(0.02), tokens: 100 }
    }
}
