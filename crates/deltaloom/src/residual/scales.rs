//! Estimates step scales of rows and columns from a group of chunks; docs/adr/0008.
//! Only the writer estimates. Readers take the scales from the container.

use deltaloom_kernels::keys::KEY_STEPS_PER_OCTAVE;
use deltaloom_kernels::{Number, NumberKind, steps};
use rayon::prelude::*;

/// Key of a weight whose ULP is as large as the expected step.
const KEY_OF_ONE_ULP: i32 = 128;
/// A row or column that does not move at all lies this far below the one that moves least.
const UNMOVED: i32 = 6 * KEY_STEPS_PER_OCTAVE;
/// Elements of a run for a uniform scale, and how many runs there are for each one that is used.
const UNIFORM_RUN: usize = 512;
const UNIFORM_STRIDE: usize = 16;
/// Approximate number of rows of a group that column steps are taken from.
const COLUMN_ROWS: usize = 256;
/// Thresholds for rounding log2 to quarters: 2^(1/8), 2^(3/8), 2^(5/8), 2^(7/8).
const QUARTERS: [f64; 4] =
    [1.090_507_732_665_257_7, 1.296_839_554_651_009_6, 1.542_210_825_407_940_7, 1.834_008_086_409_342_4];

/// Scales of a group: an offset and, for matrices, one scale per row of each chunk and one per
/// column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scales {
    pub(crate) offset: i32,
    /// The row scales of each chunk of the group. Empty if rows have none.
    pub(crate) rows: Vec<Vec<i32>>,
    /// Empty if columns have none.
    pub(crate) cols: Vec<i32>,
}

/// Target and prediction of a chunk, of the same length.
pub(crate) type Pair<'a> = (&'a [u8], &'a [u8]);

/// Quarter octaves of x, rounded; `None` if x is not positive.
fn quarter_octaves(x: f64) -> Option<i32> {
    if x.is_nan() || x < f64::MIN_POSITIVE {
        return None;
    }
    let bits = x.to_bits();
    let exponent = (bits >> 52 & 0x7ff) as i32 - 1023;
    let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    let quarters: i32 = QUARTERS.iter().map(|threshold| i32::from(mantissa >= *threshold)).sum();
    Some(KEY_STEPS_PER_OCTAVE * exponent + quarters)
}

/// Rounded quarter octaves of all values. Zeros go below all others.
fn all_quarter_octaves(values: &[f64]) -> Vec<i32> {
    let moved: Vec<Option<i32>> = values.iter().map(|x| quarter_octaves(*x)).collect();
    let least = moved.iter().flatten().min().copied().unwrap_or(0);
    moved.into_iter().map(|scale| scale.unwrap_or(least - UNMOVED)).collect()
}

/// Elements below 2^-48 have the lowest of the absolute keys.
const LEAST_OCTAVE: i32 = 48;

/// Offset for which a step of 1.0 puts a ULP of 1.0 at [`KEY_OF_ONE_ULP`].
fn unit_offset(number: Number) -> i32 {
    let octaves = match number.kind() {
        NumberKind::Float => (1 << (number.exponent_bits() - 1)) - 1 + number.mantissa_bits().cast_signed(),
        _ => 0,
    };
    KEY_STEPS_PER_OCTAVE * octaves - KEY_OF_ONE_ULP
}

/// Offset of keys that do not depend on steps: from 2^-48 on, one key for every quarter octave of
/// the element.
pub(crate) fn absolute_offset(number: Number) -> i32 {
    let bias = match number.kind() {
        NumberKind::Float => (1 << (number.exponent_bits() - 1)) - 1,
        _ => return 0,
    };
    KEY_STEPS_PER_OCTAVE * (bias - LEAST_OCTAVE)
}

