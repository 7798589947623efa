//! Quantisation: to the nearest code, or with error feedback; at a fixed number of bits with steps
//! per group of columns, or at a wanted entropy with one step per matrix or column.

use deltaloom::{Error, Result};
use half::f16;

use super::{Statistics, feedback};
use crate::forms::{CodedBits, Form, LARGEST_CODE, Quantised, Scales, Steps, half};
use crate::matrix::Matrix;

/// What steps are chosen for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Codes of this many bits, 2 to 8, with a step per row and group of columns.
    Fixed {
        /// Bits of a code.
        bits: u32,
        /// Columns of a group.
        group: usize,
        /// Whether codes are as many below 0 as above.
        is_symmetric: bool,
    },
    /// Codes that take this many bits per weight when they are packed, with the tables of the
    /// coder, steps and factors.
    Entropy {
        /// Bits per weight.
        bits: f64,
        /// Whether columns get steps of their own, so that each adds the same error to outputs
        /// (WaterSIC, arXiv 2603.04956).
        per_column: bool,
    },
}

/// How a matrix is quantised.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What steps are chosen for.
    pub rate: Rate,
    /// Whether columns make up for the errors of those before them.
    pub feedback: bool,
    /// The share of the mean diagonal that is added to second moments.
    pub damping: f64,
    /// Factors of the range of a group that are tried.
    pub clips: Vec<f64>,
    /// Whether columns with the largest inputs come first, instead of those on the left.
    pub by_activation: bool,
    /// Whether each row gets the factor with the least error in outputs.
    pub rescale: bool,
}

impl Settings {
    /// Entropy-coded codes of so many bits per weight, with a step for each column.
    #[must_use]
    pub fn coded(bits: f64) -> Self {
        Self::new(Rate::Entropy { bits, per_column: true })
    }

    /// Feedback, with the usual damping and clips.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let rescale = matches!(rate, Rate::Entropy { .. });
        let clips = vec![1.0, 0.93, 0.86, 0.79, 0.72];
        Self { rate, feedback: true, damping: 0.01, clips, by_activation: false, rescale }
    }
}

/// Quantises a matrix `[out, in]`.
///
/// # Errors
/// [`Error::InvalidArgument`] for bits outside 2 to 8, groups of 0 columns, rates that are not
/// positive, and inputs that are all 0 or not finite where feedback needs them.
pub fn quantise(weights: &Matrix, inputs: &Statistics, settings: &Settings) -> Result<Form> {
    if weights.values().iter().all(|value| *value == 0.0) {
        return Ok(Form::Zero);
    }
    let columns = Columns::new(inputs, settings)?;
    match settings.rate {
        Rate::Fixed { bits, group, is_symmetric } => {
            if !(2..=8).contains(&bits) || group == 0 {
                let what = format!("{bits} bits in groups of {group}: 2 to 8 bits in groups of 1 or more");
                return Err(Error::InvalidArgument(what));
            }
            let ladder = Ladder { bits, is_symmetric: is_symmetric || bits == 8, clips: &settings.clips };
            fixed(weights, &columns, &ladder, group)
        }
        Rate::Entropy { bits, per_column } => {
            if !(bits > 0.0 && bits <= 8.0) {
                let what = format!("{bits} bits per weight: more than 0 and at most 8 are possible");
                return Err(Error::InvalidArgument(what));
            }
            entropy_coded(weights, inputs, &columns, settings, bits, per_column)
        }
    }
}

/// In which order columns are rounded, and how each makes up for those before it.
struct Columns {
    /// Columns of the matrix, in the order of their rounding.
    order: Vec<usize>,
    /// For second moments in this order; `None` without feedback.
    root: Option<Matrix>,
    /// Whether the order is not that of the matrix.
    is_sorted: bool,
}

impl Columns {
    fn new(inputs: &Statistics, settings: &Settings) -> Result<Self> {
        let sizes: Vec<f64> = inputs.second_moment.diagonal().collect();
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        if !settings.feedback {
            return Ok(Self { order, root: None, is_sorted: false });
        }
        if settings.by_activation {
            order.sort_by(|a, b| sizes[*b].total_cmp(&sizes[*a]));
        }
        let moment = inputs.second_moment.with_cols(&order).transposed().with_cols(&order);
        let sorted = Statistics { second_moment: moment, tokens: inputs.tokens };
        let what = || "the inputs of a matrix are all 0 or not finite".to_owned();
        let (root, _) =
            sorted.inverse_root(settings.damping).ok_or_else(|| Error::InvalidArgument(what()))?;
        Ok(Self { order, root: Some(root), is_sorted: settings.by_activation })
    }

