//! Decides on a sample of rows whether a tensor is its reference plus a product of small factors, and has the factors found.
//! Finding them is [`crate::lowrank`]'s work.

use std::sync::{Arc, Mutex, PoisonError};

use crate::bases::TensorSource;
use crate::error::Result;
use crate::limits::to_usize;
use crate::lowrank::{self, Matrix};
use crate::predict::{Predictor, ReadyFactors};
use crate::tensor::Grid;

use super::choose::{Choice, Target, reference_name};

/// Factors of a prediction, as they are stored and as they are used.
pub(super) struct ChosenFactors {
    pub(super) payload: Vec<u8>,
    pub(super) ready: Arc<ReadyFactors>,
}

/// The prediction of a tensor by `reference` and a product, if that costs less. Tensors are read whole for that one at a time, which `alone` sees to.
pub(super) fn choose(
    target: &Target<'_>,
    reference: &TensorSource,
    alone: &Mutex<()>,
) -> Result<Option<Choice>> {
    let grid = Grid::new(target.info, u32::MAX.ilog2());
    let number = target.info.number();
    if !grid.is_matrix || !lowrank::is_worth_a_look(number, grid.rows, grid.cols) {
        return Ok(None);
    }
    let (rows, cols) = (to_usize(grid.rows), to_usize(grid.cols));
    let sample = |read: &dyn Fn(u64, usize) -> Result<Vec<u8>>| -> Result<Vec<u8>> {
        let row = |row: usize| read(row as u64 * grid.row_bytes(), to_usize(grid.row_bytes()));
        Ok(lowrank::sampled_rows(rows, cols).map(row).collect::<Result<Vec<_>>>()?.concat())
    };
    let of_target = sample(&|offset, len| target.read(offset, len))?;
    let of_reference = sample(&|offset, len| reference.read(offset, len))?;
    let looks_low_rank = Matrix::new(number, cols, &of_target, &of_reference)
        .is_some_and(|sample| lowrank::looks_low_rank(&sample, rows));
    if !looks_low_rank {
        return Ok(None);
    }
    let _alone = alone.lock().unwrap_or_else(PoisonError::into_inner);
    let whole = to_usize(target.info.len_bytes());
    let (of_target, of_reference) = (target.read(0, whole)?, reference.read(0, whole)?);
    let factors = Matrix::new(number, cols, &of_target, &of_reference).and_then(|whole| lowrank::fit(&whole));
    let Some(factors) = factors else { return Ok(None) };
    let payload = factors.to_bytes();
    let ready = Arc::new(ReadyFactors::new(factors, number)?);
    let predictor = Predictor::LowRank(reference_name(target, reference));
    let mut choice = Choice::coded(predictor, vec![reference.clone()]).with_reference_digests()?;
    choice.factors = Some(ChosenFactors { payload, ready });
    Ok(Some(choice))
}
