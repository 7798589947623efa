//! Finds out how adapters were merged: where their factors lie, with which strengths, in which
//! turn, and with which orders of operations. Strengths are fitted to some rows; everything else is
//! tried on them.
//! [`crate::predict::Adapter`] and [`crate::predict::Adapters`] have the arithmetic.

mod layers;
mod rows;
mod strength;

use crate::bases::{Bases, TensorSource};
use crate::error::Result;
use crate::predict::{Adapter, Adapters, Element, Merge, Predictor};
use crate::tensor::{ChunkGrid, TensorInfo};

use super::Origin;
use super::least_squares::NormalEquations;
use super::subject::Subject;
use layers::{Layer, MAGNITUDE};
use rows::{Ready, Recipe, Rows};

/// Number of rows for comparing the orders of operations; and if several modules change a tensor.
const SAMPLE_ROWS: u64 = 16;
const SAMPLE_ROWS_OF_PARTS: u64 = 64;
/// A layer belongs to a change if its strength is so many standard errors.
const SIGNIFICANT: f64 = 6.0;
/// Adapters that are tried in every turn.
const MOST_TURNED: usize = 3;

/// The prediction of a tensor from `reference` and the adapters that change it. `None` if there is
/// none, or if they explain less than half of the differences.
pub(super) fn fit(
    subject: Subject<'_>,
    reference: &TensorSource,
    grid: &ChunkGrid,
    bases: &Bases,
) -> Result<Option<Origin>> {
    let info = subject.info();
    let layers = layers_of(info, reference, bases);
    let Some((element, width)) = layers::applies(info, &layers).filter(|_| !layers.is_empty()) else {
        return Ok(None);
    };
    let is_one = layers.len() == 1 && layers[0].iter().all(|layer| layer.places.len() == 1);
    let count = if is_one { SAMPLE_ROWS } else { SAMPLE_ROWS_OF_PARTS };
    let rows = Rows::read(subject, (element, width), reference, count)?;
    if rows.changed == 0 {
        return Ok(None);
    }
    let change = rows.change();
    let mut ready = Vec::new();
    for meant in layers {
        ready.extend(likeliest(&rows, meant, &change)?);
    }
    let Some((ready, recipe)) = merged(&rows, ready, &change, element) else { return Ok(None) };
    let wrong = rows.score(&ready, &recipe);
    if wrong * 2 >= rows.changed && !rows.is_worth_it(&ready, &recipe) {
        return Ok(None);
    }
    let layers: Vec<&Layer<'_>> = ready.iter().map(|ready| &ready.layer).collect();
    let (predictor, references) = predictor(info, reference, &layers, &recipe, width);
    let is_allowed = match &predictor {
        Predictor::Adapters(adapters) => adapters.is_allowed(info, grid),
        _ => grid.is_matrix,
    };
    if is_allowed {
        Origin::coded(predictor, references).with_reference_digests().map(Some)
    } else {
        Ok(None)
    }
}

/// Whether adapters have a module with the place of a tensor.
pub(super) fn has_module(info: &TensorInfo, bases: &Bases) -> bool {
    bases.adapters().any(|(_, modules)| !modules.of(&info.name).is_empty())
}

/// The layers of all adapters. Of each, all that may be meant.
fn layers_of<'a>(info: &TensorInfo, reference: &TensorSource, bases: &'a Bases) -> Vec<Vec<Layer<'a>>> {
    let names = [info.name.as_str(), &reference.info().name];
    let adapters = bases.adapters().enumerate();
    let layers = adapters.flat_map(|(i, (base, modules))| layers::of((i, base, modules), names, info));
    layers.collect()
}

