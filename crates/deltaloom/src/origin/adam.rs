//! Finds out whether a base is the state before one step of Adam. Fits the rates of the step on a
//! sample, snaps them to numbers that people use, and accepts them if they save one bit per
//! element.
//! [`crate::predict::Adam`] has the arithmetic. Names and signs limit the candidates; where names
//! say nothing of weights, the signs of their steps do.

use std::collections::HashMap;

use rayon::prelude::*;

use super::companion;
use super::least_squares::{NormalEquations, snap};
use super::steps::Steps;
use super::subject::Subject;
use super::{Origin, reference_name};
use crate::bases::{Bases, TensorSource};
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::plan;
use crate::predict::names::Names;
use crate::predict::{ADAM_INPUTS, Adam, AdamForm, Element, Predictor, load};
use crate::tensor::{DType, TensorInfo};

/// Elements for fitting the numbers. Step sizes need a larger sample than usual.
const SAMPLE_ELEMS: u64 = 16_384;
/// Number of tensors that are tried as first moments, or as weights, of one tensor.
const MAX_CANDIDATES: usize = 8;
/// Decay rates are tried as multiples of these, and as fitted.
const RATE_STEPS: [f64; 3] = [1e-3, 1e-4, 1e-5];
/// Largest mean square of a moment's relative error with which a fit is accepted for a closer look.
const MAX_ERROR: f64 = 1e-3;
/// Step sizes that are tried on either side of the fitted one, in ULPs.
const RATE_ULPS: i64 = 8;
/// Negative powers of ten for the number that is added to the root of the second moment.
const EPSILONS: std::ops::RangeInclusive<i32> = 5..=15;

/// Tensors that a step of Adam explains, with their predictors. Second moments come first, then
/// their weights. Both need first moments of level 0.
pub(super) fn find(
    subjects: &[Subject<'_>],
    samples: &[Vec<u8>],
    predictors: &[&Predictor],
    bases: &Bases,
) -> Result<Vec<(usize, Origin)>> {
    let is_single = |i: &usize| applies(subjects[*i].info());
    let is_coded =
        |i: &usize| is_single(i) && matches!(predictors[*i], Predictor::Zero | Predictor::Reference(_));
    let is_first = |i: &usize| is_single(i) && predictors[*i].is_root() && has_signs(&samples[*i]);
    let mut firsts: HashMap<_, Vec<usize>> = HashMap::new();
    if !bases.is_empty() {
        for i in (0..subjects.len()).filter(is_first) {
            for key in companion::keys(&subjects[i].info().name) {
                firsts.entry((key, &subjects[i].info().shape)).or_default().push(i);
            }
        }
    }
    let names = Names::new(subjects.len(), |i| &subjects[i].info().name);
    let steps = if firsts.is_empty() {
        Steps::none()
    } else {
        Steps::of(subjects, samples, (0..subjects.len()).filter(is_coded).collect(), bases)?
    };
    let explain = |v: usize| -> Result<Vec<(usize, Origin)>> {
        for key in companion::keys(&subjects[v].info().name) {
            let near = firsts.get(&(key, &subjects[v].info().shape)).into_iter().flatten();
            for m in near.take(MAX_CANDIDATES).copied() {
                let Some(origin) = fit_second_moment(subjects, [v, m], bases)? else { continue };
                let mut found = vec![(v, origin)];
                let may_be_weights = |i: &usize| {
                    ![v, m].contains(i)
                        && subjects[*i].info().shape == subjects[v].info().shape
                        && is_coded(i)
                };
                let named = named_by(&names, key, |i| &subjects[i].info().name);
                let mut near: Vec<usize> = named.iter().copied().filter(may_be_weights).collect();
                near.sort_unstable();
                if near.is_empty() {
                    near = steps.against(&samples[m], may_be_weights);
                }
                for w in near.into_iter().take(MAX_CANDIDATES) {
                    found.extend(fit_weights(subjects, [w, m, v], bases)?.map(|origin| (w, origin)));
                }
                return Ok(found);
            }
        }
        Ok(Vec::new())
    };
    let seconds: Vec<usize> =
        (0..subjects.len()).filter(|i| is_coded(i) && !has_signs(&samples[*i])).collect();
    let found: Vec<_> = seconds.into_par_iter().map(explain).collect::<Result<_>>()?;
    Ok(compatible(found.into_iter().flatten(), predictors))
}

/// Whether a tensor may be a moment, or weights.
fn applies(info: &TensorInfo) -> bool {
    info.dtype == DType::F32 && info.len_bytes() > 0
}

/// Keeps those that only need tensors of a lower level. A tensor that others need at its present
/// level is not explained.
fn compatible(
    found: impl Iterator<Item = (usize, Origin)>,
    predictors: &[&Predictor],
) -> Vec<(usize, Origin)> {
    let mut levels: Vec<u8> = predictors.iter().map(|predictor| predictor.level()).collect();
    let mut is_needed = vec![false; levels.len()];
    let is_kept = |(i, origin): &(usize, Origin)| {
        let level = origin.predictor.level();
        let tensors = origin.predictor.internals();
        let fits = levels[*i] == 0 && !is_needed[*i] && tensors.iter().all(|other| levels[*other] < level);
        if fits {
            levels[*i] = level;
            tensors.iter().for_each(|other| is_needed[*other] = true);
        }
        fits
    };
    found.filter(is_kept).collect()
}

fn has_signs(sample: &[u8]) -> bool {
    sample.as_chunks::<4>().0.iter().any(|bytes| bytes[3] & 0x80 != 0)
}

/// Tensors whose names may belong to the weights of moments that share a key.
fn named_by<'a, 'n>(
    names: &'a Names,
    (before, after): (&str, &str),
    name: impl Fn(usize) -> &'n str,
) -> &'a [usize] {
    let is_end = ['.', '/'];
    let (before, after) = (before.trim_end_matches(is_end), after.trim_start_matches(is_end));
    if after.is_empty() { names.starting_with(before, name) } else { names.ending_with(after, name) }
}

