//! The file that is changed in place and its journal, as the few operations between which a crash
//! can happen.
//! It knows nothing about containers. Tests replace it by a disk that fails.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::checkpoint::output::sync_folder;
use crate::checkpoint::{FileSource, ReadAt, journal_of};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::limits::to_usize;

/// Most bytes of a journal: enough for two safetensors headers and a batch. A hostile journal
/// cannot use more memory.
const MAX_JOURNAL_BYTES: u64 = 256 << 20;

/// A file, read at offsets, and its journal.
pub(super) trait Disk: ReadAt {
    /// Writes bytes of the file. Until [`Disk::sync`], they may reach the storage in part and in
    /// any order.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Waits until everything written to the file is on the storage.
    fn sync(&self) -> io::Result<()>;
    /// The journal, if there is one.
    fn read_journal(&self) -> Result<Option<Vec<u8>>>;
    /// Writes a journal under another name and syncs it. Removes it if that fails.
    fn draft_journal(&self, parts: &[&[u8]]) -> io::Result<()>;
    /// Renames the draft to the journal, which it replaces, and syncs the name.
    fn publish_journal(&self) -> Result<()>;
    /// Removes journal and draft, if they exist, and syncs that.
    fn remove_journal(&self) -> Result<()>;
}

/// A real file, locked so that no second process changes it in place.
#[derive(Debug)]
pub(super) struct RealDisk {
    source: FileSource,
    folder: PathBuf,
    journal: PathBuf,
    draft: PathBuf,
}

impl RealDisk {
    /// Opens a file for reading and writing, after checking that it may be changed.
    ///
    /// # Errors
    /// [`Error::NotInPlace`]; [`Error::SharedFile`] without `overwrite`; [`Error::Io`].
    pub(super) fn open(path: &Path, overwrite: bool) -> Result<Self> {
        check_file(path, overwrite)?;
        let real = path.canonicalize().map_err(Error::io(path))?;
        let file = File::options().read(true).write(true).open(&real).map_err(Error::writing(path))?;
        // Some file systems have no locks. The digests are checked in any case.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            let message = format!("{}: another process is changing it in place", path.display());
            return Err(Error::InvalidArgument(message));
        }
        let folder = real.parent().unwrap_or(Path::new(".")).to_path_buf();
        let journal = journal_of(&real);
        let mut draft = journal.clone().into_os_string();
        draft.push(".new");
        Ok(Self {
            source: FileSource::from_file(file).map_err(Error::io(path))?,
            journal,
            draft: draft.into(),
            folder,
        })
    }

    /// Path of the journal, if there is one.
    pub(super) fn journal_path(&self) -> &Path {
        &self.journal
    }
}

fn check_file(path: &Path, overwrite: bool) -> Result<()> {
    let refuse = |why: &str| Err(Error::NotInPlace { path: path.to_path_buf(), why: why.to_owned() });
    let is_link = fs::symlink_metadata(path).map_err(Error::io(path))?.is_symlink();
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if metadata.is_dir() {
        return refuse("it is a directory");
    }
    if !metadata.is_file() {
        return refuse("it is not a regular file");
    }
    // Checked explicitly, because an administrator could write to it anyway.
    if metadata.permissions().readonly() {
        return refuse("it is read-only");
    }
    if Container::is_container(path)? {
        return refuse("it is a container");
    }
    let shared = |how| Err(Error::SharedFile { path: path.to_path_buf(), how });
    match () {
        () if overwrite => Ok(()),
        () if is_link => shared("is a link: the file behind it has another name"),
        () if link_count(&metadata) > 1 => shared("has hard links: other names for the same bytes"),
        () => Ok(()),
    }
}

#[cfg(unix)]
fn link_count(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(metadata)
}

/// The standard library cannot tell on other systems.
#[cfg(not(unix))]
fn link_count(_metadata: &fs::Metadata) -> u64 {
    1
}

impl ReadAt for RealDisk {
    fn len_bytes(&self) -> u64 {
        self.source.len_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.source.read_at(offset, buffer)
    }
}

impl Disk for RealDisk {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.source.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.source.sync()
    }

    fn read_journal(&self) -> Result<Option<Vec<u8>>> {
        let source = match FileSource::open(&self.journal) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        crate::Limits::check("a journal in bytes", source.len_bytes(), MAX_JOURNAL_BYTES)?;
        let mut bytes = vec![0; to_usize(source.len_bytes())];
        source.read_at(0, &mut bytes).map_err(Error::io(&self.journal))?;
        Ok(Some(bytes))
    }

    fn draft_journal(&self, parts: &[&[u8]]) -> io::Result<()> {
        let write = || {
            // Created anew, so that no link planted there is followed. Only the owner can read it,
            // since the same may hold for the file.
            match fs::remove_file(&self.draft) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut options = File::options();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&self.draft)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.sync_all()
        };
        write().inspect_err(|_| {
            // The first error is the one to report.
            let _ignored = fs::remove_file(&self.draft);
        })
    }

    fn publish_journal(&self) -> Result<()> {
        fs::rename(&self.draft, &self.journal).map_err(Error::writing(&self.journal))?;
        sync_folder(&self.folder)
    }

    fn remove_journal(&self) -> Result<()> {
        let mut removed = false;
        for path in [&self.journal, &self.draft] {
            match fs::remove_file(path) {
                Ok(()) => removed = true,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::writing(path)(e)),
            }
        }
        if removed { sync_folder(&self.folder) } else { Ok(()) }
    }
}
