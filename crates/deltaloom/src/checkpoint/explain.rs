//! Tells what a file is that could not be read as what was wanted. It is asked only after the
//! ordinary reader has failed: no valid file is refused because of how it begins.

use super::source::ReadAt;
use crate::error::Error;
use crate::foreign::{Foreign, START_BYTES, Wanted};
use crate::limits::to_usize;

/// What a file is, if that can be told. A file that cannot be read any more cannot be told.
pub(super) fn kind_of(source: &dyn ReadAt) -> Option<Foreign> {
    let mut start = vec![0; to_usize(START_BYTES.min(source.len_bytes()))];
    source.read_at(0, &mut start).ok()?;
    Foreign::of(&start)
}

/// Says of a file that is broken as what was wanted what it is instead, where that can be told.
pub(crate) fn explain(error: Error, source: &dyn ReadAt, wanted: Wanted) -> Error {
    if !matches!(error, Error::Corrupt { .. } | Error::Truncated { .. } | Error::LimitExceeded { .. }) {
        return error;
    }
    match (kind_of(source), wanted) {
        // Then it is one, and broken.
        (Some(Foreign::Safetensors), Wanted::Safetensors)
        | (Some(Foreign::Container), Wanted::Container)
        | (Some(Foreign::Json), Wanted::AdapterConfig)
        | (None, _) => error,
        (Some(found), _) => Error::Foreign { found, wanted },
    }
}
