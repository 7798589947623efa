//! A file for keys and values that have no room in memory. Pages have places in it, and what
//! attention reads at once, the keys or the values of one head of a page, is one *part*. The parts
//! that were used last are in memory, up to a number of bytes; others are written where they belong
//! and read back when somebody wants them.
//!
//! Nothing is mapped. What comes back has the digest of what was written, or it is an error. The
//! file is of use to this process only, and goes with it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
#[cfg(unix)]
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blake3::Hash;
use deltaloom::{Error, Result};

use super::resident::{Frame, Resident};

/// What such a file begins with; the names of weights and plans follow.
const MAGIC: &[u8; 16] = b"deltaloom KV 1\r\n";
/// Where the first page is.
const HEADER_BYTES: u64 = 4096;

/// Keys and values of all memories of a model, in a file.
pub struct KvFile {
    path: PathBuf,
    file: File,
    resident_bytes: u64,
    state: Mutex<State>,
}

struct State {
    resident: Resident,
    /// Where the next new page is.
    end: u64,
    /// Places of pages that were given back, by their bytes.
    free: BTreeMap<u64, Vec<u64>>,
    /// The digest of every part that is in the file, by place.
    written: HashMap<u64, Hash>,
    read_bytes: u64,
}

impl fmt::Debug for KvFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl KvFile {
    /// Creates the file for a model with these weights and plans. It also takes a file that a
    /// process of the same model left behind, and nothing else that exists. The parts that are used
    /// last stay in memory, up to `resident_bytes`, but at least one.
    ///
    /// # Errors
    /// [`Error::Protected`] for a file of another kind, a link, a folder, a device, a file of
    /// another model, and one that another process uses; [`Error::Io`].
    pub fn create(path: &Path, weights: Hash, plans: Hash, resident_bytes: u64) -> Result<Arc<Self>> {
        let header = [&MAGIC[..], weights.as_bytes(), plans.as_bytes()].concat();
        let file = claim(path, &header)?;
        // From here on, the file goes if anything fails.
        let state = State {
            resident: Resident::default(),
            end: HEADER_BYTES,
            free: BTreeMap::new(),
            written: HashMap::new(),
            read_bytes: 0,
        };
        let this = Self { path: path.to_owned(), file, resident_bytes, state: Mutex::new(state) };
        write_at(&this.file, &header, 0).map_err(Error::writing(path))?;
        Ok(Arc::new(this))
    }

    /// Bytes of parts that are in memory.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.lock().resident.bytes()
    }

    /// Bytes that were read back so far.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.lock().read_bytes
    }

    /// A place for a page, which holds zeros.
    pub(super) fn page(self: &Arc<Self>, parts: usize, part_bytes: usize) -> FilePage {
        let bytes = parts as u64 * part_bytes as u64;
        let mut state = self.lock();
        let place = state.free.get_mut(&bytes).and_then(Vec::pop).unwrap_or(state.end);
        if place == state.end {
            state.end = place.saturating_add(bytes);
        }
        FilePage { file: Arc::clone(self), place, parts, part_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `with` for a part that is in memory then.
    fn with<R>(&self, place: u64, bytes: usize, with: impl FnOnce(&mut Frame) -> R) -> Result<R> {
        let mut state = self.lock();
        if let Some(frame) = state.resident.get(place) {
            return Ok(with(frame));
        }
        self.make_room(&mut state, bytes as u64)?;
        let part = self.load(&mut state, place, bytes)?;
        Ok(with(state.resident.insert(place, part)))
    }

    /// Removes the parts that were used longest ago until `more` bytes fit; writes those that
    /// changed.
    fn make_room(&self, state: &mut State, more: u64) -> Result<()> {
        while state.resident.bytes().saturating_add(more) > self.resident_bytes {
            let Some(Frame { place, bytes, is_changed, .. }) = state.resident.oldest() else { break };
            let place = *place;
            if *is_changed {
                write_at(&self.file, bytes, place).map_err(Error::writing(&self.path))?;
                state.written.insert(place, blake3::hash(bytes));
            }
            state.resident.remove(place);
        }
        Ok(())
    }

    /// A part as it was written; zeros if it never was.
    fn load(&self, state: &mut State, place: u64, bytes: usize) -> Result<Arc<[u8]>> {
        let mut part: Arc<[u8]> = std::iter::repeat_n(0, bytes).collect();
        let Some(written) = state.written.get(&place) else { return Ok(part) };
        let read = read_at(&self.file, Arc::make_mut(&mut part), place);
        read.map_err(|error| self.unreadable(error, bytes))?;
        if blake3::hash(&part) != *written {
            let what = "keys and values are not those that were written";
            return Err(Error::corrupt(what).in_file(&self.path));
        }
        state.read_bytes += bytes as u64;
        Ok(part)
    }

    fn unreadable(&self, error: io::Error, bytes: usize) -> Error {
        if error.kind() != io::ErrorKind::UnexpectedEof {
            return Error::io(&self.path)(error);
        }
        let what = "keys and values that were written";
        Error::Truncated { what, needed: bytes as u64, available: 0 }.in_file(&self.path)
    }
}

impl Drop for KvFile {
    fn drop(&mut self) {
        // Nobody can be told. The next process of this model takes what stays.
        let _ignored = std::fs::remove_file(&self.path);
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], place: u64) -> io::Result<()> {
    file.write_all_at(bytes, place)
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], place: u64) -> io::Result<()> {
    file.read_exact_at(bytes, place)
}

