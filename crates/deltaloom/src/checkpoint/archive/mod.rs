//! Files of other formats whose tensors are plain runs of bytes: PyTorch archives and
//! GGUF files.
//! It finds out where the tensors are and what they are called. Everything else in such a file is
//! its frame.

mod gguf;
mod pickle;
#[cfg(test)]
mod tests;
mod torch;
mod zip;

use std::ops::Range;
use std::path::Path;

use super::explain::kind_of;
use super::frame::Placed;
use super::{Member, ReadAt};
use crate::error::{Error, Result};
use crate::foreign::Foreign;
use crate::limits::Limits;
use crate::tensor::DType;

/// A tensor, and its bytes in the file.
struct Found {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    place: Range<u64>,
}

/// Reads the structure of a file, if it is of such a format. `path` is for messages.
///
/// # Errors
/// [`Error::Unread`] for what is broken or needs more than is known, [`Error::Io`].
pub(super) fn read(name: &str, source: &dyn ReadAt, path: &Path, limits: &Limits) -> Result<Option<Member>> {
    let file = File { source, path, limits };
    let Some(kind) = kind_of(source) else { return Ok(None) };
    let found = match kind {
        Foreign::TorchArchive => torch::read(&file),
        Foreign::Gguf => gguf::read(&file),
        _ => return Ok(None),
    };
    let member = found.and_then(|found| member_of(name, found, &file));
    member.map(Some).map_err(|e| match e {
        Error::Io { .. } => e,
        // It may as well be a file that needs more than is known.
        Error::Corrupt { what, .. } => Error::Unread { found: kind, why: what },
        other => Error::Unread { found: kind, why: other.detail() },
    })
}

fn member_of(name: &str, mut found: Vec<Found>, file: &File<'_>) -> Result<Member> {
    found.sort_by_key(|tensor| (tensor.place.start, tensor.place.end));
    let (mut end, mut frame_bytes, mut name_bytes) = (0, 0, 0);
    let mut placed = Vec::with_capacity(found.len());
    for Found { name, dtype, shape, place } in found {
        let Some(gap) = place.start.checked_sub(end) else {
            return Err(Error::corrupt(format!("tensor {name:?} overlaps the one before it")));
        };
        end = place.end;
        frame_bytes += gap;
        name_bytes += name.len() as u64;
        placed.push(Placed { name, dtype, shape, gap });
    }
    frame_bytes += file.source.len_bytes().saturating_sub(end);
    // Names are built from parts that the file has once. The container has them all.
    if name_bytes > frame_bytes {
        return Err(Error::corrupt("the names of its tensors are longer than all else in it"));
    }
    Member::framed(name.to_owned(), frame_bytes, placed, file.limits)
}

/// The file that is read.
struct File<'a> {
    source: &'a dyn ReadAt,
    path: &'a Path,
    limits: &'a Limits,
}

impl File<'_> {
    /// Reads a range that was compared with the size of the file, and its length with a limit.
    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; crate::limits::to_usize(range.end - range.start)];
        self.source.read_at(range.start, &mut bytes).map_err(Error::io(self.path))?;
        Ok(bytes)
    }
}
