//! Predicts the magnitudes of a group: fits slope, offset and scales of a scaled draft;
//! docs/adr/0020.
//! It computes in integers, so the result is the same everywhere. Readers take it from the
//! container.

use deltaloom_kernels::scaled::{self, LEVELS_PER_STEP, STEPS_LOG2, UNIT_SLOPE};
use deltaloom_kernels::{Number, NumberKind};
use rayon::prelude::*;

use super::{Draft, GroupInput, float_draft, group_scales, row_scales_of, scales_cost};
use crate::codec::{Coding, MagnitudeRule, is_constant};
use crate::entropy::log2::ONE_BIT;
use crate::entropy::table;
use crate::limits::{narrow, to_usize};
use crate::residual::scales::{Pair, Scales};
use crate::scratch::Scratch;

/// Rows and columns of the sample that shows whether expectations pay.
const SAMPLE_ROWS: usize = 32;
const SAMPLE_COLS: usize = 64;
/// Approximate number of rows of a group that column scales are taken from.
const COLUMN_ROWS: usize = 256;
/// Expectations that save less than this per element of a sample may be chance.
const LEAST_SAVING: u64 = ONE_BIT / 16;
/// The same for elements with signs and no prediction, such as weights on their own. Packing them
/// takes half as long again, and saved 0.55 % of a model.
const LEAST_SAVING_OF_WEIGHTS: u64 = ONE_BIT / 2;
/// Tensors with fewer elements have no companion: it could not save what naming it costs.
const LEAST_ELEMS: usize = 1024;
/// Approximate bits of a group's parameters and of a table that no other group shares.
const OVERHEAD: u64 = 512 * ONE_BIT;
/// Approximate number of symbols that occur in a scaled group.
const USUAL_SYMBOLS: usize = 64;
/// The position of the expected magnitude, in steps. As many octaves above it as below have symbols
/// of their own.
const CENTRE: i32 = 128;
/// Steepest slope that is tried, in sixteenths.
const MAX_SLOPE: i64 = 32;
const MEAN_FITS: &str = "a mean is between the numbers it is of";

/// The form of an expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    slope: u8,
    by_place: bool,
}

/// Levels of elements and of their predictions, in rows of `cols`. A level is the logarithm of a
/// magnitude, or 0 for zero.
struct Levels {
    cols: usize,
    target: Vec<i32>,
    prediction: Vec<i32>,
    /// Low mantissa bits, except those that are always zero.
    raw_bits: u64,
    has_signs: bool,
}

fn has_form(number: Number) -> bool {
    number.kind() == NumberKind::Float && number.mantissa_bits() >= STEPS_LOG2
}

fn has_negatives(number: Number, values: &[u8]) -> bool {
    values.chunks_exact(number.bytes()).any(|value| value[number.bytes() - 1] & 0x80 != 0)
}

fn levels_of(number: Number, values: &[u8]) -> Vec<i32> {
    let mut levels = vec![0; values.len() / number.bytes()];
    scaled::levels(number, values, &mut levels);
    levels
}

impl Levels {
    /// Evenly spaced parts of evenly spaced rows of a group. If the group is no matrix, runs of it.
    fn sample(group: &GroupInput<'_>) -> Self {
        let size = group.number.bytes();
        let row = if group.is_matrix { group.cols } else { SAMPLE_COLS.min(to_usize(group.elems())).max(1) };
        let rows: usize = group.chunks.iter().map(|(target, _)| target.len() / size / row).sum();
        let (row_stride, col_stride) = (rows.div_ceil(SAMPLE_ROWS).max(1), row.div_ceil(SAMPLE_COLS));
        let (mut target, mut prediction) = (Vec::new(), Vec::new());
        let (mut any, mut has_signs, mut next) = (0u8, false, 0);
        let row_bytes = row * size;
        for (t, p) in &group.chunks {
            for (t, p) in t.chunks_exact(row_bytes).zip(p.chunks_exact(row_bytes)) {
                if next == 0 {
                    target.extend(levels_of(group.number, t).iter().step_by(col_stride));
                    if group.is_predicted {
                        prediction.extend(levels_of(group.number, p).iter().step_by(col_stride));
                    }
                    // The lowest byte is enough to see whether there are any zero bits.
                    any = t.iter().step_by(size).fold(any, |any, byte| any | byte);
                    has_signs |= has_negatives(group.number, t);
                    next = row_stride;
                }
                next -= 1;
            }
        }
        prediction.resize(target.len(), 0);
        let low_bits = u64::from(group.number.mantissa_bits() - STEPS_LOG2);
        let raw_bits = low_bits - low_bits.min(u64::from(any.trailing_zeros()));
        Self { cols: row.div_ceil(col_stride), target, prediction, raw_bits, has_signs }
    }