    /// Calls `each` for every row, whose values are in this order, and gives its codes in the order
    /// of the matrix.
    fn rows<T: Send>(
        &self,
        weights: &Matrix,
        each: impl Fn(usize, feedback::Row<'_>) -> (Vec<i8>, T) + Sync,
    ) -> (Vec<i8>, Vec<T>) {
        let mut sorted = weights.with_cols(&self.order);
        let unit = Matrix::zeros(0, 0);
        let done = feedback::rows(&mut sorted, self.root.as_ref().unwrap_or(&unit), each);
        let mut codes = Vec::with_capacity(weights.values().len());
        let mut rest = Vec::with_capacity(done.len());
        for (sorted, more) in done {
            let mut row = vec![0; sorted.len()];
            self.order.iter().zip(sorted).for_each(|(col, code)| row[*col] = code);
            codes.append(&mut row);
            rest.push(more);
        }
        (codes, rest)
    }
}

/// How codes of a group are placed.
struct Ladder<'a> {
    bits: u32,
    is_symmetric: bool,
    clips: &'a [f64],
}

/// The codes of a group: multiples of a step from `low` to `high`.
#[derive(Clone, Copy)]
struct Rungs {
    step: f16,
    low: f64,
    high: f64,
}

impl Rungs {
    fn code(self, value: f64) -> f64 {
        (value / self.step.to_f64()).round().clamp(self.low, self.high)
    }
}

impl Ladder<'_> {
    /// The range with the least square error of some values.
    fn fit(&self, values: &[f64]) -> Rungs {
        let low = values.iter().copied().fold(0.0, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        let most = f64::from(2_u32.pow(self.bits) - 1);
        let rungs = |clip: f64| {
            if self.is_symmetric {
                let top = (most - 1.0) / 2.0;
                let step = half(high.max(-low) * clip / top);
                return Rungs { step, low: -top, high: top };
            }
            let step = half((high - low) * clip / most);
            let zero = (-low * clip / step.to_f64()).round().clamp(0.0, most);
            Rungs { step, low: -zero, high: most - zero }
        };
        let error = |rungs: &Rungs| -> f64 {
            values.iter().map(|value| (rungs.code(*value) * rungs.step.to_f64() - value).powi(2)).sum()
        };
        let mut best = rungs(1.0);
        let mut least = error(&best);
        for rungs in self.clips.iter().map(|clip| rungs(*clip)) {
            let error = error(&rungs);
            if error < least {
                (best, least) = (rungs, error);
            }
        }
        best
    }
}

fn fixed(weights: &Matrix, columns: &Columns, ladder: &Ladder<'_>, group: usize) -> Result<Form> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let groups = |row: &[f64]| -> Vec<Rungs> { row.chunks(group).map(|values| ladder.fit(values)).collect() };
    let each = |number: usize, mut row: feedback::Row<'_>| {
        // In the order of the matrix, a group is fitted to what its columns have taken over. In
        // another one its columns come at different times.
        let mut rungs = groups(weights.row(number));
        let mut codes = Vec::with_capacity(cols);
        for (at, col) in columns.order.iter().enumerate() {
            if !columns.is_sorted && at % group == 0 {
                rungs[at / group] = ladder.fit(&row.values[at..(at + group).min(cols)]);
            }
            let rungs = rungs[col / group];
            let code = rungs.code(row.values[at]);
            codes.push(to_code(code));
            if columns.root.is_some() {
                row.set(at, code * rungs.step.to_f64());
            }
        }
        (codes, rungs.iter().map(|rungs| rungs.step).collect::<Vec<_>>())
    };
    let (codes, steps) = columns.rows(weights, each);
    let steps = Steps::Groups { size: group, steps: steps.concat() };
    Ok(Form::Quantised(Quantised::new(rows, cols, codes, steps.into())?))
}