/// The same elements of a tensor and of the tensors that it may follow from.
struct Sample {
    target: Vec<u8>,
    inputs: [Vec<u8>; ADAM_INPUTS],
}

impl Sample {
    /// Reads a tensor, its references, and other tensors.
    fn read(subject: Subject<'_>, references: &[&TensorSource], tensors: &[Subject<'_>]) -> Result<Self> {
        let mut inputs: [Vec<u8>; ADAM_INPUTS] = Default::default();
        for (input, reference) in inputs.iter_mut().zip(references) {
            *input = Subject::Source(reference).sample_of(SAMPLE_ELEMS)?;
        }
        for (input, tensor) in inputs[references.len()..].iter_mut().zip(tensors) {
            *input = tensor.sample_of(SAMPLE_ELEMS)?;
        }
        Ok(Self { target: subject.sample_of(SAMPLE_ELEMS)?, inputs })
    }

    /// Each element of the target with its inputs.
    fn elements(&self) -> Vec<[f64; 1 + ADAM_INPUTS]> {
        let mut elements = vec![[0.0; 1 + ADAM_INPUTS]; self.target.len() / 4];
        let mut values = vec![0.0; elements.len()];
        for (k, bytes) in std::iter::once(&self.target).chain(&self.inputs).enumerate() {
            load(Element::F32, bytes, &mut values);
            elements.iter_mut().zip(&values).for_each(|(element, value)| element[k] = *value);
        }
        elements
    }

    fn predict(&self, adam: &Adam) -> Vec<u8> {
        let mut out = vec![0; self.target.len()];
        adam.predict(self.inputs.each_ref().map(Vec::as_slice), &mut out);
        out
    }

    /// The first of the cheapest candidates, if it saves one bit per element.
    fn score(&self, candidates: impl Iterator<Item = Adam>) -> Option<Adam> {
        let number = Element::F32.number();
        let cost = |prediction: &[u8]| plan::residual_cost(number, &self.target, prediction);
        let best = candidates.map(|adam| (cost(&self.predict(&adam)), adam)).min_by_key(|(cost, _)| *cost);
        let (least, adam) = best?;
        let without = cost(&self.inputs[0]).min(plan::stand_alone_cost(number, &self.target));
        (least + (self.target.len() / 4) as u64 * ONE_BIT <= without).then_some(adam)
    }

    fn count_right(&self, adam: &Adam) -> usize {
        let prediction = self.predict(adam);
        let pairs = prediction.as_chunks::<4>().0.iter().zip(self.target.as_chunks::<4>().0);
        pairs.filter(|(a, b)| a == b).count()
    }
}