    /// Subtracts the mean of all elements, or the means of rows and columns. Zeros do not count.
    fn centre(&self, levels: &mut [i32], by_place: bool) {
        let is_there = |target: &i32| i32::from(*target != 0);
        let mean = |sum: i64, count: i32| narrow::<i32>(sum / i64::from(count.max(1)), MEAN_FITS);
        let subtract_mean = |levels: &mut [i32], target: &[i32]| {
            let sum = levels.iter().zip(target).map(|(level, t)| i64::from(level * is_there(t))).sum();
            let mean = mean(sum, target.iter().map(is_there).sum());
            levels.iter_mut().for_each(|level| *level -= mean);
        };
        if !by_place {
            return subtract_mean(levels, &self.target);
        }
        let (mut sums, mut counts) = (vec![0i64; self.cols], vec![0i32; self.cols]);
        for (row, target) in levels.chunks_mut(self.cols).zip(self.target.chunks(self.cols)) {
            subtract_mean(row, target);
            for (i, (level, t)) in row.iter().zip(target).enumerate() {
                sums[i] += i64::from(level * is_there(t));
                counts[i] += is_there(t);
            }
        }
        let means: Vec<i32> = sums.iter().zip(&counts).map(|(sum, count)| mean(*sum, *count)).collect();
        for row in levels.chunks_mut(self.cols) {
            row.iter_mut().zip(&means).for_each(|(level, mean)| *level -= mean);
        }
    }

    /// The form with the least squares, by place or not, and its bits for the whole sample.
    fn fit(&self, by_place: bool) -> (Form, u64) {
        let (mut target, mut prediction) = (self.target.clone(), self.prediction.clone());
        self.centre(&mut target, by_place);
        let mut slope = 0;
        if prediction.iter().any(|level| *level != 0) {
            self.centre(&mut prediction, by_place);
            let pairs = || target.iter().zip(&prediction).zip(&self.target).filter(|(_, t)| **t != 0);
            // Levels are below 2^19, and there are at most a few thousand.
            let squares: i64 = pairs().map(|((_, p), _)| i64::from(*p) * i64::from(*p)).sum();
            let products: i64 = pairs().map(|((t, p), _)| i64::from(*t) * i64::from(*p)).sum();
            let sixteenths =
                (i64::from(UNIT_SLOPE) * products + squares / 2).checked_div(squares).unwrap_or(0);
            slope = sixteenths.clamp(0, MAX_SLOPE) as u8;
        }
        let rest = |((t, p), whole): ((&i32, &i32), &i32)| {
            (*whole != 0).then_some(t - i32::from(slope) * p / UNIT_SLOPE)
        };
        let rest = target.iter().zip(&prediction).zip(&self.target).filter_map(rest);
        // Means of so few elements fit better than scales of whole rows will.
        let means = if by_place { self.cols + self.target.len() / self.cols } else { 0 };
        let bits = self.bits(rest, self.has_signs) + means as u64 * ONE_BIT;
        (Form { slope, by_place }, bits)
    }

    /// Bits of the whole sample if these levels are coded.
    fn bits(&self, levels: impl Iterator<Item = i32>, has_signs: bool) -> u64 {
        let steps: Vec<i32> = levels.map(|level| level.div_euclid(LEVELS_PER_STEP)).collect();
        let (least, most) =
            (steps.iter().copied().min().unwrap_or(0), steps.iter().copied().max().unwrap_or(0));
        // At most a few times the octaves of the dtype.
        let mut counts = vec![0u32; most.abs_diff(least) as usize + 1];
        for step in steps {
            counts[step.abs_diff(least) as usize] += 1;
        }
        counts.retain(|count| *count > 0);
        // A whole group has one table, too, but many more elements.
        let table_bits = table::table_bits(counts.len());
        table::own_table_cost_of(counts.into_iter()) - table_bits * ONE_BIT
            + self.target.len() as u64 * (self.raw_bits + u64::from(has_signs)) * ONE_BIT
    }

    /// The cheapest form, if it saves enough compared with `bits` for the sample.
    fn best(&self, is_predicted: bool, may_have_places: bool, bits: u64) -> Option<(Form, u64)> {
        // Without a prediction, places and signs, this is how stand-alone floats are coded anyway.
        let has_use =
            |by_place: bool| if by_place { may_have_places } else { is_predicted || !self.has_signs };
        let saving = if is_predicted || !self.has_signs { LEAST_SAVING } else { LEAST_SAVING_OF_WEIGHTS };
        let least = bits.saturating_sub(self.target.len() as u64 * saving);
        let forms = [false, true].into_iter().filter(|by_place| has_use(*by_place));
        forms
            .map(|by_place| self.fit(by_place))
            .min_by_key(|(_, bits)| *bits)
            .filter(|(_, bits)| *bits < least)
    }

