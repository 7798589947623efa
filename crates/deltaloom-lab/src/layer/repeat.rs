//! Multiplies one layer in one resident form: time by phase and parameter, and whether the result
//! is right. [`super::run`] decides what is compared.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use super::case::LayerCase;
use crate::products::{Checked, Reference};
use deltaloom::Result;
use deltaloom_compute::{Choice, Mode, Run, Timers, Times, Tolerance};
use deltaloom_lm::layer::{Batch, LayerWeights, MatrixRole, PackedLayer, TenantId, VectorRole, forward};

/// A parameter of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Matrix(MatrixRole),
    Vector(VectorRole),
}

/// Time of one parameter: wall time, and for matrices also phases, which are sums over threads.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ParameterTime {
    pub(super) wall: f64,
    pub(super) phases: Times,
}

/// Weights that record how long they take.
struct Watched<'a> {
    weights: &'a PackedLayer,
    times: RefCell<BTreeMap<Role, ParameterTime>>,
}

impl Watched<'_> {
    fn note(&self, role: Role, start: Instant, phases: Times) {
        let mut times = self.times.borrow_mut();
        let time = times.entry(role).or_default();
        time.wall += start.elapsed().as_secs_f64();
        time.phases = time.phases + phases;
    }
}

impl LayerWeights for Watched<'_> {
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let (start, timers) = (Instant::now(), Timers::default());
        self.weights.matmul(role, batch, x, y, &run.timed_by(&timers))?;
        self.note(Role::Matrix(role), start, timers.take());
        Ok(())
    }

    fn vector(&self, role: VectorRole, tenant: TenantId) -> Result<Option<Cow<'_, [f32]>>> {
        let start = Instant::now();
        let vector = self.weights.vector(role, tenant)?;
        if vector.is_some() {
            let wall = start.elapsed().as_secs_f64();
            let mut times = Times::default();
            times.patch = wall;
            self.note(Role::Vector(role), start, times);
        }
        Ok(vector)
    }
}

/// One repeat.
pub(super) struct Repeat {
    /// Reading the index, finding references, building the resident form.
    pub(super) open: f64,
    /// Wall time of the whole layer.
    pub(super) forward: f64,
    pub(super) parameters: BTreeMap<Role, ParameterTime>,
    pub(super) resident_bytes: u64,
    pub(super) difference: Difference,
}

/// Comparison of an output with the expected one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Difference {
    pub(super) is_bit_exact: bool,
    /// Length of the difference over that of the expected output; NaN if they cannot be compared.
    pub(super) relative_error: f64,
}

impl Difference {
    pub(super) fn of(output: &[f32], expected: &[f32]) -> Self {
        let is_bit_exact = output.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits()));
        let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        // Equal bits do not differ, even if they are NaN.
        let pairs = output.iter().zip(expected).filter(|(a, b)| a.to_bits() != b.to_bits());
        let difference = length(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let finite = expected.iter().filter(|x| x.is_finite());
        let relative_error = match difference {
            0.0 => 0.0,
            difference => difference / length(&mut finite.map(|x| f64::from(*x))),
        };
        Self { is_bit_exact, relative_error }
    }
}

impl Repeat {
    /// Sums the phases of all parameters.
    pub(super) fn phases(&self) -> Times {
        self.parameters.values().fold(Times::default(), |all, time| all + time.phases)
    }

    /// Time outside of parameters: attention between projections, norms, activations.
    pub(super) fn between(&self) -> f64 {
        self.forward - self.parameters.values().map(|time| time.wall).sum::<f64>()
    }
}

/// The reference for products of a case.
struct OfCase<'a>(&'a LayerCase);

impl Reference for OfCase<'_> {
    fn product(&self, role: MatrixRole, _tenant: TenantId, x: &[f32], y: &mut [f32]) -> Result<Tolerance> {
        let tuned = self.0.matrix(self.0.tuned(), role)?;
        tuned.matmul(x, y, &Run::default())?;
        Tolerance::new(&self.0.matrix(self.0.base(), role)?, &tuned)
    }
}

/// Computes the layer once and compares every product. Returns the largest error.
pub(super) fn worst_product(
    case: &LayerCase,
    choice: Option<Choice>,
    mode: Mode,
    x: &[f32],
    tokens: usize,
) -> Result<f64> {
    let layer = open(case, choice)?;
    let reference = OfCase(case);
    let checked = Checked::new(&layer, &reference);
    forward(case.config(), &checked, &Batch::of_one(tokens), x, &Run::new(mode))?;
    Ok(checked.error.get())
}

/// Opens the layer from the container, or with the weights of the fine-tune's file.
fn open(case: &LayerCase, choice: Option<Choice>) -> Result<PackedLayer> {
    match choice {
        Some(choice) => case.open(choice),
        None => case.dense(),
    }
}

/// Opens the layer and computes it once.
pub(super) fn repeat(
    case: &LayerCase,
    choice: Option<Choice>,
    mode: Mode,
    x: &[f32],
    tokens: usize,
) -> Result<(Repeat, Vec<f32>)> {
    let start = Instant::now();
    let layer = open(case, choice)?;
    let opened = start.elapsed().as_secs_f64();
    let watched = Watched { weights: &layer, times: RefCell::default() };
    let start = Instant::now();
    let output = forward(case.config(), &watched, &Batch::of_one(tokens), x, &Run::new(mode))?;
    let forward = start.elapsed().as_secs_f64();
    let parameters = watched.times.into_inner();
    let difference = Difference { is_bit_exact: false, relative_error: f64::NAN };
    Ok((
        Repeat { open: opened, forward, parameters, resident_bytes: layer.resident_bytes(), difference },
        output,
    ))
}
