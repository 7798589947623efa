//! Checkpoints on disk: one file with tensors, or a directory of shards and small files.
//! It reads structure and bytes. It codes nothing, and writes only whole targets (see [`output`]).

mod archive;
mod exclude;
pub(crate) mod explain;
mod folder;
mod frame;
pub mod gguf;
mod inputs;
pub mod output;
pub(crate) mod peft;
mod roles;
pub(crate) mod safetensors;
pub(crate) mod shards;
mod source;
mod temporary;
mod tensors;
mod unread;

pub use crate::foreign::{Foreign, Wanted};
pub use exclude::Exclude;
pub use folder::LeftOut;
pub use frame::Frame;
pub(crate) use frame::{MemberWriter, Placed};
pub use roles::{Role, Roles};
pub(crate) use roles::{have_weights, is_state_file};
pub use shards::Warning;
pub(crate) use source::journal_of;
pub use source::{FileSource, MmapSource, ReadAt};
pub use tensors::NewTensor;
pub use unread::{Unread, UnreadFile};

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::limits::{Limits, to_usize};
use crate::scratch::{Bytes, Scratch};
use crate::tensor::{ChunkGrid, DType, TensorInfo};

/// Bytes that are hashed at a time.
const HASH_BLOCK_BYTES: u64 = 1 << 20;
/// The name of a safetensors file's tail, unless a tensor has that name.
const TAIL_NAME: &str = "__tail__";

/// One file or a directory of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A single file.
    File,
    /// A directory.
    Directory,
}

/// What the bytes of a member are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Any file. It is carried as one tensor of bytes.
    Opaque,
    /// A safetensors file with this header (without the 8 length bytes). It may have a tail: bytes
    /// behind its last tensor.
    Safetensors(Vec<u8>),
    /// A file of another format, with tensors between the bytes of this frame.
    Framed(Frame),
}

/// A file of a checkpoint: its path, its kind, and its tensors in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Relative path with `/` between parts; for a single file, the file name.
    pub path: String,
    /// What it is.
    pub contents: Contents,
    /// Its tensors. The tail of a safetensors file is the last of them, and a frame is the first.
    pub tensors: Vec<TensorInfo>,
    /// Bytes behind the last tensor of the header.
    pub tail_bytes: u64,
}

impl Member {
    /// A member that is one tensor of `len_bytes` bytes.
    #[must_use]
    pub fn opaque(path: String, len_bytes: u64) -> Self {
        let tensor = TensorInfo {
            name: path.clone(),
            dtype: DType::U8,
            shape: vec![len_bytes],
            begin: 0,
            end: len_bytes,
        };
        Self { path, contents: Contents::Opaque, tensors: vec![tensor], tail_bytes: 0 }
    }

    /// A safetensors file: its header, its tensors in the order of their places, and the number of
    /// bytes behind them.
    #[doc(hidden)]
    #[must_use]
    pub fn safetensors(path: String, header: Vec<u8>, mut tensors: Vec<TensorInfo>, tail_bytes: u64) -> Self {
        if tail_bytes > 0 {
            let begin = tensors.last().map_or(0, |last| last.end);
            tensors.push(tail(&tensors, begin, tail_bytes));
        }
        Self { path, contents: Contents::Safetensors(header), tensors, tail_bytes }
    }

    /// Bytes before the first tensor that belong to none.
    #[must_use]
    pub fn data_offset(&self) -> u64 {
        match &self.contents {
            Contents::Opaque | Contents::Framed(_) => 0,
            Contents::Safetensors(header) => safetensors::LENGTH_BYTES + header.len() as u64,
        }
    }

