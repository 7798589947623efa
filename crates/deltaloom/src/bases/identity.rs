//! The names of bases in containers, and the digests that identify them: docs/format.md section 16.
//! A digest covers samples only, so that it costs little. It proves nothing.

use std::path::{Component, Path};

use rayon::prelude::*;

use super::{Base, TensorSource};
use crate::container::BaseDigest;
use crate::entropy::bytes::{push_text, push_varint};
use crate::error::Result;
use crate::limits::to_usize;

/// Tensors up to this size are sampled as a whole.
const WHOLE_BYTES: u64 = 2048;
/// Bytes of each of the two samples of larger tensors.
const SAMPLE_BYTES: usize = 512;

/// The name of a base that was given as `path`: the last two parts of a relative path, or the last
/// part of any other, so that no container shows where its writer keeps files. A snapshot in a hub
/// cache is called `org/model@revision`, as on the hub.
pub(super) fn name_of(path: &Path) -> String {
    let parts: Vec<String> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    if let Some(name) = hub_name(&parts) {
        return name;
    }
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let kept = if is_below { 2 } else { 1 };
    let name = parts[parts.len().saturating_sub(kept)..].join("/");
    if !name.is_empty() {
        return name;
    }
    // `.` and `..` are no names.
    let real = path.canonicalize().ok();
    let last = real.as_deref().and_then(Path::file_name);
    last.map_or_else(|| "base".to_owned(), |last| last.to_string_lossy().into_owned())
}

/// `org/model@revision`, if the path is one of a hub cache:
/// `models--org--model/snapshots/revision`.
fn hub_name(parts: &[String]) -> Option<String> {
    let [repository, _, revision] = parts.windows(3).rev().find(|w| w[1] == "snapshots")? else {
        return None;
    };
    let repository = repository.strip_prefix("models--")?.replace("--", "/");
    Some(format!("{repository}@{revision}"))
}

/// The digest of a base, computed on the threads of the current rayon pool.
///
/// # Errors
/// What reading gives.
pub(super) fn digest(base: &Base) -> Result<BaseDigest> {
    let tensors: Vec<&TensorSource> = base.tensors().iter().filter(|source| source.is_typed()).collect();
    let mut records = tensors.into_par_iter().map(record).collect::<Result<Vec<_>>>()?;
    records.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    records.iter().for_each(|record| _ = hasher.update(record));
    let whole = hasher.finalize();
    Ok(BaseDigest(std::array::from_fn(|i| whole.as_bytes()[i])))
}

fn record(source: &TensorSource) -> Result<Vec<u8>> {
    let info = source.info();
    let size = info.len_bytes();
    let mut record = Vec::new();
    push_text(&mut record, &info.name);
    push_text(&mut record, info.dtype.name());
    push_varint(&mut record, info.shape.len() as u64);
    info.shape.iter().for_each(|dim| push_varint(&mut record, *dim));
    push_varint(&mut record, size);
    if size <= WHOLE_BYTES {
        record.extend(source.read(0, to_usize(size))?);
    } else {
        for start in [size / 3, 2 * size / 3] {
            record.extend(source.read(start, SAMPLE_BYTES)?);
        }
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_no_folders_of_the_writer() {
        let cases = [
            ("base.safetensors", "base.safetensors"),
            ("base/model.safetensors", "base/model.safetensors"),
            ("./runs/7/base/model.safetensors", "base/model.safetensors"),
            ("/home/alice/secret/model.safetensors", "model.safetensors"),
            ("/data/llama", "llama"),
            ("/data/llama/", "llama"),
            ("../alice/llama", "llama"),
            ("/home/alice/.cache/huggingface/hub/models--org--llama/snapshots/abc1", "org/llama@abc1"),
            ("hub/models--org--llama/snapshots/abc1/model.safetensors", "org/llama@abc1"),
            ("hub/models--gpt2/snapshots/abc1", "gpt2@abc1"),
            ("a/snapshots/b", "snapshots/b"),
        ];
        for (path, name) in cases {
            assert_eq!(name_of(Path::new(path)), name, "{path}");
        }
        assert!(!name_of(Path::new(".")).is_empty());
        assert_eq!(name_of(Path::new("/")), "base");
    }
}
