//! Samples of tensors: runs of elements at places that depend on dtype and shape alone, so that two tensors of a kind are compared element by element, and
//! what coding a sample would cost. It chooses nothing.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use deltaloom_kernels::Number;

use crate::bases::TensorSource;
use crate::error::Result;
use crate::limits::to_usize;
use crate::plan::{self, GroupInput};
use crate::tensor::{DType, TensorInfo};

/// Elements of a sample, in [`RUNS`] evenly spaced runs.
const ELEMS: u64 = 4096;
const RUNS: u64 = 4;

/// The sample of a tensor; `read` gives bytes of it by offset and length.
pub(crate) fn read(info: &TensorInfo, read: impl Fn(u64, usize) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let size = info.number().bytes() as u64;
    let elems = info.len_bytes() / size;
    if elems <= ELEMS {
        return read(0, to_usize(info.len_bytes()));
    }
    let run = ELEMS / RUNS;
    let stride = (elems - run) / (RUNS - 1);
    let mut out = Vec::new();
    for i in 0..RUNS {
        out.extend(read(i * stride * size, to_usize(run * size))?);
    }
    Ok(out)
}

/// The sample of a tensor of a base.
pub(crate) fn of(source: &TensorSource) -> Result<Vec<u8>> {
    read(source.info(), |offset, len| source.read(offset, len))
}

/// By what tensors that may be equal are found, in one process.
pub(crate) fn fingerprint(shape: &[u64], dtype: &DType, sample: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (shape, dtype, sample).hash(&mut hasher);
    hasher.finish()
}

/// Estimated bits, in 1/65536, of coding a sample given its prediction, or on its own.
pub(crate) fn cost(number: Number, sample: &[u8], prediction: Option<&[u8]>) -> u64 {
    let zeros;
    let (prediction, is_predicted) = match prediction {
        Some(prediction) => (prediction, true),
        None => {
            zeros = vec![0; sample.len()];
            (&zeros[..], false)
        }
    };
    let chunks = vec![(sample, prediction)];
    plan::sample_cost(&GroupInput { number, cols: 1, is_matrix: false, chunks, is_predicted })
}
