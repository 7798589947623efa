//! Decode budgets: how much a file may make a reader allocate.
//! They bound hostile files and are far above what real checkpoints need.

use crate::error::{Error, Result};

/// Upper bounds that a reader enforces before it allocates.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of each part of a container's index, decompressed.
    pub index_bytes: u64,
    /// Bytes of a safetensors header.
    pub header_bytes: u64,
    /// Files in a checkpoint.
    pub members: u64,
    /// Tensors in a checkpoint.
    pub tensors: u64,
    /// Chunks in a container.
    pub chunks: u64,
    /// Pieces of views in a container, with their references.
    pub pieces: u64,
    /// Dimensions of a tensor.
    pub dimensions: u64,
    /// Names of bases and texts in a container, in bytes.
    pub identity_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            index_bytes: 256 << 20,
            header_bytes: 100_000_000,
            members: 1 << 16,
            tensors: 1 << 20,
            chunks: 1 << 22,
            pieces: 1 << 22,
            dimensions: 16,
            identity_bytes: 1 << 20,
        }
    }
}

impl Limits {
    /// Compares a size that a file gives with its limit.
    #[doc(hidden)]
    pub fn check(what: &'static str, found: u64, limit: u64) -> Result<()> {
        if found > limit { Err(Error::LimitExceeded { what, found, limit }) } else { Ok(()) }
    }
}

/// A size or offset as an index. The crate compiles only where every size fits.
#[expect(clippy::cast_possible_truncation, reason = "usize has at least 64 bits, as lib.rs asserts")]
pub const fn to_usize(size: u64) -> usize {
    size as usize
}

/// Converts an integer that is known to fit. For writers: a broken invariant must stop them, not
/// become a wrong byte. Readers of files check instead, and return errors.
///
/// # Panics
/// If the value does not fit. The message gives the reason why it should have.
#[track_caller]
pub fn narrow<T>(value: impl TryInto<T>, why_it_fits: &str) -> T {
    match value.try_into() {
        Ok(narrow) => narrow,
        Err(_) => panic!("a number does not fit although it should: {why_it_fits}"),
    }
}
