//! Decides on a sample of rows whether a tensor is its reference plus a product of small factors,
//! and has the factors found.
//! [`crate::lowrank`] finds them.

use std::ops::Range;
use std::sync::Arc;

use deltaloom_kernels::Number;

use crate::bases::TensorSource;
use crate::error::Result;
use crate::limits::to_usize;
use crate::lowrank::{self, Rows, Shape};
use crate::predict::{OwnPayload, Predictor, ReadyFactors};
use crate::progress::Progress;
use crate::tensor::ChunkGrid;

use super::subject::Subject;
use super::{FoundPayload, Origin, reference_name};

/// A product changes nearly all weights that it moves by a ULP or more. If fewer than one in this
/// many differ, rounding has lost most moves, and the rest does not determine factors. Training
/// steps at a small rate are like that, and fitting them in vain took 15 times as long as packing
/// them.
const LEAST_CHANGED_OF: usize = 16;

/// The sizes of a tensor that a product may predict. `grid` is its chunk grid.
pub(super) fn applies(number: Number, grid: &ChunkGrid) -> Option<Shape> {
    Shape::new(number, grid.rows, grid.cols).filter(|_| grid.is_matrix)
}

/// Whether enough elements of a sample differ from those of a reference.
pub(super) fn score(number: Number, target: &[u8], reference: &[u8]) -> bool {
    let size = number.bytes();
    let changed = target.chunks_exact(size).zip(reference.chunks_exact(size)).filter(|(a, b)| a != b).count();
    changed * LEAST_CHANGED_OF >= target.len() / size
}

/// Whether a tensor looks like `reference` plus a product. Both samples are the usual ones.
pub(super) fn looks(
    subject: Subject<'_>,
    sample: &[u8],
    reference: &TensorSource,
    reference_sample: &[u8],
    grid: &ChunkGrid,
) -> Result<bool> {
    let number = subject.info().number();
    match applies(number, grid) {
        Some(shape) if score(number, sample, reference_sample) => {
            Ok(lowrank::expected_rank(shape, &reader(subject, reference, grid))?.is_some())
        }
        _ => Ok(false),
    }
}

/// Reads rows of a tensor and of its reference.
fn reader<'a>(
    subject: Subject<'a>,
    reference: &'a TensorSource,
    grid: &'a ChunkGrid,
) -> impl Fn(Range<usize>) -> Result<Rows> + 'a {
    move |rows: Range<usize>| {
        let (offset, len_bytes) =
            (rows.start as u64 * grid.row_bytes(), rows.len() as u64 * grid.row_bytes());
        let len_bytes = to_usize(len_bytes);
        Ok((subject.read(offset, len_bytes)?, reference.read(offset, len_bytes)?))
    }
}

/// The prediction of a tensor from `reference` and a product, if that costs less. `grid` is its
/// chunk grid.
pub(super) fn fit(
    subject: Subject<'_>,
    reference: &TensorSource,
    grid: &ChunkGrid,
    progress: &dyn Progress,
) -> Result<Option<Origin>> {
    let number = subject.info().number();
    let Some(shape) = applies(number, grid) else { return Ok(None) };
    let read = reader(subject, reference, grid);
    let Some(expected) = lowrank::expected_rank(shape, &read)? else { return Ok(None) };
    let Some(factors) = lowrank::fit(shape, expected, &read, progress)? else { return Ok(None) };
    let payload = factors.to_bytes();
    let rank = factors.rank;
    let ready = Arc::new(OwnPayload::Factors(ReadyFactors::new(factors, number)?));
    let predictor = Predictor::LowRank { reference: reference_name(subject.info(), reference), rank };
    let mut origin = Origin::coded(predictor, vec![reference.clone()]).with_reference_digests()?;
    origin.own_payload = Some(FoundPayload { bytes: payload.into(), ready });
    Ok(Some(origin))
}
