//! A model with two adapters, merged in turn: lm12m's merged LoRA, into which a second adapter is
//! merged. The second one is made of the numbers of the first, in reverse order.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use half::bf16;

use crate::{files, root};

/// Folder of the model, and of the second adapter in it, as the pairs of sizes name them.
pub(crate) const FOLDER: &str = "merged_twice";
const FIRST: &str = "ft_lora_merged";

/// Where a file of this model is.
pub(crate) fn path(file: &str) -> PathBuf {
    root().join("target").join(file)
}

/// Makes the model and the second adapter from the folder of lm12m.
pub(crate) fn make(lm12m: &Path) -> Result<()> {
    let first = lm12m.join(FIRST);
    let config = fs::read(first.join("adapter_config.json"))?;
    let scale = scale_of(&config)?;
    let mut adapter = fs::read(first.join("adapter_model.safetensors"))?;
    let factors = places(&adapter)?;
    for (place, _) in factors.values() {
        let values: Vec<u8> =
            adapter[place.clone()].as_chunks::<4>().0.iter().rev().flatten().copied().collect();
        adapter[place.clone()].copy_from_slice(&values);
    }
    let mut model = fs::read(first.join("model.safetensors"))?;
    for (name, (place, shape)) in places(&model)? {
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        let factor = |which: &str| {
            let (place, shape) = factors.get(&format!("base_model.model.{module}.lora_{which}.weight"))?;
            let singles = adapter[place.clone()].as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x));
            Some((singles.collect::<Vec<f32>>(), shape))
        };
        let (Some((a, a_shape)), Some((b, _)), [_, cols]) = (factor("A"), factor("B"), &shape[..]) else {
            continue;
        };
        let rank = a_shape[0];
        for (at, element) in model[place].as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let (i, j) = (at / cols, at % cols);
            let product = (0..rank).map(|k| b[i * rank + k] * a[k * cols + j]).fold(0.0, |sum, x| sum + x);
            *element = bf16::from_f32(bf16::from_le_bytes(*element).to_f32() + scale * product).to_le_bytes();
        }
    }
    let second = path(FOLDER).join("second");
    fs::create_dir_all(&second).with_context(|| second.display().to_string())?;
    fs::write(second.join("adapter_config.json"), config)?;
    fs::write(second.join("adapter_model.safetensors"), adapter)?;
    Ok(fs::write(path(FOLDER).join("model.safetensors"), model)?)
}

#[expect(clippy::cast_possible_truncation, reason = "F32, as the merge computes")]
fn scale_of(config: &[u8]) -> Result<f32> {
    let config: serde_json::Value = serde_json::from_slice(config)?;
    let number = |key: &str| config[key].as_f64().with_context(|| key.to_owned());
    Ok((number("lora_alpha")? / number("r")?) as f32)
}

/// The bytes of a tensor in its file, and its shape.
type Place = (Range<usize>, Vec<usize>);

/// Where every tensor is.
fn places(file: &[u8]) -> Result<BTreeMap<String, Place>> {
    let (header, data) = files::split(file)?;
    let start = file.len() - data.len();
    let entries = header.as_object().context("no header")?.iter().filter(|(name, _)| *name != "__metadata__");
    let place = |(name, entry): (&String, &serde_json::Value)| {
        let [begin, end]: [usize; 2] = serde_json::from_value(entry["data_offsets"].clone())?;
        let shape = serde_json::from_value(entry["shape"].clone())?;
        Ok((name.clone(), (start + begin..start + end, shape)))
    };
    entries.map(place).collect()
}
