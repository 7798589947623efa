//! The tensors that predictions need, and how they are read.

use std::ops::Range;

use super::adapter::Adapter;
use super::adapters::Adapters;
use super::blocks::StoredScales;
use super::factors::ReadyFactors;
use crate::error::Result;
use crate::scratch::Bytes;
use crate::tensor::{DType, TensorInfo};

/// A tensor that a prediction needs. `None` stands for the name of the predicted tensor.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Input<'a> {
    /// A tensor of a base with the dtype and shape of the predicted one.
    Base(&'a Option<String>),
    /// An F32 tensor of a base with the shape of the predicted one.
    Master(&'a Option<String>),
    /// One of the two factors of an adapter.
    Factor(&'a Adapter, usize),
    /// One of the factors of several adapters.
    FactorOf(&'a Adapters, usize),
    /// A tensor of a base with its own dtype and shape.
    Shaped(&'a Option<String>, &'a DType, &'a [u64]),
    /// Another tensor of the same container, by number.
    Own(usize),
    /// The same with its own dtype and shape.
    OwnShaped(usize, &'a DType, &'a [u64]),
}

impl Input<'_> {
    /// Name, dtype and shape of an input from a base, if the predicted tensor is `info`.
    pub(super) fn reference(self, info: &TensorInfo) -> Option<TensorInfo> {
        let name_or_own = |name: &Option<String>| name.as_ref().unwrap_or(&info.name).clone();
        Some(match self {
            Self::Base(name) => TensorInfo { name: name_or_own(name), ..info.clone() },
            Self::Master(name) => TensorInfo::sized(name_or_own(name), DType::F32, info.shape.clone()),
            Self::Factor(adapter, which) => adapter.factor(which, info),
            Self::FactorOf(adapters, which) => adapters.factor(which),
            Self::Shaped(name, dtype, shape) => {
                TensorInfo::sized(name_or_own(name), dtype.clone(), shape.to_vec())
            }
            Self::Own(_) | Self::OwnShaped(..) => return None,
        })
    }
}

/// Reads the inputs of a prediction, by their places in [`super::Predictor::inputs`].
pub(crate) trait ReadInputs<'a> {
    /// Bytes of an input: borrowed if they are in memory.
    fn bytes(&self, input: usize, range: Range<u64>) -> Result<Bytes<'a>>;

    /// Fills `out` with bytes of an input from `start` on.
    fn read_into(&mut self, input: usize, start: u64, out: &mut [u8]) -> Result<()>;

    /// Whether an input must be decoded, so that any part of it costs a chunk.
    fn is_decoded(&self, input: usize) -> bool;

    /// The factors in the container.
    fn factors(&self) -> Result<&ReadyFactors>;

    /// The scales in the container.
    fn scales(&self) -> Result<&StoredScales>;
}

/// What a prediction has in the container besides its fields and the residual.
pub(crate) enum OwnPayload {
    Factors(ReadyFactors),
    Scales(StoredScales),
}
