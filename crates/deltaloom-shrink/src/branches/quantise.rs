//! Quantisation: to the nearest code, or with error feedback; at a fixed number of bits with steps
//! per group of columns, or at a wanted entropy with one step per matrix or column.

use deltaloom::{Error, Result};
use half::f16;

use super::ladder::{Ladder, Rungs};
use super::{Statistics, feedback};
use crate::forms::{CodedBits, Form, LARGEST_CODE, Quantised, Scales, Steps, half};
use crate::matrix::Matrix;

/// What steps are chosen for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Codes of this many bits, 1 to 8, with a step per row and group of columns. One bit is a
    /// sign.
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
    /// Entropy-coded codes with the same error in the outputs of any matrix, so that bits go where
    /// they matter.
    Step {
        /// The step, as what a code of 1 adds to outputs when the columns behind it make up for it.
        step: f64,
        /// Whether columns get steps of their own. Factors of columns are quarters of an octave.
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
    /// Share of a step above which an entropy-coded weight does not become 0, and so on for larger
    /// codes: 1/2 is the nearest code, and more takes fewer bits.
    pub threshold: f64,
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
        Self { rate, feedback: true, damping: 0.01, clips, by_activation: false, rescale, threshold: 0.5 }
    }

    /// The same without steps of columns.
    pub(crate) fn with_one_step(&self) -> Self {
        let rate = match self.rate {
            Rate::Fixed { .. } => self.rate,
            Rate::Entropy { bits, .. } => Rate::Entropy { bits, per_column: false },
            Rate::Step { step, .. } => Rate::Step { step, per_column: false },
        };
        Self { rate, ..self.clone() }
    }
}

/// Quantises a matrix `[out, in]`.
///
/// # Errors
/// [`Error::InvalidArgument`] for bits outside 1 to 8, groups of 0 columns, rates that are not
/// positive, and inputs that are all 0 or not finite where feedback needs them.
pub fn quantise(weights: &Matrix, inputs: &Statistics, settings: &Settings) -> Result<Form> {
    if weights.values().iter().all(|value| *value == 0.0) {
        return Ok(Form::Zero);
    }
    let columns = Columns::new(inputs, settings)?;
    match settings.rate {
        Rate::Fixed { bits, group, is_symmetric } => {
            fixed(weights, &columns, &Ladder::new(bits, is_symmetric, &settings.clips)?, group)
        }
        Rate::Entropy { bits, .. } if !(bits > 0.0 && bits <= 8.0) => {
            wrong(format!("{bits} bits per weight: more than 0 and at most 8 are possible"))
        }
        Rate::Step { step, .. } if !(step > 0.0 && step.is_finite()) => {
            wrong(format!("a step of {step}: it must be above 0"))
        }
        Rate::Entropy { per_column, .. } | Rate::Step { per_column, .. } => {
            entropy_coded(weights, inputs, &columns, settings, per_column)
        }
    }
}

/// Quantises a row of values, of whose inputs nothing is known, to the nearest codes of fixed bits.
///
/// # Errors
/// [`Error::InvalidArgument`] as [`quantise`], and for entropy-coded codes.
pub fn nearest(values: &Matrix, settings: &Settings) -> Result<Form> {
    let columns = Columns { order: (0..values.cols()).collect(), root: None, is_sorted: false };
    match settings.rate {
        Rate::Fixed { bits, group, is_symmetric } => {
            fixed(values, &columns, &Ladder::new(bits, is_symmetric, &settings.clips)?, group)
        }
        _ => wrong("values of a sparse matrix have codes of fixed bits".to_owned()),
    }
}

