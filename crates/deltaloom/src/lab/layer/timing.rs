//! One layer multiplied in one resident form: what it takes, phase by phase and parameter by parameter, and whether it is right.
//! What is compared with what is decided by [`super::run`].

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::case::LayerCase;
use crate::compute::layer::{Batch, LayerWeights, MatrixRole, PackedLayer, VectorRole, forward};
use crate::compute::{Choice, Mode, Run, Timers, Times};
use crate::error::Result;

/// Mean and standard deviation over repeats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the repeats.
    pub std: f64,
}

impl Seconds {
    #[expect(clippy::cast_precision_loss, reason = "few repeats")]
    pub(super) fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count().max(1) as f64;
        let mean = values.clone().sum::<f64>() / count;
        let variance = values.map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
        Self { mean, std: variance.sqrt() }
    }
}

/// A parameter of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Matrix(MatrixRole),
    Vector(VectorRole),
}

/// Time of one parameter: on the wall, and of matrices also by phases, which threads add up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ParameterTime {
    pub(super) wall: f64,
    pub(super) phases: Times,
}

/// Weights that note how long they take.
struct Watched<'a> {
    weights: &'a PackedLayer,
    times: RefCell<BTreeMap<Role, ParameterTime>>,
}

impl Watched<'_> {
    fn note(&self, role: Role, start: Instant, phases: Times) {
        let mut times = self.times.borrow_mut();
        let time = times.entry(role).or_default();
        time.wall += start.elapsed().as_secs_f64();
        time.phases = sum(time.phases, phases);
    }
}

fn sum(a: Times, b: Times) -> Times {
    Times {
        load: a.load + b.load,
        decode: a.decode + b.decode,
        patch: a.patch + b.patch,
        multiply: a.multiply + b.multiply,
        finish: a.finish + b.finish,
    }
}

impl LayerWeights for Watched<'_> {
    fn matmul(&self, role: MatrixRole, batch: &Batch, x: &[f32], y: &mut [f32], run: &Run<'_>) -> Result<()> {
        let (start, timers) = (Instant::now(), Timers::default());
        self.weights.matmul(role, batch, x, y, &run.timed_by(&timers))?;
        self.note(Role::Matrix(role), start, timers.take());
        Ok(())
    }

    fn vector(&self, role: VectorRole, tenant: usize) -> Result<Option<Cow<'_, [f32]>>> {
        let start = Instant::now();
        let vector = self.weights.vector(role, tenant)?;
        if vector.is_some() {
            let wall = start.elapsed().as_secs_f64();
            self.note(Role::Vector(role), start, Times { patch: wall, ..Times::default() });
        }
        Ok(vector)
    }
}

/// One repeat.
pub(super) struct Repeat {
    /// Reading the index, finding references, building the resident form.
    pub(super) open: f64,
    /// The whole layer on the wall.
    pub(super) forward: f64,
    pub(super) parameters: BTreeMap<Role, ParameterTime>,
    pub(super) output: Vec<f32>,
    pub(super) resident_bytes: u64,
}

impl Repeat {
    /// All phases of all parameters.
    pub(super) fn phases(&self) -> Times {
        self.parameters.values().fold(Times::default(), |all, time| sum(all, time.phases))
    }

    /// What is not in a parameter: attention between projections, norms, activations.
    pub(super) fn between(&self) -> f64 {
        self.forward - self.parameters.values().map(|time| time.wall).sum::<f64>()
    }
}

/// Opens the layer, of the container or as the fine-tune's file has it, and computes it once.
pub(super) fn repeat(
    case: &LayerCase,
    choice: Option<Choice>,
    mode: Mode,
    x: &[f32],
    tokens: usize,
) -> Result<Repeat> {
    let start = Instant::now();
    let layer = match choice {
        Some(choice) => case.open(choice)?,
        None => case.dense()?,
    };
    let open = start.elapsed().as_secs_f64();
    let watched = Watched { weights: &layer, times: RefCell::default() };
    let start = Instant::now();
    let output = forward(case.config(), &watched, &Batch::of_one(tokens), x, &Run::new(mode))?;
    let forward = start.elapsed().as_secs_f64();
    let parameters = watched.times.into_inner();
    Ok(Repeat { open, forward, parameters, output, resident_bytes: layer.resident_bytes() })
}