/// One scale for all elements, from the mean step of a sample. It only places the keys, so that
/// tensors with similar steps can share tables.
pub(crate) fn uniform(number: Number, chunks: &[Pair<'_>]) -> Scales {
    let run_bytes = UNIFORM_RUN * number.bytes();
    let mut steps = vec![0.0; UNIFORM_RUN];
    let (mut sum, mut elems) = (0.0, 0);
    for (target, prediction) in chunks {
        let runs = target.chunks(run_bytes).zip(prediction.chunks(run_bytes)).step_by(UNIFORM_STRIDE);
        for (target, prediction) in runs {
            let steps = &mut steps[..target.len() / number.bytes()];
            steps::absolute_steps(number, target, prediction, steps);
            sum += steps.iter().map(|step| f64::from(*step)).sum::<f64>();
            elems += steps.len();
        }
    }
    let mean = sum / elems.max(1) as f64;
    let step = quarter_octaves(mean).unwrap_or(0);
    Scales { offset: unit_offset(number) + step, rows: Vec::new(), cols: Vec::new() }
}

/// Row and column scales of a matrix. The step of an element is modelled as row step times column
/// step. Column steps come from evenly spaced rows, relative to the mean of each. Row steps come
/// from all elements, relative to their columns.
pub(crate) fn rows_and_cols(number: Number, cols: usize, chunks: &[Pair<'_>]) -> Scales {
    let col_steps = col_steps(number, cols, chunks);
    let weights: Vec<f32> = col_steps.iter().map(|step| inverse(*step)).collect();
    let row_steps_of = |pair: &Pair<'_>| row_steps(number, &weights, *pair);
    let row_steps: Vec<Vec<f64>> = chunks.par_iter().map(row_steps_of).collect();
    let row_scales = all_quarter_octaves(&row_steps.concat());
    let mut rest = row_scales.as_slice();
    let rows = row_steps
        .iter()
        .map(|chunk| {
            let (scales, after) = rest.split_at(chunk.len());
            rest = after;
            scales.to_vec()
        })
        .collect();
    Scales { offset: unit_offset(number), rows, cols: all_quarter_octaves(&col_steps) }
}

/// Mean step of every column, in units of the rows' mean steps.
fn col_steps(number: Number, cols: usize, chunks: &[Pair<'_>]) -> Vec<f64> {
    let row_bytes = cols * number.bytes();
    let rows: usize = chunks.iter().map(|(target, _)| target.len() / row_bytes).sum();
    let stride = (rows / COLUMN_ROWS).max(1);
    let (mut sums, mut steps, mut taken) = (vec![0.0f32; cols], vec![0.0f32; cols], 0);
    let ones = vec![1.0; cols];
    for (target, prediction) in chunks {
        for (t, p) in target.chunks(row_bytes).zip(prediction.chunks(row_bytes)).step_by(stride) {
            steps::absolute_steps(number, t, p, &mut steps);
            let weight = inverse(f64::from(dot(&steps, &ones)) / cols as f64);
            sums.iter_mut().zip(&steps).for_each(|(sum, step)| *sum += step * weight);
            taken += 1;
        }
    }
    sums.into_iter().map(|sum| f64::from(sum) / f64::from(taken.max(1))).collect()
}

/// Mean of `step * weight` of every row.
fn row_steps(number: Number, weights: &[f32], (target, prediction): Pair<'_>) -> Vec<f64> {
    let row_bytes = weights.len() * number.bytes();
    let mut steps = vec![0.0; weights.len()];
    let rows = target.chunks(row_bytes).zip(prediction.chunks(row_bytes));
    rows.map(|(t, p)| {
        steps::absolute_steps(number, t, p, &mut steps);
        f64::from(dot(&steps, weights)) / weights.len() as f64
    })
    .collect()
}

/// A sum of products, in sixteen partial sums so that it is vectorised.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a_runs, b_runs) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a_runs.remainder().iter().zip(b_runs.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_runs.zip(b_runs) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(sum, (x, y))| *sum += x * y);
    }
    sums.iter().sum::<f32>() + rest
}

fn inverse(x: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "an estimate in single precision")]
    let inverse = (1.0 / x) as f32;
    if inverse.is_finite() { inverse } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_rounded_logarithms() {
        for (x, expected) in [(1.0, 0), (2.0, 4), (1.19, 1), (1.5, 2), (1.9, 4), (0.5, -4), (1e-3, -40)] {
            assert_eq!(quarter_octaves(x), Some(expected), "{x}");
        }
        assert_eq!((quarter_octaves(0.0), quarter_octaves(f64::NAN)), (None, None));
        assert_eq!(all_quarter_octaves(&[4.0, 0.0, 1.0]), [8, -24, 0]);
    }

    #[test]
    fn rank_one_steps_are_recovered() {
        let (number, rows, cols) = (Number::float(8, 23), 8, 4);
        let bytes = |f: &dyn Fn(usize, usize) -> f32| -> Vec<u8> {
            (0..rows * cols).flat_map(|i| f(i / cols, i % cols).to_le_bytes()).collect()
        };
        let power = |k: usize| 2f32.powi(i32::try_from(k).unwrap());
        let target = bytes(&|r, c| 1.0 + power(r % 3) * power(c) / 1024.0);
        let prediction = bytes(&|_, _| 1.0);
        let half = target.len() / 2;
        let scales = rows_and_cols(
            number,
            cols,
            &[(&target[..half], &prediction[..half]), (&target[half..], &prediction[half..])],
        );
        assert_eq!(scales.rows.concat().windows(2).take(2).map(|w| w[1] - w[0]).collect::<Vec<_>>(), [4, 4]);
        assert_eq!(scales.cols.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>(), [4, 4, 4]);
        assert_eq!(uniform(number, &[(&prediction, &prediction)]).offset, 4 * (127 + 23) - 128);
    }
}
