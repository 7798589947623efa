//! Some rows of a tensor, and what adapters make of the same rows of a reference.

use crate::bases::{TensorSource, read_matrix};
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan;
use crate::predict::{Element, Factor, Merge, Step, Strided, load_singles, store_singles_or};

use super::super::subject::Subject;
use super::layers::{A, Layer, MAGNITUDE, Place};

/// Evenly spaced rows of a tensor and of its reference.
pub(super) struct Rows {
    element: Element,
    width: u64,
    numbers: Vec<u64>,
    targets: Vec<Vec<u8>>,
    references: Vec<Vec<u8>>,
    /// Elements that differ from the reference.
    pub(super) changed: u64,
}

/// A layer whose factors were read for these rows.
pub(super) struct Ready<'a> {
    pub(super) layer: Layer<'a>,
    parts: Vec<Part>,
}

/// What a product needs for the rows that it changes.
struct Part {
    place: Place,
    /// The row among those of the sample, and its row of the left matrix.
    lines: Vec<(usize, Vec<f32>)>,
    v: Vec<f32>,
    lengths: Vec<f32>,
}

/// How layers are merged.
#[derive(Clone)]
pub(super) struct Recipe {
    /// Numbers of the layers.
    pub(super) order: Vec<usize>,
    /// By the number of the layer.
    pub(super) strengths: Vec<f32>,
    /// Likewise.
    pub(super) merges: Vec<Merge>,
    /// Sums are rounded only when the last adapter was added.
    pub(super) is_kept: bool,
}

impl Recipe {
    /// The step of a place of a layer; factors have their numbers in the layer.
    pub(super) fn step(&self, layer: usize, layers: &[&Layer<'_>], place: &Place, width: u64) -> Step {
        let is_last = self.order.last().is_some_and(|last| layers[*last].adapter == layers[layer].adapter);
        let has_magnitude = layers[layer].factors.len() > MAGNITUDE;
        Step {
            merge: self.merges[layer],
            is_kept: self.is_kept && !is_last,
            rank: place.rank,
            scale: self.strengths[layer],
            rows: place.rows.clone(),
            cols: 0..width,
            u: place.u,
            v: place.v,
            magnitude: has_magnitude.then_some(Strided { factor: MAGNITUDE, start: 0, by_row: 1, by_col: 1 }),
        }
    }
}

impl Rows {
    /// Reads at most `count` rows.
    pub(super) fn read(
        subject: Subject<'_>,
        (element, width): (Element, u64),
        reference: &TensorSource,
        count: u64,
    ) -> Result<Self> {
        let row_bytes = width * element.bytes() as u64;
        let all = subject.info().len_bytes() / row_bytes;
        let step = all.div_ceil(count).max(1);
        let numbers: Vec<u64> = (0..all).step_by(to_usize(step)).collect();
        let len = to_usize(row_bytes);
        let targets: Vec<Vec<u8>> =
            numbers.iter().map(|row| subject.read(row * row_bytes, len)).collect::<Result<_>>()?;
        let references: Vec<Vec<u8>> =
            numbers.iter().map(|row| reference.read(row * row_bytes, len)).collect::<Result<_>>()?;
        let mut rows = Self { element, width, numbers, targets, references, changed: 0 };
        rows.changed = rows.wrong(&rows.references);
        Ok(rows)
    }

