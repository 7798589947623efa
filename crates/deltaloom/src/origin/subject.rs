//! The tensor whose origin is asked for: of a checkpoint, or of a base.

use crate::bases::TensorSource;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::sample;
use crate::tensor::TensorInfo;

/// A tensor whose origin is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    /// Of a file of a checkpoint.
    Member { checkpoint: &'a Checkpoint, member: usize, info: &'a TensorInfo },
    /// Of a file or container that is open as a base.
    Source(&'a TensorSource),
}

impl<'a> Subject<'a> {
    pub(crate) fn info(&self) -> &'a TensorInfo {
        match self {
            Self::Member { info, .. } => info,
            Self::Source(source) => source.info(),
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
        }
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
