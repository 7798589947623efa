//! Finds out how models were merged: fits weights by least squares on a sample, snaps them to
//! numbers that people use with merge tools, and keeps the cheapest.
//! [`crate::predict::Blend`] has the arithmetic.

use super::least_squares::{NormalEquations, snap};
use super::subject::Subject;
use super::{Origin, reference_name};
use crate::bases::TensorSource;
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::plan;
use crate::predict::{Blend, BlendForm, Element, MAX_REFERENCES, Precision, Predictor};
use crate::sample;
use crate::tensor::TensorInfo;

/// Elements for fitting the weights.
const SAMPLE_ELEMS: u64 = 16_384;
/// Number of tensors whose recipes are tried for all others.
const HINTS: usize = 3;

/// Steps that weights are snapped to: tenths, twentieths, thirds.
const STEPS: [f64; 3] = [0.1, 0.05, 1.0 / 3.0];
/// Quantiles of the differences where TIES may have trimmed.
const TRIM_QUANTILES: [f64; 5] = [1.0, 0.999, 0.99, 0.97, 0.9];
/// A weighted sum must leave at most this share of the squares that the best reference leaves, to
/// deserve a closer look.
const LINEAR_GAIN: f64 = 0.5;
/// The same for trimmed differences.
const TIES_GAIN: f64 = 0.2;
/// A recipe that costs at most one bit per this many elements is good enough.
const EXACT_ELEMS: u64 = 100;
/// Share of unchanged elements that only trimming leaves.
const TRIMMED_SHARE: f64 = 0.05;

/// A combination of references.
struct Found {
    recipe: Recipe,
    cost: u64,
    /// Cost of the best reference on its own.
    least_of_one: u64,
}

/// The arithmetic of a tensor that several references may have been blended into.
fn applies(info: &TensorInfo, references: &[&TensorSource]) -> Option<Element> {
    Element::of(&info.dtype).filter(|_| references.len() > 1)
}

/// The best combination of several references on a sample, and what it costs.
fn score(subject: Subject<'_>, references: &[&TensorSource], hints: &[Recipe]) -> Result<Option<Found>> {
    let Some(element) = applies(subject.info(), references) else { return Ok(None) };
    let references = &references[..references.len().min(MAX_REFERENCES)];
    let read = |elems: u64| -> Result<(Vec<u8>, Vec<Vec<u8>>)> {
        let of_one = |source: &&TensorSource| Subject::Source(source).sample_of(elems);
        Ok((subject.sample_of(elems)?, references.iter().map(of_one).collect::<Result<_>>()?))
    };
    let (target, of_references) = read(sample::ELEMS)?;
    let of_references = of_references.iter().map(Vec::as_slice).collect();
    if !Sample::new(element, &target, of_references).looks_blended() {
        return Ok(None);
    }
    let (target, of_references) = read(SAMPLE_ELEMS)?;
    let of_references = of_references.iter().map(Vec::as_slice).collect();
    let fitting = hints.iter().filter(|hint| hint.order.iter().all(|i| *i < references.len()));
    let hints: Vec<Recipe> = fitting.cloned().collect();
    let sample = Sample::new(element, &target, of_references);
    let best = sample.best_recipe(&hints);
    Ok(best.map(|(recipe, cost)| Found { recipe, cost, least_of_one: sample.least_of_one() }))
}

/// A combination of several references, if it costs clearly less than the best of them.
pub(super) fn fit(
    subject: Subject<'_>,
    references: &[&TensorSource],
    hints: &[Recipe],
) -> Result<Option<Origin>> {
    let Some(found) = score(subject, references, hints)? else { return Ok(None) };
    if found.cost * 20 > found.least_of_one * 19 {
        return Ok(None);
    }
    let names: Vec<_> =
        references.iter().map(|reference| reference_name(subject.info(), reference)).collect();
    let used = found.recipe.order.iter().map(|i| references[*i].clone()).collect();
    let predictor = Predictor::Blend(Box::new(found.recipe.blend(&names)));
    Origin::coded(predictor, used).with_reference_digests().map(Some)
}

