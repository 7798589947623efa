//! Low rank: two factors, from singular vectors of the weights times a power of the second moment
//! of their inputs. Exponent 0 is the plain decomposition, 1/2 that of SVD-LLM (arXiv 2403.07378).

use super::Statistics;
use crate::forms::{Dense, FloatType, Form};
use crate::matrix::{Eigen, Matrix};

/// How a matrix is factored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Columns of the left factor, rows of the right one.
    pub rank: Rank,
    /// The power of the second moment that weighs inputs, 0 to 1/2.
    pub exponent: f64,
    /// Type of the factors.
    pub dtype: FloatType,
}

/// How a rank is found from the energies of singular values, largest first (ARSVD, arXiv
/// 2504.20078).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Criterion {
    /// The first that have this share of the energy.
    Energy(f64),
    /// The first whose terms of the spectral entropy have this share of it.
    Entropy(f64),
    /// The exponential of the spectral entropy.
    RelativeEntropy,
    /// The first whose singular values, not their squares, have this share of the sum.
    SingularSum(f64),
}

/// How many columns the left factor gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rank {
    /// This many.
    Fixed(usize),
    /// As many as give factors with this part of the elements of the matrix.
    Ratio(f64),
    /// As many as a criterion finds, within bounds.
    Found {
        /// The criterion.
        criterion: Criterion,
        /// Least and largest rank, as shares of the rank whose factors have as many elements as
        /// the matrix.
        shares: [f64; 2],
        /// Least rank.
        least: usize,
        /// Ranks are multiples of it.
        multiple_of: usize,
    },
}

impl Rank {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the matrix")]
    fn of(self, rows: usize, cols: usize, energies: &[f64]) -> usize {
        let even = (rows * cols) as f64 / (rows + cols).max(1) as f64;
        match self {
            Self::Fixed(rank) => rank,
            Self::Ratio(ratio) => ((even / ratio) as usize).max(1),
            Self::Found { criterion, shares, least, multiple_of } => {
                let [low, high] = shares.map(|share| (share * even) as usize);
                let found = rank_of(energies, criterion).max(least).max(low).min(high);
                found / multiple_of.max(1) * multiple_of.max(1)
            }
        }
    }
}

/// The eigenvectors of a second moment, which all exponents share.
pub struct Whitening {
    eigen: Eigen,
}

/// Damping of second moments, as a share of the mean diagonal.
const DAMPING: f64 = 1e-3;

impl Whitening {
    /// Of some inputs.
    #[must_use]
    pub fn new(inputs: &Statistics) -> Self {
        Self { eigen: inputs.second_moment.damped(DAMPING).eigen() }
    }

    /// The second moment to a power.
    pub(super) fn power(&self, exponent: f64) -> Matrix {
        let least = self.eigen.values.first().copied().unwrap_or(0.0) * 1e-9;
        self.eigen.with_values(|value| libm::pow(value.max(least).max(f64::MIN_POSITIVE), exponent))
    }
}

/// Singular values and one side of the vectors of a weighted matrix, from which factors of any rank
/// follow.
pub struct Spectrum {
    /// Squares of singular values, largest first.
    pub energies: Vec<f64>,
    left: Matrix,
    right: Matrix,
}

impl Spectrum {
    /// Decomposes a matrix `[out, in]`; `None` for `whitening` means exponent 0.
    #[must_use]
    pub fn new(weights: &Matrix, whitening: Option<(&Whitening, f64)>) -> Self {
        let power = whitening.filter(|(_, exponent)| *exponent != 0.0);
        let weighted = match power {
            Some((whitening, exponent)) => weights.times(&whitening.power(exponent)),
            None => weights.clone(),
        };
        if weighted.rows() <= weighted.cols() {
            // W ~ U U^T W: what weighs inputs cancels.
            let Eigen { values, vectors } = weighted.times(&weighted.transposed()).eigen();
            let right = vectors.transposed().times(weights);
            Self { energies: positive(values), left: vectors, right }
        } else {
            let Eigen { values, vectors } = weighted.transposed().times(&weighted).eigen();
            let right = match power {
                Some((whitening, exponent)) => vectors.transposed().times(&whitening.power(-exponent)),
                None => vectors.transposed(),
            };
            Self { energies: positive(values), left: weighted.times(&vectors), right }
        }
    }

    /// The factors of a rank, `[out, rank]` and `[rank, in]`.
    #[must_use]
    pub fn factors(&self, rank: usize) -> [Matrix; 2] {
        let right = self.right.transposed().first_cols(rank).transposed();
        [self.left.first_cols(rank), right]
    }
}

fn positive(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|value| value.max(0.0)).collect()
}

/// The rank that a criterion gives, at least 1.
#[must_use]
pub fn rank_of(energies: &[f64], criterion: Criterion) -> usize {
    let total: f64 = energies.iter().sum();
    let shares = || energies.iter().map(move |energy| energy / total).filter(|share| *share > 0.0);
    let terms: Vec<f64> = match criterion {
        Criterion::Energy(_) => shares().collect(),
        Criterion::SingularSum(_) => energies.iter().map(|energy| energy.sqrt()).collect(),
        Criterion::Entropy(_) | Criterion::RelativeEntropy => {
            shares().map(|share| -share * libm::log(share)).collect()
        }
    };
    let sum: f64 = terms.iter().sum();
    let share = match criterion {
        Criterion::Energy(share) | Criterion::Entropy(share) | Criterion::SingularSum(share) => share,
        Criterion::RelativeEntropy => {
            let above = libm::exp(sum);
            return (1..=energies.len().max(1))
                .find(|rank| *rank as f64 >= above)
                .unwrap_or(energies.len())
                .max(1);
        }
    };
    let mut so_far = 0.0;
    let enough = terms.iter().position(|term| {
        so_far += term;
        so_far >= share * sum
    });
    enough.map_or(energies.len(), |at| at + 1).max(1)
}

