//! Where the factors of adapters may lie in a tensor: as a whole, for some of its rows, or one pair
//! for each matrix of a stack. Several places may fit; the elements decide.

use std::ops::Range;

use crate::bases::{Base, Modules, TensorSource};
use crate::checkpoint::peft::Module;
use crate::predict::{Element, MAX_RANK, MAX_STEPS, Strided};
use crate::tensor::TensorInfo;

/// Of a module: the places of its products, and whether they are transposed.
type PlacesOf<'a> = dyn Fn(&Module) -> Vec<(Vec<Place>, bool)> + 'a;

/// Places that are tried of one module.
const MOST_PLACES: u64 = 64;
/// Modules that one tensor may be made of.
const MOST_PARTS: usize = 16;
/// Numbers of the factors of a layer.
pub(super) const A: usize = 0;
const B: usize = 1;
pub(super) const MAGNITUDE: usize = 2;

/// What one module may add to a tensor, with one strength.
#[derive(Clone)]
pub(super) struct Layer<'a> {
    /// Number of the adapter, in the order in which they were given.
    pub(super) adapter: usize,
    pub(super) module: &'a Module,
    /// A, B, and the lengths of rows.
    pub(super) factors: Vec<&'a TensorSource>,
    /// The products, each for other rows.
    pub(super) places: Vec<Place>,
    /// Whether it is one product for the whole tensor, whose rows are inputs.
    pub(super) is_transposed: bool,
}

/// A product that is added to some rows.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) rows: Range<u64>,
    pub(super) rank: u64,
    pub(super) u: Strided,
    pub(super) v: Strided,
}

/// Columns of a tensor, seen as a matrix with as many rows as its first dimension, or with those of
/// all matrices of a stack. A matrix is either.
fn widths(info: &TensorInfo) -> Option<[u64; 2]> {
    match &info.shape[..] {
        [_, rest @ .., last] => Some([rest.iter().product::<u64>() * last, *last]),
        _ => None,
    }
}

/// The layers that may change a tensor with these names. Of each layer, all that may be meant.
pub(super) fn of<'a>(
    (number, base, modules): (usize, &'a Base, &'a Modules),
    names: [&str; 2],
    info: &TensorInfo,
) -> Vec<Vec<Layer<'a>>> {
    let layer = |module: &'a Module, (places, is_transposed): (Vec<Place>, bool)| {
        let mut factors = base.factors_of(module);
        if is_transposed || places.len() > 1 {
            factors.truncate(MAGNITUDE);
        }
        Layer { adapter: number, module, factors, places, is_transposed }
    };
    let module = |i: usize| &modules.all()[i];
    let layers = |found: Vec<usize>, places: &PlacesOf<'_>| -> Vec<Layer<'a>> {
        let of_one = |i| places(module(i)).into_iter().map(move |place| layer(module(i), place));
        found.into_iter().flat_map(of_one).collect()
    };
    let unique = |mut found: Vec<usize>| {
        found.sort_unstable();
        found.dedup();
        found
    };
    let named = unique(names.iter().flat_map(|name| modules.of(name)).collect());
    let whole =
        layers(named, &|module| whole(info, module).into_iter().chain(stacked(info, module)).collect());
    if !whole.is_empty() {
        return vec![whole];
    }
    let around = names.map(|name| modules.around(name));
    let around = |which: usize| unique(around.iter().flat_map(|found| found[which].clone()).collect());
    let stack = layers(around(1), &|module| stacked(info, module));
    if !stack.is_empty() {
        return vec![stack];
    }
    let (mut parts, siblings) = (Vec::new(), around(0));
    let sizes: Vec<u64> = siblings.iter().map(|i| module(*i).outputs).collect();
    for (i, sibling) in siblings.iter().enumerate() {
        let others = sizes.iter().enumerate().filter(|(other, _)| *other != i).map(|(_, size)| *size);
        let others: Vec<u64> = others.collect();
        let found = layers(vec![*sibling], &|module| partial(info, module, &others));
        if !found.is_empty() && parts.len() < MOST_PARTS {
            parts.push(found);
        }
    }
    parts
}