    /// Bits of one element, from those of the sample.
    fn of_one(&self, bits: u64) -> u64 {
        bits / (self.target.len() as u64).max(1)
    }

    /// Bits of the sample without any expectation.
    fn bits_alone(&self, has_signs: bool) -> u64 {
        self.bits(self.target.iter().copied().filter(|level| *level != 0), has_signs)
    }
}

/// Estimated bits of a whole sample with one expectation for all its elements. `None` if the
/// prediction says nothing about them.
pub(super) fn sample_cost(group: &GroupInput<'_>) -> Option<u64> {
    if !has_form(group.number) {
        return None;
    }
    let sample = Levels::sample(group);
    let (form, bits) = sample.fit(false);
    if form.slope == 0 {
        return None;
    }
    let table_bits = table::table_bits(USUAL_SYMBOLS) * ONE_BIT;
    Some(bits * group.elems() / (sample.target.len() as u64).max(1) + table_bits)
}

/// The sample of a tensor for which a companion is searched.
fn companion_sample(number: Number, (target, other): Pair<'_>) -> Option<Levels> {
    let is_large = target.len() >= LEAST_ELEMS * number.bytes();
    let chunks = vec![(target, other)];
    let group = GroupInput {
        number,
        cols: 1,
        is_matrix: false,
        chunks,
        is_predicted: true,
        may_have_nibbles: false,
        history: None,
    };
    (is_large && has_form(number)).then(|| Levels::sample(&group))
}

/// Bits that an element may cost with a companion for the companion to pay. The limit is its cost
/// on its own or, if the reference only tells its magnitude, with the reference. `ulps` is the cost
/// of residuals against the reference. `None` if there can be no companion.
pub(super) fn cost_without_companion(number: Number, pair: Pair<'_>, ulps: Option<u64>) -> Option<u64> {
    let sample = companion_sample(number, pair)?;
    let bits = match ulps {
        None => sample.of_one(sample.bits_alone(sample.has_signs)),
        Some(ulps) => Some(sample.of_one(sample.fit(false).1)).filter(|scaled| *scaled < ulps)?,
    };
    Some(bits.saturating_sub(LEAST_SAVING))
}

/// Bits of an element with a companion. `ulps` is the cost of residuals against it.
pub(super) fn cost_with_companion(number: Number, pair: Pair<'_>, ulps: u64) -> Option<u64> {
    // An element without a sign measures a magnitude itself. Rows and columns predict it better
    // than what it measures.
    if has_negatives(number, pair.1) && !has_negatives(number, pair.0) {
        return None;
    }
    let sample = companion_sample(number, pair)?;
    let (form, scaled) = sample.fit(false);
    // Residuals against a dissimilar tensor show the magnitude, too, but less well.
    let is_near = ulps + 2 * ONE_BIT < sample.of_one(sample.bits_alone(sample.has_signs));
    let scaled = (form.slope > 0).then(|| sample.of_one(scaled));
    [scaled, is_near.then_some(ulps)].into_iter().flatten().min()
}

/// A scaled draft, if a sample says that it may cost less than `cost` for the whole group.
pub(super) fn draft(group: &GroupInput<'_>, changed: u64, cost: u64) -> Option<Draft> {
    let is_trivial =
        |(target, prediction): &Pair<'_>| target == prediction || is_constant(group.number, target);
    if !has_form(group.number) || group.chunks.iter().all(is_trivial) {
        return None;
    }
    // Low mantissa bits are never predicted. If a whole byte of them is always zero, other codecs
    // see that, too.
    let least_bits = u64::from(group.number.mantissa_bits() - STEPS_LOG2) * ONE_BIT;
    if group.is_predicted && cost < group.elems() * least_bits {
        return None;
    }
    let sample = Levels::sample(group);
    let bits = if group.is_predicted {
        let of_sample = u128::from(cost) * sample.target.len() as u128 / u128::from(group.elems());
        narrow(of_sample, "a part of the cost")
    } else {
        sample.bits_alone(true)
    };
    let (form, _) = sample.best(group.is_predicted, group.is_matrix, bits)?;
    let scales =
        if form.by_place { scales_by_place(group, form.slope) } else { offset_alone(&sample, form.slope) };
    let has_signs = group.chunks.iter().any(|(target, _)| has_negatives(group.number, target));
    let rule = MagnitudeRule { slope: form.slope, has_signs, scales: group_scales(&scales) };
    let subtract = |(i, (target, prediction)): (usize, &Pair<'_>)| {
        let shape = group.shape((target, prediction));
        let mut relative = Scratch::of_len(target.len());
        rule.expectation(&shape, row_scales_of(&scales, i))?.subtract(target, prediction, &mut relative);
        Some(relative)
    };
    let relative: Vec<Scratch> = group.chunks.par_iter().enumerate().map(subtract).collect::<Option<_>>()?;
    let chunks =
        relative.iter().zip(&group.chunks).map(|(relative, (_, prediction))| (&**relative, *prediction));
    let drafted = float_draft(&GroupInput { chunks: chunks.collect(), ..*group }, has_signs, changed)?;
    let Coding::Float { modelled_bits, lowest } = drafted.coding else { return None };
    Some(Draft {
        coding: Coding::Scaled { modelled_bits, lowest, rule },
        cost: drafted.cost + scales_cost(&scales) + OVERHEAD,
        row_scales: scales.rows,
        ..drafted
    })
}

