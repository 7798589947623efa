//! Where bytes come from: a file read at offsets, a mapped file, or memory.
//! Streaming work reads files, random access maps them; see docs/adr/0011.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::inputs::FileId;
use crate::error::{Error, Result};
use crate::limits::to_usize;

/// Bytes that can be read at any offset, from any thread.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn len_bytes(&self) -> u64;
    /// Fills `buffer` from `offset` on. It is an error if the source ends first.
    ///
    /// # Errors
    /// What the system says, or `UnexpectedEof`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// The bytes of a range, if they lie together in memory that nobody changes, so that no copy is
    /// needed.
    fn slice(&self, _range: Range<u64>) -> Option<&[u8]> {
        None
    }
    /// Whether the file at `path` is still the one that was opened, and unchanged: length, time of
    /// change, and identity.
    ///
    /// # Errors
    /// What the system says.
    fn is_unchanged(&self, _path: &Path) -> io::Result<bool> {
        Ok(true)
    }
}

/// Path of the journal of an unfinished in-place change; `real` is the canonical path of the file.
pub(crate) fn journal_of(real: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(real.file_name().unwrap_or_default());
    name.push(".loom-journal");
    real.with_file_name(name)
}

/// Refuses a file that is half changed: it has a journal next to it. Links are followed.
fn check_finished(path: &Path) -> Result<()> {
    let is_link = fs::symlink_metadata(path).map_err(Error::io(path))?.is_symlink();
    let real = if is_link { path.canonicalize().map_err(Error::io(path))? } else { path.to_path_buf() };
    if journal_of(&real).try_exists().map_err(Error::io(path))? {
        return Err(Error::CutShort { path: path.to_path_buf() });
    }
    Ok(())
}

/// Shows that a file was changed, or that another file took its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    id: FileId,
    len_bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn new(path: &Path, metadata: &Metadata) -> io::Result<Self> {
        let id = FileId::of(path, metadata)?;
        Ok(Self { id, len_bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

/// A file read at offsets, so that its pages do not count as memory of this process.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    len_bytes: u64,
    /// `None` for a file without a name.
    stamp: Option<Stamp>,
}

impl FileSource {
    /// Opens a regular file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::CutShort`] for a file that is changed in part.
    pub fn open(path: &Path) -> Result<Self> {
        // Checked before opening: opening a pipe waits for its writer.
        if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
            return Err(Error::io(path)(source));
        }
        check_finished(path)?;
        let file = File::open(path).map_err(Error::io(path))?;
        let stamp = file.metadata().and_then(|metadata| Stamp::new(path, &metadata));
        let stamp = Some(stamp.map_err(Error::io(path))?);
        Ok(Self { stamp, ..Self::from_file(file).map_err(Error::io(path))? })
    }

    /// An open file.
    pub(crate) fn from_file(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self { file, len_bytes, stamp: None })
    }

    /// Writes all of `bytes` at `offset`, into a file that was opened for it.
    #[cfg(unix)]
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, offset)
    }

    /// Writes all of `bytes` at `offset`, into a file that was opened for it.
    #[cfg(windows)]
    pub(crate) fn write_at(&self, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(&self.file, bytes, offset)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
            offset += written as u64;
        }
        Ok(())
    }

    /// Waits until everything written is on the disk. An in-place change keeps the length and place
    /// of a file.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl ReadAt for FileSource {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn is_unchanged(&self, path: &Path) -> io::Result<bool> {
        let Some(stamp) = &self.stamp else { return Ok(true) };
        // The open file may have lost its name to another one, or its bytes may have changed.
        let (opened, named) = (self.file.metadata()?, fs::metadata(path));
        let same = |metadata: &Metadata| Stamp::new(path, metadata).map(|found| found == *stamp);
        match named {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            named => Ok(same(&opened)? && same(&named?)?),
        }
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(&self.file, buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    buffer = &mut buffer[read..];
                    offset += read as u64;
                }
            }
        }
        Ok(())
    }
}

/// A mapped file, whose bytes are used where they are.
#[derive(Debug)]
pub struct MmapSource {
    map: memmap2::Mmap,
    source: FileSource,
}

impl MmapSource {
    /// Maps a regular file.
    ///
    /// # Safety
    /// Nobody writes to the file or shortens it as long as the source exists: its bytes are behind
    /// shared references. A shortened file also ends the process, with SIGBUS.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::CutShort`] for a file that is changed in part.
    #[expect(unsafe_code, reason = "mapping is the one unsafe operation of this crate")]
    pub unsafe fn open(path: &Path) -> Result<Self> {
        let source = FileSource::open(path)?;
        // SAFETY: the caller promises that nobody changes the file; the map is read-only.
        let map = unsafe { memmap2::Mmap::map(&source.file) }.map_err(Error::io(path))?;
        Ok(Self { map, source })
    }
}

impl ReadAt for MmapSource {
    fn len_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.map[..].read_at(offset, buffer)
    }

    // Another process may write to a file behind a reference to it, unless that is ruled out.
    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        self.map[..].slice(range)
    }

    fn is_unchanged(&self, path: &Path) -> io::Result<bool> {
        self.source.is_unchanged(path)
    }
}

impl ReadAt for [u8] {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let rest = self.get(to_usize(offset)..).and_then(|rest| rest.get(..buffer.len()));
        let bytes = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        self.get(to_usize(range.start)..to_usize(range.end))
    }
}

impl ReadAt for Vec<u8> {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buffer)
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        self.as_slice().slice(range)
    }
}

/// A source with several readers, such as a container that its writer still holds.
impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn len_bytes(&self) -> u64 {
        (**self).len_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }

    fn slice(&self, range: Range<u64>) -> Option<&[u8]> {
        (**self).slice(range)
    }

    fn is_unchanged(&self, path: &Path) -> io::Result<bool> {
        (**self).is_unchanged(path)
    }
}
