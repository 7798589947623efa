//! Input of the experiment: a layer of a base and fine-tunes of it, as dense tensors and packed,
//! all in memory. It does no timing.
//!
//! Fine-tunes after the first are variations, because there is at most one real one.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

use deltaloom::__internals::{check_cancelled, to_usize};
use deltaloom::checkpoint::Checkpoint;
use deltaloom::tensor::DType;
use deltaloom::{Bases, Container, Error, Limits, Missing, PackOptions, Progress, Result, Silent, pack_to};
use deltaloom_compute::{DenseMatrix, WeightType};
use deltaloom_lm::layer::{LayerConfig, LayerHints, LayerNames, MatrixRole};

/// Bytes of tensors by name.
pub(super) type Tensors = BTreeMap<String, Vec<u8>>;

/// A layer of a base and its fine-tunes.
pub struct TenantsCase {
    pub(super) config: LayerConfig,
    pub(super) names: LayerNames,
    pub(super) base: Checkpoint,
    pub(super) tuned: Vec<Tensors>,
    pub(super) containers: Vec<Vec<u8>>,
    pub(super) about: String,
}

/// A tensor before it is written.
struct Part {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

/// LLaMA-shaped: 320 wide, 5 heads, hidden width 864.
const CONFIG: &str = r#"{"model_type": "llama", "num_attention_heads": 5, "num_key_value_heads": 5, "rms_norm_eps": 1e-5, "hidden_act": "silu"}"#;
const WIDTH: u64 = 320;
const HIDDEN: u64 = 864;

impl TenantsCase {
    /// Generates a layer from a seed, and fine-tunes in which the fraction `density` of the
    /// elements is a few ULPs away.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the density is between 0 and 1; [`Error::Cancelled`].
    pub fn generated(tenants: usize, density: f64, seed: u64, progress: &dyn Progress) -> Result<Self> {
        if !(0.0..=1.0).contains(&density) {
            return Err(Error::InvalidArgument(format!("density {density}: must be between 0 and 1")));
        }
        let base = generated_base(seed);
        let about = format!(
            "a generated layer and fine-tunes of it that change {:.1} % of its elements",
            100.0 * density
        );
        let tuned = |tenant: usize| {
            base.iter().map(|part| (part.name.clone(), perturbed(part, tenant, density, seed))).collect()
        };
        Self::new(
            &base,
            (0..tenants).map(tuned),
            &LayerHints::default().with_config(Some(CONFIG)),
            about,
            progress,
        )
    }

    /// Takes a layer of two checkpoints. The first fine-tune is the real one. Every other one
    /// changes the same elements by as many ULPs, half of them in the other direction.
    ///
    /// # Errors
    /// What [`LayerNames::recognise`] refuses; [`Error::InvalidArgument`] if the shapes differ or a
    /// dtype is not BF16 or F32; errors of reading.
    pub fn varied(
        base: &Checkpoint,
        tuned: &Checkpoint,
        hints: &LayerHints<'_>,
        tenants: usize,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let shapes = base.tensors().map(|(_, info)| (info.name.as_str(), info.shape.as_slice()));
        let (_, names) = LayerNames::recognise(shapes, hints)?;
        let wanted: Vec<&str> =
            names.matrices().map(|(_, name)| name).chain(names.vectors().map(|(_, name)| name)).collect();
        let (base, real) = (parts(base, &wanted)?, parts(tuned, &wanted)?);
        if base.iter().zip(&real).any(|(a, b)| a.shape != b.shape || a.dtype != b.dtype) {
            return Err(Error::InvalidArgument("base and fine-tune differ in shapes or dtypes".into()));
        }
        let tensors = |tenant: usize| {
            let pairs = base.iter().zip(&real);
            pairs.map(|(base, real)| (base.name.clone(), varied(base, &real.bytes, tenant))).collect()
        };
        let about = format!(
            "layer {} of a base and its fine-tune; tenants after the first have half of its steps turned around",
            hints.layer
        );
        Self::new(&base, (0..tenants).map(tensors), hints, about, progress)
    }

