//! Widens signed codes of 2, 4 or 8 bits, which share a scale per group, to rows of numbers. Also
//! adds multiples of weights to numbers.
//!
//! It chooses no scales; [`crate::dense`] computes products of rows.

use crate::dense::Weights;
use crate::isa::per_isa;

/// Number of codes that are packed together. Rows of codes are padded with zeros to whole blocks.
pub const BLOCK: usize = 32;

/// Width of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeBits {
    /// From -1 to 1.
    Two,
    /// From -7 to 7.
    Four,
    /// From -127 to 127.
    Eight,
}

impl CodeBits {
    /// The width in bits.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The largest code; the smallest is its negative.
    #[must_use]
    pub const fn largest(self) -> i8 {
        match self {
            Self::Two => 1,
            Self::Four => 7,
            Self::Eight => 127,
        }
    }

    /// Number of bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        BLOCK * self.bits() / 8
    }
}

/// Appends a block of codes. With n bytes per block, byte i holds the codes i, i + n, i + 2 n and
/// so on, from the lowest bit up.
pub fn pack_block(width: CodeBits, codes: &[i8; BLOCK], out: &mut Vec<u8>) {
    let (bytes, bits) = (width.block_bytes(), width.bits());
    let mask = u8::MAX >> (8 - bits);
    out.extend((0..bytes).map(|i| {
        let fields = codes[i..].iter().step_by(bytes).enumerate();
        fields.fold(0, |byte, (part, code)| byte | (code.cast_unsigned() & mask) << (part * bits))
    }));
}

/// Adds weights times `factor` to `out`.
///
/// # Panics
/// If there are not `out.len()` weights.
pub fn add_scaled(weights: Weights<'_>, factor: f32, out: &mut [f32]) {
    assert_eq!(weights.elems(), out.len());
    match weights {
        Weights::Bf16(bytes) => add_bf16_scaled(bytes, factor, out),
        Weights::F32(bytes) => add_f32_scaled(bytes, factor, out),
        Weights::Numbers(numbers) => add_numbers_scaled(numbers, factor, out),
    }
}

per_isa! {
    fn add_bf16_scaled(column: &[u8], factor: f32, out: &mut [f32]) = add_bf16_body;
}

per_isa! {
    fn add_f32_scaled(column: &[u8], factor: f32, out: &mut [f32]) = add_f32_body;
}

per_isa! {
    fn add_numbers_scaled(column: &[f32], factor: f32, out: &mut [f32]) = add_numbers_body;
}

per_isa! {
    /// Writes the numbers that the codes stand for. Each `group` of codes, a multiple of [`BLOCK`],
    /// shares one BF16 scale.
    pub fn widen_codes(width: CodeBits, codes: &[u8], scales: &[u16], group: usize, out: &mut [f32]) = widen_body;
}

#[inline(always)]
fn widen(bf16: u16) -> f32 {
    f32::from_bits(u32::from(bf16) << 16)
}

#[inline(always)]
fn add_bf16_body(column: &[u8], factor: f32, out: &mut [f32]) {
    let column = column.as_chunks().0.iter().map(|bytes| widen(u16::from_le_bytes(*bytes)));
    out.iter_mut().zip(column).for_each(|(out, w)| *out += factor * w);
}

#[inline(always)]
fn add_f32_body(column: &[u8], factor: f32, out: &mut [f32]) {
    let column = column.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    out.iter_mut().zip(column).for_each(|(out, w)| *out += factor * w);
}

#[inline(always)]
fn add_numbers_body(column: &[f32], factor: f32, out: &mut [f32]) {
    out.iter_mut().zip(column).for_each(|(out, w)| *out += factor * w);
}

#[inline(always)]
fn widen_body(width: CodeBits, codes: &[u8], scales: &[u16], group: usize, out: &mut [f32]) {
    match width {
        CodeBits::Two => widen_of::<2, 8>(codes, scales, group, out),
        CodeBits::Four => widen_of::<4, 16>(codes, scales, group, out),
        CodeBits::Eight => widen_of::<8, 32>(codes, scales, group, out),
    }
}

/// Widens codes of `BITS` bits, with `BYTES` bytes per block.
#[inline(always)]
fn widen_of<const BITS: usize, const BYTES: usize>(
    codes: &[u8],
    scales: &[u16],
    group: usize,
    out: &mut [f32],
) {
    let groups = codes.chunks((group * BITS / 8).max(BYTES)).zip(out.chunks_mut(group.max(BLOCK)));
    for ((codes, out), scale) in groups.zip(scales) {
        let scale = widen(*scale);
        for (codes, out) in codes.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
            for part in 0..8 / BITS {
                for i in 0..BYTES {
                    // Words of 32 bits, because vectors can shift those but not bytes.
                    let top = u32::from(codes[i]) << (32 - BITS * (part + 1));
                    out[part * BYTES + i] = scale * (top.cast_signed() >> (32 - BITS)) as f32;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codes_and_multiples_are_those_of_plain_numbers_on_every_isa(
            words in prop::collection::vec(any::<i8>(), 1..200), activations in prop::collection::vec(-8i8..8, 200), blocks_per_scale in 1usize..4,
        ) {
            // Small integers, whose sums single precision holds exactly in any order.
            let len = words.len();
            let x: Vec<f32> = activations.iter().map(|a| f32::from(*a)).collect();
            let numbers: Vec<f32> = words.iter().map(|w| f32::from(*w)).collect();
            let f32s: Vec<u8> = numbers.iter().flat_map(|w| w.to_le_bytes()).collect();
            let bf16: Vec<u8> = numbers.iter().flat_map(|w| w.to_le_bytes()[2..].to_vec()).collect();
            let expected: Vec<f32> = x.iter().zip(&numbers).map(|(x, w)| x + 2.0 * w).collect();
            for_each_isa(|_| {
                for weights in [Weights::Bf16(&bf16), Weights::F32(&f32s), Weights::Numbers(&numbers)] {
                    let mut sums = x[..len].to_vec();
                    add_scaled(weights, 2.0, &mut sums);
                    prop_assert_eq!(&sums, &expected);
                }
                for width in [CodeBits::Two, CodeBits::Four, CodeBits::Eight] {
                    let padded = len.next_multiple_of(BLOCK);
                    let code = |i: usize| words.get(i).map_or(0, |w| (*w).clamp(-width.largest(), width.largest()));
                    let mut codes = Vec::new();
                    for block in 0..padded / BLOCK {
                        pack_block(width, &std::array::from_fn(|i| code(block * BLOCK + i)), &mut codes);
                    }
                    prop_assert_eq!(codes.len(), padded / BLOCK * width.block_bytes());
                    let group = blocks_per_scale * BLOCK;
                    // Scales 1, 2, 4 and so on.
                    let scales: Vec<u16> = (0..padded.div_ceil(group)).map(|g| 0x3f80 + 0x80 * u16::try_from(g).unwrap()).collect();
                    let plain: Vec<f32> = (0..padded).map(|i| f32::from(code(i)) * 2f32.powi(i32::try_from(i / group).unwrap())).collect();
                    let mut widened = vec![9.0; padded];
                    widen_codes(width, &codes, &scales, group, &mut widened);
                    prop_assert_eq!(widened, plain);
                }
                Ok(())
            })?;
        }
    }
}