/// The recipes of the largest tensors. Small ones cannot tell weights from noise.
pub(crate) fn hints(subjects: &[Subject<'_>], references: &[Vec<&TensorSource>]) -> Result<Vec<Recipe>> {
    let mut largest: Vec<usize> = (0..subjects.len()).filter(|i| references[*i].len() > 1).collect();
    largest.sort_by_key(|i| std::cmp::Reverse(subjects[*i].info().len_bytes()));
    let mut recipes: Vec<Recipe> = Vec::new();
    for i in largest.into_iter().take(HINTS) {
        let found = score(subjects[i], &references[i], &[])?.map(|found| found.recipe);
        recipes.extend(found.filter(|recipe| !recipes.contains(recipe)));
    }
    Ok(recipes)
}

/// The same elements of a tensor and of references that may have been blended into it.
struct Sample<'a> {
    element: Element,
    target: &'a [u8],
    references: Vec<&'a [u8]>,
    target_values: Vec<f64>,
    reference_values: Vec<Vec<f64>>,
}

/// A way to combine references: form, precision, references in order, and numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recipe {
    form: BlendForm,
    precision: Precision,
    order: Vec<usize>,
    numbers: Vec<f64>,
}

impl Recipe {
    /// The blend that the recipe describes for references with these names.
    fn blend(&self, names: &[Option<String>]) -> Blend {
        Blend {
            form: self.form,
            precision: self.precision,
            references: self.order.iter().map(|i| names[*i].clone()).collect(),
            numbers: self.numbers.clone(),
        }
    }
}

impl<'a> Sample<'a> {
    fn new(element: Element, target: &'a [u8], references: Vec<&'a [u8]>) -> Self {
        let target_values = values(element, target);
        let reference_values = references.iter().map(|bytes| values(element, bytes)).collect();
        Self { element, target, references, target_values, reference_values }
    }

    /// Whether all references together say clearly more than the best of them.
    fn looks_blended(&self) -> bool {
        self.fitted_weights().is_some() || !self.ties_recipes().is_empty()
    }

    /// The cheapest recipe and its estimated cost on the sample. `hints` are tried, too.
    fn best_recipe(&self, hints: &[Recipe]) -> Option<(Recipe, u64)> {
        let mut recipes: Vec<Recipe> = hints.to_vec();
        recipes.extend(self.fitted_weights().into_iter().flat_map(|weights| self.linear_recipes(&weights)));
        recipes.extend(self.ties_recipes());
        let good_enough = self.target_values.len() as u64 * ONE_BIT / EXACT_ELEMS;
        let mut best: Option<(Recipe, u64)> = None;
        for recipe in recipes {
            let cost = self.cost(&recipe);
            if best.as_ref().is_none_or(|(_, least)| cost < *least) {
                best = Some((recipe, cost));
            }
            if cost <= good_enough {
                break;
            }
        }
        best
    }

    /// Cost of the best reference on its own.
    fn least_of_one(&self) -> u64 {
        let cost = |reference: &&[u8]| plan::residual_cost(self.element.number(), self.target, reference);
        self.references.iter().map(cost).min().unwrap_or(0)
    }

    fn cost(&self, recipe: &Recipe) -> u64 {
        let prediction = self.predict(recipe);
        plan::residual_cost(self.element.number(), self.target, &prediction)
    }

    fn predict(&self, recipe: &Recipe) -> Vec<u8> {
        let blend = recipe.blend(&vec![None; self.references.len()]);
        let references: Vec<&[u8]> = recipe.order.iter().map(|i| self.references[*i]).collect();
        let mut out = vec![0; self.target.len()];
        blend.predict(self.element, &references, &mut out);
        out
    }

