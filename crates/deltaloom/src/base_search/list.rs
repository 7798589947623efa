//! Lists everything in a folder that may be a base: plain checkpoints, whole or in shards, and
//! containers. It opens none of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::limits::Limits;

/// Depth of nested folders.
const MAX_DEPTH: u32 = 32;
/// Endings of files with weights besides safetensors.
const OTHER_ENDINGS: [&str; 4] = [".gguf", ".bin", ".pt", ".pth"];
/// Files with these endings that are smaller hold settings.
const SMALL_FILE_BYTES: u64 = 64 << 10;
/// Most files and folders that are looked at, so that a search of a whole disk ends.
const MAX_ENTRIES: u64 = 1 << 20;

/// A checkpoint in the folder: what to call it, and its files.
pub(super) struct Plain {
    pub(super) path: PathBuf,
    pub(super) root: PathBuf,
    pub(super) names: Vec<String>,
}

/// Everything in a folder that may be a base.
#[derive(Default)]
pub(super) struct List {
    pub(super) plain: Vec<Plain>,
    pub(super) containers: Vec<PathBuf>,
    /// Names of small files that belong to a model in the same folder.
    small_files: BTreeSet<String>,
    /// Canonical paths of files that are no candidates, and of everything seen so far.
    excluded: BTreeSet<PathBuf>,
    seen: BTreeSet<PathBuf>,
    entries: u64,
}

impl List {
    /// Lists a folder and its subfolders, without the files `excluded`, which need not exist. Small
    /// files with the given names are included.
    ///
    /// # Errors
    /// [`Error::Io`] for the folder itself; [`Error::InvalidArgument`] and [`Error::LimitExceeded`]
    /// if there is too much in it.
    pub(super) fn of<'a>(
        folder: &Path,
        excluded: impl Iterator<Item = &'a Path>,
        small_files: BTreeSet<String>,
        limits: &Limits,
    ) -> Result<Self> {
        // Subfolders that cannot be listed are skipped, but this folder must exist.
        std::fs::read_dir(folder).map_err(Error::io(folder))?;
        let excluded = excluded.filter_map(|path| path.canonicalize().ok()).collect();
        let mut list = Self { small_files, excluded, ..Self::default() };
        list.walk(folder, 0, limits)?;
        Ok(list)
    }

    /// Follows each link once: hub caches are made of links.
    fn walk(&mut self, folder: &Path, depth: u32, limits: &Limits) -> Result<()> {
        if depth > MAX_DEPTH || !self.is_unseen(folder) {
            return Ok(());
        }
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
        let entries = entries.filter_map(std::result::Result::ok);
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        self.entries += names.len() as u64;
        if self.entries > MAX_ENTRIES {
            let what = format!("{}: more than {MAX_ENTRIES} files and folders to look at", folder.display());
            return Err(Error::InvalidArgument(what));
        }
        let (mut shards, mut singles, mut small) = (Vec::new(), Vec::new(), Vec::new());
        let mut others = Vec::new();
        // Hidden files are unfinished targets, or files that other systems leave.
        for name in names.into_iter().filter(|name| !name.starts_with('.')) {
            let path = folder.join(&name);
            if path.is_dir() {
                self.walk(&path, depth + 1, limits)?;
            } else if name.ends_with(".safetensors") && is_shard(&name) {
                shards.push(name);
            } else if name.ends_with(".safetensors") && self.is_unseen(&path) {
                singles.push(name);
            } else if is_of_other_format(&name, &path) && (is_shard(&name) || self.is_unseen(&path)) {
                others.push(name);
            } else if name.ends_with(".loom") && self.is_unseen(&path) {
                self.containers.push(path);
            } else if self.small_files.contains(&name) {
                small.push(name);
            }
        }
        // Beside safetensors files, others are mostly the same weights, or an optimizer's state.
        if shards.is_empty() && singles.is_empty() {
            (shards, singles) = others.into_iter().partition(|name| is_shard(name));
        } else {
            small.extend(others.into_iter().filter(|name| self.small_files.contains(name)));
        }
        // Another revision in a cache may share all shards but one with this one.
        shards.retain(|name| !self.is_excluded(&folder.join(name)));
        let unseen = shards.iter().filter(|name| self.is_unseen(&folder.join(name))).count();
        if unseen == 0 {
            shards.clear();
        }
        let is_one_model = shards.is_empty() != singles.is_empty() && singles.len() <= 1;
        let small = if is_one_model { small } else { Vec::new() };
        for single in singles {
            let path = if small.is_empty() { folder.join(&single) } else { folder.to_path_buf() };
            self.push(path, folder, vec![single], &small);
        }
        if !shards.is_empty() {
            self.push(folder.to_path_buf(), folder, shards, &small);
        }
        let candidates = self.candidates() as u64;
        Limits::check("the number of candidates", candidates, limits.members)
    }

    /// Number of all checkpoints and containers.
    pub(super) fn candidates(&self) -> usize {
        self.plain.len() + self.containers.len()
    }

    fn push(&mut self, path: PathBuf, root: &Path, mut names: Vec<String>, small: &[String]) {
        names.extend_from_slice(small);
        names.sort();
        self.plain.push(Plain { path, root: root.to_path_buf(), names });
    }

    fn is_unseen(&mut self, path: &Path) -> bool {
        let new = |real: &PathBuf| !self.excluded.contains(real);
        path.canonicalize().ok().filter(new).is_some_and(|real| self.seen.insert(real))
    }

    fn is_excluded(&self, path: &Path) -> bool {
        path.canonicalize().map_or(true, |real| self.excluded.contains(&real))
    }
}

/// Whether a file may hold weights in another format than safetensors.
fn is_of_other_format(name: &str, path: &Path) -> bool {
    let is_large = || path.metadata().is_ok_and(|metadata| metadata.len() >= SMALL_FILE_BYTES);
    OTHER_ENDINGS.iter().any(|ending| name.ends_with(ending)) && is_large()
}

/// Whether a file is one of several, as in `model-00001-of-00005.safetensors`.
fn is_shard(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.rsplit_once('.').and_then(|(stem, _)| stem.rsplit_once("-of-"));
    parts.is_some_and(|(head, total)| {
        is_number(total) && head.rsplit_once('-').is_some_and(|(_, number)| is_number(number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_known_by_their_names() {
        assert!(is_shard("model-00001-of-00005.safetensors"));
        assert!(is_shard("pytorch_model-00001-of-00002.bin"));
        for other in ["model.safetensors", "a-b-of-3.safetensors", "model-1-of-.safetensors", "x-1-of-2"] {
            assert!(!is_shard(other), "{other}");
        }
    }
}
