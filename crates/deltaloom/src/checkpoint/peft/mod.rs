//! Low-rank adapters: a folder as the peft library stores it, with `adapter_config.json` and
//! `adapter_model.safetensors`, or one file of factors, as tools for diffusion models store them.
//! It says which tensors belong to which module and how they are scaled. It multiplies nothing.

mod config;
mod modules;

use std::path::{Path, PathBuf};

use super::{Checkpoint, Warning};
use crate::error::{Error, Result};
use crate::limits::Limits;

use config::{CONFIG, Config};
use modules::Found;
pub(crate) use modules::Module;

/// Names of the weights in a folder. The last is a PyTorch archive.
const WEIGHTS: [&str; 3] =
    ["adapter_model.safetensors", "pytorch_lora_weights.safetensors", "adapter_model.bin"];

/// An adapter that was opened.
pub(crate) struct Adapter {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) modules: Vec<Module>,
    /// Whether names of modules have underscores where those of tensors have dots.
    pub(crate) is_flat: bool,
    pub(crate) warnings: Vec<Warning>,
}

impl Adapter {
    /// Opens the adapter in a folder, or in a file.
    ///
    /// # Errors
    /// What is wrong with its files. [`Error::InvalidArgument`] if nothing in them is part of an
    /// adapter.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let (config, checkpoint) = if path.is_file() {
            (None, Checkpoint::open(path, limits)?)
        } else {
            let weights = weights_of(path);
            let has_config = path.join(CONFIG).exists() || !weights.exists();
            let config = if has_config { Some(Config::open(path)?) } else { None };
            (config, Checkpoint::open(&weights, limits)?)
        };
        let Found { modules, is_flat, unfit, others } = modules::find(&checkpoint, config.as_ref())?;
        let adapter = path.display().to_string();
        let other_type = config
            .as_ref()
            .and_then(Config::other_type)
            .map(str::to_owned)
            .or_else(|| others.first().filter(|_| modules.is_empty()).map(|kind| (*kind).to_owned()));
        let mut warnings = Vec::new();
        let modules = if let Some(kind) = other_type {
            warnings.push(Warning::IgnoredAdapter { adapter: adapter.clone(), adapter_type: kind });
            Vec::new()
        } else {
            modules
        };
        let unfit = if warnings.is_empty() { unfit } else { Vec::new() };
        if modules.is_empty() && warnings.is_empty() && unfit.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "{adapter}: no module has a lora_A and a lora_B, or a lora_down and a lora_up"
            )));
        }
        warnings.extend(Warning::unfit_modules(adapter, unfit));
        Ok(Self { checkpoint, modules, is_flat, warnings })
    }
}

/// Path of the weights of the adapter in a directory.
fn weights_of(directory: &Path) -> PathBuf {
    let mut paths = WEIGHTS.iter().map(|name| directory.join(name));
    paths.find(|path| path.exists()).unwrap_or_else(|| directory.join(WEIGHTS[0]))
}
