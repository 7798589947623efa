//! Targets that appear under their name whole or not at all. They are written under a temporary
//! name, synced, and renamed. Dropping one before its commit removes what was written. No target is
//! an input, and only regular files are replaced.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::inputs::protected;
use super::temporary;
use crate::error::{Error, Result};

pub use super::inputs::Inputs;
pub(crate) use super::temporary::file_in as temporary_in;

/// The folder of a path.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn check_folder(folder: &Path) -> Result<()> {
    if fs::metadata(folder).map_err(Error::writing(folder))?.is_dir() {
        return Ok(());
    }
    Err(Error::writing(folder)(io::ErrorKind::NotADirectory.into()))
}

/// The path of the regular file that a target will replace or become. Links are followed.
fn resolve(path: &Path, overwrite: bool, inputs: &Inputs) -> Result<PathBuf> {
    inputs.check(path)?;
    if path
        .as_os_str()
        .as_encoded_bytes()
        .last()
        .is_some_and(|last| std::path::is_separator(char::from(*last)))
    {
        return Err(protected(path, "ends like a folder, but must be a file".to_owned()));
    }
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            check_folder(parent(path))?;
            return Ok(path.to_path_buf());
        }
        found => found.map_err(Error::writing(path))?,
    };
    if !overwrite {
        return Err(Error::AlreadyExists { path: path.to_path_buf() });
    }
    let refuse = |what: &str| Err(protected(path, format!("is {what}; it is not replaced by a file")));
    if found.is_symlink() {
        return match fs::metadata(path) {
            Ok(behind) if behind.is_file() => path.canonicalize().map_err(Error::writing(path)),
            Ok(behind) if behind.is_dir() => refuse("a link to a folder"),
            Ok(_) => refuse("a link to something that is not a regular file"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => refuse("a link to a file that does not exist"),
            Err(e) => Err(Error::writing(path)(e)),
        };
    }
    match () {
        () if found.is_file() => Ok(path.to_path_buf()),
        () if found.is_dir() => refuse("a folder"),
        // Renaming over a device or a pipe would remove it for everyone.
        () => refuse("not a regular file"),
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct NewFile {
    temporary: tempfile::NamedTempFile,
    path: PathBuf,
    /// Differs from `path` if that is a link.
    place: PathBuf,
    overwrite: bool,
}

impl NewFile {
    /// Starts a file that will be named `path`. If that is a link to a regular file, `overwrite`
    /// replaces the latter.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] without `overwrite`. [`Error::Protected`] for one of the `inputs`,
    /// and for anything but a regular file or a link to one. [`Error::Io`].
    pub fn create(path: &Path, overwrite: bool, inputs: &Inputs) -> Result<Self> {
        let place = resolve(path, overwrite, inputs)?;
        let temporary = temporary_in(parent(&place)).map_err(Error::writing(path))?;
        Ok(Self { temporary, path: path.to_path_buf(), place, overwrite })
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

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if someone else has made the target meanwhile, [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        self.temporary.as_file().sync_all().map_err(Error::writing(&self.path))?;
        let renamed = if self.overwrite {
            self.temporary.persist(&self.place)
        } else {
            self.temporary.persist_noclobber(&self.place)
        };
        match renamed {
            Ok(_) => sync_folder(parent(&self.place)),
            Err(e) if e.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::AlreadyExists { path: self.path })
            }
            Err(e) => Err(Error::writing(self.path)(e.error)),
        }
    }
}

/// Files that are being written in one folder. A new folder appears whole. In an existing one each
/// file appears whole, and all other files stay.
#[derive(Debug)]
pub struct NewDirectory {
    /// Where the files are written.
    temporary: temporary::Folder,
    path: PathBuf,
    inputs: Inputs,
    is_there: bool,
    members: Mutex<Vec<String>>,
}

impl NewDirectory {
    /// Starts a folder that will be named `path`. If it exists and has files, `overwrite` is
    /// needed, and replaces only the files that are created here.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] without `overwrite`, [`Error::Protected`] for a file,
    /// [`Error::Io`].
    pub fn create(path: &Path, overwrite: bool, inputs: &Inputs) -> Result<Self> {
        let is_there = match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                let mut entries = fs::read_dir(path).map_err(Error::writing(path))?.flatten();
                let is_ours = |name: &std::ffi::OsStr| name.to_str().is_some_and(temporary::is_temporary);
                if !overwrite && entries.any(|entry| !is_ours(&entry.file_name())) {
                    return Err(Error::AlreadyExists { path: path.to_path_buf() });
                }
                true
            }
            Ok(_) if overwrite => {
                return Err(protected(path, "is a file; it is not replaced by a folder".to_owned()));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                check_folder(parent(path))?;
                false
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::writing(path)(e)),
            Ok(_) | Err(_) => return Err(Error::AlreadyExists { path: path.to_path_buf() }),
        };
        inputs.check(path)?;
        let beside = if is_there { path } else { parent(path) };
        let temporary = temporary::folder_in(beside).map_err(Error::writing(path))?;
        let (path, inputs) = (path.to_path_buf(), inputs.clone());
        Ok(Self { temporary, path, inputs, is_there, members: Mutex::default() })
    }

    /// Checks that a file may be created here. `member` must be a checked member path.
    ///
    /// # Errors
    /// [`Error::Protected`].
    pub fn check_file(&self, member: &str) -> Result<()> {
        self.place_of(member).map(|_| ())
    }

    /// Where a file will be.
    fn place_of(&self, member: &str) -> Result<PathBuf> {
        let named = self.path.join(member);
        if !self.is_there {
            return Ok(named);
        }
        for (end, _) in member.match_indices('/') {
            let folder = self.path.join(&member[..end]);
            match fs::metadata(&folder) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => {
                    return Err(protected(&folder, "is a file; it is not replaced by a folder".to_owned()));
                }
                // Then no folder inside it exists either. A link to nothing is found when the
                // folder is made.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    self.inputs.check(&named)?;
                    return Ok(named);
                }
                Err(e) => return Err(Error::writing(&folder)(e)),
            }
        }
        resolve(&named, true, &self.inputs)
    }

    /// Creates a file in it. `member` must be a checked member path.
    ///
    /// # Errors
    /// As [`Self::check_file`]; [`Error::Io`].
    pub fn create_file(&self, member: &str) -> Result<File> {
        let path = self.place_for(member)?;
        let file = File::create_new(&path).map_err(Error::writing(self.path.join(member)))?;
        self.members.lock().unwrap_or_else(PoisonError::into_inner).push(member.to_owned());
        Ok(file)
    }

    /// Gives a file another name in it. Returns whether the file system could: not if it has no
    /// hard links, or if the file is in another one. `member` must be a checked member path.
    ///
    /// # Errors
    /// As [`Self::create_file`].
    pub(crate) fn link_file(&self, member: &str, from: &Path) -> Result<bool> {
        let path = self.place_for(member)?;
        // A link to a link would lead nowhere once that is gone.
        let real = from.canonicalize().map_err(Error::io(from))?;
        if fs::hard_link(real, &path).is_err() {
            return Ok(false);
        }
        self.members.lock().unwrap_or_else(PoisonError::into_inner).push(member.to_owned());
        Ok(true)
    }

    /// Where a new file is written, in a folder that is there.
    fn place_for(&self, member: &str) -> Result<PathBuf> {
        self.check_file(member)?;
        let path = self.temporary.path.path().join(member);
        fs::create_dir_all(parent(&path)).map_err(Error::writing(self.path.join(member)))?;
        Ok(path)
    }

    /// Gives the files their names. They must have been synced.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if someone else has made the folder meanwhile, [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        if self.is_there {
            return self.move_each();
        }
        match fs::rename(self.temporary.path.path(), &self.path) {
            Ok(()) => _ = self.temporary.path.keep(),
            Err(_) if fs::symlink_metadata(&self.path).is_ok() => {
                return Err(Error::AlreadyExists { path: self.path });
            }
            Err(e) => return Err(Error::writing(self.path)(e)),
        }
        sync_folder(parent(&self.path))
    }

    fn move_each(self) -> Result<()> {
        let mut folders = BTreeSet::new();
        for member in &*self.members.lock().unwrap_or_else(PoisonError::into_inner) {
            let place = self.place_of(member)?;
            let folder = parent(&place);
            fs::create_dir_all(folder).map_err(Error::writing(folder))?;
            rename(&self.temporary.path.path().join(member), &place).map_err(Error::writing(&place))?;
            folders.insert(folder.to_path_buf());
        }
        folders.iter().try_for_each(|folder| sync_folder(folder))
    }
}

