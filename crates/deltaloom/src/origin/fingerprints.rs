//! Tensors by the fingerprints of their samples, to find those that may be equal to one.
//! Fingerprints only rule out.

use std::collections::HashMap;

use crate::sample;
use crate::tensor::{DType, TensorInfo};

/// Tensors by the fingerprint of their sample, as it is or rounded to a narrower dtype.
pub(super) struct Fingerprints<T>(HashMap<u64, Vec<T>>);

/// The fingerprint of a tensor with this shape, dtype and sample.
pub(super) fn print(shape: &[u64], dtype: &DType, sample: &[u8]) -> u64 {
    sample::fingerprint(shape, dtype, sample)
}

impl<T: Copy> Fingerprints<T> {
    pub(super) fn new(printed: impl IntoIterator<Item = (u64, T)>) -> Self {
        let mut tensors: HashMap<u64, Vec<T>> = HashMap::new();
        for (print, tensor) in printed {
            tensors.entry(print).or_default().push(tensor);
        }
        Self(tensors)
    }

    /// The tensors that may equal the one with this dtype, shape and sample, in order.
    pub(super) fn alike(&self, info: &TensorInfo, sample: &[u8]) -> impl Iterator<Item = T> {
        let print = print(&info.shape, &info.dtype, sample);
        self.0.get(&print).into_iter().flatten().copied()
    }
}