    /// Reads the factors of a layer for these rows.
    pub(super) fn ready<'a>(&self, layer: Layer<'a>) -> Result<Ready<'a>> {
        let factors: Vec<Factor> = layer.factors.iter().map(|source| factor(source)).collect();
        // Nothing is read from the tensor that is changed.
        let sources: Vec<TensorSource> = std::iter::once(&layer.factors[A])
            .chain(&layer.factors)
            .map(|source| (*source).clone())
            .collect();
        let read = |matrix: &Strided, rows: std::ops::Range<u64>, cols| {
            read_matrix(matrix, &factors, &sources, &rows, cols)
        };
        let magnitude = Strided { factor: MAGNITUDE, start: 0, by_row: 1, by_col: 1 };
        let mut parts = Vec::new();
        for place in &layer.places {
            let within = self.numbers.iter().enumerate().filter(|(_, row)| place.rows.contains(row));
            let (mut lines, mut lengths) = (Vec::new(), Vec::new());
            for (i, row) in within {
                let own = row - place.rows.start..row - place.rows.start + 1;
                lines.push((i, read(&place.u, own.clone(), place.rank)?));
                if layer.factors.len() > MAGNITUDE {
                    lengths.extend(read(&magnitude, own, 1)?);
                }
            }
            if !lines.is_empty() {
                let v = read(&place.v, 0..place.rank, self.width)?;
                parts.push(Part { place: place.clone(), lines, v, lengths });
            }
        }
        Ok(Ready { layer, parts })
    }

    /// The elements of a layer's product, without its scale; and those of the change.
    pub(super) fn product(&self, ready: &Ready<'_>, merge: Merge) -> Vec<f32> {
        let width = to_usize(self.width);
        let mut out = vec![0.0; self.numbers.len() * width];
        for part in &ready.parts {
            for (i, u) in &part.lines {
                merge.update_row(u, &part.v, 1.0, &mut out[i * width..(i + 1) * width]);
            }
        }
        out
    }

    /// The difference between the tensor and the reference.
    pub(super) fn change(&self) -> Vec<f64> {
        let pairs = self.targets.iter().zip(&self.references);
        let of_row = |(target, reference): (&Vec<u8>, &Vec<u8>)| {
            let [target, reference] = [target, reference].map(|row| load_singles(self.element, row));
            target.into_iter().zip(reference).map(|(a, b)| f64::from(a) - f64::from(b)).collect::<Vec<f64>>()
        };
        pairs.flat_map(of_row).collect()
    }

    /// What a recipe makes of the rows of the reference.
    fn predict(&self, ready: &[Ready<'_>], recipe: &Recipe) -> Vec<Vec<u8>> {
        let mut rows: Vec<Vec<f32>> =
            self.references.iter().map(|row| load_singles(self.element, row)).collect();
        let mut update = vec![0.0; to_usize(self.width)];
        let layers: Vec<&Layer<'_>> = ready.iter().map(|ready| &ready.layer).collect();
        for layer in &recipe.order {
            for part in &ready[*layer].parts {
                let step = recipe.step(*layer, &layers, &part.place, self.width);
                for (k, (i, u)) in part.lines.iter().enumerate() {
                    let mut u = u.clone();
                    step.merge.prepare(&mut u, step.scale);
                    step.merge.update_row(&u, &part.v, step.scale, &mut update);
                    step.add(self.element, &update, part.lengths.get(k).copied(), &mut rows[*i]);
                }
            }
        }
        let store = |(row, reference): (Vec<f32>, &Vec<u8>)| {
            let mut out = reference.clone();
            store_singles_or(self.element, row.into_iter(), reference, &mut out);
            out
        };
        rows.into_iter().zip(&self.references).map(store).collect()
    }

    /// Elements that a recipe gets wrong.
    pub(super) fn score(&self, ready: &[Ready<'_>], recipe: &Recipe) -> u64 {
        self.wrong(&self.predict(ready, recipe))
    }

    /// Whether a recipe leaves a residual of less than half the cost.
    pub(super) fn is_worth_it(&self, ready: &[Ready<'_>], recipe: &Recipe) -> bool {
        let cost = |rows: &[Vec<u8>]| {
            plan::residual_cost(self.element.number(), &self.targets.concat(), &rows.concat())
        };
        cost(&self.predict(ready, recipe)) < cost(&self.references) / 2
    }

    fn wrong(&self, rows: &[Vec<u8>]) -> u64 {
        let size = self.element.bytes();
        let of_row = |(target, row): (&Vec<u8>, &Vec<u8>)| {
            target.chunks_exact(size).zip(row.chunks_exact(size)).filter(|(a, b)| a != b).count() as u64
        };
        self.targets.iter().zip(rows).map(of_row).sum()
    }
}

/// A tensor of an adapter, as predictors describe it.
pub(super) fn factor(source: &TensorSource) -> Factor {
    let info = source.info();
    // Whoever lists the modules has checked it.
    let dtype = Element::of(&info.dtype).unwrap_or(Element::F32);
    Factor { name: info.name.clone(), dtype, shape: info.shape.clone() }
}
