//! How a matrix of a student is stored, and the one rule that decodes it (docs/student.md): integer
//! codes times FP16 steps in FP32, low-rank products added up in FP64, parts of a sum in FP32 in
//! their order. Every machine gets the same bits.

mod dense;
mod quantised;
mod record;
mod size;
mod sparse;

pub use dense::{Dense, FloatType};
pub use quantised::{LARGEST_CODE, Quantised, Scales, Steps, half};
pub use record::{Find, FormRecord, Part, Source, Tensors};
pub(crate) use size::CodedBits;
pub use sparse::{Pattern, Sparse};

use std::sync::Arc;

use crate::matrix::Matrix;
use deltaloom::{Error, Result};

/// Parts of a sum, and factors of a product, nest at most this deep.
pub(crate) const DEEPEST: usize = 4;

/// How a matrix `[rows, cols]` is stored.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Form {
    /// Floating-point values.
    Dense(Dense),
    /// Integers times steps.
    Quantised(Quantised),
    /// Values at some places, 0 elsewhere.
    Sparse(Sparse),
    /// The product of `left` `[rows, rank]` and `right` `[rank, cols]`.
    LowRank {
        /// The left factor.
        left: Box<Form>,
        /// The right factor.
        right: Box<Form>,
        /// Columns of `left`, rows of `right`.
        rank: usize,
    },
    /// The rows of another form are the columns.
    Turned(Box<Form>),
    /// Parts that are added in their order.
    Sum(Vec<Form>),
    /// All elements are 0.
    Zero,
    /// The matrix of that name of a base, row by row.
    Base(Arc<[f32]>),
}

impl Form {
    /// The matrix `[rows, cols]`, row by row.
    #[must_use]
    pub fn decode(&self, rows: usize, cols: usize) -> Vec<f32> {
        match self {
            Self::Dense(dense) => dense.values().to_vec(),
            Self::Quantised(quantised) => quantised.decode(),
            Self::Sparse(sparse) => sparse.decode(),
            Self::LowRank { left, right, rank } => {
                product(&left.decode(rows, *rank), &right.decode(*rank, cols), [rows, *rank, cols])
            }
            Self::Turned(form) => turned(&form.decode(cols, rows), rows),
            Self::Sum(parts) => {
                let mut sum = vec![0.0; rows * cols];
                for part in parts {
                    sum.iter_mut().zip(part.decode(rows, cols)).for_each(|(sum, part)| *sum += part);
                }
                sum
            }
            Self::Zero => vec![0.0; rows * cols],
            Self::Base(values) => values.to_vec(),
        }
    }

    /// The matrix `[rows, cols]` in FP64.
    #[must_use]
    pub fn matrix(&self, rows: usize, cols: usize) -> Matrix {
        Matrix::of_f32(rows, cols, &self.decode(rows, cols))
    }

    /// A name for reports, with the forms of its parts.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Dense(dense) => dense.dtype().name().to_owned(),
            Self::Quantised(_) => "quantised".to_owned(),
            Self::Sparse(sparse) => format!("sparse ({})", sparse.pattern().name()),
            Self::LowRank { rank, left, .. } => format!("rank {rank} ({})", left.name()),
            Self::Turned(form) => form.name(),
            Self::Sum(parts) => parts.iter().map(Self::name).collect::<Vec<_>>().join(" + "),
            Self::Zero => "zero".to_owned(),
            Self::Base(_) => "base".to_owned(),
        }
    }

    /// A sum without parts that add nothing, and not of one part.
    #[must_use]
    pub fn sum(parts: Vec<Self>) -> Self {
        let mut parts: Vec<Self> = parts.into_iter().filter(|part| *part != Self::Zero).collect();
        match parts.len() {
            0 => Self::Zero,
            1 => parts.remove(0),
            _ => Self::Sum(parts),
        }
    }
}

/// A matrix `[cols, rows]` as `[rows, cols]`.
fn turned(values: &[f32], rows: usize) -> Vec<f32> {
    (0..rows).flat_map(|row| values.iter().skip(row).step_by(rows.max(1))).copied().collect()
}

/// `left` `[rows, rank]` times `right` `[rank, cols]`. Products of FP32 numbers are exact in FP64,
/// so a fused addition gives the same bits.
#[expect(clippy::cast_possible_truncation, reason = "rounded to the nearest")]
fn product(left: &[f32], right: &[f32], [rows, rank, cols]: [usize; 3]) -> Vec<f32> {
    use rayon::prelude::*;
    let mut out = vec![0.0; rows * cols];
    let each = |sums: &mut Vec<f64>, (out, left): (&mut [f32], &[f32])| {
        sums.clear();
        sums.resize(cols, 0.0);
        for (factor, right) in left.iter().zip(right.chunks_exact(cols)) {
            let factor = f64::from(*factor);
            sums.iter_mut().zip(right).for_each(|(sum, right)| *sum += factor * f64::from(*right));
        }
        out.iter_mut().zip(sums.iter()).for_each(|(out, sum)| *out = *sum as f32);
    };
    if cols > 0 && rank > 0 {
        out.par_chunks_exact_mut(cols).zip(left.par_chunks_exact(rank)).for_each_init(Vec::new, each);
    }
    out
}

fn wrong<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::InvalidArgument(what.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_products_and_codes_decode_by_the_rule() {
        let dense = |values: &[f32]| Box::new(Form::Dense(Dense::new(FloatType::F32, values.to_vec())));
        let low_rank = Form::LowRank { left: dense(&[1.0, 2.0]), right: dense(&[0.5, -3.0, 4.0]), rank: 1 };
        let codes = Quantised::new(2, 3, vec![1, -2, 0, 3, 0, -1], Steps::Matrix(half(0.5)).into()).unwrap();
        let sum = Form::sum(vec![low_rank, Form::Zero, Form::Quantised(codes)]);
        assert_eq!(sum.decode(2, 3), [1.0, -4.0, 4.0, 2.5, -6.0, 7.5]);
        assert_eq!(sum.name(), "rank 1 (F32) + quantised");
        assert_eq!(Form::sum(vec![Form::Zero]), Form::Zero);
        assert_eq!(Form::Zero.decode(1, 2), [0.0, 0.0]);
    }
}