/// How far elements are above their predictions, in levels.
fn above(slope: u8, target: &[i32], prediction: &[i32]) -> Vec<i32> {
    let slope = i32::from(slope);
    target.iter().zip(prediction).map(|(t, p)| t - slope * p / UNIT_SLOPE).collect()
}

/// Mean distance above the predictions of the elements that are not zero. `None` if all are zero.
fn mean_above(target: &[i32], above: &[i32]) -> Option<i32> {
    let is_there = |target: &i32| i32::from(*target != 0);
    let sum: i64 = above.iter().zip(target).map(|(level, t)| i64::from(level * is_there(t))).sum();
    let count: i32 = target.iter().map(is_there).sum();
    Some(narrow(sum.checked_div(count.into())?, MEAN_FITS))
}

fn steps(levels: i32) -> i32 {
    (levels + LEVELS_PER_STEP / 2).div_euclid(LEVELS_PER_STEP)
}

fn offset_alone(sample: &Levels, slope: u8) -> Scales {
    let mean = mean_above(&sample.target, &above(slope, &sample.target, &sample.prediction));
    Scales { offset: steps(mean.unwrap_or(0)) - CENTRE, rows: Vec::new(), cols: Vec::new() }
}

/// Row and column scales of a matrix. Columns come from evenly spaced rows, relative to the mean of
/// each. Rows come from all elements, relative to their columns.
fn scales_by_place(group: &GroupInput<'_>, slope: u8) -> Scales {
    let row_bytes = group.cols * group.number.bytes();
    let rows: usize = group.chunks.iter().map(|(target, _)| target.len() / row_bytes).sum();
    let stride = (rows / COLUMN_ROWS).max(1);
    let row_of = |t: &[u8], p: &[u8]| {
        let target = levels_of(group.number, t);
        let above =
            if slope == 0 { target.clone() } else { above(slope, &target, &levels_of(group.number, p)) };
        (target, above)
    };
    let (mut sums, mut counts) = (vec![0i64; group.cols], vec![0i64; group.cols]);
    for (target, prediction) in &group.chunks {
        for (t, p) in target.chunks(row_bytes).zip(prediction.chunks(row_bytes)).step_by(stride) {
            let (target, above) = row_of(t, p);
            let Some(mean) = mean_above(&target, &above) else { continue };
            for (i, (t, level)) in target.iter().zip(&above).enumerate() {
                let is_there = i64::from(*t != 0);
                sums[i] += i64::from(level - mean) * is_there;
                counts[i] += is_there;
            }
        }
    }
    let col = |(sum, count): (&i64, &i64)| steps(narrow(sum / (*count).max(1), MEAN_FITS));
    let cols: Vec<i32> = sums.iter().zip(&counts).map(col).collect();
    let row_levels = |(target, prediction): &Pair<'_>| -> Vec<Option<i32>> {
        let rows = target.chunks(row_bytes).zip(prediction.chunks(row_bytes));
        let of_row = |(t, p)| {
            let (target, mut above) = row_of(t, p);
            above.iter_mut().zip(&cols).for_each(|(level, col)| *level -= col * LEVELS_PER_STEP);
            mean_above(&target, &above)
        };
        rows.map(of_row).collect()
    };
    let levels: Vec<Vec<Option<i32>>> = group.chunks.par_iter().map(row_levels).collect();
    let present = || levels.iter().flatten().flatten().map(|level| i64::from(*level));
    let count: i64 = narrow(present().count().max(1), "rows in memory");
    let mean = steps(narrow(present().sum::<i64>() / count, MEAN_FITS));
    let scale = |level: &Option<i32>| level.map_or(0, |level| steps(level) - mean);
    let rows = levels.iter().map(|chunk| chunk.iter().map(scale).collect()).collect();
    Scales { offset: mean - CENTRE, rows, cols }
}
