//! A stored step as a checkpoint that can be read directly. It is decoded once into an anonymous
//! file, which is gone when the checkpoint is dropped. Files that the caller has are not decoded.
//! Packing reads a reference many times, and decoding a chain each time would take many times as
//! long.

use std::io::{self, BufWriter, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::bases::ResolvedContainer;
use crate::checkpoint::{Checkpoint, FileSource, Member, MemberWriter, ReadAt};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::pipeline::with_threads;
use crate::progress::{Progress, check_cancelled};
use crate::unpack::decode_each;

/// One file of the checkpoint, as a section of the file that holds all.
struct Section {
    file: Arc<FileSource>,
    start: u64,
    len_bytes: u64,
}

impl ReadAt for Section {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(buffer.len() as u64) > self.len_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_at(self.start + offset, buffer)
    }
}

/// For each file of a container, the number of the same file in a checkpoint. Hashes those that
/// look the same, on the threads of the current rayon pool.
fn held_members(
    resolved: &ResolvedContainer,
    held: &Checkpoint,
    progress: &dyn Progress,
) -> Result<Vec<Option<usize>>> {
    let index = resolved.container().index();
    let is_same = |member: usize, found: usize| {
        let tensors = index.tensors.par_iter().filter(|tensor| tensor.place.0 == member);
        let digests = tensors.map(|tensor| {
            let digest = held.digest(found, index.info(tensor), |_| check_cancelled(progress));
            digest.map(|digest| digest == tensor.digest)
        });
        digests.try_reduce(|| true, |a, b| Ok(a && b))
    };
    let find = |(number, member): (usize, &Member)| {
        let Some(found) = held.members.iter().position(|other| other == member) else { return Ok(None) };
        Ok(is_same(number, found)?.then_some(found))
    };
    index.members.iter().enumerate().map(find).collect()
}

/// The files of a container under their paths there. Every tensor has its digest. Those that `held`
/// has, byte for byte, are read there; the others are written in `folder`.
pub(crate) fn checkpoint(
    resolved: &ResolvedContainer,
    held: Option<&Checkpoint>,
    folder: &Path,
    limits: &Limits,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Checkpoint> {
    let index = resolved.container().index();
    let members = &index.members;
    let found = match held {
        Some(held) => with_threads(threads, || held_members(resolved, held, progress))?,
        None => vec![None; members.len()],
    };
    // Files that are written.
    let written = |range: Range<usize>| {
        let numbers = range.filter(|number| found[*number].is_none());
        numbers.map(|number| &members[number])
    };
    let is_written = |number: &usize| found[index.tensors[*number].place.0].is_none();
    let tensors: Vec<usize> = (0..index.tensors.len()).filter(is_written).collect();
    let file = tempfile::tempfile_in(folder).map_err(Error::writing(folder))?;
    let mut out = BufWriter::new(file.try_clone().map_err(Error::writing(folder))?);
    let mut writer: Option<MemberWriter<'_>> = None;
    let mut begun = 0;
    if !tensors.is_empty() {
        progress.start(tensors.iter().map(|number| resolved.info(*number).len_bytes()).sum());
    }
    let chunk = |tensor, i| resolved.chunk(tensor, i);
    decode_each(resolved, tensors, threads, progress, chunk, |piece| {
        if let Some(fault) = piece.fault {
            return Err(fault);
        }
        let (member, place) = index.tensors[piece.tensor].place;
        let end = member + 1;
        let mut write = || {
            for member in written(begun..end) {
                if let Some(writer) = writer.take() {
                    writer.finish(&mut out)?;
                }
                writer = Some(MemberWriter::start(member, &mut out)?);
            }
            writer.as_mut().map_or(Ok(()), |writer| writer.write(place, piece.bytes, &mut out))
        };
        write().map_err(Error::writing(folder))?;
        begun = begun.max(end);
        Ok(())
    })?;
    let finish = || {
        writer.map_or(Ok(()), |writer| writer.finish(&mut out))?;
        for member in written(begun..members.len()) {
            MemberWriter::start(member, &mut out)?.finish(&mut out)?;
        }
        out.flush()
    };
    finish().map_err(Error::writing(folder))?;
    let file = Arc::new(FileSource::from_file(file).map_err(Error::io(folder))?);
    let mut start = 0;
    let mut source = |(member, found): (&Member, &Option<usize>)| -> (PathBuf, Arc<dyn ReadAt>) {
        if let (Some(held), Some(found)) = (held, *found) {
            return held.source(found);
        }
        let section = Section { file: Arc::clone(&file), start, len_bytes: member.len_bytes() };
        start += member.len_bytes();
        (resolved.container().path().to_path_buf(), Arc::new(section))
    };
    let sources = members.iter().zip(&found).map(&mut source).collect();
    Checkpoint::of_members(members.clone(), sources, limits)
}
