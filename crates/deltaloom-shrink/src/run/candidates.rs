//! What each tensor may become, with the bits that it then takes and the divergence that this is
//! expected to cost.
//!
//! For a matrix of a layer the error of its outputs is computed for all candidates, and one of them
//! is measured, which says what such an error costs. Candidates of another kind are measured too,
//! if they could win. Candidates of the embedding are all measured: nothing else predicts them.

use std::collections::BTreeMap;

use deltaloom::Result;
use rayon::prelude::*;

use super::embedding::Table;
use super::settings::Settings;
use super::solve::{Choice, Tensor};
use crate::branches::low_rank::{Spectrum, Whitening};
use crate::branches::{Statistics, low_rank, quantise, sparsity};
use crate::data::Texts;
use crate::forms::{FloatType, Form};
use crate::matrix::Matrix;
use crate::measure::Reference;
use crate::network::{Input, Network, batch};
use crate::pipeline::{LowRank, Treatment, quantised_factors, treat};
use crate::recipe::{Distortion, Loaded};

/// A method of storing a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Candidate {
    /// It stays as it is.
    Kept,
    /// All elements are 0.
    Zero,
    /// Codes of this many bits per weight.
    Codes { rate: f64 },
    /// Two factors, in codes of this many bits per number.
    LowRank { rank: usize, exponent: f64, rate: f64 },
    /// This share of the weights is 0, the others stay as BF16.
    Sparse { zeros: f64 },
}

/// Rates in bits per weight that codes are made at.
const RATES: [f64; 8] = [0.15, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 4.5];
/// The one of them that is measured for each matrix.
const MEASURED: usize = 5;
/// Choices between two rates that codes are made at.
const BETWEEN: u32 = 24;
/// Ranks, as shares of the largest that saves anything.
const RANKS: [f64; 3] = [0.1, 0.25, 0.5];
/// Bits per number of their factors.
const FACTOR_RATE: f64 = 3.0;
/// Shares of zeros.
const ZEROS: [f64; 4] = [0.5, 0.75, 0.9, 0.97];
/// Candidates of the embedding or the head: zeros, codes and factors.
const OF_TABLE: usize = 1 + RATES.len() + RANKS.len();
/// How much worse than codes of as many bits another candidate may look and still be measured.
const WORSE: f64 = 2.0;
/// Windows that errors are computed on.
const WINDOWS: usize = 16;

/// What candidates are made of and measured with.
pub(super) struct Work<'a> {
    pub(super) loaded: &'a Loaded,
    pub(super) teacher: &'a Network,
    pub(super) texts: &'a Texts,
    pub(super) settings: &'a Settings,
    pub(super) tables: &'a BTreeMap<&'a str, Table>,
    pub(super) reference: &'a Reference,
    pub(super) advance: &'a dyn Fn(usize) -> Result<()>,
}

/// A matrix of a layer, and what it reads.
struct Subject<'a> {
    name: &'a str,
    layer: usize,
    matrix: Matrix,
    inputs: &'a Statistics,
    /// The directions of the inputs, if low rank is tried.
    whitening: Option<&'a Whitening>,
}

/// A candidate that was made.
struct Sample {
    candidate: Candidate,
    bits: f64,
    /// Error of the outputs.
    distortion: f64,
    form: Form,
}

impl Candidate {
    /// What is done to a matrix of a layer, if anything is.
    pub(super) fn treatment(self) -> Option<Treatment> {
        let codes = |rate| Some(quantise::Settings::coded(rate));
        Some(match self {
            Self::Kept => return None,
            Self::Zero => Treatment { is_dropped: true, ..Treatment::default() },
            Self::Codes { rate } => Treatment { quantise: codes(rate), ..Treatment::default() },
            Self::LowRank { rank, exponent, rate } => {
                let rank = low_rank::Rank::Fixed(rank);
                let settings = low_rank::Settings { rank, exponent, dtype: FloatType::BF16 };
                let low_rank = Some(LowRank { settings, keep_residual: false });
                Treatment { low_rank, quantise: codes(rate), ..Treatment::default() }
            }
            Self::Sparse { zeros } => {
                Treatment { sparse: Some(sparsity::Settings::new(zeros)), ..Treatment::default() }
            }
        })
    }
}

