//! The tensor whose origin is asked for: of a checkpoint, or of a base.

use super::converted;
use crate::bases::TensorSource;
use crate::checkpoint::Checkpoint;
use crate::container::Digest;
use crate::error::Result;
use crate::limits::to_usize;
use crate::sample;
use crate::tensor::TensorInfo;

/// Bytes that are hashed at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// A tensor whose origin is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// Of a file of a checkpoint.
    Member { checkpoint: &'a Checkpoint, member: usize, info: &'a TensorInfo },
    /// Of a file or container that is open as a base.
    Source(&'a TensorSource),
    /// The tensor of another dtype, described by `info`, that one of a checkpoint is converted
    /// from.
    Converted { of: &'a Subject<'a>, info: &'a TensorInfo },
}

impl<'a> Subject<'a> {
    pub(crate) fn info(&self) -> &'a TensorInfo {
        match self {
            Self::Member { info, .. } => info,
            Self::Source(source) => source.info(),
            Self::Converted { info, .. } => info,
        }
    }

    /// Bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, len_bytes: usize) -> Result<Vec<u8>> {
        match self {
            Self::Member { checkpoint, member, info } => {
                let mut buffer = vec![0; len_bytes];
                checkpoint.read(*member, info, offset, &mut buffer)?;
                Ok(buffer)
            }
            Self::Source(source) => source.read(offset, len_bytes),
            Self::Converted { of, info } => {
                let (own, other) = (of.info().number().bytes(), info.number().bytes());
                let bytes = of.read(offset / other as u64 * own as u64, len_bytes / other * own)?;
                Ok(converted::converted(&bytes, &of.info().dtype, &info.dtype))
            }
        }
    }

    /// BLAKE3 of its bytes.
    pub(crate) fn digest(&self) -> Result<Digest> {
        let mut hasher = blake3::Hasher::new();
        let total = self.info().len_bytes();
        for offset in (0..total).step_by(BLOCK_BYTES) {
            let len = to_usize(total - offset).min(BLOCK_BYTES);
            hasher.update(&self.read(offset, len)?);
        }
        Ok(hasher.finalize())
    }

    /// The usual sample.
    pub(crate) fn sample(&self) -> Result<Vec<u8>> {
        self.sample_of(sample::ELEMS)
    }

    /// A sample of `elems` elements, or all of them.
    pub(crate) fn sample_of(&self, elems: u64) -> Result<Vec<u8>> {
        sample::read(self.info(), elems, |offset, len| self.read(offset, len))
    }
}
