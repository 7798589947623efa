//! Reads the inputs of predictions: tensors of bases from their sources, and tensors of the same
//! file as the caller has them.
//! It does not know where the residual is.

use std::ops::Range;

use super::history::Memo;
use super::source::TensorSource;
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::predict::{Factor, OwnPayload, Predictor, ReadInputs, ReadyFactors, StoredScales, Strided};
use crate::scratch::{Bytes, Scratch};
use crate::tensor::TensorInfo;

/// The inputs of one predictor. `own` fills a buffer with bytes of another tensor of the same file:
/// its number, and where they start.
pub(crate) struct Inputs<'a, F> {
    /// In the order of the predictor's inputs, as `tensors`, which follow.
    pub(crate) references: &'a [TensorSource],
    pub(crate) tensors: Vec<usize>,
    pub(crate) own: F,
    /// What the container has for this prediction.
    pub(crate) payload: Option<&'a OwnPayload>,
    pub(crate) memo: Option<&'a mut Memo>,
}

impl<'a, F: Fn(usize, u64, &mut [u8]) -> Result<()>> ReadInputs<'a> for Inputs<'a, F> {
    fn bytes(&self, input: usize, range: Range<u64>) -> Result<Bytes<'a>> {
        if let Some(reference) = self.references.get(input) {
            return reference.bytes(range);
        }
        let mut bytes = Scratch::of_len(to_usize(range.end - range.start));
        (self.own)(self.own_number(input)?, range.start, &mut bytes)?;
        Ok(Bytes::Read(bytes))
    }

    fn read_into(&mut self, input: usize, start: u64, out: &mut [u8]) -> Result<()> {
        match (self.references.get(input), &mut self.memo) {
            (Some(reference), Some(memo)) => memo.read_into(reference, start, out),
            (Some(reference), None) => reference.read_into(start, out),
            (None, _) => (self.own)(self.own_number(input)?, start, out),
        }
    }

    fn is_decoded(&self, input: usize) -> bool {
        self.references.get(input).is_none_or(TensorSource::is_in_container)
    }

    fn factors(&self) -> Result<&ReadyFactors> {
        match self.payload {
            Some(OwnPayload::Factors(factors)) => Ok(factors),
            _ => Err(Error::corrupt("factors are missing")),
        }
    }

    fn scales(&self) -> Result<&StoredScales> {
        match self.payload {
            Some(OwnPayload::Scales(scales)) => Ok(scales),
            _ => Err(Error::corrupt("scales are missing")),
        }
    }
}

impl<F> Inputs<'_, F> {
    fn own_number(&self, input: usize) -> Result<usize> {
        let number = input.checked_sub(self.references.len()).and_then(|own| self.tensors.get(own));
        number.copied().ok_or_else(missing)
    }
}

fn missing() -> Error {
    Error::corrupt("a reference is missing")
}

/// Fills `out` with the prediction of a tensor from byte `start` on, for a predictor that needs
/// only tensors of bases. If it works by rows, `out` must be whole rows.
pub(crate) fn predict_into(
    predictor: &Predictor,
    references: &[TensorSource],
    payload: Option<&OwnPayload>,
    info: &TensorInfo,
    start: u64,
    out: &mut [u8],
) -> Result<()> {
    let own = |_, _, _: &mut [u8]| Err(missing());
    let mut inputs = Inputs { references, tensors: Vec::new(), own, payload, memo: None };
    predictor.predict(info, start, &mut inputs, out)
}

/// Some rows of a matrix that lies in a factor of adapters. The first reference is no factor.
pub(crate) fn read_matrix(
    matrix: &Strided,
    factors: &[Factor],
    references: &[TensorSource],
    rows: &Range<u64>,
    cols: u64,
) -> Result<Vec<f32>> {
    let own = |_, _, _: &mut [u8]| Err(missing());
    let inputs = Inputs { references, tensors: Vec::new(), own, payload: None, memo: None };
    matrix.read(factors, rows, cols, &inputs)
}