/// Seeks, which is safe because the state is locked.
#[cfg(not(unix))]
fn write_at(mut file: &File, bytes: &[u8], place: u64) -> io::Result<()> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(place))?;
    io::Write::write_all(&mut file, bytes)
}

/// As [`write_at`].
#[cfg(not(unix))]
fn read_at(mut file: &File, bytes: &mut [u8], place: u64) -> io::Result<()> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(place))?;
    file.read_exact(bytes)
}

/// Opens a file that nobody else uses: a new one, or one with this header, which becomes empty.
fn claim(path: &Path, header: &[u8]) -> Result<File> {
    let protected =
        |why: &str| Error::Protected { path: path.to_owned(), why: why.to_owned(), is_input: false };
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let is_new = match path.symlink_metadata() {
        Ok(found) if !found.is_file() => return Err(protected("is not a regular file")),
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(Error::io(path)(error)),
    };
    let mut file = match options.create_new(is_new).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(protected("was made by another process a moment ago"));
        }
        opened => opened.map_err(Error::writing(path))?,
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Err(protected("is used by another process")),
        // Not every file system has locks.
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    if !is_new {
        let mut found = Vec::new();
        let read = file.by_ref().take(header.len() as u64).read_to_end(&mut found);
        read.map_err(Error::io(path))?;
        if !found.starts_with(MAGIC) {
            return Err(protected("exists and has something else than keys and values"));
        }
        if found != header {
            return Err(protected("has keys and values of another model"));
        }
        file.set_len(0).map_err(Error::writing(path))?;
    }
    Ok(file)
}

/// A page that has a place in a file, until it is dropped.
#[derive(Debug)]
pub(super) struct FilePage {
    file: Arc<KvFile>,
    place: u64,
    parts: usize,
    part_bytes: usize,
}

impl FilePage {
    fn place(&self, part: usize) -> u64 {
        self.place + part as u64 * self.part_bytes as u64
    }

    pub(super) fn read(&self, part: usize) -> Result<Arc<[u8]>> {
        self.file.with(self.place(part), self.part_bytes, |frame| Arc::clone(&frame.bytes))
    }

    /// Writes into a part from byte `start` of it on.
    pub(super) fn write(&self, part: usize, start: usize, bytes: impl Iterator<Item = u8>) -> Result<()> {
        self.file.with(self.place(part), self.part_bytes, |frame| {
            frame.is_changed = true;
            let to = Arc::make_mut(&mut frame.bytes)[start..].iter_mut();
            to.zip(bytes).for_each(|(to, from)| *to = from);
        })
    }

    /// Another page with the same values.
    pub(super) fn copy(&self) -> Result<Self> {
        let other = self.file.page(self.parts, self.part_bytes);
        for part in 0..self.parts {
            other.write(part, 0, self.read(part)?.iter().copied())?;
        }
        Ok(other)
    }
}

impl Drop for FilePage {
    fn drop(&mut self) {
        let mut state = self.file.lock();
        for part in 0..self.parts {
            let place = self.place(part);
            state.resident.remove(place);
            state.written.remove(&place);
        }
        let bytes = self.parts as u64 * self.part_bytes as u64;
        state.free.entry(bytes).or_default().push(self.place);
    }
}
