//! The interface of a store for the objects of a series.
//! It does not know what the objects mean. [`super::Directory`] is the store in a folder.

use std::path::Path;
use std::time::Duration;

use crate::checkpoint::ReadAt;
use crate::error::Result;

/// State of the manifest that a replacement depends on: an e-tag, or a digest of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(pub String);

/// An object in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectInfo {
    /// Its name.
    pub key: String,
    /// Its size.
    pub len_bytes: u64,
    /// Time since it was written.
    pub age: Duration,
}

impl ObjectInfo {
    /// An object of this name, size and age.
    #[must_use]
    pub fn new(key: impl Into<String>, len_bytes: u64, age: Duration) -> Self {
        Self { key: key.into(), len_bytes, age }
    }
}

/// A flat set of named objects that appear complete, and one manifest that is replaced by
/// compare-and-swap.
pub trait Store: Send + Sync {
    /// For messages: a path or a URL.
    fn location(&self) -> String;

    /// The local folder that the store is in, if any. Nothing else may be written into it.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// A local folder for files that will be stored here. `None` means that any folder will do.
    fn scratch_folder(&self) -> Option<&Path> {
        None
    }

    /// The manifest and its revision. `None` if there is none.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn read_manifest(&self) -> Result<Option<(Vec<u8>, Revision)>>;

    /// Replaces the manifest if its revision is still `expected` (`None`: if there is none).
    /// Returns whether it did.
    ///
    /// # Errors
    /// [`crate::Error::Io`]. It is then unknown whether the manifest was replaced.
    fn replace_manifest(&self, bytes: &[u8], expected: Option<&Revision>) -> Result<bool>;

    /// Opens an object to be read at offsets.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`], [`crate::Error::Io`].
    fn open(&self, key: &str) -> Result<Box<dyn ReadAt>>;

    /// The size of an object, if it exists.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn len_bytes(&self, key: &str) -> Result<Option<u64>>;

    /// Stores the content of a local file under `key`, completely or not at all. Storing the same
    /// content again does no harm. The file may be moved away.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn put_file(&self, key: &str, file: &Path) -> Result<()>;

    /// Stores bytes in the same way.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn put(&self, key: &str, bytes: &[u8]) -> Result<()>;

    /// All objects whose key starts with `prefix`, in any order, without the manifest.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>>;

    /// Removes an object. Does nothing if it does not exist.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    fn delete(&self, key: &str) -> Result<()>;
}
