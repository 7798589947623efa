//! Lists the files of a folder that make up a checkpoint, and what is left out.
//! It opens none of them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::{Exclude, Warning};
use crate::error::{Error, Result};
use crate::limits::Limits;

/// Folders in folders.
const MOST_NESTED: u32 = 32;
/// Paths of each kind that are told.
const TOLD: usize = 3;

/// Why a part of a folder is no part of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeftOut {
    /// A link that leads nowhere.
    DanglingLink,
    /// A link to a folder that it is in.
    Loop,
    /// A pipe, socket or device.
    Special,
    /// A folder in which git keeps versions.
    Git,
    /// A blob of a hub cache. Links in its snapshots lead to it and are packed as files.
    Blob,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DanglingLink => "links that lead nowhere",
            Self::Loop => "links to a folder that they are in",
            Self::Special => "pipes, sockets and devices",
            Self::Git => "folders of git",
            Self::Blob => "blobs that the snapshots have under their names",
        })
    }
}

/// The files of a folder.
#[derive(Default)]
pub(super) struct Folder {
    /// Relative paths, in order.
    pub(super) files: Vec<String>,
    pub(super) warnings: Vec<Warning>,
}

/// Lists all files of a folder and its folders but those that `exclude` fits. Links are followed:
/// the snapshots of hub caches are folders of links to blobs.
///
/// # Errors
/// [`Error::Io`]; [`Error::UnsupportedName`]; [`Error::InvalidArgument`] for deep nesting;
/// [`Error::LimitExceeded`].
pub(super) fn list(root: &Path, exclude: &[Exclude], limits: &Limits) -> Result<Folder> {
    let mut listing = Listing {
        root,
        exclude,
        limits,
        files: Vec::new(),
        left_out: BTreeMap::new(),
        linked: HashSet::new(),
    };
    listing.add(root, 0)?;
    listing.leave_blobs_out()?;
    let Listing { mut files, left_out, .. } = listing;
    files.sort();
    let warning = |(why, mut paths): (LeftOut, Vec<String>)| {
        paths.sort();
        let count = paths.len() as u64;
        paths.truncate(TOLD);
        Warning::LeftOut { folder: root.display().to_string(), why, count, paths }
    };
    Ok(Folder { files, warnings: left_out.into_iter().map(warning).collect() })
}

struct Listing<'a> {
    root: &'a Path,
    exclude: &'a [Exclude],
    limits: &'a Limits,
    files: Vec<String>,
    left_out: BTreeMap<LeftOut, Vec<String>>,
    /// The files that links lead to.
    linked: HashSet<PathBuf>,
}

impl Listing<'_> {
    fn add(&mut self, folder: &Path, depth: u32) -> Result<()> {
        if depth > MOST_NESTED {
            return Err(Error::InvalidArgument(format!("{}: folders nested too deeply", folder.display())));
        }
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let entry = entry.map_err(Error::io(folder))?;
            let path = entry.path();
            if self.exclude.iter().any(|exclude| exclude.fits_in(self.root, &path)) {
                continue;
            }
            let is_link = entry.file_type().map_err(Error::io(&path))?.is_symlink();
            let metadata = match std::fs::metadata(&path) {
                // Also one that leads to itself, whose kind of error has no stable name.
                Err(e) if is_link && e.kind() != std::io::ErrorKind::PermissionDenied => {
                    self.leave_out(LeftOut::DanglingLink, &path)?;
                    continue;
                }
                metadata => metadata.map_err(Error::io(&path))?,
            };
            if metadata.is_dir() && entry.file_name() == ".git" {
                self.leave_out(LeftOut::Git, &path)?;
            } else if metadata.is_dir() && is_link && is_loop(folder, &path)? {
                self.leave_out(LeftOut::Loop, &path)?;
            } else if metadata.is_dir() {
                self.add(&path, depth + 1)?;
            } else if !metadata.is_file() {
                self.leave_out(LeftOut::Special, &path)?;
            } else {
                if is_link {
                    self.linked.insert(real(&path)?);
                }
                self.files.push(self.name(&path)?);
                Limits::check("the number of files", self.files.len() as u64, self.limits.members)?;
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, why: LeftOut, path: &Path) -> Result<()> {
        let name = self.name(path)?;
        self.left_out.entry(why).or_default().push(name);
        Ok(())
    }

    /// The relative path of a file, as containers store it.
    fn name(&self, path: &Path) -> Result<String> {
        let parts: Option<Vec<&str>> =
            path.strip_prefix(self.root).ok().and_then(|p| p.iter().map(|part| part.to_str()).collect());
        parts
            .map(|parts| parts.join("/"))
            .ok_or_else(|| Error::UnsupportedName { path: path.to_path_buf(), why: "that are not UTF-8" })
    }

    /// In a hub cache, every file is a blob named by its hash, and has its name from a link. Where
    /// links are not possible, the hub itself keeps files in place of links and no blobs, so that
    /// is what a checkpoint is, too.
    fn leave_blobs_out(&mut self) -> Result<()> {
        if self.linked.is_empty() {
            return Ok(());
        }
        let mut kept = Vec::new();
        for name in std::mem::take(&mut self.files) {
            let path = self.root.join(&name);
            let folder = path.parent().filter(|folder| folder.ends_with("blobs"));
            let has_snapshots = folder.is_some_and(|folder| folder.with_file_name("snapshots").is_dir());
            if has_snapshots && self.linked.contains(&real(&path)?) {
                self.leave_out(LeftOut::Blob, &path)?;
            } else {
                kept.push(name);
            }
        }
        self.files = kept;
        Ok(())
    }
}

fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(Error::io(path))
}

/// Whether a link in `folder` leads to a folder that has it.
fn is_loop(folder: &Path, link: &Path) -> Result<bool> {
    Ok(real(folder)?.starts_with(real(link)?))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn listed(root: &Path) -> (Vec<String>, Vec<String>) {
        let folder = list(root, &[], &Limits::default()).expect("a folder of a test is listed");
        (folder.files, folder.warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn blobs_of_a_hub_cache_are_stored_under_their_names() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for folder in ["blobs", "snapshots/abc", "refs", "plain/blobs"] {
            std::fs::create_dir_all(path(folder)).unwrap();
        }
        for file in ["blobs/1234", "blobs/unused", "refs/main", "plain/blobs/5678"] {
            std::fs::write(path(file), file).unwrap();
        }
        symlink("../../blobs/1234", path("snapshots/abc/model.bin")).unwrap();
        symlink("blobs/5678", path("plain/link")).unwrap();
        let (files, told) = listed(root.path());
        let kept = ["blobs/unused", "plain/blobs/5678", "plain/link", "refs/main", "snapshots/abc/model.bin"];
        assert_eq!(files, kept);
        assert!(told.len() == 1 && told[0].contains("blobs/1234"), "{told:?}");
    }

    #[test]
    fn loops_and_pipes_are_left_out_and_what_a_pattern_fits() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir_all(path("sub/logs")).unwrap();
        for file in ["a.bin", "sub/b.bin", "sub/logs/c.txt", "sub/d.tmp"] {
            std::fs::write(path(file), file).unwrap();
        }
        symlink("..", path("sub/up")).unwrap();
        symlink("itself", path("itself")).unwrap();
        symlink("sub/logs", path("other")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        let (files, told) = listed(root.path());
        assert_eq!(files, ["a.bin", "other/c.txt", "sub/b.bin", "sub/d.tmp", "sub/logs/c.txt"]);
        let told = told.join("\n");
        for words in
            ["nowhere are left out: itself", "are in are left out: sub/up", "devices are left out: socket"]
        {
            assert!(told.contains(words), "{words}: {told}");
        }
        let exclude: Vec<Exclude> =
            ["*.tmp", "logs", "itself", "up"].map(|pattern| pattern.parse().unwrap()).to_vec();
        let folder = list(root.path(), &exclude, &Limits::default()).unwrap();
        assert_eq!(folder.files, ["a.bin", "other/c.txt", "sub/b.bin"]);
        assert_eq!(folder.warnings.len(), 1);
    }

    #[test]
    fn git_and_dangling_links_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sub/.git")).unwrap();
        for file in [".gitattributes", "config.json", "sub/.git/HEAD"] {
            std::fs::write(root.path().join(file), file).unwrap();
        }
        symlink("nowhere", root.path().join("lost.safetensors")).unwrap();
        let (files, told) = listed(root.path());
        assert_eq!(files, [".gitattributes", "config.json"]);
        assert!(told.len() == 2 && told[0].contains("lost") && told[1].contains("sub/.git"), "{told:?}");
    }
}
