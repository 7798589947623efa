//! A stored step as a checkpoint to be packed again: its files are decoded where they are read, and nowhere whole.
//! It checks no digests; who packs compares those of the result.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::bases::ResolvedContainer;
use crate::checkpoint::{Checkpoint, Contents, ReadAt};
use crate::error::Result;
use crate::limits::{Limits, to_usize};

/// A file of a container.
struct PackedMember {
    resolved: Arc<ResolvedContainer>,
    member: usize,
    /// Number of its first tensor.
    first_tensor: usize,
}

/// The files of a container, under the paths that they have there.
pub(crate) fn checkpoint(resolved: &Arc<ResolvedContainer>, limits: &Limits) -> Result<Checkpoint> {
    let members = resolved.container().index().members.clone();
    let mut first_tensor = 0;
    let mut source = |(number, tensors): (usize, usize)| {
        let member = PackedMember { resolved: Arc::clone(resolved), member: number, first_tensor };
        first_tensor += tensors;
        let path: PathBuf = resolved.container().path().to_path_buf();
        (path, Arc::new(member) as Arc<dyn ReadAt>)
    };
    let sources = members.iter().map(|member| member.tensors.len()).enumerate().map(&mut source).collect();
    Checkpoint::of_members(members, sources, limits)
}

impl ReadAt for PackedMember {
    fn len_bytes(&self) -> u64 {
        self.resolved.container().index().members[self.member].len_bytes()
    }

    fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        let member = &self.resolved.container().index().members[self.member];
        if let Contents::Safetensors(header) = &member.contents
            && offset < member.data_offset()
        {
            let length = (header.len() as u64).to_le_bytes();
            let head: Vec<u8> = length.iter().chain(header).copied().collect();
            let rest = &head[to_usize(offset)..];
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            offset += len as u64;
            buffer = &mut buffer[len..];
        }
        let mut at = offset.saturating_sub(member.data_offset());
        // Tensors lie one after another without gaps.
        let first = member.tensors.partition_point(|tensor| tensor.end <= at);
        for (number, tensor) in member.tensors.iter().enumerate().skip(first) {
            if buffer.is_empty() {
                break;
            }
            let len = to_usize(tensor.end - at).min(buffer.len());
            let (part, rest) = buffer.split_at_mut(len);
            let number = self.first_tensor + number;
            self.resolved.read_part_into(number, at - tensor.begin, part).map_err(io::Error::other)?;
            at += len as u64;
            buffer = rest;
        }
        if buffer.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}
