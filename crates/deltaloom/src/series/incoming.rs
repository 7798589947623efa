//! Checkpoints that a trainer writes into a folder: lists them, with their steps and whether they
//! are complete, and the entries that are none.
//! It adds nothing and waits for nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use crate::checkpoint::{Checkpoint, Exclude, have_weights, is_state_file};
use crate::error::{Error, Result};
use crate::limits::Limits;

/// Prefixes of the names that trainers give to unfinished checkpoints.
const UNFINISHED_PREFIXES: [&str; 3] = [".", "tmp", "_"];

/// Ends of the names of files that make a folder a checkpoint, complete or not.
const MODEL_FILES: [&str; 8] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp", ".index.json"];
/// Ends of the names of indexes that name shards.
const INDEX_ENDS: [&str; 2] = [".safetensors.index.json", ".bin.index.json"];

/// What is in a folder of checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Arrivals {
    /// The checkpoints, in order of their steps. Several may have the same step.
    pub checkpoints: Vec<Incoming>,
    /// Other entries that may be checkpoints, but whose names do not have a step.
    pub without_step: Vec<PathBuf>,
}

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
/// last number. A fraction, as in `step-2.5`, is no step, nor is the number of a shard.
#[must_use]
pub fn step_of_name(name: &str) -> Option<u64> {
    let stem = name.strip_suffix(".safetensors").unwrap_or(name);
    let end = stem.rfind(|c: char| c.is_ascii_digit())? + 1;
    let begin = stem[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| {
        // What is before the number may be any character.
        at + stem[at..].chars().next().map_or(1, char::len_utf8)
    });
    let ends_in_digit = |text: &str| text.ends_with(|c: char| c.is_ascii_digit());
    let before = &stem[..begin];
    let is_part = |mark: &str| before.strip_suffix(mark).is_some_and(ends_in_digit);
    if is_part(".") || is_part("-of-") {
        return None;
    }
    stem[begin..end].parse().ok()
}

/// The checkpoints in a folder. What is removed while it is looked at is left out, and what
/// `exclude` fits does not count.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
pub fn incoming(folder: &Path, exclude: &[Exclude], limits: &Limits) -> Result<Arrivals> {
    let mut found = Arrivals::default();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if UNFINISHED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || is_state_file(&name) {
            continue;
        }
        let mut state = Vec::new();
        let listed = list(&path, &path, exclude, &mut state);
        state.sort();
        let ends = |(file, _, _): &(PathBuf, u64, Option<SystemTime>)| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            MODEL_FILES.iter().any(|end| name.ends_with(end))
        };
        let is_candidate =
            if path.is_dir() { state.iter().any(ends) } else { name.ends_with(".safetensors") };
        if !is_candidate || !path.exists() {
            continue;
        }
        let Some(step) = step_of_name(&name) else {
            found.without_step.push(path);
            continue;
        };
        let incomplete = listed.and_then(|()| check(&path, exclude, limits)).err().map(|e| e.with_path());
        found.checkpoints.push(Incoming { step, path, state, incomplete });
    }
    found.checkpoints.sort_by(|a, b| (a.step, &a.path).cmp(&(b.step, &b.path)));
    found.without_step.sort();
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
    if !have_weights(&checkpoint.members) {
        return Err(Error::InvalidArgument(format!("{}: no weights yet", path.display())));
    }
    let names: HashSet<&str> = checkpoint.members.iter().map(|member| member.path.as_str()).collect();
    for index in names.iter().filter(|name| INDEX_ENDS.iter().any(|end| name.ends_with(end))) {
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
            ("step-2.5", None),
            ("v1.5-step7", Some(7)),
            ("model-00001-of-00002.safetensors", None),
            ("e1-of-x3", Some(3)),
            ("2\u{e4}", Some(2)),
            ("99999999999999999999999", None),
        ];
        for (name, step) in cases {
            assert_eq!(step_of_name(name), step, "{name}");
        }
    }
}
