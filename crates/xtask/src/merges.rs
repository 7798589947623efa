//! Merges the lm12m models by the rules of common tools and packs the merges against the models.
//! This shows how small they become once the rule is found.
//!
//! The merges are computed here in plain single precision, not by the library. Each is restored and
//! compared.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Bases, Container, Limits, PackOptions, ResolvedContainer, Silent};
use half::bf16;

use crate::files::{Tensor, safetensors};
use crate::say;

/// Least ratio of a merge that a linear rule computed in single precision.
const GOAL: f64 = 8.0;

/// A tensor of all models: name, shape, and the values of base, ft_bf16 and ft_master.
struct Layer {
    name: String,
    shape: Vec<usize>,
    values: [Vec<f32>; 3],
}

/// A merge rule: what a layer becomes, and which models are bases.
struct Rule {
    name: &'static str,
    models: &'static [usize],
    is_linear: bool,
    merge: fn(&[Vec<f32>; 3]) -> Vec<f32>,
}

const RULES: [Rule; 7] = [
    Rule {
        name: "halves",
        models: &[1, 2],
        is_linear: true,
        merge: |m| each(m, |_, b, c| 0.5 * b + 0.5 * c),
    },
    Rule {
        name: "0.3 and 0.7",
        models: &[1, 2],
        is_linear: true,
        merge: |m| each(m, |_, b, c| 0.3 * b + 0.7 * c),
    },
    Rule {
        name: "three models",
        models: &[0, 1, 2],
        is_linear: true,
        merge: |m| each(m, |a, b, c| 0.2 * a + 0.5 * b + 0.3 * c),
    },
    Rule {
        name: "task arithmetic",
        models: &[0, 1, 2],
        is_linear: true,
        merge: |m| each(m, |a, b, c| b + 0.4 * (c - a)),
    },
    Rule {
        name: "two tasks",
        models: &[0, 1, 2],
        is_linear: true,
        merge: |m| each(m, |a, b, c| a + (0.6 * (b - a) + 0.5 * (c - a))),
    },
    Rule { name: "SLERP at 0.4", models: &[1, 2], is_linear: true, merge: slerp },
    Rule { name: "TIES, density 0.3", models: &[0, 1, 2], is_linear: false, merge: ties },
];

fn each(models: &[Vec<f32>; 3], f: fn(f32, f32, f32) -> f32) -> Vec<f32> {
    let [a, b, c] = models;
    a.iter().zip(b).zip(c).map(|((a, b), c)| f(*a, *b, *c)).collect()
}

/// Spherical interpolation between the second and the third, by the angle between them.
fn slerp([_, b, c]: &[Vec<f32>; 3]) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = dot(b, c) / (dot(b, b) * dot(c, c)).sqrt();
    let angle = cosine.clamp(-1.0, 1.0).acos();
    let (of_b, of_c) = if angle < 1e-2 {
        (0.6, 0.4)
    } else {
        ((0.6 * angle).sin() / angle.sin(), (0.4 * angle).sin() / angle.sin())
    };
    #[expect(clippy::cast_possible_truncation, reason = "models are merged in single precision")]
    let (of_b, of_c) = (of_b as f32, of_c as f32);
    b.iter().zip(c).map(|(b, c)| of_b * b + of_c * c).collect()
}

