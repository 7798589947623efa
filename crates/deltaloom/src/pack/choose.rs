//! Chooses the predictor of every tensor: from its origin, with the history of its reference.

use rayon::prelude::*;

use super::history;
use crate::bases::Bases;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::origin::{self, Origin, Subject, drift};
use crate::plan::Preset;
use crate::progress::Progress;
use crate::tensor::{ChunkGrid, TensorInfo};

/// Chooses for all tensors, in order.
pub(super) fn choose(
    checkpoint: &Checkpoint,
    bases: &Bases,
    tensors: &[(usize, &TensorInfo)],
    grids: &[ChunkGrid],
    preset: Preset,
    progress: &dyn Progress,
) -> Result<Vec<Origin>> {
    let origins = origin::find(checkpoint, bases, tensors, grids, progress)?;
    let with_ancestors =
        |(origin, (_, info)): (Origin, &(usize, &TensorInfo))| history::with_ancestors(origin, info, bases);
    let origins = origins.into_par_iter().zip(tensors).map(with_ancestors).collect::<Result<Vec<_>>>()?;
    let with_drift = |((origin, grid), &(member, info)): ((Origin, &ChunkGrid), &(usize, &TensorInfo))| {
        drift::improved(Subject::Member { checkpoint, member, info }, origin, grid, preset, progress)
    };
    origins.into_par_iter().zip(grids).zip(tensors).map(with_drift).collect()
}