/// The orders of operations. The usual ones come first.
fn merges(element: Element, dtypes: &[Element]) -> Vec<Merge> {
    let mut narrower: Vec<Element> = Vec::new();
    for to in dtypes.iter().copied().chain([element]).filter(|to| *to != Element::F32) {
        if !narrower.contains(&to) {
            narrower.push(to);
        }
    }
    let rounded = narrower.into_iter().flat_map(|to| [(None, Some(to)), (Some(to), Some(to))]);
    let roundings: Vec<_> = std::iter::once((None, None)).chain(rounded).collect();
    let with = |scale_first: bool, fused: bool| {
        let merge = move |(product, update)| Merge { fused, scale_first, transposed: false, product, update };
        roundings.clone().into_iter().map(merge)
    };
    [(false, true), (false, false), (true, true), (true, false)]
        .into_iter()
        .flat_map(|(scale_first, fused)| with(scale_first, fused))
        .collect()
}

/// What is used to fit strengths.
const PLAIN: Merge =
    Merge { fused: true, scale_first: false, transposed: false, product: None, update: None };

/// The layer that explains most of the change, among those that may be meant.
fn likeliest<'a>(rows: &Rows, meant: Vec<Layer<'a>>, change: &[f64]) -> Result<Option<Ready<'a>>> {
    let is_only = meant.len() == 1;
    let mut best: Option<(f64, Ready<'a>)> = None;
    for layer in meant {
        let ready = rows.ready(layer)?;
        let explained = if is_only { 0.0 } else { explained(&rows.product(&ready, PLAIN), change) };
        if best.as_ref().is_none_or(|(most, _)| explained > *most) {
            best = Some((explained, ready));
        }
    }
    Ok(best.map(|(_, ready)| ready))
}

/// The part of a change that a product explains.
fn explained(product: &[f32], change: &[f64]) -> f64 {
    let (mut squares, mut products) = (0.0, 0.0);
    for (x, d) in product.iter().zip(change).filter(|(x, d)| x.is_finite() && d.is_finite()) {
        squares += f64::from(*x) * f64::from(*x);
        products += f64::from(*x) * d;
    }
    if squares > 0.0 { products * products / squares } else { 0.0 }
}

/// The layers that belong to the change, and the strengths that each may have.
fn belonging<'a>(
    rows: &Rows,
    mut ready: Vec<Ready<'a>>,
    change: &[f64],
) -> Option<(Vec<Ready<'a>>, Vec<Vec<f32>>)> {
    let scale_of = |ready: &Ready<'_>| ready.layer.module.scale;
    if ready.iter().any(|ready| ready.layer.factors.len() > MAGNITUDE) {
        // The change is not linear in the strength.
        let strengths = ready.iter().map(|ready| vec![single(scale_of(ready))]).collect();
        return Some((ready, strengths));
    }
    let mut fitted = fit_strengths(rows, &ready, change);
    if ready.len() > 1 {
        let mut belongs = fitted.iter().map(|(strength, error)| strength.abs() > SIGNIFICANT * error);
        ready.retain(|_| belongs.next().unwrap_or(false));
        fitted = fit_strengths(rows, &ready, change);
    }
    let candidates = |(ready, (strength, error)): (&Ready<'_>, (f64, f64))| {
        let scale = scale_of(ready);
        match !error.is_finite() || strength::explains(scale, strength, error) {
            true => vec![single(scale)],
            false => strength::candidates(scale, ready.layer.places[0].rank, strength, error),
        }
    };
    let strengths: Vec<Vec<f32>> = ready.iter().zip(fitted).map(candidates).collect();
    let is_any = !ready.is_empty() && strengths.iter().all(|candidates| !candidates.is_empty());
    is_any.then_some((ready, strengths))
}