/// The largest 30 % of each difference from the first; the average of those that agree on the sign.
fn ties([a, b, c]: &[Vec<f32>; 3]) -> Vec<f32> {
    let trimmed = |tuned: &[f32]| -> Vec<f32> {
        let updates: Vec<f32> = tuned.iter().zip(a).map(|(x, a)| x - a).collect();
        let mut sizes: Vec<f32> = updates.iter().map(|d| d.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let least = sizes[sizes.len() * 7 / 10];
        updates.into_iter().map(|d| if d.abs() < least { 0.0 } else { d }).collect()
    };
    let merged = |((a, d), e): ((&f32, f32), f32)| {
        let agreeing = [d, e].into_iter().filter(|update| update * (d + e) > 0.0);
        let (sum, count) = agreeing.fold((0.0, 0.0), |(sum, count), update| (sum + update, count + 1.0));
        if count == 0.0 { *a } else { a + sum / count }
    };
    a.iter().zip(trimmed(b)).zip(trimmed(c)).map(merged).collect()
}

fn read_layers(data: &Path) -> Result<Vec<Layer>> {
    let open = |model: &str| -> Result<Checkpoint> {
        Ok(Checkpoint::open(&data.join("lm12m").join(model).join("model.safetensors"), &Limits::default())?)
    };
    let models = [open("base")?, open("ft_bf16")?, open("ft_master")?];
    let names: Vec<String> = models[0].tensors().map(|(_, info)| info.name.clone()).collect();
    let values = |model: &Checkpoint, name: &str| -> Result<(Vec<usize>, Vec<f32>)> {
        let found = model.tensors().find(|(_, info)| info.name == name);
        let (member, info) = found.with_context(|| name.to_owned())?;
        let mut bytes = vec![0; usize::try_from(info.len_bytes())?];
        model.read(member, info, 0, &mut bytes)?;
        let shape = info.shape.iter().map(|d| Ok(usize::try_from(*d)?)).collect::<Result<_>>()?;
        Ok((shape, bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()))
    };
    let layer = |name: String| {
        let (shape, base) = values(&models[0], &name)?;
        let values = [base, values(&models[1], &name)?.1, values(&models[2], &name)?.1];
        Ok(Layer { name, shape, values })
    };
    names.into_iter().map(layer).collect()
}

/// Single precision with all bits in use, as if the models had been trained this way and rounded
/// afterwards.
fn unrounded(mut layers: Vec<Layer>) -> Vec<Layer> {
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 40) as f32 / 16_777_216.0;
        unit - 0.5
    };
    for values in layers.iter_mut().flat_map(|layer| &mut layer.values).flatten() {
        *values += noise() * values.abs() / 256.0;
    }
    layers
}

fn file(layers: &[Layer], dtype: &'static str, values: impl Fn(&Layer) -> Vec<f32>) -> Vec<u8> {
    let tensor = |layer: &Layer| {
        let bytes = |x: f32| match dtype {
            "BF16" => bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        let bytes = values(layer).into_iter().flat_map(bytes).collect();
        Tensor::new(&layer.name, dtype, &layer.shape, bytes)
    };
    safetensors(&layers.iter().map(tensor).collect::<Vec<_>>())
}

/// Makes all merges in both dtypes and packs them.
///
/// # Errors
/// A merge that is not restored exactly, a linear merge that misses its goal, and missing weights.
pub fn run(data: &Path) -> Result<()> {
    if !data.join("lm12m").is_dir() {
        bail!("the lm12m weights are absent: no lm12m/ in {}", data.display());
    }
    let mut missed = Vec::new();
    for dtype in ["BF16", "F32"] {
        let layers = if dtype == "F32" { unrounded(read_layers(data)?) } else { read_layers(data)? };
        let models: Vec<Vec<u8>> =
            (0..3).map(|model| file(&layers, dtype, |layer| layer.values[model].clone())).collect();
        for rule in &RULES {
            let merged = file(&layers, dtype, |layer| (rule.merge)(&layer.values));
            let packed_bytes = pack(&merged, rule.models.iter().map(|model| &models[*model]))
                .with_context(|| format!("{} in {dtype}", rule.name))?;
            let ratio = merged.len() as f64 / packed_bytes as f64;
            say(&format!(
                "{:<18} {dtype:<5} {:>9} -> {packed_bytes:>8} bytes, ratio {ratio:.1}",
                rule.name,
                merged.len()
            ))?;
            if rule.is_linear && ratio < GOAL {
                missed.push(format!("{} in {dtype}", rule.name));
            }
        }
    }
    ensure!(missed.is_empty(), "a ratio below {GOAL}: {}", missed.join(", "));
    Ok(())
}

/// Packs and restores a merge. Returns its packed size.
fn pack<'a>(merged: &[u8], models: impl Iterator<Item = &'a Vec<u8>>) -> Result<usize> {
    let open = |bytes: &[u8]| Checkpoint::from_bytes("model.safetensors", bytes.to_vec(), &Limits::default());
    let mut bases = Bases::default();
    for (number, model) in models.enumerate() {
        bases.push_checkpoint(Path::new(&format!("model {number}")), open(model)?);
    }
    let checkpoint = open(merged)?;
    let mut packed = Vec::new();
    deltaloom::pack_to(&checkpoint, &bases, &mut packed, &PackOptions::default(), &Silent)?;
    let packed_bytes = packed.len();
    let container = Container::from_source(Path::new("merge.loom"), Box::new(packed), &Limits::default())?;
    let resolved = ResolvedContainer::new(container, &bases)?;
    let mut restored =
        vec![0; usize::try_from(checkpoint.tensors().map(|(_, info)| info.len_bytes()).sum::<u64>())?];
    resolved.read_all_into(&mut restored)?;
    ensure!(merged.ends_with(&restored), "the restored tensors differ");
    Ok(packed_bytes)
}
