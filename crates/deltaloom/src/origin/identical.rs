//! A tensor that equals the tensor with its place in a base.

use super::equality;
use super::subject::Subject;
use crate::bases::{Base, TensorSource};
use crate::container::Digest;
use crate::error::Result;
use crate::progress::Progress;
use crate::sample;
use crate::tensor::TensorInfo;

/// Whether dtype, shape and length are the same.
pub(super) fn applies(info: &TensorInfo, source: &TensorSource) -> bool {
    source.is_like(info)
}

/// The tensor of a base with this one's place, dtype and shape.
pub(crate) fn counterpart<'a>(info: &TensorInfo, base: &'a Base) -> Option<&'a TensorSource> {
    base.counterpart(&info.name, |source| applies(info, source))
}

/// Whether the samples are equal.
fn score(sample: &[u8], source: &TensorSource) -> Result<bool> {
    Ok(sample::of(source)? == sample)
}

/// The tensor's digest if it equals its counterpart. `sample` is its own.
pub(crate) fn prove(
    subject: Subject<'_>,
    sample: &[u8],
    source: &TensorSource,
    progress: &dyn Progress,
) -> Result<Option<Digest>> {
    if !score(sample, source)? {
        return Ok(None);
    }
    equality::prove(subject, |offset, len| source.read(offset, len), progress)
}