/// The largest rank whose factors have fewer elements than the matrix.
#[must_use]
pub fn largest_rank(rows: usize, cols: usize) -> usize {
    let (rows, cols) = (rows as u128, cols as u128);
    let rank = (rows * cols).saturating_sub(1) / (rows + cols).max(1);
    usize::try_from(rank).unwrap_or(usize::MAX)
}

/// Factors a matrix `[out, in]`; `None` if no rank that is wanted takes less than the matrix.
#[must_use]
pub fn factor(weights: &Matrix, inputs: &Statistics, settings: &Settings) -> Option<Form> {
    let whitening = (settings.exponent != 0.0).then(|| Whitening::new(inputs));
    let whitening = whitening.as_ref().map(|whitening| (whitening, settings.exponent));
    let most = largest_rank(weights.rows(), weights.cols());
    let spectrum = Spectrum::new(weights, whitening);
    let rank = settings.rank.of(weights.rows(), weights.cols(), &spectrum.energies);
    (1..=most).contains(&rank).then(|| form(&spectrum.factors(rank), settings.dtype))
}

/// Factors as a form.
#[must_use]
pub fn form([left, right]: &[Matrix; 2], dtype: FloatType) -> Form {
    let rank = left.cols();
    let dense = |matrix: &Matrix| Box::new(Form::Dense(Dense::new(dtype, matrix.to_f32())));
    Form::LowRank { left: dense(left), right: dense(right), rank }
}

#[cfg(test)]
mod tests {
    use super::super::test_matrices::{inputs, weights};
    use super::*;

    fn error(form: &Form, weights: &Matrix) -> Matrix {
        let decoded = form.decode(weights.rows(), weights.cols());
        weights.plus(-1.0, &Matrix::of_f32(weights.rows(), weights.cols(), &decoded))
    }

    #[test]
    fn each_exponent_is_best_by_its_own_measure() {
        for (rows, cols) in [(40, 90), (90, 40), (50, 50)] {
            let (weights, inputs) = (weights(rows, cols), inputs(cols));
            let [plain, whitened] = [0.0, 0.5].map(|exponent| {
                let settings = Settings { rank: Rank::Fixed(10), exponent, dtype: FloatType::F32 };
                error(&factor(&weights, &inputs, &settings).unwrap(), &weights)
            });
            assert!(plain.dot(&plain) < whitened.dot(&whitened), "{rows} x {cols}");
            assert!(inputs.distortion(&weights, &whitened) < inputs.distortion(&weights, &plain));
            // The squared error is the sum of the energies that were left out.
            let spectrum = Spectrum::new(&weights, None);
            let rest: f64 = spectrum.energies[10..].iter().sum();
            assert!((plain.dot(&plain) - rest).abs() < 1e-4 * rest);
        }
    }

    #[test]
    fn criteria_give_the_ranks_of_their_definitions() {
        let energies = [8.0, 4.0, 2.0, 1.0, 1.0];
        assert_eq!(rank_of(&energies, Criterion::Energy(0.5)), 1);
        assert_eq!(rank_of(&energies, Criterion::Energy(0.76)), 3);
        assert_eq!(rank_of(&energies, Criterion::Energy(1.0)), 5);
        // The entropy is 1.875 bits, and 2^1.875 = 3.67.
        assert_eq!(rank_of(&energies, Criterion::RelativeEntropy), 4);
        // Its terms are 0.5, 0.5, 0.375, 0.25 and 0.25 bits.
        assert_eq!(rank_of(&energies, Criterion::Entropy(0.53)), 2);
        assert_eq!(rank_of(&energies, Criterion::SingularSum(0.34)), 1);
        assert_eq!(rank_of(&[1.0], Criterion::RelativeEntropy), 1);
        assert_eq!(rank_of(&[0.0, 0.0], Criterion::Energy(0.9)), 2);
    }

    #[test]
    fn ranks_that_save_nothing_are_refused() {
        assert_eq!((largest_rank(320, 320), largest_rank(2, 2), largest_rank(1, 9)), (159, 0, 0));
        for (rank, is_possible) in [(0, false), (1, true), (24, true), (25, false)] {
            let settings = Settings { rank: Rank::Fixed(rank), exponent: 0.0, dtype: FloatType::BF16 };
            assert_eq!(factor(&weights(50, 50), &inputs(50), &settings).is_some(), is_possible);
        }
        let criterion = Criterion::Energy(0.9);
        let found = Rank::Found { criterion, shares: [0.05, 0.5], least: 4, multiple_of: 4 };
        assert_eq!(found.of(50, 50, &[1.0; 50]), 12);
        assert_eq!(found.of(50, 50, &[1.0]), 4);
        assert_eq!(Rank::Ratio(4.0).of(320, 320, &[]), 40);
    }
}
