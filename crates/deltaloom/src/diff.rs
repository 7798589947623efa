//! Compares two checkpoints tensor by tensor, in ULPs and as numbers.
//! It packs nothing and needs both in full.

use std::collections::BTreeMap;

use deltaloom_kernels::steps::{self, Distances};
use deltaloom_kernels::{Number, NumberKind};
use rayon::prelude::*;
use serde::Serialize;

use crate::bases::{Bases, TensorSource};
use crate::checkpoint::Role;
use crate::error::Result;
use crate::pipeline;
use crate::progress::{Progress, check_cancelled};
use crate::summary::ratio;

/// Number of elements by their distance in ULPs. The key is the largest distance of a bucket: 0, 1,
/// 2, 4, 8, ...
pub type UlpHistogram = BTreeMap<u64, u64>;

/// One tensor of either checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorDiff {
    /// Name.
    pub name: String,
    /// `identical`, `changed`, `only_a`, `only_b`, or `retyped` if dtype, shape or length differ.
    pub status: &'static str,
    /// dtype in the second checkpoint, or in the first if only that has the tensor.
    pub dtype: String,
    /// Shape, from the same checkpoint.
    pub shape: Vec<u64>,
    /// Share of elements whose bits differ.
    pub changed_fraction: Option<f64>,
    /// Distances in ULPs.
    pub ulp_histogram: Option<UlpHistogram>,
    /// L2 norm of the difference over that of the first. `None` if it is not a number.
    pub relative_l2: Option<f64>,
    /// What [`Self::relative_l2`] is made of, to add up several tensors. `None` without floats, and
    /// if it is not finite.
    #[serde(skip)]
    pub squares: Option<Squares>,
}

/// Sums of squares of a tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Squares {
    /// Of the first.
    pub first: f64,
    /// Of the difference.
    pub difference: f64,
}

impl Squares {
    fn is_finite(&self) -> bool {
        self.first.is_finite() && self.difference.is_finite()
    }
}

/// Weights that could not be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Uncompared {
    /// Tensors.
    pub tensors: u64,
    /// Their elements. For unknown dtypes: bytes.
    pub weights: u64,
    /// Their size.
    pub bytes: u64,
}

/// All weights together, without states of the training and other files such as a tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DiffTotal {
    /// Weights that were compared. For unknown dtypes: bytes.
    pub weights: u64,
    /// Compared weights whose bits differ.
    pub changed_weights: u64,
    /// Changed weights over compared ones. `None` if nothing was compared.
    pub changed_fraction: Option<f64>,
    /// L2 norm of the difference over that of the first, for all compared floats. `None` if it is
    /// not a number.
    pub relative_l2: Option<f64>,
    /// Tensors that only the first has.
    pub only_a: Uncompared,
    /// Tensors that only the second has.
    pub only_b: Uncompared,
    /// Tensors with another dtype or shape in the second. Sizes are those in the second.
    pub retyped: Uncompared,
}

