//! Low-rank adapters as the peft library stores them: `adapter_config.json` and
//! `adapter_model.safetensors`.
//! It says which tensors belong to which module and how they are scaled. It multiplies nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Wanted;
use super::explain::explain;
use crate::error::{Error, Result};
use crate::tensor::TensorInfo;

pub(crate) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The format before safetensors. It is opened only to say what it is.
const OLD_WEIGHTS: &str = "adapter_model.bin";
/// Prefix of module names: the library wraps the model.
const WRAPPER: &str = "base_model.model.";
/// A configuration is a page of text.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The keys of a configuration that matter for merging; all others are for training.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Config {
    peft_type: String,
    #[serde(default)]
    r: u64,
    #[serde(default)]
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: BTreeMap<String, u64>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

/// Path of the weights of the adapter in a directory.
pub(crate) fn weights_of(directory: &Path) -> PathBuf {
    let (weights, old) = (directory.join(WEIGHTS), directory.join(OLD_WEIGHTS));
    if !weights.exists() && old.exists() { old } else { weights }
}

/// The factors of a module, by their numbers in the list of tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Module {
    /// Name of the tensor that they change.
    pub(crate) target: String,
    pub(crate) a: usize,
    pub(crate) b: usize,
    pub(crate) rank: u64,
    /// Scale of the product, as far as the configuration says.
    pub(crate) scale: f64,
    /// Whether a square tensor is stored as (inputs, outputs).
    pub(crate) fan_in_fan_out: bool,
}

impl Config {
    /// Reads the configuration of the adapter in a directory.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(CONFIG);
        let length = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        if length > MAX_CONFIG_BYTES {
            return Err(Error::LimitExceeded {
                what: "an adapter's configuration in bytes",
                found: length,
                limit: MAX_CONFIG_BYTES,
            }
            .in_file(&path));
        }
        let json = std::fs::read(&path).map_err(Error::io(&path))?;
        Self::parse(&json).map_err(|e| explain(e, &json, Wanted::AdapterConfig).in_file(&path))
    }

    fn parse(json: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(json)
            .map_err(|e| Error::corrupt(format!("an adapter's configuration: {e}")))?;
        if config.peft_type != "LORA" || config.use_dora {
            let kind = if config.use_dora { "DoRA" } else { &config.peft_type };
            return Err(Error::InvalidArgument(format!(
                "adapters of type {kind} are not supported, only LORA"
            )));
        }
        Ok(config)
    }

    /// The modules that have both factors among `tensors`.
    pub(crate) fn modules<'a>(&self, tensors: impl Iterator<Item = &'a TensorInfo>) -> Vec<Module> {
        let tensors: Vec<&TensorInfo> = tensors.collect();
        let mut by_name = HashMap::new();
        for (i, info) in tensors.iter().enumerate() {
            by_name.entry(info.name.as_str()).or_insert(i);
        }
        let module = |(a, info): (usize, &&TensorInfo)| {
            let (wrapped, _) = info.name.split_once(".lora_A.")?;
            let name = wrapped.strip_prefix(WRAPPER).unwrap_or(wrapped);
            let b = *by_name.get(info.name.replace(".lora_A.", ".lora_B.").as_str())?;
            let ([rank, _], [_, other_rank]) = (&info.shape[..], &tensors[b].shape[..]) else { return None };
            (rank == other_rank && info.dtype == tensors[b].dtype && *rank > 0).then(|| Module {
                target: format!("{name}.weight"),
                a,
                b,
                rank: *rank,
                scale: self.scale(name),
                fan_in_fan_out: self.fan_in_fan_out,
            })
        };
        tensors.iter().enumerate().filter_map(module).collect()
    }

    fn scale(&self, module: &str) -> f64 {
        let alpha = of_pattern(&self.alpha_pattern, module).unwrap_or(self.lora_alpha);
        let rank = of_pattern(&self.rank_pattern, module).unwrap_or(self.r).max(1) as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// The value whose key is an end of the module's name. Keys that are longer regular expressions are
/// not looked up.
fn of_pattern<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let matches =
        |key: &str| module.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    patterns.iter().find(|(key, _)| matches(key)).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn factors_are_paired_and_scaled() {
        let json = br#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 4},
            "rank_pattern": {"layers.1.q_proj": 2}, "task_type": null, "target_modules": ["q_proj"]}"#;
        let config = Config::parse(json).unwrap();
        let tensor =
            |name: &str, shape: [u64; 2]| TensorInfo::sized(name.to_owned(), DType::F32, shape.to_vec());
        let tensors = [
            tensor("base_model.model.layers.1.q_proj.lora_A.weight", [2, 6]),
            tensor("base_model.model.layers.1.q_proj.lora_B.weight", [4, 2]),
            tensor("k_proj.lora_B.default.weight", [4, 8]),
            tensor("k_proj.lora_A.default.weight", [8, 6]),
            tensor("lonely.lora_A.weight", [8, 6]),
        ];
        let modules = config.modules(tensors.iter());
        let expected = |target: &str, a, b, rank, scale| Module {
            target: target.to_owned(),
            a,
            b,
            rank,
            scale,
            fan_in_fan_out: false,
        };
        assert_eq!(
            modules,
            [expected("layers.1.q_proj.weight", 0, 1, 2, 2.0), expected("k_proj.weight", 3, 2, 8, 2.0)]
        );
        let rank_stabilised = Config { use_rslora: true, ..config };
        assert!((rank_stabilised.scale("k_proj") - 16.0 / 8f64.sqrt()).abs() < 1e-12);
        assert!(Config::parse(br#"{"peft_type": "IA3"}"#).is_err());
        assert!(Config::parse(b"{}").is_err());
    }
}
