//! The reference case: a small FP32 transformer layer and fine-tunes of it, generated from a seed,
//! with the same bytes on every machine.
//!
//! It packs nothing and does not evaluate the layer.

use std::collections::BTreeMap;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::json;

use deltaloom::__internals::to_usize;
use deltaloom::checkpoint::Checkpoint;
use deltaloom::{Error, Limits, Result};

/// Width of the layer.
pub const WIDTH: u64 = 64;
/// Number of attention heads.
pub const HEADS: u64 = 4;
/// Width of its feed-forward part.
pub const HIDDEN: u64 = 128;

/// How PyTorch initialises a parameter.
#[derive(Debug, Clone, Copy)]
enum Start {
    /// All elements equal.
    Constant(f32),
    /// Uniform within plus or minus the square root of a quotient.
    Uniform { over: u64, under: u64 },
}

/// Names, shapes and initial values: `nn.TransformerEncoderLayer(64, 4, 128, norm_first=True)`.
///
/// The input projection is Xavier uniform. The other matrices and the biases of the feed-forward
/// part are uniform within 1 / sqrt(inputs).
const PARAMETERS: [(&str, &[u64], Start); 12] = [
    ("norm1.weight", &[WIDTH], Start::Constant(1.0)),
    ("norm1.bias", &[WIDTH], Start::Constant(0.0)),
    ("self_attn.in_proj_weight", &[3 * WIDTH, WIDTH], Start::Uniform { over: 6, under: 3 * WIDTH + WIDTH }),
    ("self_attn.in_proj_bias", &[3 * WIDTH], Start::Constant(0.0)),
    ("self_attn.out_proj.weight", &[WIDTH, WIDTH], Start::Uniform { over: 1, under: WIDTH }),
    ("self_attn.out_proj.bias", &[WIDTH], Start::Constant(0.0)),
    ("norm2.weight", &[WIDTH], Start::Constant(1.0)),
    ("norm2.bias", &[WIDTH], Start::Constant(0.0)),
    ("linear1.weight", &[HIDDEN, WIDTH], Start::Uniform { over: 1, under: WIDTH }),
    ("linear1.bias", &[HIDDEN], Start::Uniform { over: 1, under: WIDTH }),
    ("linear2.weight", &[WIDTH, HIDDEN], Start::Uniform { over: 1, under: HIDDEN }),
    ("linear2.bias", &[WIDTH], Start::Uniform { over: 1, under: HIDDEN }),
];

/// An FP32 parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// The name that PyTorch uses.
    pub name: &'static str,
    /// Sizes of the dimensions: outputs before inputs.
    pub shape: Vec<u64>,
    /// The elements, row by row.
    pub values: Vec<f32>,
}

/// The 12 parameters of a layer, in the order of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// The parameters.
    pub parameters: Vec<Parameter>,
}

impl Layer {
    /// Finds a parameter by its name.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// Writes the layer as a safetensors file.
    ///
    /// # Errors
    /// None for a layer of the reference case.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let (mut header, mut data) = (BTreeMap::new(), Vec::new());
        for parameter in &self.parameters {
            let begin = data.len();
            data.extend(parameter.values.iter().flat_map(|value| value.to_le_bytes()));
            // In this order whether maps of JSON are sorted or keep it.
            let entry =
                json!({"data_offsets": [begin, data.len()], "dtype": "F32", "shape": parameter.shape});
            header.insert(parameter.name, entry);
        }
        let header = serde_json::to_vec(&header).map_err(|e| Error::InvalidArgument(e.to_string()))?;
        Ok([&(header.len() as u64).to_le_bytes(), &header[..], &data].concat())
    }

    /// Opens the layer as a checkpoint in memory.
    ///
    /// # Errors
    /// As [`Self::to_safetensors`].
    pub fn to_checkpoint(&self) -> Result<Checkpoint> {
        Checkpoint::from_bytes("layer.safetensors", self.to_safetensors()?, &Limits::default())
    }
}

/// The settings from which a base and its fine-tunes are generated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReferenceCase {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Fraction of each parameter's elements that a fine-tune changes, rounded down but at least
    /// one element.
    pub fraction: f64,
    /// Standard deviation of the changes.
    pub sigma: f64,
}