impl DiffTotal {
    /// Whether no tensor counted.
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Two checkpoints compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DiffReport {
    /// Whether all tensors are the same, bit for bit.
    pub identical: bool,
    /// All weights together.
    pub total: DiffTotal,
    /// The same of the states of a training, such as the moments of an optimizer.
    #[serde(skip_serializing_if = "DiffTotal::is_empty")]
    pub states: DiffTotal,
    /// The tensors, by name.
    pub tensors: Vec<TensorDiff>,
}

/// Compares the tensors of two sets of bases by name. Small files of directories count as tensors
/// of bytes.
///
/// # Errors
/// What reading or decoding gives; [`crate::Error::Cancelled`].
pub fn diff(a: &Bases, b: &Bases, threads: usize, progress: &dyn Progress) -> Result<DiffReport> {
    let by_name = |bases: &Bases| -> BTreeMap<String, (TensorSource, Role)> {
        let all = bases.iter().flat_map(|base| base.tensors().iter().zip(base.roles()));
        all.map(|(source, role)| (source.info().name.clone(), (source.clone(), role))).collect()
    };
    let (first, second) = (by_name(a), by_name(b));
    let names: std::collections::BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let pairs: Vec<_> = names.into_iter().map(|name| (name, first.get(name), second.get(name))).collect();
    progress.start(pairs.iter().filter_map(|(_, a, _)| a.map(|(a, _)| a.info().len_bytes())).sum());
    let compared = pipeline::with_threads(threads, || {
        pairs.par_iter().map(|(name, a, b)| Compared::of(name, *a, *b, progress)).collect::<Result<Vec<_>>>()
    })?;
    let (total, states) = (total(&compared, Role::Weights), total(&compared, Role::State));
    let tensors: Vec<TensorDiff> = compared.into_iter().map(|compared| compared.diff).collect();
    Ok(DiffReport {
        identical: tensors.iter().all(|tensor| tensor.status == "identical"),
        total,
        states,
        tensors,
    })
}

/// A compared tensor, with its contribution to the total.
struct Compared {
    diff: TensorDiff,
    number: Number,
    role: Role,
    len_bytes: u64,
    /// `None` if only one checkpoint has it.
    distances: Option<Distances>,
}

impl Compared {
    fn of(
        name: &str,
        a: Option<&(TensorSource, Role)>,
        b: Option<&(TensorSource, Role)>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let describe = |(source, role): &(TensorSource, Role), status| Self {
            diff: TensorDiff {
                name: name.to_owned(),
                status,
                dtype: source.info().dtype.to_string(),
                shape: source.info().shape.clone(),
                changed_fraction: None,
                ulp_histogram: None,
                relative_l2: None,
                squares: None,
            },
            number: source.info().number(),
            role: *role,
            len_bytes: source.info().len_bytes(),
            distances: None,
        };
        let (a, b) = match (a, b) {
            (Some(a), Some(b)) if a.0.is_like(b.0.info()) => (a, b),
            (_, Some(b)) => return Ok(describe(b, if a.is_some() { "retyped" } else { "only_b" })),
            (Some(a), None) => return Ok(describe(a, "only_a")),
            (None, None) => unreachable!("every name comes from one of them"),
        };
        let distances = distances(&a.0, &b.0, progress)?;
        let mut compared = describe(b, "changed");
        let elems = compared.elems();
        let unchanged = distances.by_bits[0];
        if unchanged == elems {
            compared.diff.status = "identical";
        }
        compared.diff.changed_fraction = Some(ratio(elems - unchanged, elems));
        compared.diff.ulp_histogram = Some(histogram(&distances));
        compared.diff.relative_l2 = relative_l2(&distances, unchanged == elems);
        if compared.number.kind() == NumberKind::Float {
            let difference = if unchanged == elems { 0.0 } else { distances.difference_squares };
            let squares = Squares { first: distances.first_squares, difference };
            compared.diff.squares = Some(squares).filter(Squares::is_finite);
        }
        compared.distances = Some(distances);
        Ok(compared)
    }

    fn elems(&self) -> u64 {
        self.len_bytes / self.number.bytes() as u64
    }
}

fn distances(a: &TensorSource, b: &TensorSource, progress: &dyn Progress) -> Result<Distances> {
    let number = a.info().number();
    let mut distances = Distances::default();
    for (offset, len_bytes) in a.info().blocks(1) {
        check_cancelled(progress)?;
        let (a, b) = (a.read(offset, len_bytes)?, b.read(offset, len_bytes)?);
        steps::add_distances(number, &a, &b, &mut distances);
        progress.advance(len_bytes as u64);
    }
    Ok(distances)
}

fn histogram(distances: &Distances) -> UlpHistogram {
    // The last bucket holds distances above 2^63. Its largest is 2^64 - 1.
    let largest =
        |bits: u32| if bits <= 1 { bits.into() } else { 1u64.checked_shl(bits - 1).unwrap_or(u64::MAX) };
    let buckets = (0..).zip(distances.by_bits).filter(|(_, count)| *count > 0);
    buckets.map(|(bits, count)| (largest(bits), count)).collect()
}

fn relative_l2(distances: &Distances, is_identical: bool) -> Option<f64> {
    let relative = (distances.difference_squares / distances.first_squares).sqrt();
    if is_identical { Some(0.0) } else { Some(relative).filter(|relative| relative.is_finite()) }
}

/// Adds up what has a role, in the order of the names, so that the sums do not depend on threads.
fn total(compared: &[Compared], role: Role) -> DiffTotal {
    let mut total = DiffTotal::default();
    let mut of_floats = Distances::default();
    let mut has_changed_floats = false;
    for tensor in compared.iter().filter(|compared| compared.role == role) {
        let elems = tensor.elems();
        let uncompared = match tensor.diff.status {
            "only_a" => Some(&mut total.only_a),
            "only_b" => Some(&mut total.only_b),
            "retyped" => Some(&mut total.retyped),
            _ => None,
        };
        if let Some(part) = uncompared {
            part.tensors += 1;
            part.weights += elems;
            part.bytes += tensor.len_bytes;
        }
        let Some(distances) = &tensor.distances else { continue };
        total.weights += elems;
        total.changed_weights += elems - distances.by_bits[0];
        if tensor.number.kind() == NumberKind::Float {
            of_floats.first_squares += distances.first_squares;
            of_floats.difference_squares += distances.difference_squares;
            has_changed_floats |= tensor.diff.status != "identical";
        }
    }
    if total.weights > 0 {
        total.changed_fraction = Some(ratio(total.changed_weights, total.weights));
        total.relative_l2 = relative_l2(&of_floats, !has_changed_floats);
    }
    total
}
