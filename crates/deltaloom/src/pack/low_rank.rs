//! Decides on a sample of rows whether a tensor is its reference plus a product of small factors, and has the factors found.
//! Finding them is [`crate::lowrank`]'s work.

use std::ops::Range;
use std::sync::Arc;

use crate::bases::TensorSource;
use crate::error::Result;
use crate::limits::to_usize;
use crate::lowrank::{self, Rows, Shape};
use crate::predict::{Predictor, ReadyFactors};
use crate::progress::Progress;
use crate::tensor::Grid;

use super::choose::{Choice, Target, reference_name};

/// Factors of a prediction, as they are stored and as they are used.
pub(super) struct ChosenFactors {
    pub(super) payload: Vec<u8>,
    pub(super) ready: Arc<ReadyFactors>,
}

/// The prediction of a tensor by `reference` and a product, if that costs less. `grid` is that of its chunks.
pub(super) fn choose(
    target: &Target<'_>,
    reference: &TensorSource,
    grid: &Grid,
    progress: &dyn Progress,
) -> Result<Option<Choice>> {
    let number = target.info.number();
    let shape = Shape::new(number, grid.rows, grid.cols).filter(|_| grid.is_matrix);
    let Some(shape) = shape else { return Ok(None) };
    let read = |rows: Range<usize>| -> Result<Rows> {
        let (offset, len_bytes) =
            (rows.start as u64 * grid.row_bytes(), rows.len() as u64 * grid.row_bytes());
        let len_bytes = to_usize(len_bytes);
        Ok((target.read(offset, len_bytes)?, reference.read(offset, len_bytes)?))
    };
    if !lowrank::looks_low_rank(shape, &read)? {
        return Ok(None);
    }
    let Some(factors) = lowrank::fit(shape, &read, progress)? else { return Ok(None) };
    let payload = factors.to_bytes();
    let rank = factors.rank;
    let ready = Arc::new(ReadyFactors::new(factors, number)?);
    let predictor = Predictor::LowRank { reference: reference_name(target, reference), rank };
    let mut choice = Choice::coded(predictor, vec![reference.clone()]).with_reference_digests()?;
    choice.factors = Some(ChosenFactors { payload, ready });
    Ok(Some(choice))
}