fn fit_second_moment(subjects: &[Subject<'_>], [v, m]: [usize; 2], bases: &Bases) -> Result<Option<Origin>> {
    for base in bases.direct() {
        let old = |i: usize| {
            let info = subjects[i].info();
            base.counterpart(&info.name, |source| source.is_like(info))
        };
        let (Some(old_v), Some(old_m)) = (old(v), old(m)) else { continue };
        let sample = Sample::read(subjects[v], &[old_v, old_m], &[subjects[m]])?;
        let Some(fitted) = fit_rates(&sample.elements()) else { continue };
        let names = [reference_name(subjects[v].info(), old_v), Some(old_m.info().name.clone())];
        let adam = |rates: [f64; 2], is_single| Adam {
            form: AdamForm::SecondMoment,
            is_single,
            references: names.to_vec(),
            tensors: vec![m],
            numbers: rates.to_vec(),
        };
        let snapped = RATE_STEPS.iter().map(|step| fitted.map(|rate| snap(rate, *step)));
        let rates = snapped.chain([fitted]);
        let candidates = rates.flat_map(|rates| [true, false].map(|is_single| adam(rates, is_single)));
        if let Some(adam) = sample.score(candidates) {
            let predictor = Predictor::Adam(Box::new(adam));
            let references = vec![old_v.clone(), old_m.clone()];
            return Origin::coded(predictor, references).with_reference_digests().map(Some);
        }
    }
    Ok(None)
}

fn fit_weights(subjects: &[Subject<'_>], [w, m, v]: [usize; 3], bases: &Bases) -> Result<Option<Origin>> {
    let info = subjects[w].info();
    for base in bases.direct() {
        let Some(old) = base.counterpart(&info.name, |source| source.is_like(info)) else { continue };
        let sample = Sample::read(subjects[w], &[old], &[subjects[m], subjects[v]])?;
        let elements = sample.elements();
        let Some(fitted) = fit_step(&elements) else { continue };
        let adam = |is_single, numbers: [f64; 3]| Adam {
            form: AdamForm::Weights,
            is_single,
            references: vec![reference_name(info, old)],
            tensors: vec![m, v],
            numbers: numbers.to_vec(),
        };
        let rounded = fitted.map(single);
        // In F32, the right step size reproduces every element, and its neighbours do not.
        let near = (-RATE_ULPS..=RATE_ULPS).map(|ulps| {
            let rate = f64::from(step_ulps(rounded[1], ulps));
            adam(true, [rounded[0].into(), rate, fitted[2]])
        });
        // Among equally good ones, the nearest to the fitted one.
        let single = near.enumerate().max_by_key(|(i, adam)| {
            (sample.count_right(adam), std::cmp::Reverse((*i as i64 - RATE_ULPS).abs()))
        });
        let candidates = single.map(|(_, adam)| adam).into_iter().chain([adam(false, fitted)]);
        if let Some(adam) = sample.score(candidates) {
            let predictor = Predictor::Adam(Box::new(adam));
            return Origin::coded(predictor, vec![old.clone()]).with_reference_digests().map(Some);
        }
    }
    Ok(None)
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is what is meant")]
fn single(x: f64) -> f32 {
    x as f32
}

fn step_ulps(x: f32, ulps: i64) -> f32 {
    let step = if ulps < 0 { f32::next_down } else { f32::next_up };
    (0..ulps.abs()).fold(x, |x, _| step(x))
}

/// Decay rates of both moments. v' = b2 v + (1 - b2) ((m' - b1 m) / (1 - b1))^2 is linear in v and
/// in the products of m' and m.
fn fit_rates(elements: &[[f64; 4]]) -> Option<[f64; 2]> {
    let row = |[new_v, v, m, new_m]: &[f64; 4]| {
        [v / new_v, new_m * new_m / new_v, new_m * m / new_v, m * m / new_v, 1.0]
    };
    let is_usable = |[new_v, ..]: &&[f64; 4]| *new_v > f64::from(f32::MIN_POSITIVE);
    let rows = || elements.iter().filter(is_usable).map(row).filter(|row| row.iter().all(|x| x.is_finite()));
    let solved = least_squares(rows());
    let (mut squares, mut count) = (0.0, 0.0);
    for [a, b, c, d, goal] in rows() {
        let error: f64 = goal - (solved[0] * a + solved[1] * b + solved[2] * c + solved[3] * d);
        squares += error * error;
        count += 1.0;
    }
    let rates = [-solved[2] / (2.0 * solved[1]), solved[0]];
    let is_fit = squares <= MAX_ERROR * count && rates.iter().all(|rate| (0.0..1.0).contains(rate));
    is_fit.then_some(rates)
}

/// Decay, step size, and the number that is added to the root: w' = d w - r m' / (root of v' + e).
fn fit_step(elements: &[[f64; 4]]) -> Option<[f64; 3]> {
    // Each element is scaled by its size, as its rounding is. Multiplied by the root, the step is
    // linear in e, too.
    let usable = || {
        elements.iter().filter_map(|[new_w, w, new_m, new_v]| {
            let (root, size) = (new_v.sqrt(), w.abs());
            (root > 0.0 && size > 0.0).then(|| (new_w - w, *w, *new_m, root, size))
        })
    };
    let rows = usable()
        .map(|(step, w, m, root, size)| [w / size, m / (root * size), step / (root * size), step / size]);
    let epsilon = -least_squares(rows)[2];
    let power = EPSILONS.map(|power| 1.0 / (0..power).fold(1.0, |x, _| x * 10.0));
    let epsilon = power
        .into_iter()
        .find(|power| (epsilon / power - 1.0).abs() < 0.01)
        .unwrap_or(if epsilon > 0.0 { epsilon } else { 0.0 });
    let rows =
        usable().map(|(step, w, m, root, size)| [w / size, m / ((root + epsilon) * size), step / size]);
    let solved = least_squares(rows);
    let fitted = [1.0 + solved[0], -solved[1], epsilon];
    fitted.iter().all(|number| number.is_finite()).then_some(fitted)
}

/// Weights for all numbers of a row but the last, chosen to approximate the last by least squares.
/// Rows that are not finite do not count.
fn least_squares<const N: usize>(rows: impl Iterator<Item = [f64; N]>) -> Vec<f64> {
    let mut equations = NormalEquations::new(N - 1);
    rows.for_each(|row| equations.add(&row));
    equations.solve()
}
