//! Restores the files of a container byte for byte, or one tensor of it.
//! Every reference is found by digest before the first chunk is decoded, and every result is
//! checked against its digest.

use std::fs::File;
use std::io::Write;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use crate::bases::ResolvedContainer;
use crate::checkpoint::output::{Inputs, NewDirectory, NewFile};
use crate::checkpoint::{Layout, MemberWriter};
use crate::error::{Error, Result};
use crate::limits::to_usize;
use crate::options::setters;
use crate::pipeline;
use crate::progress::{Progress, check_cancelled};
use crate::scratch::Scratch;

/// Chunks that are decoded at a time for each thread, and at least in total. Enough to keep threads
/// busy, and few enough that decoding, hashing and writing overlap.
const CHUNKS_PER_THREAD: usize = 4;
const LEAST_WINDOW_CHUNKS: usize = 8;

/// How to unpack.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct UnpackOptions {
    /// Threads; 0 means one per core.
    pub threads: usize,
    /// Replace an existing file. In an existing folder: only the files that are restored.
    pub overwrite: bool,
}

setters!(UnpackOptions {
    with_threads(threads: usize),
    with_overwrite(overwrite: bool),
});

/// What unpacking did.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct UnpackReport {
    /// Bytes restored.
    pub original_bytes: u64,
    /// Bytes of the container.
    pub packed_bytes: u64,
    /// Files restored.
    pub files: usize,
    /// Duration.
    pub seconds: f64,
    /// Threads it ran on.
    pub threads: usize,
}

/// Which files of a container are restored, and under which paths.
pub(crate) struct Selection {
    /// One file or a directory.
    pub(crate) layout: Layout,
    /// For every member, the path of its restored file. `None` if it is not restored.
    pub(crate) paths: Vec<Option<String>>,
}

/// Restores the checkpoint of a container under the name `target`, which appears only when it is
/// complete and every tensor has its digest.
///
/// # Errors
/// What reading or writing gives; [`Error::DigestMismatch`]; [`Error::AlreadyExists`];
/// [`Error::Cancelled`].
pub fn unpack(
    resolved: &ResolvedContainer,
    target: &Path,
    options: &UnpackOptions,
    progress: &dyn Progress,
) -> Result<UnpackReport> {
    let index = resolved.container().index();
    let paths = index.members.iter().map(|member| Some(member.path.clone())).collect();
    let selection = Selection { layout: index.layout, paths };
    unpack_selected(resolved, &selection, target, resolved.inputs(), options, progress)
}

/// Restores some files of a container. No file may replace one of `inputs`.
pub(crate) fn unpack_selected(
    resolved: &ResolvedContainer,
    selection: &Selection,
    target: &Path,
    inputs: &Inputs,
    options: &UnpackOptions,
    progress: &dyn Progress,
) -> Result<UnpackReport> {
    let start = Instant::now();
    let members = &resolved.container().index().members;
    let selected = || members.iter().zip(&selection.paths).filter(|(_, path)| path.is_some());
    progress.start(selected().map(|(member, _)| member.data_bytes()).sum());
    let threads = match selection.layout {
        Layout::File => {
            let mut file = NewFile::create(target, options.overwrite, inputs)?;
            let handle = file.file().try_clone().map_err(Error::writing(target))?;
            let threads = restore(resolved, selection, target, options, progress, |_| {
                handle.try_clone().map_err(Error::writing(target))
            })?;
            file.commit()?;
            threads
        }
        Layout::Directory => {
            let folder = NewDirectory::create(target, options.overwrite, inputs)?;
            selection.paths.iter().flatten().try_for_each(|path| folder.check_file(path))?;
            let create = |path: &str| folder.create_file(path);
            let threads = restore(resolved, selection, target, options, progress, create)?;
            folder.commit()?;
            threads
        }
    };
    Ok(UnpackReport {
        original_bytes: selected().map(|(member, _)| member.len_bytes()).sum(),
        packed_bytes: resolved.container().len_bytes(),
        files: selected().count(),
        seconds: start.elapsed().as_secs_f64(),
        threads,
    })
}

/// Writes the only file of a container to any writer, such as a pipe. Each tensor is compared with
/// its digest after its last byte. So after an error, the bytes written before must not be used.
///
/// # Errors
/// [`Error::InvalidArgument`] for a container of a directory; [`Error::DigestMismatch`]; what
/// reading and decoding give. Errors of the writer have an empty path.
pub fn unpack_to(
    resolved: &ResolvedContainer,
    out: &mut (dyn Write + Send),
    options: &UnpackOptions,
    progress: &dyn Progress,
) -> Result<UnpackReport> {
    let index = resolved.container().index();
    let paths = index.members.iter().map(|member| Some(member.path.clone())).collect();
    unpack_selected_to(resolved, &Selection { layout: index.layout, paths }, out, options, progress)
}

