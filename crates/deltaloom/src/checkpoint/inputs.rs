//! Which files are being read, so that no target replaces one of them. A file is identified by
//! device and inode, not by its path: links and other spellings lead to the same file.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Depth to which nested folders are searched. Links may form cycles.
const MAX_DEPTH: u32 = 32;

/// What identifies a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FileId(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

impl FileId {
    #[cfg(unix)]
    pub(crate) fn of(_path: &Path, metadata: &Metadata) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(Self((metadata.dev(), metadata.ino())))
    }

    /// The standard library cannot tell on other systems; hard links then count as other files.
    #[cfg(not(unix))]
    pub(crate) fn of(path: &Path, _metadata: &Metadata) -> io::Result<Self> {
        path.canonicalize().map(Self)
    }
}

/// The files that a command reads, and folders in which it must not write.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    files: HashMap<FileId, PathBuf>,
    /// Canonical paths, and the paths as they were named.
    stores: Vec<(PathBuf, PathBuf)>,
}

impl Inputs {
    /// Adds a file, or all files in a folder and its subfolders. What does not exist cannot be
    /// replaced.
    pub fn add(&mut self, path: &Path) {
        self.add_inside(path, 0);
    }

    fn add_inside(&mut self, path: &Path, depth: u32) {
        let Ok(metadata) = fs::metadata(path) else { return };
        if !metadata.is_dir() {
            if let Ok(id) = FileId::of(path, &metadata) {
                self.files.entry(id).or_insert_with(|| path.to_path_buf());
            }
        } else if depth < MAX_DEPTH
            && let Ok(entries) = fs::read_dir(path)
        {
            entries.flatten().for_each(|entry| self.add_inside(&entry.path(), depth + 1));
        }
    }

    /// Adds a folder in which nothing may be written, such as a series.
    pub fn add_store(&mut self, folder: &Path) {
        if let Ok(canonical) = folder.canonicalize() {
            self.stores.push((canonical, folder.to_path_buf()));
        }
    }

    /// The inputs of both.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        let files = other.files.iter().map(|(id, path)| (id.clone(), path.clone()));
        self.files.extend(files);
        self.stores.extend_from_slice(&other.stores);
        self
    }

    /// Checks that a target is no input, whatever its path looks like.
    ///
    /// # Errors
    /// [`Error::Protected`].
    pub fn check(&self, target: &Path) -> Result<()> {
        let found = fs::metadata(target).ok().and_then(|found| FileId::of(target, &found).ok());
        self.check_id(found.as_ref(), target)?;
        if self.stores.is_empty() {
            return Ok(());
        }
        let Some(place) = place_of(target) else { return Ok(()) };
        match self.stores.iter().find(|(store, _)| place.starts_with(store)) {
            Some((_, named)) => Err(is_input(target, format!("lies in {}, which is read", named.display()))),
            None => Ok(()),
        }
    }

    /// Checks that an open file, such as standard output, is no input.
    ///
    /// # Errors
    /// [`Error::Protected`], named `target`.
    pub fn check_open(&self, file: &File, target: &Path) -> Result<()> {
        let found = file.metadata().ok().filter(Metadata::is_file);
        self.check_id(found.and_then(|found| FileId::of(target, &found).ok()).as_ref(), target)
    }

    fn check_id(&self, id: Option<&FileId>, target: &Path) -> Result<()> {
        match id.and_then(|id| self.files.get(id)) {
            Some(input) if input == target => Err(is_input(target, "is read and written at once".to_owned())),
            Some(input) => {
                Err(is_input(target, format!("is the same file as {}, which is read", input.display())))
            }
            None => Ok(()),
        }
    }
}

/// The canonical path of a target. The target and its folder need not exist yet.
fn place_of(target: &Path) -> Option<PathBuf> {
    let there = target.ancestors().find_map(|path| Some((path, path.canonicalize().ok()?)));
    match there {
        Some((path, canonical)) => Some(canonical.join(target.strip_prefix(path).ok()?)),
        None => Path::new(".").canonicalize().ok().map(|here| here.join(target)),
    }
}

/// The error for a target that is an input.
fn is_input(path: &Path, why: String) -> Error {
    Error::Protected { path: path.to_path_buf(), why, is_input: true }
}

/// The error for a target that must stay for another reason.
pub(super) fn protected(path: &Path, why: String) -> Error {
    Error::Protected { path: path.to_path_buf(), why, is_input: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_any_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("sub")).unwrap();
        fs::write(path("sub/input"), b"x").unwrap();
        fs::hard_link(path("sub/input"), path("hard")).unwrap();
        fs::write(path("other"), b"x").unwrap();
        let mut inputs = Inputs::default();
        inputs.add(&path("sub"));
        let refused = |name: &str| matches!(inputs.check(&path(name)), Err(Error::Protected { .. }));
        assert!(refused("sub/input") && refused("sub/../sub/input"));
        assert_eq!(refused("hard"), cfg!(unix));
        assert!(!refused("other") && !refused("new") && !refused("sub/new"));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("sub/input", path("link")).unwrap();
            assert!(refused("link"));
        }
        let written = File::options().append(true).open(path("sub/input")).unwrap();
        assert!(inputs.check_open(&written, Path::new("-")).is_err());
    }

    #[test]
    fn nothing_is_written_into_a_store() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        fs::create_dir(&store).unwrap();
        let mut inputs = Inputs::default();
        inputs.add_store(&store);
        for inside in ["store", "store/new", "store/deep/new", "store/../store/new"] {
            assert!(inputs.check(&folder.path().join(inside)).is_err(), "{inside}");
        }
        assert!(inputs.check(&folder.path().join("store2")).is_ok());
        assert!(inputs.check(folder.path()).is_ok());
    }
}