#[expect(clippy::cast_possible_truncation, reason = "clamped")]
fn to_code(code: f64) -> i8 {
    code.clamp(-f64::from(LARGEST_CODE), f64::from(LARGEST_CODE)) as i8
}

/// Steps of columns relative to that of the matrix, in the order of the matrix.
fn column_factors(columns: &Columns, root: &Matrix) -> Vec<f16> {
    let logs: Vec<f64> = root.diagonal().map(libm::log).collect();
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    let mut factors = vec![half(1.0); logs.len()];
    columns.order.iter().zip(&logs).for_each(|(col, log)| factors[*col] = half(libm::exp(log - mean)));
    factors
}

fn entropy_coded(
    weights: &Matrix,
    inputs: &Statistics,
    columns: &Columns,
    settings: &Settings,
    bits: f64,
    per_column: bool,
) -> Result<Form> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let factors = columns.root.as_ref().filter(|_| per_column).map(|root| column_factors(columns, root));
    let wide: Vec<f64> = match &factors {
        Some(factors) => factors.iter().map(|factor| factor.to_f64()).collect(),
        None => vec![1.0; cols],
    };
    let numbers = 1 + if factors.is_some() { cols } else { 0 } + if settings.rescale { rows } else { 0 };
    let of_factors = 16.0 * numbers as f64 / (rows * cols) as f64;
    let step = find_step(weights, columns, &wide, (bits - of_factors).max(0.05));
    let codes = codes_of(weights, columns, &wide, step.to_f64());
    let mut scales = Scales::from(Steps::Matrix(step)).with_columns(factors);
    if settings.rescale {
        let plain = Quantised::new(rows, cols, codes.clone(), scales.clone())?.decode();
        let rounded = Matrix::of_f32(rows, cols, &plain);
        scales = scales.with_rows(Some(row_factors(weights, &rounded, inputs, settings.damping)));
    }
    Ok(Form::Quantised(Quantised::new(rows, cols, codes, scales)?))
}

/// Codes of all rows, at this step times the factor of each column.
fn codes_of(weights: &Matrix, columns: &Columns, factors: &[f64], step: f64) -> Vec<i8> {
    let each = |_, mut row: feedback::Row<'_>| {
        let of_col = |(at, col): (usize, &usize)| {
            let step = step * factors[*col];
            let code = to_code((row.values[at] / step).round());
            if columns.root.is_some() {
                row.set(at, f64::from(code) * step);
            }
            code
        };
        (columns.order.iter().enumerate().map(of_col).collect(), ())
    };
    columns.rows(weights, each).0
}

/// Rows that steps are found on.
const SAMPLE_ROWS: usize = 64;

/// The step at which codes have the wanted entropy. A step twice as large takes about a bit from
/// the entropy, so that a few secant steps are enough.
fn find_step(weights: &Matrix, columns: &Columns, factors: &[f64], bits: f64) -> f16 {
    let every = weights.rows().div_ceil(SAMPLE_ROWS).max(1);
    let rows = (0..weights.rows()).step_by(every);
    let values: Vec<f64> = rows.clone().flat_map(|row| weights.row(row)).copied().collect();
    let sample = Matrix::new(rows.len(), weights.cols(), values).unwrap_or_else(|| weights.clone());
    let squares = sample.values().iter().map(|value| value * value).sum::<f64>();
    let deviation = (squares / sample.values().len().max(1) as f64).sqrt();
    let rate = |log_step: f64| {
        let codes = codes_of(&sample, columns, factors, libm::exp2(log_step));
        let CodedBits { codes: of_codes, tables } = CodedBits::of(&codes, sample.cols());
        // All rows have the tables of the sample.
        of_codes / codes.len().max(1) as f64 + tables / weights.values().len() as f64
    };
    // The entropy of a Gaussian of deviation 1 in steps of 1 is 2.05 bits.
    let mut log = libm::log2(deviation) + 2.05 - bits;
    let (mut low, mut high) = (log - 6.0, log + 6.0);
    for _ in 0..24 {
        let found = rate(log);
        if (found - bits).abs() < 0.002 || high - low < 1e-3 {
            break;
        }
        let bound = if found > bits { &mut low } else { &mut high };
        *bound = log;
        let newton = log + found - bits;
        log = if newton > low && newton < high { newton } else { (low + high) / 2.0 };
    }
    half(libm::exp2(log))
}

