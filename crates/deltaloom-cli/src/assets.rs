//! What is built into the program: one layer of a small trained model with three fine-tunes of it,
//! and a whole model that speaks, with two fine-tunes and texts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use deltaloom::{Bases, Container, Limits, ResolvedContainer, Silent, UnpackOptions};

/// A bundled file.
pub(crate) struct Asset {
    pub(crate) title: &'static str,
    pub(crate) file: &'static str,
    pub(crate) bytes: &'static [u8],
}

macro_rules! asset {
    ($folder:literal, $title:literal, $file:literal) => {
        Asset {
            title: $title,
            file: $file,
            bytes: include_bytes!(concat!("../../../assets/", $folder, "/", $file)),
        }
    };
}

pub(crate) static BASE: Asset = asset!("demo", "base", "base.safetensors");
pub(crate) static FINE_TUNES: [Asset; 3] = [
    asset!("demo", "fine-tune, BF16 parameters", "ft_bf16.safetensors"),
    asset!("demo", "fine-tune, FP32 master", "ft_master.safetensors"),
    asset!("demo", "LoRA, merged", "ft_lora_merged.safetensors"),
];

/// The model that speaks, as a container of its folder.
static SPEAKER: Asset = asset!("speaker", "", "base.loom");
/// Its fine-tunes and texts, by their names behind `demo:`.
static OF_SPEAKER: [Asset; 5] = [
    asset!("speaker", "pirate", "pirate.loom"),
    asset!("speaker", "chat", "chat.loom"),
    asset!("speaker", "text", "text.txt"),
    asset!("speaker", "questions", "questions.jsonl"),
    asset!("speaker", "problems", "problems.jsonl"),
];

/// Writes the bundled file `demo:NAME` to a folder, or the folder of the model if the name is
/// empty. Returns where it is.
#[cfg(feature = "compute")]
pub(crate) fn put(name: &str, folder: &Path) -> Result<PathBuf> {
    if name.is_empty() {
        return restore(folder);
    }
    let names =
        || OF_SPEAKER.iter().map(|asset| format!("demo:{}", asset.title)).collect::<Vec<_>>().join(", ");
    let asset = OF_SPEAKER.iter().find(|asset| asset.title == name);
    let asset = asset.with_context(|| format!("no file has this name; bundled are demo, {}", names()))?;
    write(asset, folder)
}

/// Writes the folder `base` of the model, its fine-tunes and the texts to a folder.
pub(crate) fn put_all(folder: &Path) -> Result<()> {
    restore(folder)?;
    OF_SPEAKER.iter().try_for_each(|asset| write(asset, folder).map(|_| ()))
}

fn write(asset: &Asset, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(asset.file);
    fs::write(&path, asset.bytes).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn restore(folder: &Path) -> Result<PathBuf> {
    let container = Container::from_source(
        Path::new(SPEAKER.file),
        Box::new(SPEAKER.bytes.to_vec()),
        &Limits::default(),
    )?;
    let path = folder.join("base");
    let resolved = ResolvedContainer::new(container, &Bases::default())?;
    deltaloom::unpack(&resolved, &path, &UnpackOptions::default(), &Silent)?;
    Ok(path)
}
