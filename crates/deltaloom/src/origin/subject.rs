//! The tensor whose origin is asked for: of a checkpoint, or of a base.

use std::ops::Range;

use super::{Origin, converted};
use crate::bases::{PredictionInputs, TensorSource};
use crate::checkpoint::Checkpoint;
use crate::container::Digest;
use crate::error::Result;
use crate::limits::to_usize;
use crate::sample;
use crate::scratch::Bytes;
use crate::tensor::TensorInfo;

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

    /// The bytes of a range: borrowed if they are in memory, else read.
    pub(super) fn bytes(&self, range: Range<u64>) -> Result<Bytes<'a>> {
        match self {
            Self::Member { checkpoint, member, info } => checkpoint.bytes(*member, info, range),
            Self::Source(source) => source.bytes(range),
            Self::Converted { .. } => {
                Ok(Bytes::Read(self.read(range.start, to_usize(range.end - range.start))?.into()))
            }
        }
    }

    /// BLAKE3 of its bytes.
    pub(crate) fn digest(&self) -> Result<Digest> {
        let mut hasher = blake3::Hasher::new();
        for (offset, len) in self.info().blocks(1) {
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

/// Fills `out` with what an origin predicts of the tensor `info` from byte `start` on. Tensors of
/// the same file are the subjects. A prediction that works by rows gets whole rows.
pub(crate) fn predict_from(
    subjects: &[Subject<'_>],
    origin: &Origin,
    info: &TensorInfo,
    start: u64,
    out: &mut [u8],
) -> Result<()> {
    let own = |other: usize, start: u64, out: &mut [u8]| {
        out.copy_from_slice(&subjects[other].read(start, out.len())?);
        Ok(())
    };
    let (references, tensors) = (&origin.references[..], origin.predictor.internals());
    let payload = origin.own_payload.as_ref().map(|own| &*own.ready);
    let mut inputs = PredictionInputs { references, tensors, own, payload, memo: None };
    origin.predictor.predict(info, start, &mut inputs, out)
}
