//! Whether a part of what training changed is a product of small factors, which makes the residual
//! smaller than the factors are.
//! [`crate::lowrank`] finds them. Products that explain all of a change are in [`super::low_rank`].

use std::ops::Range;
use std::sync::Arc;

use super::subject::Subject;
use super::{FoundPayload, Origin};
use crate::entropy::log2::ONE_BIT;
use crate::error::Result;
use crate::limits::to_usize;
use crate::lowrank::{self, Shape};
use crate::plan::{self, Preset};
use crate::predict::{Element, OwnPayload, Predictor, ReadyFactors};
use crate::progress::Progress;
use crate::sample;
use crate::tensor::ChunkGrid;

/// Of a sample, at least this part must differ, and an element must cost this much, in 1/65536
/// bits.
/// Otherwise most weights stay, and a product would move them.
const LEAST_CHANGED_OF: usize = 2;
const LEAST_BITS: u64 = 2 * ONE_BIT;
/// One part in so many must be saved, as estimates go. Mixed contexts learn a part of what factors
/// know, so that these save less with them.
const LEAST_SAVING: u64 = 64;
const LEAST_SAVING_AT_MAX: u64 = 8;
/// Mixed contexts code smaller tensors as well.
const LEAST_ELEMS_AT_MAX: u64 = 1 << 16;

/// The origin with factors, if it is a reference and they pay; preset fast does not look. `grid` is
/// the tensor's chunk grid.
pub(crate) fn improved(
    subject: Subject<'_>,
    origin: Origin,
    grid: &ChunkGrid,
    preset: Preset,
    progress: &dyn Progress,
) -> Result<Origin> {
    let least_saving = match preset {
        Preset::Fast => return Ok(origin),
        Preset::Default => LEAST_SAVING,
        Preset::Max if subject.info().elems() < LEAST_ELEMS_AT_MAX => return Ok(origin),
        Preset::Max => LEAST_SAVING_AT_MAX,
    };
    let (Predictor::Reference(name), [reference]) = (&origin.predictor, &origin.references[..]) else {
        return Ok(origin);
    };
    let info = subject.info();
    let Some(element) = Element::of(&info.dtype).filter(|_| grid.is_matrix) else { return Ok(origin) };
    let Some(shape) = Shape::new(info.number(), grid.rows, grid.cols) else { return Ok(origin) };
    let (target, other) = (subject.sample()?, sample::of(reference)?);
    if !may_pay(element, &target, &other) {
        return Ok(origin);
    }
    let read = |rows: Range<usize>| {
        let (start, len_bytes) = (rows.start as u64 * grid.row_bytes(), rows.len() as u64 * grid.row_bytes());
        let len_bytes = to_usize(len_bytes);
        Ok((subject.read(start, len_bytes)?, reference.read(start, len_bytes)?))
    };
    let Some(factors) = lowrank::fit_drift(shape, element, least_saving, &read, progress)? else {
        return Ok(origin);
    };
    let Some(bytes) = factors.to_bytes() else { return Ok(origin) };
    let size = (to_usize(grid.rows), to_usize(grid.cols));
    let ready = Arc::new(OwnPayload::Factors(ReadyFactors::of_drift(info.number(), size, &factors)?));
    let predictor = Predictor::Drift { reference: name.clone(), rank: factors.steps.len() };
    let mut found = Origin::coded(predictor, origin.references.clone()).with_reference_digests()?;
    found.own_payload = Some(FoundPayload { bytes: bytes.into(), ready });
    Ok(found)
}

/// Whether enough of a sample differs from that of the reference, by enough.
fn may_pay(element: Element, target: &[u8], reference: &[u8]) -> bool {
    let size = element.bytes();
    let elems = target.len() / size;
    let changed = target.chunks_exact(size).zip(reference.chunks_exact(size)).filter(|(a, b)| a != b).count();
    changed * LEAST_CHANGED_OF >= elems
        && plan::residual_cost(element.number(), target, reference) >= elems as u64 * LEAST_BITS
}