    /// Weights of a sum that leaves clearly less than the best reference does.
    fn fitted_weights(&self) -> Option<Vec<f64>> {
        let references = &self.reference_values;
        let fitted = fit_weights(&self.target_values, references)?;
        let blended =
            |i: usize| references.iter().zip(&fitted).map(|(values, weight)| weight * values[i]).sum();
        let least_of_one =
            references.iter().map(|values| self.squares(|i| values[i])).fold(f64::MAX, f64::min);
        (self.squares(blended) <= least_of_one * LINEAR_GAIN).then_some(fitted)
    }

    /// Weighted sums and task arithmetic with these weights, both exact and snapped.
    fn linear_recipes(&self, fitted: &[f64]) -> Vec<Recipe> {
        let all: Vec<usize> = (0..fitted.len()).collect();
        let mut recipes = Vec::new();
        let mut offer = |form, precisions: &[Precision], order: &[usize], numbers: &[f64]| {
            recipes.extend(precisions.iter().map(|precision| Recipe {
                form,
                precision: *precision,
                order: order.to_vec(),
                numbers: numbers.to_vec(),
            }));
        };
        // The usual ones first. They win if others cost the same.
        let every = [Precision::Single, Precision::Own, Precision::Double];
        let rounded = &every[..2];
        for step in STEPS {
            let snapped: Vec<f64> = fitted.iter().map(|weight| snap(*weight, step)).collect();
            // References with weight 0 are no part of it.
            let used: Vec<usize> = all.iter().copied().filter(|i| snapped[*i] != 0.0).collect();
            let reversed: Vec<usize> = used.iter().rev().copied().collect();
            for (order, precisions) in [(used, &every[..]), (reversed, rounded)] {
                let weights: Vec<f64> = order.iter().map(|i| snapped[*i]).collect();
                if !order.is_empty() {
                    offer(BlendForm::Linear, precisions, &order, &weights);
                }
            }
            for origin in all.iter().copied() {
                for first in all.iter().copied() {
                    // A + s (B - C): the weight of A is 1, unless A is C. Then it is the remainder.
                    if first != origin && (snapped[first] - 1.0).abs() > step {
                        continue;
                    }
                    let others: Vec<usize> =
                        all.iter().copied().filter(|i| *i != first && *i != origin).collect();
                    if others.is_empty() {
                        continue;
                    }
                    let weights: Vec<f64> = others.iter().map(|i| snapped[*i]).collect();
                    offer(BlendForm::Task, rounded, &[&[first, origin], &others[..]].concat(), &weights);
                }
            }
        }
        offer(BlendForm::Linear, &[Precision::Double, Precision::Single], &all, fitted);
        recipes
    }

    /// Sum of the squares that a prediction leaves.
    fn squares(&self, prediction: impl Fn(usize) -> f64) -> f64 {
        let differences = self.target_values.iter().enumerate().map(|(i, x)| x - prediction(i));
        differences.map(|d| d * d).filter(|square| square.is_finite()).sum()
    }

