//! Searches for the rate of each matrix: the embedding, and the matrices of the layers. What a rate
//! costs is estimated tensor by tensor, and the estimate is corrected by one measurement of each.
//! The rates of least estimated cost for a number of bits are those of equal slope (Shoham and
//! Gersho, 1988). Errors of tensors do not add up exactly, so the joint student is measured, and
//! its packed file decides whether the size is met.

use std::collections::BTreeMap;

use deltaloom::Result;
use rayon::prelude::*;

use super::embedding::Table;
use super::settings::Settings;
use crate::branches::{Statistics, quantise};
use crate::data::Texts;
use crate::forms::Form;
use crate::measure::Reference;
use crate::network::{Input, Network, batch};
use crate::pipeline::{Options, Place, Treatment, shrink_layers};
use crate::recipe::Loaded;
use crate::student::Student;

/// Rates in bits per weight at which distortions are computed. Rate 0 is a matrix of zeros.
const SAMPLED: [f64; 6] = [0.0, 0.5, 1.0, 2.0, 3.0, 4.0];
/// The one of them that is measured.
const MEASURED: usize = 3;
/// Distance of the rates that are chosen from.
const RATE_STEP: f64 = 0.05;
/// Largest rate.
const LARGEST_RATE: f64 = 7.0;
/// Windows that distortions are computed on.
const WINDOWS: usize = 16;
/// How often a plan is made anew, because its packed file missed the size.
const ROUNDS: usize = 5;
/// A file of this share of the budget is near enough.
const NEAR_ENOUGH: f64 = 0.995;

/// A matrix, and the divergence that a rate is expected to cost.
struct Curve {
    name: String,
    weights: usize,
    /// Least rate.
    floor: f64,
    /// At the sampled rates, in nats per token.
    costs: Vec<f64>,
}

/// A student: its weights, and their forms.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) network: Network,
    pub(super) forms: BTreeMap<String, Form>,
}

/// Tokens that a search computes, about.
pub(super) fn work(loaded: &Loaded, teacher: &Network, texts: &Texts) -> usize {
    let matrices: usize = teacher.parts().layers.iter().map(|names| names.matrices().count()).sum();
    let measurements = matrices + SAMPLED.len() + 1;
    let tokens: usize = texts.calibrate.iter().map(Vec::len).sum();
    measurements * loaded.recipe.planner.repair.tokens.min(tokens) + 2 * tokens
}

/// Makes the student of least divergence whose packed weights take at most `budget` bytes, or the
/// smallest one.
pub(super) fn search(
    loaded: &Loaded,
    teacher: &Network,
    texts: &Texts,
    settings: &Settings,
    budget: u64,
    advance: &dyn Fn(usize) -> Result<()>,
) -> Result<Found> {
    let tables = outside_layers(teacher).filter(|name| !settings.is_protected(name));
    let tables = tables.map(|name| Ok((name, Table::new(loaded, teacher, name, texts)?)));
    let tables: BTreeMap<&str, Table> = tables.collect::<Result<_>>()?;
    let curves = curves(loaded, teacher, texts, settings, &tables, advance)?;
    let mut bits = budget as f64 * 8.0;
    let mut best: Option<(u64, Found)> = None;
    for _ in 0..ROUNDS {
        let rates = choose(&curves, bits);
        let found = make(loaded, teacher, texts, &tables, &rates, advance)?;
        let bytes = Student::new(teacher, &found.forms)?.packed()?.bytes;
        let is_better = best.as_ref().is_none_or(|(known, _)| match (*known <= budget, bytes <= budget) {
            (true, true) => bytes > *known,
            (false, false) => bytes < *known,
            (known, new) => !known && new,
        });
        if is_better {
            best = Some((bytes, found));
        }
        let is_near = bytes <= budget && bytes as f64 >= NEAR_ENOUGH * budget as f64;
        let is_least = bytes > budget && bits == 0.0;
        if is_near || is_least {
            break;
        }
        // A little below, so that the next file does not miss it by a byte.
        bits = (bits + (budget as f64 * (1.0 + NEAR_ENOUGH) / 2.0 - bytes as f64) * 8.0).max(0.0);
    }
    match best {
        Some((_, found)) => Ok(found),
        None => make(loaded, teacher, texts, &tables, &BTreeMap::new(), advance),
    }
}

