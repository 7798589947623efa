//! Targets that appear under their name whole or not at all: written beside it under a temporary name, synced, renamed.
//! Dropping one before its commit removes what was written.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const TEMPORARY_PREFIX: &str = ".deltaloom-";

/// The folder in which the temporary name lives: the target's own, so that the rename stays on one file system.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn check_target(path: &Path, overwrite: bool, wants_directory: bool) -> Result<()> {
    let folder = parent(path);
    if !fs::metadata(folder).map_err(Error::io(folder))?.is_dir() {
        return Err(Error::InvalidArgument(format!("{} is not a directory", folder.display())));
    }
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(path)(e)),
        Ok(_) if !overwrite => Err(Error::AlreadyExists { path: path.to_path_buf() }),
        Ok(found) if found.is_dir() != wants_directory => {
            let (is, wanted) = if wants_directory { ("file", "directory") } else { ("directory", "file") };
            Err(Error::InvalidArgument(format!(
                "{} is a {is}; it is not replaced by a {wanted}",
                path.display()
            )))
        }
        // Renaming over a device or a pipe would remove it for everyone.
        Ok(found) if !(found.is_dir() || found.is_file() || found.is_symlink()) => Err(
            Error::InvalidArgument(format!("{} is not a regular file; it is not replaced", path.display())),
        ),
        Ok(_) => Ok(()),
    }
}

/// A file under a temporary name, with the permissions of any new file: it will get a name that others may read.
pub(crate) fn temporary_in(folder: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// A file to be.
#[derive(Debug)]
pub struct NewFile {
    temporary: tempfile::NamedTempFile,
    path: PathBuf,
    overwrite: bool,
}

impl NewFile {
    /// Starts a file that will be named `path`.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] without `overwrite`, [`Error::InvalidArgument`] for a directory, [`Error::Io`].
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        check_target(path, overwrite, false)?;
        let temporary = temporary_in(parent(path)).map_err(Error::io(path))?;
        Ok(Self { temporary, path: path.to_path_buf(), overwrite })
    }

    /// The file to write to.
    pub fn file(&mut self) -> &mut File {
        self.temporary.as_file_mut()
    }

    /// The name it will have.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs it and gives it its name.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when someone else has made the target meanwhile, [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        self.temporary.as_file().sync_all().map_err(Error::io(&self.path))?;
        let renamed = if self.overwrite {
            self.temporary.persist(&self.path)
        } else {
            self.temporary.persist_noclobber(&self.path)
        };
        match renamed {
            Ok(_) => sync_folder(parent(&self.path)),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::AlreadyExists { path: self.path })
            }
            Err(e) => Err(Error::io(self.path)(e.error)),
        }
    }
}

/// A directory to be.
#[derive(Debug)]
pub struct NewDirectory {
    temporary: tempfile::TempDir,
    path: PathBuf,
    overwrite: bool,
}

impl NewDirectory {
    /// Starts a directory that will be named `path`.
    ///
    /// # Errors
    /// As [`NewFile::create`], with files and directories swapped.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self> {
        check_target(path, overwrite, true)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY_PREFIX);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let temporary = builder.tempdir_in(parent(path)).map_err(Error::io(path))?;
        Ok(Self { temporary, path: path.to_path_buf(), overwrite })
    }

    /// Creates a file in it. `member` must be a checked member path.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_file(&self, member: &str) -> Result<File> {
        let path = self.temporary.path().join(member);
        let named = self.path.join(member);
        fs::create_dir_all(parent(&path)).map_err(Error::io(&named))?;
        File::create_new(&path).map_err(Error::io(&named))
    }

    /// Gives it its name. Its files must have been synced.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] when someone else has made the target meanwhile, [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        check_target(&self.path, self.overwrite, true)?;
        let folder = parent(&self.path).to_path_buf();
        // The old directory steps aside under a temporary name and goes only when the new one is in place.
        let old = match fs::symlink_metadata(&self.path) {
            Ok(_) => {
                let aside = tempfile::Builder::new()
                    .prefix(TEMPORARY_PREFIX)
                    .tempdir_in(&folder)
                    .map_err(Error::io(&folder))?;
                fs::rename(&self.path, aside.path().join("old")).map_err(Error::io(&self.path))?;
                Some(aside)
            }
            Err(_) => None,
        };
        if let Err(e) = fs::rename(self.temporary.path(), &self.path) {
            if let Some(aside) = old {
                let kept = aside.keep();
                fs::rename(kept.join("old"), &self.path).map_err(Error::io(&self.path))?;
                fs::remove_dir(&kept).map_err(Error::io(&kept))?;
            }
            return Err(Error::io(self.path)(e));
        }
        let _moved_away = self.temporary.keep();
        sync_folder(&folder)
    }
}

/// Makes a rename durable where the system can.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_appear_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut first = NewFile::create(&path, false).unwrap();
        first.file().write_all(b"one").unwrap();
        assert!(!path.exists());
        drop(first);
        assert_eq!(names(folder.path()), [""; 0]);
        let mut second = NewFile::create(&path, false).unwrap();
        second.file().write_all(b"two").unwrap();
        second.commit().unwrap();
        assert!(matches!(NewFile::create(&path, false), Err(Error::AlreadyExists { .. })));
        let mut third = NewFile::create(&path, true).unwrap();
        third.file().write_all(b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        third.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert!(NewDirectory::create(&path, true).is_err());
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn a_file_made_by_someone_else_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let ours = NewFile::create(&path, false).unwrap();
        fs::write(&path, b"theirs").unwrap();
        assert!(matches!(ours.commit(), Err(Error::AlreadyExists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn directories_are_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        for (content, overwrite) in [("one", false), ("two", true)] {
            let new = NewDirectory::create(&path, overwrite).unwrap();
            new.create_file(&format!("deep/{content}")).unwrap().write_all(content.as_bytes()).unwrap();
            new.commit().unwrap();
        }
        assert_eq!(names(&path.join("deep")), ["two"]);
        assert!(matches!(NewDirectory::create(&path, false), Err(Error::AlreadyExists { .. })));
        assert!(NewFile::create(&path, true).is_err());
        drop(NewDirectory::create(&path, true).unwrap());
        assert_eq!(names(folder.path()), ["out"]);
    }
}