/// The layers that belong to the change, and how they were merged.
fn merged<'a>(
    rows: &Rows,
    ready: Vec<Ready<'a>>,
    change: &[f64],
    element: Element,
) -> Option<(Vec<Ready<'a>>, Recipe)> {
    let (ready, strengths) = belonging(rows, ready, change)?;
    let dtypes: Vec<Element> = ready
        .iter()
        .flat_map(|ready| &ready.layer.factors)
        .map(|source| rows::factor(source).dtype)
        .collect();
    let adapters = adapters_of(&ready);
    let turns = turns(&ready, &adapters);
    let mut best = Recipe {
        order: (0..ready.len()).collect(),
        strengths: strengths.iter().map(|candidates| candidates[0]).collect(),
        merges: vec![PLAIN; ready.len()],
        is_kept: false,
    };
    let mut least = rows.score(&ready, &best);
    let mut try_all = |best: &mut Recipe, others: &mut dyn Iterator<Item = Recipe>| {
        for recipe in others {
            if least == 0 {
                return;
            }
            let wrong = rows.score(&ready, &recipe);
            if wrong < least {
                (least, *best) = (wrong, recipe);
            }
        }
    };
    let with_strength = |best: &Recipe, layer: usize, strength: f32| {
        let mut recipe = best.clone();
        recipe.strengths[layer] = strength;
        recipe
    };
    let kept = if turns.len() > 1 { &[false, true][..] } else { &[false] };
    for _ in 0..2 {
        for (layer, candidates) in strengths.iter().enumerate().filter(|(_, candidates)| candidates.len() > 1)
        {
            let from = best.clone();
            try_all(&mut best, &mut candidates.iter().map(|strength| with_strength(&from, layer, *strength)));
        }
        if turns.len() > 1 {
            let from = best.clone();
            let recipe =
                |order: &Vec<usize>, is_kept| Recipe { order: order.clone(), is_kept, ..from.clone() };
            try_all(
                &mut best,
                &mut kept
                    .iter()
                    .flat_map(|is_kept| turns.iter().map(move |order| (order, *is_kept)))
                    .map(|(order, is_kept)| recipe(order, is_kept)),
            );
        }
        let orders = merges(element, &dtypes);
        let from = best.clone();
        let everywhere = |merge: &Merge| Recipe { merges: vec![*merge; ready.len()], ..from.clone() };
        try_all(&mut best, &mut orders.iter().map(everywhere));
        // Another tool may have merged each adapter.
        for adapter in adapters.iter().filter(|_| adapters.len() > 1) {
            let from = best.clone();
            let recipe = |merge: &Merge| {
                let mut recipe = from.clone();
                let own = ready.iter().enumerate().filter(|(_, ready)| ready.layer.adapter == *adapter);
                own.for_each(|(layer, _)| recipe.merges[layer] = *merge);
                recipe
            };
            try_all(&mut best, &mut orders.iter().map(recipe));
        }
    }
    Some((ready, best))
}

