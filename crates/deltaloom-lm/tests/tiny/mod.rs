//! The tiny models of tools/make_tiny_models.py, and fine-tunes of them.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use deltaloom::{Container, Limits, Result};
use deltaloom_lm::model::Model;
use deltaloom_lm::tenancy::FamilyOptions;

use crate::common::*;

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/assets/tiny").join(name)
}

pub(crate) fn config_text(name: &str) -> String {
    std::fs::read_to_string(folder(name).join("config.json")).unwrap()
}

pub(crate) fn weights(name: &str) -> Vec<u8> {
    std::fs::read(folder(name).join("model.safetensors")).unwrap()
}

pub(crate) fn of_bytes(weights: &[u8], config: &str, options: FamilyOptions) -> Result<Model> {
    Model::of_checkpoint(Path::new("model"), checkpoint(weights)?, config, options)
}

/// A fine-tune in which a seventh of the elements of every tensor differ, but of one matrix none.
pub(crate) fn tuned(name: &str, seed: u64) -> Vec<u8> {
    let bytes = weights(name);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut random = Random::new(seed);
    let mut names = file.names();
    names.sort_unstable();
    let tensors = names.into_iter().map(|name| {
        let of_base = file.tensor(name).unwrap();
        let step = |_: usize| if random.below(7) == 0 { 1 + random.below(20).cast_signed() } else { 0 };
        let is_same = name.contains("layers.1.self_attn.k_proj");
        let bytes = if is_same { of_base.data().to_vec() } else { stepped(of_base.data(), 2, step) };
        let shape: Vec<u64> = of_base.shape().iter().map(|size| *size as u64).collect();
        tensor(name, "BF16", &shape, bytes)
    });
    safetensors(&tensors.collect::<Vec<_>>())
}

pub(crate) fn container(tuned: &[u8], base: &[u8]) -> Container {
    let (bytes, _) = pack(tuned, &[base]);
    Container::from_source(Path::new("tenant"), Box::new(bytes), &Limits::default()).unwrap()
}