    /// The places in the file of a range of a tensor's bytes, in order. Only a frame has several.
    pub(crate) fn places_of(
        &self,
        tensor: &TensorInfo,
        range: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> {
        let at = tensor.begin + range.start;
        let mut rest = at..at + (range.end - range.start);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (place, len_bytes) = match &self.contents {
                Contents::Framed(frame) => frame.place_of(tensor, &rest, &self.tensors),
                Contents::Opaque | Contents::Safetensors(_) => {
                    (self.data_offset() + rest.start, rest.end - rest.start)
                }
            };
            rest.start += len_bytes;
            Some(place..place + len_bytes)
        })
    }

    /// Whether its file gives a tensor of this member a dtype and a shape, rather than it being the
    /// other bytes of a file. Not all such tensors are weights: see [`Roles`].
    #[must_use]
    pub fn is_typed(&self, tensor: &TensorInfo) -> bool {
        match &self.contents {
            Contents::Opaque => false,
            Contents::Safetensors(_) => true,
            Contents::Framed(frame) => tensor.begin >= frame.len_bytes(),
        }
    }

    /// Size of the file.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.data_offset() + self.data_bytes()
    }

    /// Size of all its tensors.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.tensors.last().map_or(0, |tensor| tensor.end)
    }

    /// How a tensor of this member is cut into chunks.
    #[must_use]
    pub fn grid(&self, tensor: &TensorInfo, chunk_log2: u32) -> ChunkGrid {
        match self.contents {
            Contents::Opaque => ChunkGrid::of_opaque_file(tensor),
            Contents::Safetensors(_) | Contents::Framed(_) => ChunkGrid::new(tensor, chunk_log2),
        }
    }
}

/// The bytes behind the last tensor, as one more tensor with a name that is still free.
fn tail(tensors: &[TensorInfo], begin: u64, len_bytes: u64) -> TensorInfo {
    let mut name = TAIL_NAME.to_owned();
    while tensors.iter().any(|tensor| tensor.name == name) {
        name.push('_');
    }
    let end = begin.saturating_add(len_bytes);
    TensorInfo { name, dtype: DType::U8, shape: vec![len_bytes], begin, end }
}

