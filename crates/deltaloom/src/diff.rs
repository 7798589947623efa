//! Compares two checkpoints tensor by tensor, in ULPs and as numbers.
//! It packs nothing and needs both in full.

use std::collections::BTreeMap;

use deltaloom_kernels::steps::{self, Distances};
use rayon::prelude::*;
use serde::Serialize;

use crate::bases::{Bases, TensorSource};
use crate::error::Result;
use crate::limits::to_usize;
use crate::pipeline;
use crate::progress::{Progress, check_cancelled};
use crate::report::ratio;

const BLOCK_BYTES: u64 = 1 << 20;

/// Elements by how many ULPs apart they are; the key is the largest distance of a bucket: 0, 1, 2, 4, 8, ...
pub type UlpHistogram = BTreeMap<u64, u64>;

/// One tensor of either checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Name.
    pub name: String,
    /// `identical`, `changed`, `only_a`, `only_b`, or `retyped` where dtype or shape (or, of unknown dtypes, length) differ.
    pub status: &'static str,
    /// dtype, of the second checkpoint where it has the tensor.
    pub dtype: String,
    /// Shape, likewise.
    pub shape: Vec<u64>,
    /// Share of elements whose bits differ.
    pub changed_fraction: Option<f64>,
    /// Distances in ULPs.
    pub ulp_histogram: Option<UlpHistogram>,
    /// L2 norm of the difference over that of the first; none where it is not a number.
    pub relative_l2: Option<f64>,
}

/// Two checkpoints compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiffReport {
    /// Whether all tensors are the same, bit for bit.
    pub identical: bool,
    /// The tensors, by name.
    pub tensors: Vec<TensorDiff>,
}

/// Compares the tensors of two sets of bases by name; small files of directories count as tensors of bytes.
///
/// # Errors
/// What reading or decoding gives; [`crate::Error::Cancelled`].
pub fn diff(a: &Bases, b: &Bases, threads: usize, progress: &dyn Progress) -> Result<DiffReport> {
    let by_name = |bases: &Bases| -> BTreeMap<String, TensorSource> {
        bases.iter().flat_map(|base| base.tensors()).map(|t| (t.info().name.clone(), t.clone())).collect()
    };
    let (first, second) = (by_name(a), by_name(b));
    let names: std::collections::BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let pairs: Vec<_> = names.into_iter().map(|name| (name, first.get(name), second.get(name))).collect();
    progress.start(pairs.iter().filter_map(|(_, a, _)| a.map(|a| a.info().len_bytes())).sum());
    let tensors = pipeline::with_threads(threads, || {
        pairs.par_iter().map(|(name, a, b)| diff_tensor(name, *a, *b, progress)).collect::<Result<Vec<_>>>()
    })?;
    Ok(DiffReport { identical: tensors.iter().all(|tensor| tensor.status == "identical"), tensors })
}

fn diff_tensor(
    name: &str,
    a: Option<&TensorSource>,
    b: Option<&TensorSource>,
    progress: &dyn Progress,
) -> Result<TensorDiff> {
    let describe = |source: &TensorSource, status| TensorDiff {
        name: name.to_owned(),
        status,
        dtype: source.info().dtype.to_string(),
        shape: source.info().shape.clone(),
        changed_fraction: None,
        ulp_histogram: None,
        relative_l2: None,
    };
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) if a.is_like(b.info()) => (a, b),
        (_, Some(b)) => return Ok(describe(b, if a.is_some() { "retyped" } else { "only_b" })),
        (Some(a), None) => return Ok(describe(a, "only_a")),
        (None, None) => unreachable!("every name comes from one of them"),
    };
    let number = a.info().number();
    let total = a.info().len_bytes();
    let mut distances = Distances::default();
    for offset in (0..total).step_by(to_usize(BLOCK_BYTES)) {
        check_cancelled(progress)?;
        let len_bytes = to_usize(BLOCK_BYTES.min(total - offset));
        let (a, b) = (a.read(offset, len_bytes)?, b.read(offset, len_bytes)?);
        steps::add_distances(number, &a, &b, &mut distances);
        progress.advance(len_bytes as u64);
    }
    let elems = total / number.bytes() as u64;
    let unchanged = distances.by_bits[0];
    let buckets = distances.by_bits.iter().enumerate().filter(|(_, count)| **count > 0);
    let largest = |bits: usize| {
        if bits <= 1 {
            bits as u64
        } else {
            1u64.checked_shl(u32::try_from(bits - 1).unwrap_or(u32::MAX)).unwrap_or(u64::MAX)
        }
    };
    let relative = (distances.difference_squares / distances.first_squares).sqrt();
    Ok(TensorDiff {
        changed_fraction: Some(ratio(elems - unchanged, elems)),
        ulp_histogram: Some(buckets.map(|(bits, count)| (largest(bits), *count)).collect()),
        relative_l2: if unchanged == elems { Some(0.0) } else { Some(relative).filter(|r| r.is_finite()) },
        ..describe(b, if unchanged == elems { "identical" } else { "changed" })
    })
}
