//! Samples of tensors: runs of elements at places that depend only on dtype and shape, so that two
//! tensors of a kind are compared element by element.
//! It chooses nothing.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::bases::TensorSource;
use crate::error::Result;
use crate::limits::to_usize;
use crate::tensor::{DType, TensorInfo};

/// Elements of a usual sample.
pub const ELEMS: u64 = 4096;
/// Evenly spaced runs of a sample.
const RUNS: u64 = 4;

/// A sample of `elems` elements of a tensor, or all of them. `read` returns bytes of it by offset
/// and length.
pub fn read(
    info: &TensorInfo,
    sample_elems: u64,
    read: impl Fn(u64, usize) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let size = info.number().bytes() as u64;
    let elems = info.len_bytes() / size;
    if elems <= sample_elems {
        return read(0, to_usize(info.len_bytes()));
    }
    let run = sample_elems / RUNS;
    let stride = (elems - run) / (RUNS - 1);
    let mut out = Vec::new();
    for i in 0..RUNS {
        out.extend(read(i * stride * size, to_usize(run * size))?);
    }
    Ok(out)
}

/// The sample of a tensor of a base.
pub(crate) fn of(source: &TensorSource) -> Result<Vec<u8>> {
    read(source.info(), ELEMS, |offset, len| source.read(offset, len))
}

/// A key for finding tensors that may be equal, valid in one process.
pub(crate) fn fingerprint(shape: &[u64], dtype: &DType, sample: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (shape, dtype, sample).hash(&mut hasher);
    hasher.finish()
}
