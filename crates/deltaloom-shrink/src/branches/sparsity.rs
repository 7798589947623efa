//! Sparsity: the weights with the highest scores stay, by magnitude, by Wanda (Sun et al., 2023,
//! arXiv 2306.11695) or by SparseGPT (Frantar and Alistarh, 2023, arXiv 2301.00774), which also
//! corrects the weights that stay.

use deltaloom::{Error, Result};

use super::{Statistics, feedback};
use crate::forms::{Dense, FloatType, Form, Pattern, Sparse};
use crate::matrix::Matrix;

/// How weights are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By their magnitude.
    Magnitude,
    /// By their magnitude times that of their input.
    Wanda,
    /// By the loss of outputs after the best correction of those that stay, column by column.
    SparseGpt,
}

/// Which weights compete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those of the matrix; of a block of columns for SparseGPT.
    Matrix,
    /// Those of a row.
    Row,
}

/// How a matrix is made sparse.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// How weights are scored.
    pub method: Method,
    /// Which weights compete. An n:m pattern has groups of its own.
    pub scope: Scope,
    /// The share of weights that become 0. An n:m pattern has a share of its own.
    pub sparsity: f64,
    /// Where zeros may be.
    pub pattern: Pattern,
    /// The share of the mean diagonal that is added to second moments.
    pub damping: f64,
    /// Type of the values that stay.
    pub dtype: FloatType,
}

impl Settings {
    /// SparseGPT over the matrix, to BF16.
    #[must_use]
    pub fn new(sparsity: f64) -> Self {
        Self {
            method: Method::SparseGpt,
            scope: Scope::Matrix,
            sparsity,
            pattern: Pattern::Any,
            damping: 0.01,
            dtype: FloatType::BF16,
        }
    }
}

/// Columns whose weights compete in SparseGPT.
const BLOCK: usize = 64;

/// Makes a matrix `[out, in]` sparse.
///
/// # Errors
/// [`Error::InvalidArgument`] for a sparsity outside [0, 1), an impossible n:m pattern, and inputs
/// that are all 0 or not finite where SparseGPT needs them.
pub fn sparsify(weights: &Matrix, inputs: &Statistics, settings: &Settings) -> Result<Form> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let is_possible = match settings.pattern {
        Pattern::Any => (0.0..1.0).contains(&settings.sparsity),
        Pattern::NOfM { keep, of } => keep > 0 && keep < of && of <= 64,
    };
    if !is_possible {
        let Settings { sparsity, pattern, .. } = settings;
        let what = format!("a sparsity of {sparsity} with the pattern {} is not possible", pattern.name());
        return Err(Error::InvalidArgument(what));
    }
    let mut weights = weights.clone();
    let kept = match settings.method {
        Method::SparseGpt => {
            let found = inputs.inverse_root(settings.damping);
            let what = || "the inputs of a matrix are all 0 or not finite".to_owned();
            let (root, _) = found.ok_or_else(|| Error::InvalidArgument(what()))?;
            sparse_gpt(&mut weights, &root, settings)
        }
        Method::Magnitude => {
            let scores = weights.values().iter().map(|value| value.abs()).collect();
            select(scores, rows, cols, settings)
        }
        Method::Wanda => {
            let sizes: Vec<f64> = inputs.second_moment.diagonal().map(f64::sqrt).collect();
            let scores = weights.scaled_cols(&sizes).values().iter().map(|value| value.abs()).collect();
            select(scores, rows, cols, settings)
        }
    };
    let values = weights.to_f32().into_iter().zip(&kept).filter(|(_, kept)| **kept);
    let values = Form::Dense(Dense::new(settings.dtype, values.map(|(value, _)| value).collect()));
    if !kept.contains(&true) {
        return Ok(Form::Zero);
    }
    let bits = Sparse::bits_of(&kept, cols);
    Ok(Form::Sparse(Sparse::new(rows, cols, settings.pattern, bits, values)?))
}

/// Marks the elements to keep among groups that compete.
fn select(scores: Vec<f64>, rows: usize, cols: usize, settings: &Settings) -> Vec<bool> {
    match (settings.pattern, settings.scope) {
        (Pattern::NOfM { keep, of }, _) => {
            let groups = scores.chunks_exact(cols.max(1)).flat_map(|row| row.chunks(of));
            groups.flat_map(|group| highest(group, keep)).collect()
        }
        (Pattern::Any, Scope::Matrix) => highest(&scores, left(rows * cols, settings.sparsity)),
        (Pattern::Any, Scope::Row) => {
            let groups = scores.chunks_exact(cols.max(1));
            groups.flat_map(|row| highest(row, left(row.len(), settings.sparsity))).collect()
        }
    }
}