    fn new(
        base: &[Part],
        tuned: impl ExactSizeIterator<Item = Tensors>,
        hints: &LayerHints<'_>,
        about: String,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let shapes = base.iter().map(|part| (part.name.as_str(), part.shape.as_slice()));
        let (config, names) = LayerNames::recognise(shapes, hints)?;
        let own = base.iter().map(|part| (part.name.clone(), part.bytes.clone())).collect();
        let base_file = checkpoint(base, &own)?;
        progress.start(tuned.len() as u64);
        let mut case =
            Self { config, names, base: base_file, tuned: Vec::new(), containers: Vec::new(), about };
        for tensors in tuned {
            check_cancelled(progress)?;
            let mut bases = Bases::default();
            bases.push_checkpoint(Path::new("base"), case.base.clone());
            let mut container = Vec::new();
            let options = PackOptions::default().with_threads(rayon::current_num_threads());
            pack_to(&checkpoint(base, &tensors)?, &bases, &mut container, &options, &Silent)?;
            case.containers.push(container);
            case.tuned.push(tensors);
            progress.advance(1);
        }
        Ok(case)
    }

    /// Fraction of matrix elements that differ from the base, over all tenants.
    pub(super) fn changed_fraction(&self) -> f64 {
        let (mut changed, mut all) = (0u64, 0u64);
        for (member, info) in self.base.tensors().filter(|(_, info)| info.shape.len() == 2) {
            let size = if info.dtype == DType::F32 { 4 } else { 2 };
            let base = self.base.in_memory(member, info).unwrap_or_default();
            for tuned in self.tuned.iter().filter_map(|tensors| tensors.get(&info.name)) {
                let elements = base.chunks_exact(size).zip(tuned.chunks_exact(size));
                changed += elements.filter(|(a, b)| a != b).count() as u64;
                all += (base.len() / size) as u64;
            }
        }
        changed as f64 / all.max(1) as f64
    }

    /// A matrix of the base.
    pub(super) fn base_matrix(&self, role: MatrixRole) -> Result<DenseMatrix> {
        let missing = || Error::not_found(Missing::Layer, format!("the matrix {role:?} of the layer"));
        let name = self.names.matrix(role).ok_or_else(missing)?;
        let (member, info) = self.base.tensors().find(|(_, info)| info.name == name).ok_or_else(missing)?;
        let [rows, cols] = self.config.shape(role);
        DenseMatrix::new(rows, cols, WeightType::of(info)?, self.base.read_tensor(member, info)?)
    }

    /// Opens a tenant's container from memory.
    pub(super) fn container(&self, tenant: usize) -> Result<Container> {
        let missing = || Error::not_found(Missing::Tenant, format!("tenant {tenant}"));
        let bytes = self.containers.get(tenant).ok_or_else(missing)?.clone();
        Container::from_source(Path::new("tenant"), Box::new(bytes), &Limits::default())
    }

    /// Bytes of dense copies of all tenants.
    #[must_use]
    pub fn dense_bytes(&self) -> u64 {
        self.base_bytes() * self.tuned.len() as u64
    }

