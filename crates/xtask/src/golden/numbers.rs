//! A small deterministic generator, and the bytes of each dtype, for golden inputs.
//!
//! The results are stored, so the generator only has to stay the same for as long as nobody needs
//! new numbers.

use half::{bf16, f16};

/// SplitMix64 (Steele, Lea, Flood 2014): one multiplication chain per number, any seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, but not including, `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Likewise, for indices of a list.
    pub(super) fn index(&mut self, end: u64) -> usize {
        usize::try_from(self.below(end)).unwrap_or(0)
    }

    /// From 0 up to 1, in steps of 2^-32.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 32) as f64 / 4_294_967_296.0
    }

    /// Approximately normal, with mean 0 and deviation 1: the sum of twelve uniform numbers,
    /// without any library function.
    pub(super) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }

    pub(super) fn normals(&mut self, count: usize, deviation: f64) -> Vec<f64> {
        (0..count).map(|_| self.normal() * deviation).collect()
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

pub(super) fn bf16s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| bf16::from_f64(*value).to_le_bytes()).collect()
}

pub(super) fn f16s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| f16::from_f64(*value).to_le_bytes()).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is intended")]
pub(super) fn f32s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect()
}

pub(super) fn f64s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// E5M2: the top bytes of truncated halves.
pub(super) fn f8_e5m2s(values: &[f64]) -> Vec<u8> {
    f16s(values).chunks_exact(2).map(|half| half[1]).collect()
}

/// E4M3: truncated halves; exponents beyond its range are clamped.
pub(super) fn f8_e4m3s(values: &[f64]) -> Vec<u8> {
    let cut = |half: f16| {
        let bits = half.to_bits();
        let exponent = ((bits >> 10) & 31).clamp(8, 23) - 8;
        let [byte, _] = ((bits >> 8) & 0x80 | exponent << 3 | (bits >> 7) & 7).to_le_bytes();
        byte
    };
    values.iter().map(|value| cut(f16::from_f64(*value))).collect()
}

/// Integers of `size` bytes in two's complement.
pub(super) fn integers(values: &[i64], size: usize) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes().into_iter().take(size).collect::<Vec<_>>()).collect()
}

/// Rounded towards zero and clamped.
#[expect(clippy::cast_possible_truncation, reason = "the cast clamps")]
pub(super) fn i8s(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| (*value as i8).to_le_bytes()).collect()
}
