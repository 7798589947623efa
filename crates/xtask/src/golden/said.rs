//! Golden cases for the features of version 4: what a container says about itself, and tails of
//! files.
//!
//! Like all cases, they never change once their container is in the repository.

use super::cases::{Case, Input};
use super::numbers::{Random, bf16s, f32s};
use crate::files::{Tensor, safetensors};

/// Cases of format version 4, in the order in which they were added.
pub(super) fn since_4() -> Vec<Case> {
    vec![identity(), tails()]
}

/// Names and texts with multi-byte characters; a base whose samples are a part of its tensors.
fn identity() -> Case {
    let mut random = Random::new(41);
    let (mut large, small) = (random.normals(3000, 0.02), random.normals(40, 1.0));
    let file = |large: &[f64]| {
        [
            Tensor::new("large.weight", "BF16", &[60, 50], bf16s(large)),
            Tensor::new("norm.weight", "F32", &[40], f32s(&small)),
        ]
    };
    let base = file(&large);
    large.iter_mut().step_by(7).for_each(|value| *value *= 1.01);
    let case = Case::new("identity", "names of bases and texts", &file(&large), &[&base]);
    let said = Said {
        base_names: vec!["org/base@5f0b02c"],
        texts: vec![("licence", "MIT"), ("note", "two lines\nand \u{fc}"), ("\u{e9}poque", "")],
    };
    Case { said: Some(said), ..case }
}

/// Shards with bytes after their last tensor, one of them with a tensor that has the name of a
/// tail.
fn tails() -> Case {
    let mut random = Random::new(42);
    let (mut first, mut second) = (random.normals(1200, 0.02), random.normals(900, 0.02));
    let mut bytes: Vec<u8> = (0..3000u32).map(|i| (i * i % 251).to_le_bytes()[0]).collect();
    let folder = |first: &[f64], second: &[f64], bytes: &[u8]| {
        let one = safetensors(&[Tensor::new("a.weight", "BF16", &[30, 40], bf16s(first))]);
        let two = safetensors(&[Tensor::new("__tail__", "BF16", &[900], bf16s(second))]);
        Input::Directory(vec![
            ("model-00001-of-00002.safetensors", [&one[..], b"more"].concat()),
            ("model-00002-of-00002.safetensors", [&two[..], bytes].concat()),
        ])
    };
    let base = folder(&first, &second, &bytes);
    first.iter_mut().step_by(5).for_each(|value| *value *= 1.01);
    second.iter_mut().step_by(3).for_each(|value| *value *= 0.99);
    bytes.iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
    let case = Case::new("tails", "bytes behind the last tensor", &[], &[]);
    Case { original: folder(&first, &second, &bytes), bases: vec![base], ..case }
}

/// What a container says about itself.
pub(crate) struct Said {
    pub(super) base_names: Vec<&'static str>,
    pub(super) texts: Vec<(&'static str, &'static str)>,
}