    /// Trimmed differences to the reference that equals most elements. Only if so many are equal
    /// that some were trimmed.
    fn ties_recipes(&self) -> Vec<Recipe> {
        let (target, references) = (&self.target_values, &self.reference_values);
        let count_equal = |values: &Vec<f64>| values.iter().zip(target).filter(|(a, b)| a == b).count();
        let Some(first) = (0..references.len()).rev().max_by_key(|i| count_equal(&references[*i])) else {
            return Vec::new();
        };
        let base = &references[first];
        let others: Vec<usize> = (0..references.len()).filter(|i| *i != first).collect();
        let moved = |i: usize| others.iter().any(|other| references[*other][i] != base[i]);
        let of_moved: Vec<usize> = (0..target.len()).filter(|i| moved(*i)).collect();
        let trimmed: Vec<usize> = of_moved.iter().copied().filter(|i| target[*i] == base[*i]).collect();
        let share = trimmed.len() as f64 / of_moved.len().max(1) as f64;
        if others.is_empty() || !(TRIMMED_SHARE..1.0).contains(&share) {
            return Vec::new();
        }
        let order: Vec<usize> = std::iter::once(first).chain(others.iter().copied()).collect();
        let sizes: Vec<Vec<f64>> = others
            .iter()
            .map(|other| {
                let size = |i: &usize| (references[*other][*i] - base[*i]).abs();
                let mut sizes: Vec<f64> = trimmed.iter().map(size).collect();
                sizes.sort_by(f64::total_cmp);
                sizes
            })
            .collect();
        let mut recipes = Vec::new();
        for quantile in TRIM_QUANTILES {
            let thresholds = sizes.iter().map(|sizes| just_above(sizes, quantile));
            let mut numbers: Vec<f64> = thresholds.chain(others.iter().map(|_| 1.0)).chain([1.0]).collect();
            let recipe = |precision, numbers: &[f64]| Recipe {
                form: BlendForm::Ties,
                precision,
                order: order.clone(),
                numbers: numbers.to_vec(),
            };
            // With known thresholds, the scale takes only one more fit.
            let merged = values(self.element, &self.predict(&recipe(Precision::Double, &numbers)));
            let (mut product, mut square) = (0.0, 0.0);
            for i in 0..target.len() {
                let update = merged[i] - base[i];
                product += update * (target[i] - base[i]);
                square += update * update;
            }
            let scale = product / square;
            let left = self.squares(|i| base[i] + scale * (merged[i] - base[i]));
            if !scale.is_finite() || left > self.squares(|i| base[i]) * TIES_GAIN {
                continue;
            }
            for step in STEPS {
                if let Some(number) = numbers.last_mut() {
                    *number = snap(scale, step);
                }
                recipes
                    .extend([Precision::Single, Precision::Own].map(|precision| recipe(precision, &numbers)));
            }
        }
        recipes
    }
}

fn values(element: Element, bytes: &[u8]) -> Vec<f64> {
    let mut out = vec![0.0; bytes.len() / element.bytes()];
    crate::predict::load(element, bytes, &mut out);
    out
}

/// The next F32 number above a quantile of sorted sizes. Elements of at least this size were not
/// trimmed.
fn just_above(sizes: &[f64], quantile: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "a place in a sample")]
    let place = ((sizes.len() as f64 * quantile) as usize).min(sizes.len().saturating_sub(1));
    #[expect(clippy::cast_possible_truncation, reason = "differences of F32 numbers")]
    let size = sizes.get(place).map_or(0.0, |size| *size as f32);
    size.next_up().into()
}

