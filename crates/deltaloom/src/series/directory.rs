//! A store in a folder: objects are files. The manifest is replaced by a rename under a lock that
//! ends with its process.
//! It does not interpret its objects.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::store::{ObjectInfo, Revision, Store};
use crate::checkpoint::output::{sync_folder, temporary_in};
use crate::checkpoint::{FileSource, ReadAt};
use crate::error::{Error, Missing, Result};

const MANIFEST: &str = "series.json";
const LOCK: &str = "series.lock";
/// Folder of files that do not have their names yet.
const GROWING: &str = "tmp";

/// A store in a folder of a local or shared file system that has locks.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    growing: PathBuf,
}

impl Directory {
    /// The store in the folder `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), growing: root.join(GROWING) }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// Writes, syncs and renames, so that `path` appears complete.
    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = temporary_in(self.growing()?).map_err(Error::writing(path))?;
        file.write_all(bytes).map_err(Error::writing(path))?;
        self.rename_whole(file.as_file(), file.path(), path)?;
        // It has its final name now.
        let _path = file.into_temp_path().keep();
        Ok(())
    }

    fn rename_whole(&self, file: &File, from: &Path, to: &Path) -> Result<()> {
        file.sync_all().map_err(Error::writing(to))?;
        let folder = to.parent().unwrap_or(&self.root);
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(Error::writing(folder))?;
            sync_folder(folder.parent().unwrap_or(&self.root))?;
        }
        fs::rename(from, to).map_err(Error::writing(to))?;
        sync_folder(folder)
    }

    fn growing(&self) -> Result<&Path> {
        fs::create_dir_all(&self.growing).map_err(Error::writing(&self.growing))?;
        Ok(&self.growing)
    }

    fn list_folder(&self, folder: &Path, prefix: &str, found: &mut Vec<ObjectInfo>) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(Error::io(folder))?,
        };
        for entry in entries {
            let path = entry.map_err(Error::io(folder))?.path();
            let metadata = match fs::symlink_metadata(&path) {
                // Another process renamed or removed it meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(Error::io(&path))?,
            };
            let parts = path.strip_prefix(&self.root).ok().map(|p| p.iter().filter_map(|part| part.to_str()));
            let Some(key) = parts.map(|parts| parts.collect::<Vec<_>>().join("/")) else { continue };
            if metadata.is_dir() {
                self.list_folder(&path, prefix, found)?;
            } else if key.starts_with(prefix) && key != MANIFEST && key != LOCK {
                let written = metadata.modified().map_err(Error::io(&path))?;
                let age = SystemTime::now().duration_since(written).unwrap_or(Duration::ZERO);
                found.push(ObjectInfo { key, len_bytes: metadata.len(), age });
            }
        }
        Ok(())
    }
}

fn revision_of(bytes: &[u8]) -> Revision {
    Revision(blake3::hash(bytes).to_hex().to_string())
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io(path)(e)),
    }
}

impl Store for Directory {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.root)
    }

    fn scratch_folder(&self) -> Option<&Path> {
        // Created now, since a file will be written in it. If that fails, writing the file reports
        // it.
        fs::create_dir_all(&self.growing).ok()?;
        Some(&self.growing)
    }

    fn read_manifest(&self) -> Result<Option<(Vec<u8>, Revision)>> {
        let bytes = read_if_there(&self.path(MANIFEST))?;
        Ok(bytes.map(|bytes| {
            let revision = revision_of(&bytes);
            (bytes, revision)
        }))
    }

    fn replace_manifest(&self, bytes: &[u8], expected: Option<&Revision>) -> Result<bool> {
        self.growing()?;
        let lock_path = self.path(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(Error::writing(&lock_path))?;
        lock.lock().map_err(Error::writing(&lock_path))?;
        let manifest = self.path(MANIFEST);
        let found = read_if_there(&manifest)?.map(|bytes| revision_of(&bytes));
        if found.as_ref() != expected {
            return Ok(false);
        }
        self.write_whole(&manifest, bytes)?;
        Ok(true)
    }

    fn open(&self, key: &str) -> Result<Box<dyn ReadAt>> {
        match FileSource::open(&self.path(key)) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(Error::not_found(Missing::Object, format!("object {key} of {}", self.location())))
            }
            opened => Ok(Box::new(opened?)),
        }
    }

    fn len_bytes(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(path)(e)),
        }
    }

    fn put_file(&self, key: &str, file: &Path) -> Result<()> {
        let target = self.path(key);
        if file.starts_with(&self.growing) {
            return self.rename_whole(&File::open(file).map_err(Error::io(file))?, file, &target);
        }
        let mut copy = temporary_in(self.growing()?).map_err(Error::writing(&target))?;
        let mut from = File::open(file).map_err(Error::io(file))?;
        io::copy(&mut from, &mut copy).map_err(Error::writing(&target))?;
        self.rename_whole(copy.as_file(), copy.path(), &target)?;
        let _path = copy.into_temp_path().keep();
        Ok(())
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.write_whole(&self.path(key), bytes)
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut found = Vec::new();
        self.list_folder(&self.root, prefix, &mut found)?;
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::writing(path)(e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_is_replaced_only_at_its_revision() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::new(folder.path());
        assert!(store.read_manifest().unwrap().is_none());
        assert!(store.replace_manifest(b"one", None).unwrap());
        assert!(!store.replace_manifest(b"another", None).unwrap());
        let (bytes, first) = store.read_manifest().unwrap().unwrap();
        assert_eq!(bytes, b"one");
        assert!(store.replace_manifest(b"two", Some(&first)).unwrap());
        assert!(!store.replace_manifest(b"three", Some(&first)).unwrap());
        assert_eq!(store.read_manifest().unwrap().unwrap().0, b"two");
    }

    #[test]
    fn objects_are_put_listed_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let store = Directory::new(&folder.path().join("store"));
        store.put("pages/a.json", b"page").unwrap();
        let outside = folder.path().join("outside");
        fs::write(&outside, b"payload").unwrap();
        store.put_file("objects/ab/cd.loom", &outside).unwrap();
        let inside = store.scratch_folder().unwrap().join("growing");
        fs::write(&inside, b"moved").unwrap();
        store.put_file("objects/ab/ef.loom", &inside).unwrap();
        assert!(outside.exists() && !inside.exists());
        let mut keys: Vec<(String, u64)> =
            store.list("objects/").unwrap().into_iter().map(|o| (o.key, o.len_bytes)).collect();
        keys.sort();
        assert_eq!(keys, [("objects/ab/cd.loom".into(), 7), ("objects/ab/ef.loom".into(), 5)]);
        let mut bytes = [0; 7];
        store.open("objects/ab/cd.loom").unwrap().read_at(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"payload");
        assert_eq!(store.len_bytes("pages/a.json").unwrap(), Some(4));
        store.delete("pages/a.json").unwrap();
        store.delete("pages/a.json").unwrap();
        assert_eq!(store.len_bytes("pages/a.json").unwrap(), None);
        assert!(matches!(store.open("pages/a.json"), Err(Error::NotFound { .. })));
        assert!(store.list("tmp/").unwrap().is_empty());
        // Everyone who may read the folder may read the objects.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&store.path("objects/ab/cd.loom")), mode(&outside));
        }
    }
}