    /// Bytes of the layer.
    pub(super) fn base_bytes(&self) -> u64 {
        self.base.tensors().map(|(_, info)| info.len_bytes()).sum()
    }
}

/// A fine-tune of a whole base in which the fraction `density` of the weights is a few ULPs away.
pub(crate) fn fine_tune(base: &Checkpoint, tenant: usize, density: f64, seed: u64) -> Result<Checkpoint> {
    if !(0.0..=1.0).contains(&density) {
        return Err(Error::InvalidArgument(format!("fraction {density}: must be between 0 and 1")));
    }
    let names: Vec<&str> = base.weights().map(|(_, info)| info.name.as_str()).collect();
    let base = parts(base, &names)?;
    let tensors = base.iter().map(|part| (part.name.clone(), perturbed(part, tenant, density, seed)));
    checkpoint(&base, &tensors.collect())
}

/// Reads these tensors of a checkpoint.
fn parts(checkpoint: &Checkpoint, wanted: &[&str]) -> Result<Vec<Part>> {
    let read = |name: &&str| {
        let missing = || Error::not_found(Missing::Tensor, format!("tensor {name:?}"));
        let (member, info) =
            checkpoint.tensors().find(|(_, info)| info.name == **name).ok_or_else(missing)?;
        if !matches!(info.dtype, DType::BF16 | DType::F32) {
            return Err(Error::InvalidArgument(format!(
                "tensor {name:?} has dtype {}, not BF16 or F32",
                info.dtype
            )));
        }
        let mut bytes = vec![0; to_usize(info.len_bytes())];
        checkpoint.read(member, info, 0, &mut bytes)?;
        Ok(Part { name: (*name).to_owned(), dtype: info.dtype.clone(), shape: info.shape.clone(), bytes })
    };
    wanted.iter().map(read).collect()
}

/// A checkpoint in memory with the tensors of `parts`; their bytes come from `tensors`.
fn checkpoint(parts: &[Part], tensors: &Tensors) -> Result<Checkpoint> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for part in parts {
        let begin = data.len();
        data.extend_from_slice(tensors.get(&part.name).map_or(&[], Vec::as_slice));
        let entry =
            json!({"dtype": part.dtype.name(), "shape": part.shape, "data_offsets": [begin, data.len()]});
        header.insert(part.name.clone(), entry);
    }
    let header = Value::Object(header).to_string().into_bytes();
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat();
    Checkpoint::from_bytes("layer.safetensors", file, &Limits::default())
}

fn generator(seed: u64, of: &str, tenant: usize) -> Xoshiro256PlusPlus {
    let mut hasher = blake3::Hasher::new_derive_key("deltaloom tenants case");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&(tenant as u64).to_le_bytes());
    hasher.update(of.as_bytes());
    Xoshiro256PlusPlus::from_seed(hasher.finalize().into())
}

fn generated_base(seed: u64) -> Vec<Part> {
    let names: [(&str, &[u64]); 9] = [
        ("input_layernorm.weight", &[WIDTH]),
        ("mlp.down_proj.weight", &[WIDTH, HIDDEN]),
        ("mlp.gate_proj.weight", &[HIDDEN, WIDTH]),
        ("mlp.up_proj.weight", &[HIDDEN, WIDTH]),
        ("post_attention_layernorm.weight", &[WIDTH]),
        ("self_attn.k_proj.weight", &[WIDTH, WIDTH]),
        ("self_attn.o_proj.weight", &[WIDTH, WIDTH]),
        ("self_attn.q_proj.weight", &[WIDTH, WIDTH]),
        ("self_attn.v_proj.weight", &[WIDTH, WIDTH]),
    ];
    let part = |(name, shape): (&str, &[u64])| {
        let mut random = generator(seed, name, 0);
        let mut number = || {
            // Approximately normal: a sum of eight.
            let words = random.next_u64().to_le_bytes();
            let sum: f32 = words.map(|byte| f32::from(byte) - 127.5).iter().sum();
            if shape.len() == 1 { 1.0 + sum * 1e-4 } else { sum * 1e-4 }
        };
        let elems = to_usize(shape.iter().product());
        let bytes = (0..elems).flat_map(|_| bf16::from_f32(number()).to_le_bytes()).collect();
        Part { name: format!("layers.0.{name}"), dtype: DType::BF16, shape: shape.to_vec(), bytes }
    };
    names.map(part).into()
}

/// A fine-tune: some elements are a few ULPs away, most of them one.
fn perturbed(part: &Part, tenant: usize, density: f64, seed: u64) -> Vec<u8> {
    let mut random = generator(seed, &part.name, tenant + 1);
    let step = |_| {
        let word = random.next_u64();
        let is_changed = ((word >> 32) as f64) < density * 4_294_967_296.0;
        let size = 1 + i32::from(word & 7 == 0) * i32::from(word.to_le_bytes()[1] & 7);
        if !is_changed {
            0
        } else if word & 8 == 0 {
            size
        } else {
            -size
        }
    };
    stepped(&part.bytes, &part.dtype, step)
}