fn wrong<T>(what: String) -> Result<T> {
    Err(Error::InvalidArgument(what))
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

fn fixed(weights: &Matrix, columns: &Columns, ladder: &Ladder<'_>, group: usize) -> Result<Form> {
    let (rows, cols) = (weights.rows(), weights.cols());
    if group == 0 {
        return wrong("a group of 0 columns".to_owned());
    }
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

/// Steps of columns for the same error in outputs, as logarithms to base 2 in the order of
/// rounding.
fn log_steps(columns: &Columns, inputs: &Statistics) -> Vec<f64> {
    match &columns.root {
        Some(root) => root.diagonal().map(libm::log2).collect(),
        None => inputs.second_moment.diagonal().map(|size| -0.5 * libm::log2(size.max(1e-30))).collect(),
    }
}

/// Steps of columns relative to their mean, in the order of the matrix. Those of a grid take few
/// bits.
fn column_factors(columns: &Columns, logs: &[f64], mean: f64, grid: Option<f64>) -> Vec<f16> {
    let mut factors = vec![half(1.0); logs.len()];
    for (col, log) in columns.order.iter().zip(logs) {
        let log = grid.map_or(log - mean, |grid| ((log - mean) * grid).round() / grid);
        factors[*col] = half(libm::exp2(log));
    }
    factors
}

fn entropy_coded(
    weights: &Matrix,
    inputs: &Statistics,
    columns: &Columns,
    settings: &Settings,
    per_column: bool,
) -> Result<Form> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let logs = log_steps(columns, inputs);
    let mean = logs.iter().sum::<f64>() / logs.len().max(1) as f64;
    let grid = matches!(settings.rate, Rate::Step { .. }).then_some(4.0);
    // Factors that take more than half of the bits are not worth it.
    let of_factors = |numbers: usize| 16.0 * numbers as f64 / (rows * cols).max(1) as f64;
    let most = if let Rate::Entropy { bits, .. } = settings.rate { bits / 2.0 } else { f64::INFINITY };
    let has_factors = per_column && columns.root.is_some() && of_factors(1 + cols) <= most;
    let of_columns = if has_factors { cols } else { 0 };
    let has_rows = settings.rescale && of_factors(1 + of_columns + rows) <= most;
    let factors = has_factors.then(|| column_factors(columns, &logs, mean, grid));
    let wide: Vec<f64> = match &factors {
        Some(factors) => factors.iter().map(|factor| factor.to_f64()).collect(),
        None => vec![1.0; cols],
    };
    let of_factors = of_factors(1 + of_columns + if has_rows { rows } else { 0 });
    let coder = Coder { columns, factors: &wide, threshold: settings.threshold };
    let step = match settings.rate {
        Rate::Step { step, .. } => half(step * libm::exp2(mean)),
        Rate::Entropy { bits, .. } => find_step(weights, &coder, (bits - of_factors).max(bits / 4.0)),
        Rate::Fixed { .. } => half(1.0),
    };
    let codes = coder.codes(weights, step.to_f64());
    if codes.iter().all(|code| *code == 0) {
        return Ok(Form::Zero);
    }
    let mut scales = Scales::from(Steps::Matrix(step)).with_columns(factors);
    if has_rows {
        let plain = Quantised::new(rows, cols, codes.clone(), scales.clone())?.decode();
        let rounded = Matrix::of_f32(rows, cols, &plain);
        scales = scales.with_rows(Some(row_factors(weights, &rounded, inputs, settings.damping)));
    }
    Ok(Form::Quantised(Quantised::new(rows, cols, codes, scales)?))
}

/// Makes codes at steps of the same proportions.
struct Coder<'a> {
    columns: &'a Columns,
    /// Steps of columns relative to that of the matrix.
    factors: &'a [f64],
    threshold: f64,
}

impl Coder<'_> {
    /// Codes of all rows, at this step times the factor of each column.
    fn codes(&self, weights: &Matrix, step: f64) -> Vec<i8> {
        let Self { columns, factors, threshold } = self;
        let each = |_, mut row: feedback::Row<'_>| {
            let of_col = |(at, col): (usize, &usize)| {
                let step = step * factors[*col];
                let value = row.values[at] / step;
                let code = to_code((value.abs() + 1.0 - threshold).floor().copysign(value));
                if columns.root.is_some() {
                    row.set(at, f64::from(code) * step);
                }
                code
            };
            (columns.order.iter().enumerate().map(of_col).collect(), ())
        };
        columns.rows(weights, each).0
    }
}

/// Rows that steps are found on.
const SAMPLE_ROWS: usize = 64;

/// The step at which codes have the wanted entropy. A step twice as large takes about a bit from
/// the entropy, so that a few secant steps are enough.
fn find_step(weights: &Matrix, coder: &Coder<'_>, bits: f64) -> f16 {
    let every = weights.rows().div_ceil(SAMPLE_ROWS).max(1);
    let rows = (0..weights.rows()).step_by(every);
    let values: Vec<f64> = rows.clone().flat_map(|row| weights.row(row)).copied().collect();
    let sample = Matrix::new(rows.len(), weights.cols(), values).unwrap_or_else(|| weights.clone());
    let squares = sample.values().iter().map(|value| value * value).sum::<f64>();
    let deviation = (squares / sample.values().len().max(1) as f64).sqrt();
    let rate = |log_step: f64| {
        let codes = coder.codes(&sample, libm::exp2(log_step));
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
            Rate::Fixed { bits: 0, group: 64, is_symmetric: true },
            Rate::Fixed { bits: 3, group: 0, is_symmetric: true },
            Rate::Step { step: 0.0, per_column: true },
            Rate::Entropy { bits: 0.0, per_column: true },
        ];
        for rate in bad {
            assert!(quantise(&weights(3, 5), &inputs(5), &Settings::new(rate)).is_err());
        }
    }
}
