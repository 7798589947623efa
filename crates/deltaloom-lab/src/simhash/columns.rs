//! Exact columns of a matrix that correct an estimate: the top ones by |x_j| x norm of the column,
//! or an unbiased sample of them.
//!
//! Columns are stored one after another, so a few of them can be read without the rest. Which ones
//! depends on the activations, so all are kept in memory.

use super::dense::Dense;
use super::directions::uniforms;
use super::matrix::{Matrix, check_cols};
use deltaloom::{Error, Result};

/// The columns of a matrix and their norms.
#[derive(Debug, Clone)]
pub struct ColumnStore {
    columns: Dense,
    rows: usize,
    norms: Vec<f64>,
}

/// Which columns are multiplied exactly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Selection {
    /// This many with the largest |x_j| x norm. The product of the others is omitted, or estimated
    /// from the rest of x.
    Top(usize),
    /// This many draws with these probabilities. Each is divided by its probability and the number
    /// of draws, so the mean over seeds is the exact product.
    Sampled {
        /// Number of draws; several may hit the same column.
        draws: usize,
        /// Each seed draws different columns.
        seed: u64,
    },
}

/// Number of columns in a fraction of `cols`, at least 1.
///
/// # Errors
/// [`Error::InvalidArgument`] unless the fraction is above 0 and at most 1.
#[expect(clippy::cast_possible_truncation, reason = "between 1 and the columns")]
pub fn share_of(cols: usize, fraction: f64) -> Result<usize> {
    if fraction > 0.0 && fraction <= 1.0 {
        return Ok(((cols as f64 * fraction).round() as usize).clamp(1, cols.max(1)));
    }
    Err(Error::InvalidArgument(format!("fraction {fraction}: must be above 0 and at most 1")))
}

impl ColumnStore {
    /// Stores the columns of a matrix.
    ///
    /// # Errors
    /// As [`Dense::new`].
    pub fn new(matrix: &Matrix) -> Result<Self> {
        let transposed = matrix.transposed();
        let norms = transposed.each_row().map(|column| squares(column).sqrt()).collect();
        Ok(Self { columns: Dense::new(&transposed)?, rows: matrix.rows(), norms })
    }

    /// Number of rows of the matrix.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bits per weight.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        self.columns.bits_per_weight()
    }

    /// Adds the products of the selected columns to `out`, which has a row for each row of `x`.
    /// Returns the rest of x, which is zero where a column is done.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the sizes do not fit.
    pub fn add_selected(&self, selection: Selection, x: &Matrix, out: &mut [f32]) -> Result<Vec<f32>> {
        check_cols(self.norms.len(), x)?;
        if out.len() != self.rows * x.rows() {
            return Err(Error::InvalidArgument(format!(
                "{} results for {} x {}",
                out.len(),
                x.rows(),
                self.rows
            )));
        }
        let mut rest = x.values().to_vec();
        let rows = rest.chunks_exact_mut(self.norms.len()).zip(out.chunks_exact_mut(self.rows));
        match selection {
            Selection::Top(count) => {
                for (rest, out) in rows {
                    for j in self.top(rest, count) {
                        self.columns.add_row(j, rest[j], out);
                        rest[j] = 0.0;
                    }
                }
            }
            Selection::Sampled { draws, seed } => {
                let mut uniform = uniforms(seed);
                for (x, out) in rows {
                    for (j, factor) in self.draw(x, draws, &mut uniform) {
                        self.columns.add_row(j, factor, out);
                    }
                    x.fill(0.0);
                }
            }
        }
        Ok(rest)
    }

    /// |x_j| x norm of each column.
    fn scores(&self, x: &[f32]) -> Vec<f64> {
        x.iter().zip(&self.norms).map(|(x, norm)| f64::from(x.abs()) * norm).collect()
    }

    /// The columns with the largest scores, in order; the first of equal ones.
    fn top(&self, x: &[f32], count: usize) -> Vec<usize> {
        let scores = self.scores(x);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        if count < order.len() {
            order.select_nth_unstable_by(count, |a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
            order.truncate(count);
        }
        order.sort_unstable();
        order
    }

    /// Draws columns in proportion to their scores, each with its factor.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is intended")]
    fn draw(&self, x: &[f32], draws: usize, uniform: &mut impl Iterator<Item = f64>) -> Vec<(usize, f32)> {
        let scores = self.scores(x);
        let sums: Vec<f64> = scores
            .iter()
            .scan(0.0, |sum, score| {
                *sum += score;
                Some(*sum)
            })
            .collect();
        let total = sums.last().copied().unwrap_or(0.0);
        if total <= 0.0 {
            return Vec::new();
        }
        let drawn = uniform.take(draws).map(|u| sums.partition_point(|sum| *sum <= u * total));
        let factor = |j: usize| f64::from(x[j]) * total / (scores[j] * draws as f64);
        // Rounding may reach the last sum; its column then has a score.
        drawn.map(|j| j.min(scores.len() - 1)).map(|j| (j, factor(j) as f32)).collect()
    }

    /// Expected NMSE of a sample: the variance of the mean of this many draws, over the energy of
    /// the exact products.
    #[must_use]
    pub fn predicted_sample_nmse(&self, x: &Matrix, draws: usize, exact_energy: f64) -> f64 {
        let sums = x.each_row().map(|x| self.scores(x).iter().sum::<f64>());
        (sums.map(|sum| sum * sum).sum::<f64>() - exact_energy) / (draws as f64 * exact_energy)
    }
}

/// Sum of squares.
pub(super) fn squares(vector: &[f32]) -> f64 {
    vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum()
}