/// Measurements that [`Work::tensors`] makes of a whole student, about.
pub(super) fn measurements(loaded: &Loaded, teacher: &Network, tables: usize) -> usize {
    let of_tables = tables * OF_TABLE;
    (matrices(teacher) + of_tables).min(loaded.recipe.planner.evaluations.max(of_tables))
}

/// Number of matrices of the layers.
pub(super) fn matrices(teacher: &Network) -> usize {
    teacher.parts().layers.iter().map(|names| names.matrices().count()).sum()
}

impl Work<'_> {
    /// The choices of all tensors that are not protected.
    pub(super) fn tensors(&self) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::new();
        for (name, table) in self.tables {
            tensors.push(self.of_table(name, table)?);
        }
        // Matrices between those that are measured take the mean factor of these.
        let of_tables = self.tables.len() * OF_TABLE;
        let allowed = self.loaded.recipe.planner.evaluations.saturating_sub(of_tables);
        let every = matrices(self.teacher).div_ceil(allowed.max(1)).max(1);
        let mut factors = Vec::new();
        self.each_matrix(&mut |subject| {
            let number = tensors.len() - self.tables.len();
            tensors.push(self.of_matrix(subject, number.is_multiple_of(every), &mut factors)?);
            Ok(())
        })?;
        Ok(tensors)
    }

    /// Calls `each` with every matrix of the layers.
    fn each_matrix(&self, each: &mut dyn FnMut(&Subject<'_>) -> Result<()>) -> Result<()> {
        let Self { teacher, texts, settings, .. } = self;
        let windows = &texts.calibrate[..WINDOWS.min(texts.calibrate.len())];
        let sequences: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let batch = batch(&sequences)?;
        let mut x = teacher.embed(&sequences)?;
        for layer in 0..teacher.parts().config.layers.len() {
            let weights = teacher.weights(layer).watched();
            x = teacher.layer(layer, &batch, &x, &weights)?;
            let width = |x: &Vec<f32>| x.len() / batch.tokens().max(1);
            let of_inputs = weights.into_inputs().into_iter();
            let of_inputs = of_inputs.map(|(input, x)| Ok((input, Statistics::of(&x, width(&x))?)));
            let of_inputs: BTreeMap<Input, Statistics> = of_inputs.collect::<Result<_>>()?;
            let whitens =
                settings.candidates.low_rank && settings.exponents.iter().any(|power| *power != 0.0);
            let whitening = of_inputs.par_iter().filter(|_| whitens);
            let whitening: BTreeMap<Input, Whitening> =
                whitening.map(|(input, inputs)| (*input, Whitening::new(inputs))).collect();
            for (role, name) in teacher.parts().layers[layer].matrices() {
                let inputs = of_inputs.get(&Input::of(role)).filter(|_| !settings.is_protected(name));
                if let Some(inputs) = inputs {
                    let (matrix, whitening) = (teacher.wide(name)?, whitening.get(&Input::of(role)));
                    each(&Subject { name, layer, matrix, inputs, whitening })?;
                }
            }
        }
        Ok(())
    }

    fn of_matrix(&self, subject: &Subject<'_>, is_measured: bool, factors: &mut Vec<f64>) -> Result<Tensor> {
        let Subject { name, layer, matrix, inputs, .. } = subject;
        let (name, from) = (*name, Some(*layer));
        let shape = [matrix.rows(), matrix.cols()];
        let sampled = self.samples(subject)?;
        let (codes, others): (Vec<Sample>, Vec<Sample>) =
            sampled.into_iter().partition(|sample| matches!(sample.candidate, Candidate::Codes { .. }));
        let own = match codes.get(MEASURED).or_else(|| others.get(others.len() / 2)) {
            Some(Sample { distortion, form, .. }) if is_measured && *distortion > 0.0 => {
                Some(self.measured(name, from, shape, form)? / distortion)
            }
            _ => None,
        };
        factors.extend(own);
        let mean = factors.iter().sum::<f64>() / factors.len().max(1) as f64;
        let factor = own.unwrap_or(mean);
        let choice = |Sample { candidate, bits, distortion, .. }: &Sample| Choice {
            candidate: *candidate,
            bits: *bits,
            cost: factor * distortion,
        };
        let measured = |sample: &Sample| -> Result<Choice> {
            Ok(Choice { cost: self.measured(name, from, shape, &sample.form)?, ..choice(sample) })
        };
        let measures_all = self.loaded.recipe.planner.distortion == Distortion::Measured;
        let zero = Sample {
            candidate: Candidate::Zero,
            bits: 0.0,
            distortion: inputs.distortion(matrix, matrix),
            form: Form::Zero,
        };
        let all = std::iter::once(&zero).chain(&codes);
        let mut choices: Vec<Choice> = match measures_all {
            true => all.map(measured).collect::<Result<_>>()?,
            false => all.map(choice).collect(),
        };
        let codes = between(&choices.split_off(1));
        choices.extend(codes);
        for sample in &others {
            let estimate = choice(sample);
            let could_win = estimate.cost <= WORSE * cost_of_codes(&choices, estimate.bits);
            if could_win || measures_all {
                choices.push(if is_measured || measures_all { measured(sample)? } else { estimate });
            }
        }
        Ok(self.tensor(name, matrix.rows() * matrix.cols(), choices))
    }

    /// All candidates of a matrix but zeros.
    fn samples(&self, subject: &Subject<'_>) -> Result<Vec<Sample>> {
        let Subject { matrix, inputs, .. } = subject;
        let [rows, cols] = [matrix.rows(), matrix.cols()];
        let Settings { candidates, exponents, .. } = self.settings;
        let mut all = Vec::new();
        if candidates.codes {
            all.extend(RATES.map(|rate| Candidate::Codes { rate }));
        }
        if candidates.sparse {
            all.extend(ZEROS.map(|zeros| Candidate::Sparse { zeros }));
        }
        let sample = |candidate: Candidate, form: Form| {
            let error = matrix.plus(-1.0, &form.matrix(rows, cols));
            let distortion = inputs.distortion(matrix, &error);
            Sample { candidate, bits: form.coded_bits([rows, cols]), distortion, form }
        };
        let treated = |candidate: Candidate| -> Result<Option<Sample>> {
            let form = candidate.treatment().map(|treatment| treat(matrix, inputs, &treatment));
            Ok(form.transpose()?.flatten().map(|form| sample(candidate, form)))
        };
        let treated: Vec<Option<Sample>> = all.into_par_iter().map(treated).collect::<Result<_>>()?;
        // All ranks come from one decomposition.
        let factored = |exponent: &f64| -> Result<Vec<Sample>> {
            let spectrum = Spectrum::new(matrix, subject.whitening.map(|whitening| (whitening, *exponent)));
            let largest = low_rank::largest_rank(rows, cols);
            let of_rank = |share| {
                let rank = share_of(largest, share);
                let candidate = Candidate::LowRank { rank, exponent: *exponent, rate: FACTOR_RATE };
                let settings = quantise::Settings::coded(FACTOR_RATE);
                Ok(sample(candidate, quantised_factors(&spectrum.factors(rank), inputs, &settings)?))
            };
            RANKS.map(of_rank).into_iter().collect()
        };
        let exponents = if candidates.low_rank { &exponents[..] } else { &[] };
        let factored: Vec<Vec<Sample>> = exponents.par_iter().map(factored).collect::<Result<_>>()?;
        Ok(treated.into_iter().flatten().chain(factored.into_iter().flatten()).collect())
    }

    fn of_table(&self, name: &str, table: &Table) -> Result<Tensor> {
        let [rows, cols] = self.teacher.shape(name)?;
        let at = |candidate: Candidate| -> Result<Choice> {
            let form = table.form(candidate)?.unwrap_or(Form::Zero);
            let cost = self.measured(name, None, [rows, cols], &form)?;
            Ok(Choice { candidate, bits: form.coded_bits([rows, cols]), cost })
        };
        let mut choices = vec![at(Candidate::Zero)?];
        if self.settings.candidates.codes {
            let codes = RATES.iter().map(|rate| at(Candidate::Codes { rate: *rate }));
            choices.extend(between(&codes.collect::<Result<Vec<_>>>()?));
        }
        if self.settings.candidates.tables {
            let largest = low_rank::largest_rank(rows, cols);
            for rank in RANKS.map(|share| share_of(largest, share)) {
                choices.push(at(Candidate::LowRank { rank, exponent: 0.5, rate: FACTOR_RATE })?);
            }
        }
        Ok(self.tensor(name, rows * cols, choices))
    }

    /// What a student costs in which only this tensor is changed, which belongs to a layer or to
    /// none.
    fn measured(
        &self,
        name: &str,
        layer: Option<usize>,
        [rows, cols]: [usize; 2],
        form: &Form,
    ) -> Result<f64> {
        let mut network = self.teacher.clone();
        network.replace(name, [rows, cols], &form.decode(rows, cols))?;
        let measured = match layer {
            Some(layer) => self.reference.compare_from(&network, layer, self.advance),
            None => self.reference.compare(&network, self.advance),
        };
        Ok(measured?.kl())
    }

    /// A tensor without choices that are too small. It may always stay as it is.
    fn tensor(&self, name: &str, weights: usize, mut choices: Vec<Choice>) -> Tensor {
        let floor = self.settings.floor(name) * weights as f64;
        choices.retain(|choice| choice.bits >= floor);
        let stored = self.teacher.parts().checkpoint.weights().find(|(_, info)| info.name == name);
        let bits = stored.map_or(0.0, |(_, info)| info.len_bytes() as f64 * 8.0);
        choices.push(Choice { candidate: Candidate::Kept, bits, cost: 0.0 });
        Tensor { name: name.to_owned(), weights, choices }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a rank")]
fn share_of(rank: usize, share: f64) -> usize {
    ((rank as f64 * share) as usize).max(1)
}

/// Codes at all rates between some that were made. Bits grow evenly from one to the next, and so
/// does the logarithm of the cost.
fn between(made: &[Choice]) -> Vec<Choice> {
    let rate_of = |choice: &Choice| match choice.candidate {
        Candidate::Codes { rate } => rate,
        _ => 0.0,
    };
    let mut all = Vec::new();
    for pair in made.windows(2) {
        let [low, high] = pair else { continue };
        let costs = [low.cost, high.cost].map(|cost| cost.max(1e-12));
        all.extend((0..BETWEEN).map(|step| {
            let along = f64::from(step) / f64::from(BETWEEN);
            let mix = |low: f64, high: f64| low + along * (high - low);
            Choice {
                candidate: Candidate::Codes { rate: mix(rate_of(low), rate_of(high)) },
                bits: mix(low.bits, high.bits),
                cost: costs[0] * libm::pow(costs[1] / costs[0], along),
            }
        }));
    }
    all.extend(made.last());
    all
}

/// The least cost of the choices that take at most so many bits.
fn cost_of_codes(choices: &[Choice], bits: f64) -> f64 {
    let fitting = choices.iter().filter(|choice| choice.bits <= bits);
    fitting.map(|choice| choice.cost).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_between_samples_lie_between_theirs() {
        let choice = |rate, bits, cost| Choice { candidate: Candidate::Codes { rate }, bits, cost };
        let all = between(&[choice(1.0, 110.0, 0.5), choice(2.0, 210.0, 0.125), choice(4.0, 410.0, 0.0)]);
        assert_eq!(all.len(), 2 * BETWEEN as usize + 1);
        let middle = all[BETWEEN as usize / 2];
        assert_eq!((middle.candidate, middle.bits), (Candidate::Codes { rate: 1.5 }, 160.0));
        assert!((middle.cost - 0.25).abs() < 1e-12);
        assert!(all.windows(2).all(|pair| pair[0].bits < pair[1].bits && pair[0].cost > pair[1].cost));
        assert_eq!(all[all.len() - 1].cost, 0.0);
        assert_eq!(cost_of_codes(&all, 215.0), 0.125);
        assert_eq!(cost_of_codes(&all, 100.0), f64::INFINITY);
    }
}
