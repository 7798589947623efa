//! Where the checkpoint of a step comes from: files, or memory.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, Exclude};
use crate::error::Result;
use crate::limits::Limits;

/// Where a part of a step comes from.
#[derive(Debug, Clone)]
pub enum Input {
    /// A file or a directory.
    Path(PathBuf),
    /// An open checkpoint, such as one of tensors in memory.
    Checkpoint(Checkpoint),
}

impl Input {
    /// Opens a path, without what is excluded.
    pub(super) fn open(&self, exclude: &[Exclude], limits: &Limits) -> Result<Checkpoint> {
        match self {
            Self::Path(path) => Checkpoint::open_without(path, exclude, limits),
            Self::Checkpoint(checkpoint) => Ok(checkpoint.clone()),
        }
    }
}

impl From<PathBuf> for Input {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&Path> for Input {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_path_buf())
    }
}

impl From<&PathBuf> for Input {
    fn from(path: &PathBuf) -> Self {
        Self::Path(path.clone())
    }
}

impl From<Checkpoint> for Input {
    fn from(checkpoint: Checkpoint) -> Self {
        Self::Checkpoint(checkpoint)
    }
}