/// A module whose product has the size of the tensor.
fn whole(info: &TensorInfo, module: &Module) -> Vec<(Vec<Place>, bool)> {
    let Some([width, _]) = widths(info).filter(|_| module.rank <= MAX_RANK) else { return Vec::new() };
    let rows = info.shape[0];
    let Module { rank, inputs, outputs, .. } = *module;
    let mut found = Vec::new();
    if [rows, width] == [outputs, inputs] {
        found.push((vec![plain(0..rows, 0, module)], false));
    }
    if info.shape.len() == 2 && [rows, width] == [inputs, outputs] {
        let u = Strided { factor: A, start: 0, by_row: 1, by_col: inputs };
        let v = Strided { factor: B, start: 0, by_row: 1, by_col: rank };
        found.push((vec![Place { rows: 0..rows, rank, u, v }], true));
    }
    if module.is_transposed {
        found.reverse();
    }
    found
}

/// The product of A and of the rows of B from one on.
fn plain(rows: Range<u64>, first_row_of_b: u64, module: &Module) -> Place {
    let Module { rank, inputs, .. } = *module;
    let u = Strided { factor: B, start: first_row_of_b * rank, by_row: rank, by_col: 1 };
    let v = Strided { factor: A, start: 0, by_row: inputs, by_col: 1 };
    Place { rows, rank, u, v }
}

/// A module that changes some rows of the tensor, or whose product has more rows. `others` are the
/// rows of the modules beside it, which may come first.
fn partial(info: &TensorInfo, module: &Module, others: &[u64]) -> Vec<(Vec<Place>, bool)> {
    let Some([width, _]) = widths(info).filter(|_| info.shape.len() == 2) else { return Vec::new() };
    let rows = info.shape[0];
    let Module { inputs, outputs, .. } = *module;
    if inputs != width || module.rank > MAX_RANK || module.magnitude.is_some() {
        return Vec::new();
    }
    let place = |rows: Range<u64>, first: u64| (vec![plain(rows, first, module)], false);
    if outputs > rows {
        return (0..(outputs / rows).min(MOST_PLACES)).map(|i| place(0..rows, i * rows)).collect();
    }
    // All sums of the sizes of others.
    let mut starts = vec![0];
    for size in others {
        let more: Vec<u64> = starts.iter().map(|start| start + size).collect();
        starts.extend(more);
        starts.retain(|start| start + outputs <= rows);
        starts.sort_unstable();
        starts.dedup();
        starts.truncate(usize::try_from(MOST_PLACES).unwrap_or(usize::MAX));
    }
    starts
        .into_iter()
        .filter(|start| start + outputs <= rows)
        .map(|start| place(start..start + outputs, 0))
        .collect()
}

/// A module with a pair of factors for each matrix of a stack. Tools order ranks and matrices
/// differently.
fn stacked(info: &TensorInfo, module: &Module) -> Vec<(Vec<Place>, bool)> {
    let [count, rows, cols] = info.shape[..] else { return Vec::new() };
    let Module { rank: all, inputs, outputs, .. } = *module;
    if !(2..=MAX_STEPS).contains(&count) || !all.is_multiple_of(count) || all / count > MAX_RANK {
        return Vec::new();
    }
    let rank = all / count;
    // Of a factor with `all` rows or columns: where those of a matrix start, and how far apart
    // they are.
    let orders = |i: u64| [(i * rank, 1), (i, count)];
    let mut found = Vec::new();
    for is_turned in [false, true] {
        if [rows, cols] != if is_turned { [inputs, outputs] } else { [outputs, inputs] } {
            continue;
        }
        for (of_a, of_b) in [(0, 1), (0, 0), (1, 1), (1, 0)] {
            let place = |i: u64| {
                let ((a, a_step), (b, b_step)) = (orders(i)[of_a], orders(i)[of_b]);
                let (u, v) = if is_turned {
                    (
                        Strided { factor: A, start: a * inputs, by_row: 1, by_col: a_step * inputs },
                        Strided { factor: B, start: b, by_row: b_step, by_col: all },
                    )
                } else {
                    (
                        Strided { factor: B, start: b, by_row: all, by_col: b_step },
                        Strided { factor: A, start: a * inputs, by_row: a_step * inputs, by_col: 1 },
                    )
                };
                Place { rows: i * rows..(i + 1) * rows, rank, u, v }
            };
            found.push(((0..count).map(place).collect(), false));
        }
    }
    found
}

/// Whether the tensor's elements can be computed, and its columns as layers see it.
pub(super) fn applies(info: &TensorInfo, layers: &[Vec<Layer<'_>>]) -> Option<(Element, u64)> {
    let element = Element::of(&info.dtype)?;
    let [flat, last] = widths(info)?;
    let is_stack = layers.iter().flatten().any(|layer| layer.places.len() > 1);
    Some((element, if is_stack { last } else { flat }))
}
