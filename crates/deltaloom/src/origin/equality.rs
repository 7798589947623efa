//! The proof that a tensor has certain bytes: all of them are compared.

use super::subject::Subject;
use crate::container::Digest;
use crate::error::Result;
use crate::progress::{Progress, check_cancelled};

/// The digest of a tensor if all its bytes equal those of `read`, which gets offset and length.
pub(super) fn prove(
    subject: Subject<'_>,
    read: impl Fn(u64, usize) -> Result<Vec<u8>>,
    progress: &dyn Progress,
) -> Result<Option<Digest>> {
    let mut hasher = blake3::Hasher::new();
    for (offset, len_bytes) in subject.info().blocks(1) {
        check_cancelled(progress)?;
        let block = subject.read(offset, len_bytes)?;
        if block != read(offset, len_bytes)? {
            return Ok(None);
        }
        hasher.update(&block);
    }
    Ok(Some(hasher.finalize()))
}