/// A treatment with codes of a rate.
fn coded(rate: f64) -> Treatment {
    let rate = quantise::Rate::Entropy { bits: rate, per_column: true };
    Treatment { quantise: Some(quantise::Settings::new(rate)), ..Treatment::default() }
}

fn make(
    loaded: &Loaded,
    teacher: &Network,
    texts: &Texts,
    tables: &BTreeMap<&str, Table>,
    rates: &BTreeMap<String, f64>,
    advance: &dyn Fn(usize) -> Result<()>,
) -> Result<Found> {
    let correct = &loaded.recipe.correct;
    let options = Options { correct: correct.enabled.then_some(correct.damping) };
    let mut network = teacher.clone();
    let mut forms = BTreeMap::new();
    for (name, table) in tables {
        if let Some(rate) = rates.get(*name) {
            let form = table.coded(*rate)?;
            let [rows, cols] = teacher.shape(name)?;
            network.replace(name, [rows, cols], &form.decode(rows, cols))?;
            forms.insert((*name).to_owned(), form);
        }
    }
    let treatment = |place: Place<'_>| {
        let rate = *rates.get(place.name)?;
        Some(if rate == 0.0 { Treatment { is_dropped: true, ..Treatment::default() } } else { coded(rate) })
    };
    let count = teacher.parts().layers.len().max(1);
    let tokens: usize = texts.calibrate.iter().map(Vec::len).sum();
    let share = tokens / (7 * count);
    forms.append(&mut shrink_layers(
        teacher,
        &mut network,
        &texts.calibrate,
        &treatment,
        &options,
        &|done| advance(done * share),
    )?);
    Ok(Found { network, forms })
}

/// The embedding, and the head if it is another matrix.
fn outside_layers(teacher: &Network) -> impl Iterator<Item = &str> {
    let globals = &teacher.parts().globals;
    [Some(globals.embedding.as_str()), globals.head.as_deref()].into_iter().flatten()
}

fn curves(
    loaded: &Loaded,
    teacher: &Network,
    texts: &Texts,
    settings: &Settings,
    tables: &BTreeMap<&str, Table>,
    advance: &dyn Fn(usize) -> Result<()>,
) -> Result<Vec<Curve>> {
    let len = texts.calibrate.first().map_or(1, Vec::len);
    let count = (loaded.recipe.planner.repair.tokens / len.max(1)).clamp(1, texts.calibrate.len());
    // The last windows: curves are computed on the first ones.
    let measured = texts.calibrate[texts.calibrate.len() - count..].to_vec();
    let reference = Reference::new(teacher.clone(), measured, advance)?;
    let cost = |name: &str, form: &Form| -> Result<f64> {
        let mut network = teacher.clone();
        let [rows, cols] = teacher.shape(name)?;
        network.replace(name, [rows, cols], &form.decode(rows, cols))?;
        Ok(reference.compare(&network, advance)?.kl())
    };
    let mut curves = Vec::new();
    for (name, table) in tables {
        let [rows, cols] = teacher.shape(name)?;
        let costs = SAMPLED.iter().map(|rate| cost(name, &table.coded(*rate)?)).collect::<Result<_>>()?;
        let floor = settings.floor(name);
        curves.push(Curve { name: (*name).to_owned(), weights: rows * cols, floor, costs });
    }
    // Matrices between those that are measured take the mean factor of these.
    let matrices: usize = teacher.parts().layers.iter().map(|names| names.matrices().count()).sum();
    let allowed = loaded.recipe.planner.evaluations.saturating_sub(curves.len() * SAMPLED.len());
    let every = matrices.div_ceil(allowed.max(1)).max(1);
    let mut factors: Vec<f64> = Vec::new();
    let mut number = 0;
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
        for (role, name) in teacher.parts().layers[layer].matrices() {
            let Some(inputs) = of_inputs.get(&Input::of(role)).filter(|_| !settings.is_protected(name))
            else {
                continue;
            };
            let [rows, cols] = teacher.shape(name)?;
            let matrix = teacher.wide(name)?;
            let at = |rate: &f64| -> Result<(f64, Form)> {
                let form = match coded(*rate).quantise.filter(|_| *rate > 0.0) {
                    Some(settings) => quantise::quantise(&matrix, inputs, &settings)?,
                    None => Form::Zero,
                };
                let error = matrix.plus(-1.0, &form.matrix(rows, cols));
                Ok((inputs.distortion(&matrix, &error), form))
            };
            let sampled: Vec<(f64, Form)> = SAMPLED.par_iter().map(at).collect::<Result<_>>()?;
            let (distortion, form) = &sampled[MEASURED];
            if number % every == 0 && *distortion > 0.0 {
                factors.push(cost(name, form)? / distortion);
            }
            let factor = match factors.last() {
                Some(own) if number % every == 0 => *own,
                _ => factors.iter().sum::<f64>() / factors.len().max(1) as f64,
            };
            number += 1;
            let costs = sampled.iter().map(|(distortion, _)| factor * distortion).collect();
            let floor = settings.floor(name);
            curves.push(Curve { name: name.to_owned(), weights: rows * cols, floor, costs });
        }
    }
    Ok(curves)
}