/// For each row the factor of `rounded` that brings its outputs nearest to those of `weights`.
fn row_factors(weights: &Matrix, rounded: &Matrix, inputs: &Statistics, damping: f64) -> Vec<f16> {
    let moment = inputs.second_moment.damped(damping);
    let (of_weights, of_rounded) = (weights.times(&moment), rounded.times(&moment));
    let factor = |row: usize| {
        let dot = |a: &Matrix| -> f64 { a.row(row).iter().zip(rounded.row(row)).map(|(a, b)| a * b).sum() };
        let (wanted, size) = (dot(&of_weights), dot(&of_rounded));
        let factor = if size > 0.0 && wanted > 0.0 { wanted / size } else { 1.0 };
        f16::from_f64(factor.clamp(0.25, 4.0))
    };
    (0..weights.rows()).map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::super::test_matrices::{inputs, weights};
    use super::*;

    fn distortion(form: &Form, weights: &Matrix, inputs: &Statistics) -> f64 {
        let decoded = form.decode(weights.rows(), weights.cols());
        let decoded = Matrix::of_f32(weights.rows(), weights.cols(), &decoded);
        inputs.distortion(weights, &weights.plus(-1.0, &decoded))
    }

    #[test]
    fn feedback_loses_less_than_the_nearest_codes() {
        let (weights, inputs) = (weights(48, 96), inputs(96));
        for bits in [2, 3, 4] {
            let settings = Settings::new(Rate::Fixed { bits, group: 32, is_symmetric: false });
            let nearest = Settings { feedback: false, ..settings.clone() };
            let [with, without] = [settings, nearest].map(|settings| {
                distortion(&quantise(&weights, &inputs, &settings).unwrap(), &weights, &inputs)
            });
            assert!(with < 0.7 * without, "{bits} bits: {with} and {without}");
        }
    }

    #[test]
    fn codes_have_the_wanted_entropy() {
        let (weights, inputs) = (weights(256, 64), inputs(64));
        for (bits, per_column) in [(3.5, false), (2.5, true), (1.6, true), (0.9, false)] {
            let settings = Settings::new(Rate::Entropy { bits, per_column });
            let Form::Quantised(found) = quantise(&weights, &inputs, &settings).unwrap() else { panic!() };
            let CodedBits { codes, tables } = CodedBits::of(found.codes(), 64);
            let factors = 16 * (1 + 256 + if per_column { 64 } else { 0 });
            let found = (codes + tables + f64::from(factors)) / (256.0 * 64.0);
            assert!((found - bits).abs() < 0.1, "{bits}: {found}");
        }
    }

    #[test]
    fn columns_of_equal_error_lose_less() {
        let (weights, inputs) = (weights(64, 96), inputs(96));
        let [same, own] = [false, true].map(|per_column| {
            let settings = Settings::new(Rate::Entropy { bits: 2.0, per_column });
            distortion(&quantise(&weights, &inputs, &settings).unwrap(), &weights, &inputs)
        });
        assert!(own < same, "{own} and {same}");
    }

    #[test]
    fn odd_matrices_are_quantised_or_refused() {
        let settings = Settings::new(Rate::Fixed { bits: 3, group: 64, is_symmetric: false });
        let zeros = Matrix::zeros(3, 5);
        assert_eq!(quantise(&zeros, &inputs(5), &settings).unwrap(), Form::Zero);
        for (rows, cols) in [(1, 7), (7, 1), (2, 65)] {
            let form = quantise(&weights(rows, cols), &inputs(cols), &settings).unwrap();
            assert!(form.decode(rows, cols).iter().all(|value| value.is_finite()));
        }
        let dead = Statistics { second_moment: Matrix::zeros(5, 5), tokens: 9 };
        assert!(quantise(&weights(3, 5), &dead, &settings).is_err());
        let bad = [
            Rate::Fixed { bits: 1, group: 64, is_symmetric: true },
            Rate::Entropy { bits: 0.0, per_column: true },
        ];
        for rate in bad {
            assert!(quantise(&weights(3, 5), &inputs(5), &Settings::new(rate)).is_err());
        }
    }
}