/// Weights with which the references best approximate the target, by least squares. Fine-tunes of
/// one base are almost parallel. So the fit uses the first reference and the differences of the
/// others to it.
fn fit_weights(target: &[f64], references: &[Vec<f64>]) -> Option<Vec<f64>> {
    let (first, others) = references.split_first()?;
    let regressor = |k: usize, i: usize| if k == 0 { first[i] } else { others[k - 1][i] - first[i] };
    let count = references.len();
    let mut equations = NormalEquations::new(count);
    let mut row = vec![0.0; count + 1];
    for (i, value) in target.iter().enumerate() {
        row[..count].iter_mut().enumerate().for_each(|(k, x)| *x = regressor(k, i));
        row[count] = *value;
        equations.add(&row);
    }
    let solved = equations.solve();
    let of_first = solved[0] - solved[1..].iter().sum::<f64>();
    let weights: Vec<f64> = std::iter::once(of_first).chain(solved[1..].iter().copied()).collect();
    weights.iter().all(|weight| weight.is_finite()).then_some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers around 0, but never 0.
    fn noise(seed: u32) -> impl Iterator<Item = f32> {
        (0u32..).map(move |i| {
            let bits = (i ^ seed.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b9);
            let bits = (bits ^ bits >> 15).wrapping_mul(0x2c1b_3c6d);
            ((bits >> 8) as f32 - 8_388_607.5) / 8_388_608.0
        })
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    struct Models {
        base: Vec<f32>,
        a: Vec<f32>,
        b: Vec<f32>,
    }

    fn models() -> Models {
        let base: Vec<f32> = noise(1).take(4096).collect();
        let tuned = |seed| base.iter().zip(noise(seed)).map(|(x, d)| x + d / 256.0).collect::<Vec<f32>>();
        Models { a: tuned(2), b: tuned(3), base }
    }

    fn best(target: &[f32], references: &[&[f32]]) -> (Recipe, u64) {
        let target = bytes(target);
        let references: Vec<Vec<u8>> = references.iter().map(|values| bytes(values)).collect();
        let references = references.iter().map(Vec::as_slice).collect();
        Sample::new(Element::F32, &target, references).best_recipe(&[]).unwrap()
    }

    /// Bits that an exact prediction of the sample may cost: one table.
    const NOTHING: u64 = 200 << 16;

    #[test]
    fn weighted_sums_are_found_exactly() {
        let Models { base, a, b } = models();
        let merged: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.3 * a + 0.7 * b).collect();
        let (recipe, cost) = best(&merged, &[&a, &b]);
        assert!(cost < NOTHING, "{recipe:?} {cost}");
        assert_eq!((recipe.form, recipe.numbers), (BlendForm::Linear, vec![0.3, 0.7]));
        let mean: Vec<f32> = (0..base.len()).map(|i| (base[i] + a[i] + b[i]) / 3.0).collect();
        let (recipe, cost) = best(&mean, &[&base, &a, &b]);
        assert!(cost < (2 * 4096) << 16, "{recipe:?} {cost}");
    }

    #[test]
    fn task_arithmetic_is_found_exactly() {
        let Models { base, a, b } = models();
        let merged: Vec<f32> = (0..base.len()).map(|i| a[i] + 0.4 * (b[i] - base[i])).collect();
        let (recipe, cost) = best(&merged, &[&base, &a, &b]);
        assert!(cost < NOTHING, "{recipe:?} {cost}");
        assert_eq!(
            (recipe.form, &recipe.order[..], &recipe.numbers[..]),
            (BlendForm::Task, &[1, 0, 2][..], &[0.4][..])
        );
    }

    #[test]
    fn trimmed_and_elected_differences_are_found() {
        let Models { base, a, b } = models();
        let trim = |tuned: &[f32]| -> Vec<f32> {
            let update = |i: usize| tuned[i] - base[i];
            (0..base.len()).map(|i| if update(i).abs() < 0.003 { 0.0 } else { update(i) }).collect()
        };
        let (da, db) = (trim(&a), trim(&b));
        let merged: Vec<f32> = (0..base.len())
            .map(|i| {
                let sign = da[i] + db[i];
                let agreeing = [da[i], db[i]].into_iter().filter(|d| d * sign > 0.0);
                let (sum, count) = agreeing.fold((0.0, 0.0), |(sum, count), d| (sum + d, count + 1.0));
                if count == 0.0 { base[i] } else { base[i] + 0.5 * (sum / count) }
            })
            .collect();
        let (recipe, cost) = best(&merged, &[&base, &a, &b]);
        assert_eq!(recipe.form, BlendForm::Ties);
        assert!(cost < 4096 << 14, "{recipe:?} {cost}");
    }

    #[test]
    fn weights_of_equal_references_do_not_matter() {
        let Models { base, a, .. } = models();
        let merged: Vec<f32> = base.iter().zip(&a).map(|(x, y)| 0.5 * x + 0.5 * y).collect();
        let (recipe, cost) = best(&merged, &[&base, &base, &a]);
        assert!(cost < NOTHING, "{recipe:?} {cost}");
    }
}