/// A checkpoint opened for reading. Clones share the files, or their bytes.
#[derive(Clone)]
pub struct Checkpoint {
    /// One file or a directory.
    pub layout: Layout,
    /// Its files, ordered by path.
    pub members: Arc<[Member]>,
    sources: Vec<(PathBuf, Arc<dyn ReadAt>)>,
    /// What of its folder is left out.
    of_folder: Vec<Warning>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<&Path> = self.file_paths().collect();
        f.debug_struct("Checkpoint").field("files", &paths).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a safetensors file, a PyTorch archive, or a directory with everything in it but what
    /// [`LeftOut`] lists. Files of a directory that end in `.safetensors` must be valid. The others
    /// are opaque if they cannot be read.
    ///
    /// # Errors
    /// [`Error::Io`], or what is wrong with a safetensors file, with its path.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        Self::open_without(path, &[], limits)
    }

    /// As [`Self::open`], without the files and folders of a directory that `exclude` fits.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_without(path: &Path, exclude: &[Exclude], limits: &Limits) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        if metadata.is_dir() {
            return Self::open_directory(path, exclude, limits);
        }
        Self::from_source(path, Box::new(FileSource::open(path)?), limits)
    }

    /// A single file with tensors in any source. `path` gives its name, also in messages.
    pub(crate) fn from_source(path: &Path, source: Box<dyn ReadAt>, limits: &Limits) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::from_sources(Layout::File, vec![(name, path.to_path_buf(), Arc::from(source))], limits)
    }

    /// A single file with tensors in memory.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_bytes(name: &str, bytes: impl ReadAt + 'static, limits: &Limits) -> Result<Self> {
        let source: Arc<dyn ReadAt> = Arc::new(bytes);
        Self::from_sources(Layout::File, vec![(name.to_owned(), PathBuf::from(name), source)], limits)
    }

    /// A single safetensors file of tensors that stay where they are: nothing is copied. Its header
    /// is the one that safetensors 0.8 would write, with the entries of `metadata` in order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name twice, the name `__metadata__`, a dtype that
    /// safetensors does not have, or a source of another length than dtype and shape give;
    /// [`Error::LimitExceeded`].
    pub fn from_tensors(
        name: &str,
        tensors: Vec<NewTensor>,
        metadata: &BTreeMap<String, String>,
        limits: &Limits,
    ) -> Result<Self> {
        Self::from_bytes(name, tensors::Image::new(tensors, metadata, limits)?, limits)
    }

    fn open_directory(root: &Path, exclude: &[Exclude], limits: &Limits) -> Result<Self> {
        let found = folder::list(root, exclude, limits)?;
        if found.files.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "{}: there is no file in this directory{}",
                root.display(),
                if exclude.is_empty() { "" } else { " that is not excluded" }
            )));
        }
        let checkpoint = Self::open_files(root, found.files, limits)?;
        Ok(Self { of_folder: found.warnings, ..checkpoint })
    }

    /// Some files of a directory, given by relative paths in order.
    pub(crate) fn open_files(root: &Path, names: Vec<String>, limits: &Limits) -> Result<Self> {
        let sources = names
            .into_iter()
            .map(|name| {
                let path = root.join(&name);
                let source: Arc<dyn ReadAt> = Arc::new(FileSource::open(&path)?);
                Ok((name, path, source))
            })
            .collect::<Result<_>>()?;
        Self::from_sources(Layout::Directory, sources, limits)
    }

    /// Several checkpoints in subfolders of one directory, in the order of their names.
    pub(crate) fn side_by_side(parts: Vec<(&str, Self)>, limits: &Limits) -> Result<Self> {
        let (mut members, mut sources) = (Vec::new(), Vec::new());
        for (folder, part) in parts {
            let moved = |member: &Member| {
                let path = format!("{folder}/{}", member.path);
                match member.contents {
                    Contents::Opaque => Member::opaque(path, member.len_bytes()),
                    Contents::Safetensors(_) | Contents::Framed(_) => Member { path, ..member.clone() },
                }
            };
            members.extend(part.members.iter().map(moved));
            sources.extend(part.sources);
        }
        Self::of_members(members, sources, limits)
    }

    /// The path and the source of a member, to read it as part of another checkpoint.
    pub(crate) fn source(&self, member: usize) -> (PathBuf, Arc<dyn ReadAt>) {
        self.sources[member].clone()
    }

    fn from_sources(
        layout: Layout,
        files: Vec<(String, PathBuf, Arc<dyn ReadAt>)>,
        limits: &Limits,
    ) -> Result<Self> {
        let (mut members, mut sources) = (Vec::new(), Vec::new());
        for (name, path, source) in files {
            if let Some(why) = unsupported_name(&name) {
                return Err(Error::UnsupportedName { path, why });
            }
            let member = read_member(layout, name, &*source, &path, limits)?;
            members.push(member);
            sources.push((path, source));
        }
        let checkpoint = Self { layout, members: members.into(), sources, of_folder: Vec::new() };
        checkpoint.check(limits)?;
        Ok(checkpoint)
    }

    /// A directory of files in any sources, whose lengths must match `members`.
    pub(crate) fn of_members(
        members: impl Into<Arc<[Member]>>,
        sources: Vec<(PathBuf, Arc<dyn ReadAt>)>,
        limits: &Limits,
    ) -> Result<Self> {
        let (layout, members) = (Layout::Directory, members.into());
        let checkpoint = Self { layout, members, sources, of_folder: Vec::new() };
        checkpoint.check(limits)?;
        Ok(checkpoint)
    }

    fn check(&self, limits: &Limits) -> Result<()> {
        check_paths(self.layout, &self.members)?;
        Limits::check("the number of tensors", self.tensors().count() as u64, limits.tensors)
    }

    /// The same checkpoint with all files read into memory, so that later work waits for no disk.
    ///
    /// # Errors
    /// [`Error::Io`] with the file's path.
    pub fn into_memory(mut self) -> Result<Self> {
        for (member, (path, source)) in self.members.iter().zip(&mut self.sources) {
            if !is_held(member, &**source) {
                let mut bytes = vec![0; to_usize(source.len_bytes())];
                source.read_at(0, &mut bytes).map_err(Error::io(&*path))?;
                *source = Arc::new(bytes);
            }
        }
        Ok(self)
    }

    /// The same checkpoint with its files mapped, to compute with weights where they are.
    ///
    /// # Safety
    /// Nobody writes to the files or shortens them while the checkpoint, or anything opened with
    /// it, exists. See [`MmapSource::open`].
    ///
    /// # Errors
    /// [`Error::Io`] with the file's path.
    #[expect(unsafe_code, reason = "the caller makes the promise that mapping needs")]
    pub unsafe fn into_mapped(mut self) -> Result<Self> {
        for (member, (path, source)) in self.members.iter().zip(&mut self.sources) {
            // An empty file has nothing to map.
            if !is_held(member, &**source) && source.len_bytes() > 0 {
                // SAFETY: the caller promises that nobody changes the files.
                *source = Arc::new(unsafe { MmapSource::open(path) }?);
            }
        }
        Ok(self)
    }

    /// The bytes of a tensor of member `member`, if its file is in memory.
    #[must_use]
    pub fn in_memory(&self, member: usize, tensor: &TensorInfo) -> Option<&[u8]> {
        let mut places = self.members[member].places_of(tensor, 0..tensor.len_bytes());
        match (places.next(), places.next()) {
            (None, _) => Some(&[]),
            (Some(place), None) => self.sources[member].1.slice(place),
            (Some(_), Some(_)) => None,
        }
    }

    /// The paths of its files.
    pub(crate) fn file_paths(&self) -> impl Iterator<Item = &Path> {
        self.sources.iter().map(|(path, _)| path.as_path())
    }

    /// Its files, so that no target replaces one.
    #[must_use]
    pub fn inputs(&self) -> output::Inputs {
        let mut inputs = output::Inputs::default();
        self.file_paths().for_each(|path| inputs.add(path));
        inputs
    }

    /// Checks that no file has changed since it was opened. Otherwise what was read may be half old
    /// and half new.
    ///
    /// # Errors
    /// [`Error::Changed`], [`Error::Io`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.sources.iter().try_for_each(|(path, source)| {
            if source.is_unchanged(path).map_err(Error::io(path))? {
                return Ok(());
            }
            Err(Error::Changed { path: path.clone() })
        })
    }

    /// Size of all files.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.members.iter().map(Member::len_bytes).sum()
    }

    /// All tensors with the index of their member.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        self.members.iter().enumerate().flat_map(|(m, member)| member.tensors.iter().map(move |t| (m, t)))
    }

    /// The same without what is only bytes: other files, and frames.
    pub fn typed(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        self.tensors().filter(|(member, info)| self.members[*member].is_typed(info))
    }

    /// The tensors that count as weights, as [`Roles`] has them.
    pub fn weights(&self) -> impl Iterator<Item = (usize, &TensorInfo)> {
        let roles = Roles::of(&self.members);
        let counted = move |place: &(usize, usize)| roles.is_weights(*place);
        self.places().filter(counted).map(|(m, t)| (m, &self.members[m].tensors[t]))
    }

    /// Every tensor's member and its number in the member, in the order of [`Self::tensors`].
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        self.members.iter().enumerate().flat_map(|(m, member)| (0..member.tensors.len()).map(move |t| (m, t)))
    }

    /// Reads bytes of a tensor of member `member` from `offset` on.
    ///
    /// # Errors
    /// [`Error::Io`] with the file's path; also when the file has become shorter.
    pub fn read(&self, member: usize, tensor: &TensorInfo, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let (path, source) = &self.sources[member];
        let mut rest = buffer;
        let range = offset..offset + rest.len() as u64;
        for place in self.members[member].places_of(tensor, range) {
            let (part, after) = rest.split_at_mut(to_usize(place.end - place.start));
            source.read_at(place.start, part).map_err(Error::io(path))?;
            rest = after;
        }
        Ok(())
    }

    /// Reads all bytes of a tensor of member `member`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_tensor(&self, member: usize, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = vec![0; to_usize(tensor.len_bytes())];
        self.read(member, tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of file `member`, as a whole.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_file(&self, member: usize) -> Result<Vec<u8>> {
        let (path, source) = &self.sources[member];
        let mut bytes = vec![0; to_usize(source.len_bytes())];
        source.read_at(0, &mut bytes).map_err(Error::io(path))?;
        Ok(bytes)
    }

    /// BLAKE3 of a tensor of member `member`. `hashed` gets the size of each block before it is
    /// read, and may stop the work.
    ///
    /// # Errors
    /// As [`Self::read`]; those of `hashed`.
    pub fn digest(
        &self,
        member: usize,
        tensor: &TensorInfo,
        hashed: impl Fn(u64) -> Result<()>,
    ) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        for start in (0..tensor.len_bytes()).step_by(to_usize(HASH_BLOCK_BYTES)) {
            let range = start..(start + HASH_BLOCK_BYTES).min(tensor.len_bytes());
            hashed(range.end - range.start)?;
            hasher.update(&self.bytes(member, tensor, range)?);
        }
        Ok(hasher.finalize())
    }

    /// The bytes of a range of a tensor: borrowed if they are in memory, else read.
    pub(crate) fn bytes(&self, member: usize, tensor: &TensorInfo, range: Range<u64>) -> Result<Bytes<'_>> {
        let (offset, len) = (range.start, to_usize(range.end - range.start));
        let held =
            self.in_memory(member, tensor).and_then(|tensor| tensor.get(to_usize(offset)..)?.get(..len));
        if let Some(bytes) = held {
            return Ok(Bytes::Held(bytes));
        }
        let mut bytes = Scratch::of_len(len);
        self.read(member, tensor, offset, &mut bytes)?;
        Ok(Bytes::Read(bytes))
    }
}

