//! Random directions, whose hyperplanes give the bits of signatures, and the seeded numbers behind
//! them.
//!
//! Directions are generated from the seed, never stored.

use std::f64::consts::TAU;

use deltaloom_kernels::signature::{WORD_BITS, sign};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use deltaloom::{Error, Result};

/// How the components of a direction are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Normal numbers: the probability of a differing bit is then exactly proportional to the
    /// angle.
    Gaussian,
    /// Signs; equivalent in the limit of many dimensions.
    Rademacher,
}

/// Uniform numbers from 0 to 1, excluding 1.
pub(super) fn uniforms(seed: u64) -> impl Iterator<Item = f64> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    std::iter::repeat_with(move || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64)
}

/// Independent standard normal numbers (Box and Muller, 1958).
#[expect(clippy::cast_possible_truncation, reason = "rounding to F32 is intended")]
pub(super) fn normals(seed: u64) -> impl Iterator<Item = f32> {
    let mut uniform = uniforms(seed);
    std::iter::repeat_with(move || {
        let mut next = || uniform.next().unwrap_or(0.0);
        let radius = (-2.0 * (1.0 - next()).ln()).sqrt();
        let (sin, cos) = (TAU * next()).sin_cos();
        [(radius * cos) as f32, (radius * sin) as f32]
    })
    .flatten()
}

/// Signs; each word of the generator gives 64.
pub(super) fn signs(seed: u64) -> impl Iterator<Item = f32> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    std::iter::repeat_with(move || {
        let word = random.next_u64();
        (0..WORD_BITS).map(move |i| if word >> i & 1 == 1 { 1.0 } else { -1.0 })
    })
    .flatten()
}

/// Directions in the order that [`sign`] needs.
#[derive(Debug, Clone)]
pub(super) struct Directions {
    dims: usize,
    words: usize,
    components: Vec<f32>,
}

impl Directions {
    /// 64 `words` directions of `dims` components; the caller has checked the product.
    pub(super) fn new(projection: Projection, words: usize, dims: usize, seed: u64) -> Self {
        let count = words * dims * WORD_BITS;
        let components = match projection {
            Projection::Gaussian => normals(seed).take(count).collect(),
            Projection::Rademacher => signs(seed).take(count).collect(),
        };
        Self { dims, words, components }
    }

    /// Number of words of a signature.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// Computes the signature of a vector of at most `dims` components.
    pub(super) fn sign(&self, vector: &[f32], signature: &mut [u64]) {
        sign(&self.components, self.dims, vector, signature);
    }
}

/// Number of words of a signature of `bits` bits.
///
/// # Errors
/// [`Error::InvalidArgument`] unless `bits` is a multiple of 64 up to 1024.
pub(super) fn words_of(bits: usize) -> Result<usize> {
    if bits.is_multiple_of(WORD_BITS) && (WORD_BITS..=1024).contains(&bits) {
        return Ok(bits / WORD_BITS);
    }
    Err(Error::InvalidArgument(format!("signatures of {bits} bits: must be a multiple of 64 up to 1024")))
}
