//! A stored step as a checkpoint that can be read directly. It is decoded once into an anonymous
//! file, which is gone when the checkpoint is dropped.
//! Packing reads a reference many times, and decoding a chain each time would take many times as
//! long.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bases::ResolvedContainer;
use crate::checkpoint::{Checkpoint, FileSource, Member, MemberWriter, ReadAt};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::progress::Progress;
use crate::unpack::decode_all;

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

/// The files of a container under their paths there. Every tensor has its digest. They are written
/// in `folder`.
pub(crate) fn checkpoint(
    resolved: &ResolvedContainer,
    folder: &Path,
    limits: &Limits,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Checkpoint> {
    let index = resolved.container().index();
    let members = &index.members;
    let file = tempfile::tempfile_in(folder).map_err(Error::writing(folder))?;
    let mut out = BufWriter::new(file.try_clone().map_err(Error::writing(folder))?);
    let mut writer: Option<MemberWriter<'_>> = None;
    let mut begun = 0;
    progress.start(index.data_bytes());
    decode_all(resolved, threads, progress, |piece| {
        if let Some(fault) = piece.fault {
            return Err(fault);
        }
        let (member, place) = index.tensors[piece.tensor].place;
        let mut write = || {
            for member in &members[begun.min(member + 1)..=member] {
                if let Some(writer) = writer.take() {
                    writer.finish(&mut out)?;
                }
                writer = Some(MemberWriter::start(member, &mut out)?);
            }
            writer.as_mut().map_or(Ok(()), |writer| writer.write(place, piece.bytes, &mut out))
        };
        write().map_err(Error::writing(folder))?;
        begun = begun.max(member + 1);
        Ok(())
    })?;
    let finish = || {
        writer.map_or(Ok(()), |writer| writer.finish(&mut out))?;
        for member in &members[begun..] {
            MemberWriter::start(member, &mut out)?.finish(&mut out)?;
        }
        out.flush()
    };
    finish().map_err(Error::writing(folder))?;
    let file = Arc::new(FileSource::from_file(file).map_err(Error::io(folder))?);
    let mut start = 0;
    let mut section = |member: &Member| -> (PathBuf, Arc<dyn ReadAt>) {
        let section = Section { file: Arc::clone(&file), start, len_bytes: member.len_bytes() };
        start += member.len_bytes();
        (resolved.container().path().to_path_buf(), Arc::new(section))
    };
    let sources = members.iter().map(&mut section).collect();
    Checkpoint::of_members(members.clone(), sources, limits)
}
