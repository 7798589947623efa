//! Describes a container from its index. It reads no base and no payload.

use crate::container::{Container, PackedTensor};
use crate::summary::{self, PackReport};

/// The contents of a container.
#[must_use]
pub fn inspect(container: &Container) -> PackReport {
    let index = container.index();
    let payloads: u64 = index.tensors.iter().map(PackedTensor::packed_bytes).sum();
    summary::of(index, container.len_bytes(), container.len_bytes() - payloads)
}

/// Whether restoring a container needs a base.
#[must_use]
pub fn needs_base(container: &Container) -> bool {
    container.index().needs_base()
}