/// Writes the only file of a selection.
pub(crate) fn unpack_selected_to(
    resolved: &ResolvedContainer,
    selection: &Selection,
    out: &mut (dyn Write + Send),
    options: &UnpackOptions,
    progress: &dyn Progress,
) -> Result<UnpackReport> {
    let start = Instant::now();
    let index = resolved.container().index();
    let selected = selection.paths.iter().position(Option::is_some);
    let Some(number) = selected.filter(|_| selection.layout == Layout::File) else {
        let what = "a folder is restored as files and not as one stream: name a folder to restore it to";
        return Err(Error::InvalidArgument(what.to_owned()));
    };
    let member = &index.members[number];
    progress.start(member.data_bytes());
    let mut writer = MemberWriter::start(member, out).map_err(Error::writing(""))?;
    let tensors: Vec<usize> =
        (0..index.tensors.len()).filter(|tensor| index.tensors[*tensor].place.0 == number).collect();
    let chunk = |tensor, i| resolved.chunk(tensor, i);
    let threads =
        decode_each(resolved, tensors, options.threads, progress, chunk, |piece| match piece.fault {
            Some(fault) => Err(fault),
            None => {
                let place = resolved.tensor(piece.tensor).place.1;
                writer.write(place, piece.bytes, out).map_err(Error::writing(""))
            }
        })?;
    writer.finish(out).map_err(Error::writing(""))?;
    out.flush().map_err(Error::writing(""))?;
    Ok(UnpackReport {
        original_bytes: member.len_bytes(),
        packed_bytes: resolved.container().len_bytes(),
        files: 1,
        seconds: start.elapsed().as_secs_f64(),
        threads,
    })
}

fn restore<'a>(
    resolved: &'a ResolvedContainer,
    selection: &Selection,
    target: &Path,
    options: &UnpackOptions,
    progress: &dyn Progress,
    create: impl Fn(&str) -> Result<File> + Sync,
) -> Result<usize> {
    let index = resolved.container().index();
    let members = &index.members;
    let mut current: Option<(MemberWriter<'a>, File)> = None;
    let close = |(writer, mut file): (MemberWriter<'_>, File)| {
        writer.finish(&mut file).and_then(|()| file.sync_all()).map_err(Error::writing(target))
    };
    let mut next_member = 0;
    // Opens members up to and including `member`. Those in between have no tensors and consist of
    // headers.
    let mut open_up_to = |member: usize, current: &mut Option<(MemberWriter<'a>, File)>| -> Result<()> {
        while next_member <= member {
            let number = next_member;
            next_member += 1;
            let Some(path) = &selection.paths[number] else { continue };
            current.take().map(close).transpose()?;
            let mut file = create(path)?;
            let writer = MemberWriter::start(&members[number], &mut file).map_err(Error::writing(target))?;
            *current = Some((writer, file));
        }
        Ok(())
    };
    let is_selected = |number: &usize| selection.paths[index.tensors[*number].place.0].is_some();
    let tensors: Vec<usize> = (0..index.tensors.len()).filter(is_selected).collect();
    let chunk = |tensor, i| resolved.chunk(tensor, i);
    let threads = decode_each(resolved, tensors, options.threads, progress, chunk, |piece| {
        let (member, place) = resolved.tensor(piece.tensor).place;
        match piece.fault {
            Some(fault) => return Err(fault),
            None => open_up_to(member, &mut current)?,
        }
        let Some((writer, file)) = &mut current else { return Ok(()) };
        writer.write(place, piece.bytes, file).map_err(Error::writing(target))
    })?;
    if let Some(last) = members.len().checked_sub(1) {
        open_up_to(last, &mut current)?;
    }
    current.map(close).transpose()?;
    Ok(threads)
}

/// The next bytes of a tensor. After the last bytes: what is wrong with the tensor as a whole.
pub(crate) struct Piece<'a> {
    pub(crate) tensor: usize,
    pub(crate) bytes: &'a [u8],
    pub(crate) fault: Option<Error>,
}