/// The strength of each layer, and its standard error.
fn fit_strengths(rows: &Rows, ready: &[Ready<'_>], change: &[f64]) -> Vec<(f64, f64)> {
    let products: Vec<Vec<f32>> = ready.iter().map(|ready| rows.product(ready, PLAIN)).collect();
    let mut equations = NormalEquations::new(ready.len());
    let row = |at: usize| -> Vec<f64> {
        products.iter().map(|product| f64::from(product[at])).chain([change[at]]).collect()
    };
    (0..change.len()).for_each(|at| equations.add(&row(at)));
    let strengths = equations.solve();
    let rest = |at: usize| {
        let row = row(at);
        change[at] - strengths.iter().zip(&row).map(|(strength, x)| strength * x).sum::<f64>()
    };
    let squares = |numbers: &mut dyn Iterator<Item = f64>| -> f64 {
        numbers.filter(|x| x.is_finite()).map(|x| x * x).sum()
    };
    let variance = squares(&mut (0..change.len()).map(rest)) / change.len().max(1) as f64;
    let error = |product: &Vec<f32>| (variance / squares(&mut product.iter().map(|x| f64::from(*x)))).sqrt();
    strengths.iter().copied().zip(products.iter().map(error)).collect()
}

/// The adapters of layers, in the order in which they were given.
fn adapters_of(ready: &[Ready<'_>]) -> Vec<usize> {
    let mut adapters: Vec<usize> = ready.iter().map(|ready| ready.layer.adapter).collect();
    adapters.sort_unstable();
    adapters.dedup();
    adapters
}

/// The turns in which several adapters may have been merged; that in which they were given first.
fn turns(ready: &[Ready<'_>], adapters: &[usize]) -> Vec<Vec<usize>> {
    let of_adapters = |turn: &[usize]| -> Vec<usize> {
        let of_one = |adapter: &usize| {
            let adapter = *adapter;
            (0..ready.len()).filter(move |layer| ready[*layer].layer.adapter == adapter)
        };
        turn.iter().flat_map(of_one).collect()
    };
    let reversed: Vec<usize> = adapters.iter().rev().copied().collect();
    let turns = match adapters.len() {
        0 | 1 => vec![adapters.to_vec()],
        2..=MOST_TURNED => permutations(adapters),
        _ => vec![adapters.to_vec(), reversed],
    };
    turns.iter().map(|turn| of_adapters(turn)).collect()
}

fn permutations(of: &[usize]) -> Vec<Vec<usize>> {
    if of.is_empty() {
        return vec![Vec::new()];
    }
    let starting_with = |i: usize| {
        let others = [&of[..i], &of[i + 1..]].concat();
        permutations(&others).into_iter().map(move |rest| [&[of[i]][..], &rest].concat())
    };
    (0..of.len()).flat_map(starting_with).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "libraries scale F32 tensors")]
fn single(x: f64) -> f32 {
    let single = x as f32;
    if single.is_finite() { single } else { 0.0 }
}

/// The predictor, and its references.
fn predictor(
    info: &TensorInfo,
    reference: &TensorSource,
    layers: &[&Layer<'_>],
    recipe: &Recipe,
    width: u64,
) -> (Predictor, Vec<TensorSource>) {
    let name = super::reference_name(info, reference);
    if let ([layer], [strength]) = (layers, &recipe.strengths[..])
        && let Some((rank, dtype)) = matrices_of(info, layer)
    {
        let [a, b] = [layer.factors[0], layer.factors[1]];
        let adapter = Adapter {
            reference: name,
            factors: [a.info().name.clone(), b.info().name.clone()],
            rank,
            scale: *strength,
            merge: Merge { transposed: layer.is_transposed, ..recipe.merges[0] },
            dtype,
        };
        return (Predictor::Adapter(Box::new(adapter)), vec![reference.clone(), a.clone(), b.clone()]);
    }
    let (mut sources, mut factors): (Vec<&TensorSource>, _) = (Vec::new(), Vec::new());
    let mut steps = Vec::new();
    for number in &recipe.order {
        let layer = layers[*number];
        let mut places = Vec::new();
        for source in &layer.factors {
            let place = sources.iter().position(|known| known.id() == source.id()).unwrap_or(sources.len());
            if place == sources.len() {
                sources.push(source);
                factors.push(rows::factor(source));
            }
            places.push(place);
        }
        for place in &layer.places {
            let mut step = recipe.step(*number, layers, place, width);
            step.u.factor = places[step.u.factor];
            step.v.factor = places[step.v.factor];
            if let Some(magnitude) = &mut step.magnitude {
                magnitude.factor = places[magnitude.factor];
            }
            steps.push(step);
        }
    }
    let references = std::iter::once(reference).chain(sources).cloned().collect();
    let elems = info.len_bytes() / info.number().bytes() as u64;
    let size = [elems / width, width];
    (Predictor::Adapters(Box::new(Adapters { reference: name, size, factors, steps })), references)
}

/// Rank and dtype of a layer that is one product of matrices for a whole matrix.
fn matrices_of(info: &TensorInfo, layer: &Layer<'_>) -> Option<(u64, Element)> {
    let [place] = &layer.places[..] else { return None };
    let [a, b] = &layer.factors[..] else { return None };
    let (a, b) = (a.info(), b.info());
    let shapes = [&info.shape, &a.shape, &b.shape].iter().all(|shape| shape.len() == 2);
    let is_whole = shapes && a.dtype == b.dtype && place.rows == (0..info.shape[0]) && {
        let size = [b.shape[0], a.shape[1]];
        info.shape == if layer.is_transposed { [size[1], size[0]] } else { size }
    };
    is_whole.then(|| Element::of(&a.dtype)).flatten().map(|dtype| (place.rank, dtype))
}
