//! Files and folders with temporary names, next to the targets that they become. Each is locked
//! while it grows. A killed writer loses its locks, and the next writer to the same folder removes
//! its files.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// A name that no person chooses by chance: whatever has it is removed.
const PREFIX: &str = ".deltaloom-";
const SUFFIX: &str = ".tmp";
const RANDOM_CHARS: usize = 12;
/// Number of names to try: another process may sweep a file before it is locked.
const TRIES: usize = 8;

/// A file with a temporary name and the permissions of any new file, since others may read it once
/// it has its name.
pub(crate) fn file_in(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    sweep(folder);
    for _ in 0..TRIES {
        let mut builder = builder();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(unnamed)?;
        // If a file system has no locks, other processes find none either.
        let _ignored = file.as_file().try_lock();
        if file.path().try_exists()? {
            return Ok(file);
        }
    }
    Err(io::Error::other("another process removes temporary files as soon as they are made"))
}

/// A folder under a temporary name.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: tempfile::TempDir,
    /// Holds the lock.
    _lock: Option<File>,
}

/// A folder with a temporary name.
pub(super) fn folder_in(folder: &Path) -> io::Result<Folder> {
    sweep(folder);
    for _ in 0..TRIES {
        let mut builder = builder();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let path = builder.tempdir_in(folder).map_err(unnamed)?;
        let lock = File::open(path.path()).ok().filter(|lock| lock.try_lock().is_ok());
        if path.path().try_exists()? {
            return Ok(Folder { path, _lock: lock });
        }
    }
    Err(io::Error::other("another process removes temporary folders as soon as they are made"))
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX).rand_bytes(RANDOM_CHARS);
    builder
}

/// Whether a name is one of those that this module makes.
pub(crate) fn is_temporary(name: &str) -> bool {
    let middle = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    middle.is_some_and(|m| m.len() == RANDOM_CHARS && m.bytes().all(|c| c.is_ascii_alphanumeric()))
}

/// Removes what killed writers left in a folder. What cannot be examined or removed stays.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_temporary) {
            let _ignored = remove_unlocked(&entry);
        }
    }
}

fn remove_unlocked(entry: &fs::DirEntry) -> io::Result<()> {
    let (path, kind) = (entry.path(), entry.file_type()?);
    // This module never makes links or pipes.
    if !kind.is_file() && !kind.is_dir() {
        return Ok(());
    }
    let lock = File::open(&path)?;
    lock.try_lock()?;
    if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
}

/// The error without the temporary name, which means nothing to the user.
fn unnamed(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|e| e.source()).and_then(|e| e.downcast_ref::<io::Error>());
    match inner.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::from(error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let held = file_in(folder.path()).unwrap();
        let held_folder = folder_in(folder.path()).unwrap();
        let left = [".deltaloom-abcdefghijkl.tmp", ".deltaloom-ABCDEFGHIJKL.tmp"];
        fs::write(folder.path().join(left[0]), b"left").unwrap();
        fs::create_dir(folder.path().join(left[1])).unwrap();
        fs::write(folder.path().join(left[1]).join("inside"), b"left").unwrap();
        let kept = [".deltaloom-backup", ".deltaloom-short.tmp", ".deltaloom-abcdefghijk-.tmp", "x.tmp"];
        kept.iter().for_each(|name| fs::write(folder.path().join(name), b"mine").unwrap());
        let another = file_in(folder.path()).unwrap();
        let found = names(folder.path());
        assert!(left.iter().all(|name| !found.contains(&(*name).to_owned())), "{found:?}");
        assert!(kept.iter().all(|name| found.contains(&(*name).to_owned())), "{found:?}");
        assert!(held.path().exists() && another.path().exists() && held_folder.path.path().exists());
    }

    #[test]
    fn errors_do_not_name_what_the_user_never_asked_for() {
        let error = file_in(Path::new("no/such/folder")).unwrap_err();
        assert!(!error.to_string().contains("deltaloom"), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
