//! The proof that a tensor has certain bytes: all of them are compared.

use super::subject::Subject;
use crate::container::Digest;
use crate::error::Result;
use crate::limits::to_usize;
use crate::progress::{Progress, check_cancelled};

/// Bytes compared at a time.
const COMPARE_BYTES: u64 = 1 << 20;

/// The digest of a tensor if all its bytes equal those of `read`, which gets offset and length.
pub(super) fn prove(
    subject: Subject<'_>,
    read: impl Fn(u64, usize) -> Result<Vec<u8>>,
    progress: &dyn Progress,
) -> Result<Option<Digest>> {
    let mut hasher = blake3::Hasher::new();
    let total = subject.info().len_bytes();
    for offset in (0..total).step_by(to_usize(COMPARE_BYTES)) {
        check_cancelled(progress)?;
        let len_bytes = to_usize(COMPARE_BYTES.min(total - offset));
        let block = subject.read(offset, len_bytes)?;
        if block != read(offset, len_bytes)? {
            return Ok(None);
        }
        hasher.update(&block);
    }
    Ok(Some(hasher.finalize()))
}