/// Decodes every tensor in file order and checks its digest. Calls `take` for each piece. Returns
/// the number of threads.
pub(crate) fn decode_all(
    resolved: &ResolvedContainer,
    threads: usize,
    progress: &dyn Progress,
    take: impl FnMut(Piece<'_>) -> Result<()> + Send,
) -> Result<usize> {
    let tensors = 0..resolved.container().index().tensors.len();
    decode_each(resolved, tensors, threads, progress, |tensor, i| resolved.chunk(tensor, i), take)
}

/// As [`decode_all`], but for the given tensors. `chunk` returns their chunks.
pub(crate) fn decode_each(
    resolved: &ResolvedContainer,
    tensors: impl IntoIterator<Item = usize> + Send,
    threads: usize,
    progress: &dyn Progress,
    chunk: impl Fn(usize, usize) -> Result<Scratch> + Sync,
    mut take: impl FnMut(Piece<'_>) -> Result<()> + Send,
) -> Result<usize> {
    pipeline::with_threads(threads, || {
        let window_chunks = (CHUNKS_PER_THREAD * rayon::current_num_threads()).max(LEAST_WINDOW_CHUNKS);
        // A tensor without elements gets one empty run, so that it is checked, too.
        let runs = tensors.into_iter().flat_map(|tensor| {
            let chunks = to_usize(resolved.tensor(tensor).grid.chunk_count());
            (0..chunks.max(1)).step_by(window_chunks / 2).map(move |start| {
                let end = (start + window_chunks / 2).min(chunks);
                Run { tensor, chunks: start..end, is_last: end == chunks }
            })
        });
        let windows = pipeline::windows(runs.collect(), window_chunks, |run: &Run| run.chunks.len().max(1));
        let mut hasher = blake3::Hasher::new();
        let mut hash = |(run, chunks): (Run, Vec<Scratch>)| {
            chunks.iter().for_each(|chunk| _ = hasher.update(chunk));
            let found = run.is_last.then(|| std::mem::take(&mut hasher).finalize());
            let fault = found.and_then(|found| resolved.check_digest(run.tensor, found).err());
            (run, chunks, fault)
        };
        pipeline::staged(
            windows,
            |window: Vec<Run>| decode_window(&chunk, window, progress),
            |decoded: Vec<(Run, Vec<Scratch>)>| Ok(decoded.into_iter().map(&mut hash).collect()),
            |hashed: Vec<(Run, Vec<Scratch>, Option<Error>)>| {
                for (run, chunks, fault) in hashed {
                    for bytes in &chunks {
                        progress.advance(bytes.len() as u64);
                        take(Piece { tensor: run.tensor, bytes, fault: None })?;
                    }
                    if run.is_last {
                        take(Piece { tensor: run.tensor, bytes: &[], fault })?;
                    }
                }
                Ok(())
            },
        )?;
        Ok(rayon::current_num_threads())
    })
}

/// Chunks of one tensor.
struct Run {
    tensor: usize,
    chunks: Range<usize>,
    is_last: bool,
}

fn decode_window(
    chunk: &(impl Fn(usize, usize) -> Result<Scratch> + Sync),
    window: Vec<Run>,
    progress: &dyn Progress,
) -> Result<Vec<(Run, Vec<Scratch>)>> {
    check_cancelled(progress)?;
    let decode = |run: Run| {
        let chunks = run.chunks.clone().into_par_iter().map(|i| chunk(run.tensor, i));
        let chunks = chunks.collect::<Result<Vec<_>>>()?;
        Ok((run, chunks))
    };
    window.into_par_iter().map(decode).collect()
}

/// Writes the bytes of `rows` of one tensor, which are those of its first dimension. `..` stands
/// for the whole tensor. Decodes only the chunks that hold these rows. A tensor that is read as a
/// whole is checked against its digest.
///
/// # Errors
/// [`Error::NotFound`], [`Error::DigestMismatch`]. [`Error::InvalidArgument`] for rows that do not
/// exist or are not whole bytes. What decoding or writing gives, the latter with an empty path.
pub fn read_tensor(
    resolved: &ResolvedContainer,
    name: &str,
    rows: impl RangeBounds<u64>,
    out: &mut dyn Write,
) -> Result<()> {
    let number = resolved.container().find(name)?;
    let info = resolved.info(number);
    let bytes = match (rows.start_bound(), rows.end_bound()) {
        (Bound::Unbounded, Bound::Unbounded) => 0..info.len_bytes(),
        _ => info.bytes_of_rows(&rows)?,
    };
    // Piece by piece, so that a large tensor does not have to fit in memory.
    let grid = resolved.tensor(number).grid;
    let mut hasher = blake3::Hasher::new();
    let mut at = bytes.start;
    while at < bytes.end {
        let chunk = grid.chunks_of_rows(&(at / grid.row_bytes()..at / grid.row_bytes() + 1)).start;
        let end = grid.chunk_bytes(chunk).end.min(bytes.end);
        let mut piece = vec![0; to_usize(end - at)];
        resolved.read_part_into(number, at, &mut piece)?;
        out.write_all(&piece).map_err(Error::writing(""))?;
        hasher.update(&piece);
        at = end;
    }
    let is_whole = bytes == (0..info.len_bytes());
    if is_whole { resolved.check_digest(number, hasher.finalize()) } else { Ok(()) }
}