/// Variations reverse steps up to this. Longer steps cross zero, and reversing them would lead far
/// away.
const SMALL_STEP: i32 = 64;

/// A variation of a real fine-tune: the elements that it changes move by as many ULPs, half of them
/// in the other direction. The first one is the real fine-tune.
fn varied(base: &Part, real: &[u8], tenant: usize) -> Vec<u8> {
    let mut random = generator(0, &base.name, tenant);
    let steps: Vec<i32> = match base.dtype {
        DType::F32 => steps(base.bytes.as_chunks().0, real.as_chunks().0, |b| ordered32(*b)),
        _ => steps(base.bytes.as_chunks().0, real.as_chunks().0, |b| ordered16(*b)),
    };
    let mut turned = |step: i32| match step {
        0 => 0,
        _ if tenant > 0 && step.abs() <= SMALL_STEP && random.next_u64() >> 63 == 1 => -step,
        _ => step,
    };
    stepped(&base.bytes, &base.dtype, |i| turned(steps[i]))
}

fn steps<const N: usize>(base: &[[u8; N]], real: &[[u8; N]], ordered: impl Fn(&[u8; N]) -> i32) -> Vec<i32> {
    base.iter().zip(real).map(|(base, real)| ordered(real).wrapping_sub(ordered(base))).collect()
}

/// Moves each element i by `step(i)` ULPs.
fn stepped(bytes: &[u8], dtype: &DType, mut step: impl FnMut(usize) -> i32) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    if *dtype == DType::F32 {
        for (i, element) in bytes.as_chunks().0.iter().enumerate() {
            let moved = ordered32(*element).wrapping_add(step(i));
            let bits = if moved < 0 { moved ^ i32::MAX } else { moved };
            out.extend(bits.to_le_bytes());
        }
    } else {
        for (i, element) in bytes.as_chunks().0.iter().enumerate() {
            let [low, high, ..] = ordered16(*element).wrapping_add(step(i)).to_le_bytes();
            let moved = i16::from_le_bytes([low, high]);
            let bits = if moved < 0 { moved ^ i16::MAX } else { moved };
            out.extend(bits.to_le_bytes());
        }
    }
    out
}

/// Integers in the order of the floats.
fn ordered16(element: [u8; 2]) -> i32 {
    let bits = i16::from_le_bytes(element);
    i32::from(if bits < 0 { bits ^ i16::MAX } else { bits })
}

fn ordered32(element: [u8; 4]) -> i32 {
    let bits = i32::from_le_bytes(element);
    if bits < 0 { bits ^ i32::MAX } else { bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variations_change_the_elements_that_the_real_one_does() {
        let mut random = generator(1, "test", 0);
        let numbers: Vec<f32> =
            (0..512).map(|_| f32::from(random.next_u64().to_le_bytes()[0]) - 127.5).collect();
        for dtype in [DType::F32, DType::BF16] {
            let bytes = match dtype {
                DType::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
                _ => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            };
            let base = Part { name: "w".into(), dtype, shape: vec![32, 16], bytes };
            let real_steps = |i: usize| if i.is_multiple_of(5) { [1, -3, 64, -65][i % 4] } else { 0 };
            let real = stepped(&base.bytes, &base.dtype, real_steps);
            assert_eq!(varied(&base, &real, 0), real);
            let other = varied(&base, &real, 1);
            let size = other.len() / 512;
            let is_step = |(i, bytes): (usize, &[u8])| {
                let step = real_steps(i);
                let of = |step: i32| stepped(&base.bytes, &base.dtype, |j| if i == j { step } else { 0 });
                bytes == &of(step)[i * size..][..size]
                    || step != -65 && bytes == &of(-step)[i * size..][..size]
            };
            assert!(other != real && other != varied(&base, &real, 2));
            assert!(other.chunks(size).enumerate().all(is_step));
            let zero = vec![0; size];
            assert_eq!(stepped(&stepped(&zero, &base.dtype, |_| -3), &base.dtype, |_| 3), zero);
        }
    }
}