/// Whether all tensors of a file are in memory.
fn is_held(member: &Member, source: &dyn ReadAt) -> bool {
    let is_held = |place| source.slice(place).is_some();
    member.tensors.iter().all(|tensor| member.places_of(tensor, 0..tensor.len_bytes()).all(is_held))
}

/// Reads the structure of a file. In a directory, what is not a safetensors file need not be
/// readable: [`Checkpoint::unread_files`] says why it is not.
fn read_member(
    layout: Layout,
    name: String,
    source: &dyn ReadAt,
    path: &Path,
    limits: &Limits,
) -> Result<Member> {
    let is_safetensors = name.ends_with(".safetensors");
    let may_be_opaque = layout == Layout::Directory && !is_safetensors;
    if !is_safetensors {
        match archive::read(&name, source, path, limits) {
            // An archive without tensors is one of the small files of a directory.
            Ok(Some(member)) if !may_be_opaque || member.tensors.len() > 1 => return Ok(member),
            Err(e) if !may_be_opaque || matches!(e, Error::Io { .. }) => return Err(e.in_file(path)),
            _ => {}
        }
    }
    if may_be_opaque {
        return Ok(Member::opaque(name, source.len_bytes()));
    }
    let read = safetensors::read_header(source, path, limits);
    let (header, tensors, tail_bytes) =
        read.map_err(|e| explain::explain(e, source, Wanted::Safetensors).in_file(path))?;
    Ok(Member::safetensors(name, header, tensors, tail_bytes))
}