/// How many of `all` weights stay.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
fn left(all: usize, sparsity: f64) -> usize {
    all - ((all as f64 * sparsity).round() as usize).min(all)
}

/// Marks the `count` highest scores; of equal ones the first.
fn highest(scores: &[f64], count: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let mut kept = vec![false; scores.len()];
    let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count, by_score);
    }
    order.iter().take(count).for_each(|at| kept[*at] = true);
    kept
}

/// Works on blocks of columns: within one, the mask of a block is chosen when its columns have
/// taken over what those before it lost.
fn sparse_gpt(weights: &mut Matrix, root: &Matrix, settings: &Settings) -> Vec<bool> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let mut kept = vec![false; rows * cols];
    let block = match settings.pattern {
        Pattern::Any => BLOCK,
        Pattern::NOfM { of, .. } => of,
    };
    for start in (0..cols).step_by(block) {
        let end = (start + block).min(cols);
        let width = end - start;
        let score = |row: &[f64]| -> Vec<f64> {
            (start..end).map(|col| (row[col] / root.at(col, col)).powi(2)).collect()
        };
        let scores: Vec<f64> = weights.values().chunks_exact(cols).flat_map(score).collect();
        let chosen = select(scores, rows, width, settings);
        kept.chunks_exact_mut(cols).zip(chosen.chunks_exact(width)).for_each(|(kept, chosen)| {
            kept[start..end].copy_from_slice(chosen);
        });
        feedback::rows(weights, root, |number, mut row| {
            let chosen = &chosen[number * width..][..width];
            let dropped = (start..end).zip(chosen).filter(|(_, chosen)| !**chosen);
            dropped.for_each(|(col, _)| row.set(col, 0.0));
        });
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::super::test_matrices::{inputs, weights};
    use super::*;

    fn share_of_zeros(values: &[f32]) -> f64 {
        values.iter().filter(|value| **value == 0.0).count() as f64 / values.len() as f64
    }

    #[test]
    fn each_method_keeps_the_share_and_sparse_gpt_loses_least() {
        let (weights, inputs) = (weights(40, 96), inputs(96));
        let lost = [Method::Magnitude, Method::Wanda, Method::SparseGpt].map(|method| {
            let form = sparsify(&weights, &inputs, &Settings { method, ..Settings::new(0.7) }).unwrap();
            let decoded = form.decode(40, 96);
            assert!((share_of_zeros(&decoded) - 0.7).abs() < 0.02, "{method:?}");
            inputs.distortion(&weights, &weights.plus(-1.0, &Matrix::of_f32(40, 96, &decoded)))
        });
        assert!(lost[2] < 0.8 * lost[0].min(lost[1]), "{lost:?}");
    }

    #[test]
    fn patterns_hold_in_every_group() {
        let (weights, inputs) = (weights(9, 30), inputs(30));
        let pattern = Pattern::NOfM { keep: 2, of: 4 };
        for method in [Method::Magnitude, Method::Wanda, Method::SparseGpt] {
            let form =
                sparsify(&weights, &inputs, &Settings { method, pattern, ..Settings::new(0.0) }).unwrap();
            let decoded = form.decode(9, 30);
            let groups = decoded.chunks_exact(30).flat_map(|row| row.chunks(4));
            assert!(groups.clone().all(|group| group.iter().filter(|value| **value != 0.0).count() <= 2));
            assert!(share_of_zeros(&decoded) < 0.5);
        }
        let rows = Settings { method: Method::Wanda, scope: Scope::Row, ..Settings::new(0.5) };
        let decoded = sparsify(&weights, &inputs, &rows).unwrap().decode(9, 30);
        assert!(decoded.chunks_exact(30).all(|row| (share_of_zeros(row) - 0.5).abs() < 1e-9));
    }

    #[test]
    fn impossible_settings_are_refused() {
        for sparsity in [-0.1, 1.0, f64::NAN] {
            assert!(sparsify(&weights(2, 2), &inputs(2), &Settings::new(sparsity)).is_err());
        }
        for (keep, of) in [(0, 4), (4, 4), (2, 100)] {
            let settings = Settings { pattern: Pattern::NOfM { keep, of }, ..Settings::new(0.5) };
            assert!(sparsify(&weights(2, 8), &inputs(8), &settings).is_err());
        }
    }
}