impl Default for ReferenceCase {
    /// 3 % of the elements, changed by N(0, 0.01).
    fn default() -> Self {
        Self { seed: 0, fraction: 0.03, sigma: 0.01 }
    }
}

impl ReferenceCase {
    /// The initial layer; it depends only on the seed.
    #[must_use]
    pub fn base(&self) -> Layer {
        let parameter = |(name, shape, start): (&'static str, &[u64], Start)| {
            let mut numbers = Numbers::new("base", self.seed, 0, name);
            let elems = to_usize(shape.iter().product());
            let values = match start {
                Start::Constant(value) => vec![value; elems],
                Start::Uniform { over, under } => {
                    let bound = (f32_of(over) / f32_of(under)).sqrt();
                    (0..elems).map(|_| numbers.uniform_f32() * (bound + bound) - bound).collect()
                }
            };
            Parameter { name, shape: shape.to_vec(), values }
        };
        Layer { parameters: PARAMETERS.map(parameter).into() }
    }

    /// Fine-tune number `tenant` of a base: adds a normal number to some elements of each
    /// parameter, in FP32.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the fraction is not between 0 and 1, or sigma is negative or
    /// not finite.
    pub fn tuned(&self, base: &Layer, tenant: u64) -> Result<Layer> {
        if !(0.0..=1.0).contains(&self.fraction) {
            return Err(Error::InvalidArgument(format!(
                "fraction of elements {}: must be between 0 and 1",
                self.fraction
            )));
        }
        if !self.sigma.is_finite() || self.sigma < 0.0 {
            return Err(Error::InvalidArgument(format!(
                "standard deviation {}: must be finite and not negative",
                self.sigma
            )));
        }
        let parameters = base.parameters.iter().map(|parameter| self.perturb(parameter, tenant)).collect();
        Ok(Layer { parameters })
    }

