//! Checkpoints that a trainer writes into a folder: lists them, with their steps and whether they
//! are complete.
//! It adds nothing and waits for nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use crate::checkpoint::{Checkpoint, Exclude};
use crate::error::{Error, Result};
use crate::limits::Limits;

/// Prefixes of the names that trainers give to unfinished checkpoints.
const UNFINISHED_PREFIXES: [&str; 3] = [".", "tmp", "_"];

/// A checkpoint in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Incoming {
    /// Its step, from its name.
    pub step: u64,
    /// Its path.
    pub path: PathBuf,
    /// Files with sizes and times. While these change, someone is still writing.
    pub state: Vec<(PathBuf, u64, Option<SystemTime>)>,
    /// Why it is not complete. `None` if it is.
    pub incomplete: Option<String>,
}

/// The step in a name such as `checkpoint-500`, `global_step500` or `step_000500.safetensors`: its
/// last number.
#[must_use]
pub fn step_of_name(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(".safetensors").unwrap_or(name);
    stem.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
}

/// The checkpoints in a folder whose names have a step, in order of their steps. What `exclude`
/// fits does not count.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read; [`Error::InvalidArgument`] if two have the same
/// step.
pub fn incoming(folder: &Path, exclude: &[Exclude], limits: &Limits) -> Result<Vec<Incoming>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_candidate = path.is_dir() || name.ends_with(".safetensors");
        let is_unfinished = UNFINISHED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let Some(step) = step_of_name(&name).filter(|_| is_candidate && !is_unfinished) else { continue };
        let mut state = Vec::new();
        let listed = list(&path, &path, exclude, &mut state);
        state.sort();
        let incomplete = listed.and_then(|()| check(&path, exclude, limits)).err().map(|e| e.to_string());
        found.push(Incoming { step, path, state, incomplete });
    }
    found.sort_by_key(|incoming| incoming.step);
    if let Some(pair) = found.windows(2).find(|pair| pair[0].step == pair[1].step) {
        let (a, b) = (pair[0].path.display(), pair[1].path.display());
        return Err(Error::InvalidArgument(format!("{a} and {b} are both step {}", pair[0].step)));
    }
    Ok(found)
}

fn list(
    root: &Path,
    path: &Path,
    exclude: &[Exclude],
    state: &mut Vec<(PathBuf, u64, Option<SystemTime>)>,
) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
    if !metadata.is_dir() {
        state.push((path.to_path_buf(), metadata.len(), metadata.modified().ok()));
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let path = entry.map_err(Error::io(path))?.path();
        if !exclude.iter().any(|exclude| exclude.fits_in(root, &path)) {
            list(root, &path, exclude, state)?;
        }
    }
    Ok(())
}

/// The part of a shard index that names the shards.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// Checks that headers and lengths agree, and that every shard named by an index exists.
fn check(path: &Path, exclude: &[Exclude], limits: &Limits) -> Result<()> {
    let checkpoint = Checkpoint::open_without(path, exclude, limits)?;
    if !checkpoint.members.iter().any(|member| member.path.ends_with(".safetensors")) && path.is_dir() {
        return Err(Error::InvalidArgument(format!("{}: no safetensors file yet", path.display())));
    }
    let names: HashSet<&str> = checkpoint.members.iter().map(|member| member.path.as_str()).collect();
    for index in names.iter().filter(|name| name.ends_with(".safetensors.index.json")) {
        let index_path = path.join(index);
        let bytes = std::fs::read(&index_path).map_err(Error::io(&index_path))?;
        let parsed = serde_json::from_slice::<ShardIndex>(&bytes);
        let parsed = parsed.map_err(|e| Error::corrupt(e.to_string()).in_file(&index_path))?;
        let folder = index.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        for shard in parsed.weight_map.values() {
            if !names.contains(format!("{folder}{shard}").as_str()) {
                let what = format!("{}: shard {shard:?} is not there yet", path.display());
                return Err(Error::InvalidArgument(what));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_names() {
        let cases = [
            ("checkpoint-500", Some(500)),
            ("global_step1200", Some(1200)),
            ("step_000021.safetensors", Some(21)),
            ("epoch3-step40", Some(40)),
            ("7", Some(7)),
            ("schritt\u{e4}9", Some(9)),
            ("final", None),
            ("99999999999999999999999", None),
        ];
        for (name, step) in cases {
            assert_eq!(step_of_name(name), step, "{name}");
        }
    }
}