/// Renames a file. If a folder or link leads to another file system, the file is copied there.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let mut copy = temporary_in(parent(to))?;
            io::copy(&mut File::open(from)?, copy.as_file_mut())?;
            copy.as_file().sync_all()?;
            copy.persist(to).map(|_| ()).map_err(|e| e.error)
        }
        renamed => renamed,
    }
}

/// Makes a rename durable where the system can.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::writing(folder))?;
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

    fn new_file(path: &Path, overwrite: bool) -> Result<NewFile> {
        NewFile::create(path, overwrite, &Inputs::default())
    }

    fn new_directory(path: &Path, overwrite: bool) -> Result<NewDirectory> {
        NewDirectory::create(path, overwrite, &Inputs::default())
    }

    #[test]
    fn files_appear_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut first = new_file(&path, false).unwrap();
        first.file().write_all(b"one").unwrap();
        assert!(!path.exists());
        drop(first);
        assert_eq!(names(folder.path()), [""; 0]);
        let mut second = new_file(&path, false).unwrap();
        second.file().write_all(b"two").unwrap();
        second.commit().unwrap();
        assert!(matches!(new_file(&path, false), Err(Error::AlreadyExists { .. })));
        let mut third = new_file(&path, true).unwrap();
        third.file().write_all(b"three").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        third.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert!(matches!(new_directory(&path, true), Err(Error::Protected { .. })));
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn a_file_made_by_someone_else_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let ours = new_file(&path, false).unwrap();
        fs::write(&path, b"theirs").unwrap();
        assert!(matches!(ours.commit(), Err(Error::AlreadyExists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        let ours = new_directory(&folder.path().join("folder"), false).unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        fs::write(folder.path().join("folder/file"), b"theirs").unwrap();
        assert!(matches!(ours.commit(), Err(Error::AlreadyExists { .. })));
        assert_eq!(names(folder.path()), ["folder", "out"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_regular_files_only() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), b"old").unwrap();
        fs::create_dir(path("folder")).unwrap();
        for (link, to) in [("a", "file"), ("b", "folder"), ("c", "nothing"), ("d", "/dev/null")] {
            symlink(to, path(link)).unwrap();
            assert!(matches!(new_file(&path(link), false), Err(Error::AlreadyExists { .. })), "{link}");
            assert_eq!(new_file(&path(link), true).is_ok(), link == "a", "{link}");
        }
        let mut new = new_file(&path("a"), true).unwrap();
        new.file().write_all(b"new").unwrap();
        new.commit().unwrap();
        assert!(path("a").is_symlink());
        assert_eq!(fs::read(path("file")).unwrap(), b"new");
    }

    #[test]
    fn a_folder_keeps_what_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        for (content, overwrite) in [("one", false), ("two", true)] {
            let new = new_directory(&path, overwrite).unwrap();
            for member in ["same", &format!("deep/{content}")] {
                new.create_file(member).unwrap().write_all(content.as_bytes()).unwrap();
            }
            new.commit().unwrap();
        }
        assert_eq!(names(&path.join("deep")), ["one", "two"]);
        assert_eq!(names(&path), ["deep", "same"]);
        assert_eq!(fs::read(path.join("same")).unwrap(), b"two");
        assert!(matches!(new_directory(&path, false), Err(Error::AlreadyExists { .. })));
        assert!(matches!(new_file(&path, true), Err(Error::Protected { .. })));
        let new = new_directory(&path, true).unwrap();
        assert!(matches!(new.create_file("deep"), Err(Error::Protected { .. })));
        assert!(matches!(new.create_file("same/inside"), Err(Error::Protected { .. })));
        drop(new);
        assert_eq!(names(&path), ["deep", "same"]);
    }

    #[test]
    fn an_empty_folder_is_filled() {
        let folder = tempfile::tempdir().unwrap();
        let new = new_directory(folder.path(), false).unwrap();
        new.create_file("deep/file").unwrap();
        new.commit().unwrap();
        assert_eq!(names(folder.path()), ["deep"]);
    }
}
