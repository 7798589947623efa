//! A tensor whose elements another, narrower float has, too: the tensor of that dtype was stored in
//! a wider one. What is known of the narrow tensor is known of this one.

use super::subject::Subject;
use crate::error::Result;
use crate::predict::cast;
use crate::progress::{Progress, check_cancelled};
use crate::tensor::DType;

/// The narrower dtypes that a tensor of this one may have been stored from.
fn applies(dtype: &DType) -> Vec<DType> {
    match dtype {
        DType::F32 => vec![DType::BF16, DType::F16],
        DType::F16 => vec![DType::BF16],
        _ => Vec::new(),
    }
}

/// Whether bytes survive a conversion to another dtype and back.
fn survives(bytes: &[u8], own: &DType, other: &DType) -> bool {
    let narrow = converted(bytes, own, other);
    converted(&narrow, other, own) == bytes
}

/// The elements in another dtype.
pub(crate) fn converted(bytes: &[u8], own: &DType, other: &DType) -> Vec<u8> {
    let size = |dtype: &DType| dtype.number().map_or(1, |number| number.bytes());
    let mut out = vec![0; bytes.len() / size(own) * size(other)];
    cast::convert_into(own, other, bytes, &mut out);
    out
}

/// The dtype of the tensor that was stored in a wider one, as far as a sample tells.
pub(crate) fn score(own: &DType, sample: &[u8]) -> Option<DType> {
    applies(own).into_iter().find(|other| survives(sample, own, other))
}

/// Whether all elements survive the conversion to the other dtype.
pub(super) fn prove(subject: Subject<'_>, other: &DType, progress: &dyn Progress) -> Result<bool> {
    let info = subject.info();
    for (offset, len) in info.blocks(1) {
        check_cancelled(progress)?;
        if !survives(&subject.read(offset, len)?, &info.dtype, other) {
            return Ok(false);
        }
    }
    Ok(true)
}