impl Curve {
    /// The cost at a rate: between sampled rates its logarithm is a line.
    fn at(&self, rate: f64) -> f64 {
        let above = SAMPLED.iter().position(|sampled| *sampled >= rate).unwrap_or(SAMPLED.len() - 1).max(1);
        let [low, high] = [self.costs[above - 1], self.costs[above]].map(|cost| cost.max(1e-12));
        let along = (rate - SAMPLED[above - 1]) / (SAMPLED[above] - SAMPLED[above - 1]);
        low * libm::pow(high / low, along)
    }

    /// The rate of least cost when a bit costs this many nats per token.
    fn best(&self, of_bit: f64) -> f64 {
        let bits = |step: u32| f64::from(step) * RATE_STEP;
        let steps = (0..).take_while(|step| bits(*step) <= LARGEST_RATE.max(self.floor + RATE_STEP));
        let steps = steps.filter(|step| bits(*step) >= self.floor);
        let total = |step: &u32| self.at(bits(*step)) + of_bit * bits(*step) * self.weights as f64;
        steps.min_by(|a, b| total(a).total_cmp(&total(b))).map_or(0.0, bits)
    }
}

/// Rates of least estimated cost that take at most this many bits.
fn choose(curves: &[Curve], bits: f64) -> BTreeMap<String, f64> {
    let (mut low, mut high) = (-60.0, 10.0);
    let rates = |log: f64| curves.iter().map(|curve| curve.best(libm::exp(log))).collect::<Vec<_>>();
    let taken = |rates: &[f64]| -> f64 {
        rates.iter().zip(curves).map(|(rate, curve)| rate * curve.weights as f64).sum()
    };
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        *(if taken(&rates(middle)) > bits { &mut low } else { &mut high }) = middle;
    }
    curves.iter().map(|curve| curve.name.clone()).zip(rates(high)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, weights: usize, scale: f64) -> Curve {
        // A quarter of the error for each bit.
        let costs = SAMPLED.iter().map(|rate| scale * libm::exp2(-2.0 * rate)).collect();
        Curve { name: name.to_owned(), weights, floor: 0.0, costs }
    }

    #[test]
    fn bits_go_where_they_save_most() {
        let curves = [curve("a", 1000, 1.0), curve("b", 1000, 16.0), curve("c", 500, 1.0)];
        let rates = choose(&curves, 2500.0 * 2.0);
        // 16 times the cost is worth 2 bits more; half of the weights, half a bit more.
        assert!((rates["b"] - rates["a"] - 2.0).abs() < 0.11, "{rates:?}");
        assert!((rates["c"] - rates["a"] - 0.5).abs() < 0.11, "{rates:?}");
        let taken: f64 = curves.iter().map(|curve| rates[&curve.name] * curve.weights as f64).sum();
        assert!(taken <= 5000.0 && taken > 4800.0, "{taken}");
        assert!(choose(&curves, 0.0).values().all(|rate| *rate == 0.0));
        assert!(choose(&curves, 1e9).values().all(|rate| *rate > 6.0));
        let floored = [Curve { floor: 2.0, ..curve("a", 1000, 1.0) }];
        assert_eq!(choose(&floored, 0.0)["a"], 2.0);
    }

    #[test]
    fn costs_between_samples_lie_between_theirs() {
        let curve = curve("a", 1, 1.0);
        assert!((curve.at(1.5) - 0.125).abs() < 1e-12 && (curve.at(2.0) - 0.0625).abs() < 1e-12);
        assert!((curve.at(6.0) - libm::exp2(-12.0)).abs() < 1e-12);
    }
}