/// Why a file's path is not valid on every system, if so.
fn unsupported_name(path: &str) -> Option<&'static str> {
    match () {
        () if path.contains('\\') => Some("with a backslash"),
        () if path.contains('\0') => Some("with a zero byte"),
        () if path.as_bytes().get(1) == Some(&b':') => Some("that begin like a drive, as \"C:\" does,"),
        () => None,
    }
}

/// Checks that every path stays inside the target, is unique, and is not a directory of another.
pub fn check_paths(layout: Layout, members: &[Member]) -> Result<()> {
    if layout == Layout::File && members.len() != 1 {
        return Err(Error::corrupt("a single file has exactly one member"));
    }
    let files: HashSet<&str> = members.iter().map(|m| m.path.as_str()).collect();
    if files.len() != members.len() {
        return Err(Error::corrupt("two members have the same path"));
    }
    for member in members {
        let path = member.path.as_str();
        let is_plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !is_plain || unsupported_name(path).is_some() || (layout == Layout::File && path.contains('/')) {
            return Err(Error::corrupt(format!("member path {path:?} is not a plain relative path")));
        }
        let mut folders = path.match_indices('/').map(|(i, _)| &path[..i]);
        if let Some(folder) = folders.find(|folder| files.contains(folder)) {
            return Err(Error::corrupt(format!("member {folder:?} is both a file and a folder")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_escape_are_refused() {
        let check = |layout, paths: &[&str]| {
            check_paths(layout, &paths.iter().map(|p| Member::opaque((*p).to_owned(), 1)).collect::<Vec<_>>())
        };
        check(Layout::Directory, &["a", "b/c", "b/d", "..c"]).unwrap();
        for bad in ["", "/a", "a/../b", "..", "./a", "a//b", "a/", "a\\b", "a\0", "C:x"] {
            assert!(check(Layout::Directory, &[bad]).is_err(), "{bad:?}");
        }
        assert!(check(Layout::Directory, &["a", "a/b"]).is_err());
        assert!(check(Layout::Directory, &["a", "a"]).is_err());
        assert!(check(Layout::File, &["a", "b"]).is_err());
        assert!(check(Layout::File, &["a/b"]).is_err());
    }
}