    fn perturb(&self, parameter: &Parameter, tenant: u64) -> Parameter {
        let mut parameter = parameter.clone();
        let mut numbers = Numbers::new("tuned", self.seed, tenant, parameter.name);
        let elems = parameter.values.len();
        let count = share(elems, self.fraction).max(1).min(elems);
        let mut places: Vec<usize> = (0..elems).collect();
        for chosen in 0..count {
            // Shuffles only as many places as are needed.
            places.swap(chosen, chosen + numbers.below(elems - chosen));
            parameter.values[places[chosen]] += rounded(numbers.normal()) * rounded(self.sigma);
        }
        parameter
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding down is intended")]
fn share(elems: usize, fraction: f64) -> usize {
    (fraction * elems as f64) as usize
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is intended")]
fn rounded(x: f64) -> f32 {
    x as f32
}

/// Converts a small number, which is exact.
fn f32_of(n: u64) -> f32 {
    u16::try_from(n).unwrap_or(u16::MAX).into()
}

/// Random numbers from integers and the four IEEE 754 operations, so that they are the same on
/// every machine.
struct Numbers(Xoshiro256PlusPlus);

impl Numbers {
    fn new(purpose: &str, seed: u64, tenant: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("deltaloom reference case");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&tenant.to_le_bytes());
        hasher.update(purpose.as_bytes());
        hasher.update(name.as_bytes());
        Self(Xoshiro256PlusPlus::from_seed(hasher.finalize().into()))
    }

    /// Uniform between 0 and 1, in 2^24 steps as PyTorch draws them.
    fn uniform_f32(&mut self) -> f32 {
        // All integers up to 2^24 are exact, and so is a sum of a 16-bit and a shifted 8-bit
        // number.
        let [a, b, c, ..] = self.0.next_u64().to_le_bytes();
        (f32::from(u16::from_le_bytes([a, b])) + f32::from(c) * 65_536.0) / 16_777_216.0
    }

    /// Uniform between 0 and 1, in 2^52 steps.
    fn uniform(&mut self) -> f64 {
        f64::from_bits(1f64.to_bits() | self.0.next_u64() >> 12) - 1.0
    }

    /// Uniform below `n`, which is small.
    fn below(&mut self, n: usize) -> usize {
        to_usize(((self.0.next_u64() >> 32) * n as u64) >> 32)
    }

    /// True with probability exp(-x) for x between 0 and 1, by von Neumann's falling runs.
    fn is_within_exp(&mut self, x: f64) -> bool {
        let (mut last, mut is_even) = (x, true);
        loop {
            let next = self.uniform();
            if next >= last {
                return is_even;
            }
            (last, is_even) = (next, !is_even);
        }
    }

    /// A standard normal number without logarithm, root or exponential: algorithm N of Karney,
    /// "Sampling exactly from the normal distribution" (2016), with uniform numbers of 52 bits.
    fn normal(&mut self) -> f64 {
        loop {
            let mut k = 0u32;
            while self.is_within_exp(0.5) {
                k += 1;
            }
            let accepts_k = (0..k * k.saturating_sub(1)).all(|_| self.is_within_exp(0.5));
            if !accepts_k {
                continue;
            }
            let (whole, x) = (f64::from(k), self.uniform());
            let step = x * (2.0 * whole + x) / (2.0 * whole + 2.0);
            if (0..=k).all(|_| self.is_within_exp(step)) {
                let size = whole + x;
                return if self.0.next_u64() >> 63 == 0 { size } else { -size };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differing(a: &Parameter, b: &Parameter) -> usize {
        a.values.iter().zip(&b.values).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
    }

    #[test]
    fn the_layer_has_the_size_and_the_changes_that_are_wanted() {
        let case = ReferenceCase::default();
        let base = case.base();
        let tuned = case.tuned(&base, 0).unwrap();
        assert_eq!(base.parameters.iter().map(|p| p.values.len()).sum::<usize>(), 33_472);
        let pairs = || base.parameters.iter().zip(&tuned.parameters);
        assert_eq!(pairs().map(|(a, b)| differing(a, b)).sum::<usize>(), 994);
        assert_eq!(pairs().map(|(a, b)| differing(a, b)).max(), Some(368));
        let bound = (1.0f32 / 64.0).sqrt();
        let weights = &base.parameter("linear1.weight").unwrap().values;
        assert!(weights.iter().all(|w| w.abs() <= bound) && weights.iter().any(|w| *w < -0.99 * bound));
        assert!(weights.iter().any(|w| *w > 0.99 * bound));
        assert_eq!(base.parameter("norm2.weight").unwrap().values, [1.0; 64]);
        assert_ne!(case.tuned(&base, 1).unwrap(), tuned);
        assert_eq!(tuned.to_checkpoint().unwrap().tensors().count(), 12);
    }

    #[test]
    fn every_machine_makes_the_same_bytes() {
        let case = ReferenceCase { seed: 7, ..ReferenceCase::default() };
        let base = case.base();
        let digest = |layer: &Layer| blake3::hash(&layer.to_safetensors().unwrap()).to_hex()[..16].to_owned();
        let found = [digest(&base), digest(&case.tuned(&base, 3).unwrap())];
        assert_eq!(found, ["547b451bbcab0f31", "3a69d6fe9a25e117"]);
    }

    #[test]
    fn what_is_added_is_normal() {
        let mut numbers = Numbers::new("test", 0, 0, "");
        let draws: Vec<f64> = (0..100_000).map(|_| numbers.normal()).collect();
        let moment = |power: i32| draws.iter().map(|x| x.powi(power)).sum::<f64>() / 1e5;
        // Standard errors are 0.003, 0.0045, 0.012 and 0.03.
        assert!(moment(1).abs() < 0.015, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!(moment(3).abs() < 0.06, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.15, "{}", moment(4));
        let within = |bound: f64| draws.iter().filter(|x| x.abs() < bound).count();
        assert!(within(1.0).abs_diff(68_269) < 750 && within(2.0).abs_diff(95_450) < 350);
    }

    #[test]
    fn shares_and_deviations_that_make_no_sense_are_refused() {
        for (fraction, sigma) in [(-0.1, 0.01), (1.1, 0.01), (f64::NAN, 0.01), (0.1, -1.0), (0.1, f64::NAN)] {
            let case = ReferenceCase { fraction, sigma, ..ReferenceCase::default() };
            assert!(matches!(case.tuned(&case.base(), 0), Err(Error::InvalidArgument(_))));
        }
        let all = ReferenceCase { fraction: 1.0, ..ReferenceCase::default() };
        let base = all.base();
        let tuned = all.tuned(&base, 0).unwrap();
        assert!(
            base.parameters.iter().zip(&tuned.parameters).all(|(a, b)| differing(a, b) > a.values.len() / 2)
        );
    }
}
