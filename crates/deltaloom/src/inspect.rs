//! Describes a container from its index: no base, no payload is read.

use crate::container::{Container, PackedTensor};
use crate::summary::{self, PackReport};

/// What a container holds.
#[must_use]
pub fn inspect(container: &Container) -> PackReport {
    let index = container.index();
    let payloads: u64 = index.tensors.iter().map(PackedTensor::packed_bytes).sum();
    summary::of(index, container.len_bytes(), container.len_bytes() - payloads)
}

/// Whether a container takes any tensor from a base.
#[must_use]
pub fn needs_base(container: &Container) -> bool {
    container.index().needs_base()
}
