//! Products of rows of BF16 and F32 with activations in single precision, and signed codes of 2, 4 or 8 bits with a scale per group, which are widened to such rows.
//! It chooses no scales. Sums have one order on every machine: 32 of them, which are added at the end, and nothing is fused.

use crate::isa::per_isa;

/// Codes that are packed together, and sums that are kept side by side. Rows of codes are filled up with zeros to whole blocks.
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
    /// As a number.
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

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        BLOCK * self.bits() / 8
    }
}

/// Appends a block of codes: byte i has the codes i, i + n, i + 2 n and so on from the lowest bit up, where n is the number of bytes.
pub fn pack_block(width: CodeBits, codes: &[i8; BLOCK], out: &mut Vec<u8>) {
    let (bytes, bits) = (width.block_bytes(), width.bits());
    let mask = u8::MAX >> (8 - bits);
    out.extend((0..bytes).map(|i| {
        let fields = codes[i..].iter().step_by(bytes).enumerate();
        fields.fold(0, |byte, (part, code)| byte | (code.cast_unsigned() & mask) << (part * bits))
    }));
}

per_isa! {
    /// Product of a row of BF16.
    pub fn bf16_product(row: &[u16], x: &[f32]) -> f32 = bf16_body;
}

per_isa! {
    /// Product of a row of F32.
    pub fn f32_product(row: &[f32], x: &[f32]) -> f32 = f32_body;
}

per_isa! {
    /// Adds a column of BF16 times `factor`.
    pub fn add_bf16_scaled(column: &[u16], factor: f32, out: &mut [f32]) = add_bf16_body;
}

per_isa! {
    /// Adds a column of F32 times `factor`.
    pub fn add_f32_scaled(column: &[f32], factor: f32, out: &mut [f32]) = add_f32_body;
}

per_isa! {
    /// Writes the numbers that codes stand for, of which `group` at a time, a multiple of [`BLOCK`], have a scale, a BF16.
    pub fn widen_codes(width: CodeBits, codes: &[u8], scales: &[u16], group: usize, out: &mut [f32]) = widen_body;
}

#[inline(always)]
fn bf16_body(row: &[u16], x: &[f32]) -> f32 {
    product(row, x, widen)
}

#[inline(always)]
fn f32_body(row: &[f32], x: &[f32]) -> f32 {
    product(row, x, |w| w)
}

#[inline(always)]
fn widen(bf16: u16) -> f32 {
    f32::from_bits(u32::from(bf16) << 16)
}

#[inline(always)]
fn product<T: Copy>(row: &[T], x: &[f32], value: impl Fn(T) -> f32) -> f32 {
    let len = row.len().min(x.len());
    let (row, x) = (&row[..len], &x[..len]);
    let mut sums = [0.0; BLOCK];
    let ((row, row_rest), (x, x_rest)) = (row.as_chunks::<BLOCK>(), x.as_chunks::<BLOCK>());
    for (row, x) in row.iter().zip(x) {
        for i in 0..BLOCK {
            sums[i] += value(row[i]) * x[i];
        }
    }
    for ((sum, w), x) in sums.iter_mut().zip(row_rest).zip(x_rest) {
        *sum += value(*w) * x;
    }
    total(sums)
}

/// Halves are added until one sum is left.
#[inline(always)]
fn total(mut sums: [f32; BLOCK]) -> f32 {
    let mut half = BLOCK / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

#[inline(always)]
fn add_bf16_body(column: &[u16], factor: f32, out: &mut [f32]) {
    out.iter_mut().zip(column).for_each(|(out, w)| *out += factor * widen(*w));
}

#[inline(always)]
fn add_f32_body(column: &[f32], factor: f32, out: &mut [f32]) {
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

/// Codes of `BITS` bits, `BYTES` bytes to a block.
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
                    // Words of 32 bits: vectors have shifts for those, and none for bytes.
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
        fn products_are_those_of_plain_sums_and_equal_on_every_isa(
            words in prop::collection::vec(any::<i8>(), 1..200), activations in prop::collection::vec(-8i8..8, 200), blocks_per_scale in 1usize..4,
        ) {
            // Small integers: single precision holds their sums exactly, in any order.
            let len = words.len();
            let x: Vec<f32> = activations.iter().map(|a| f32::from(*a)).collect();
            let bf16: Vec<u16> = words.iter().map(|w| u16::try_from(f32::from(*w).to_bits() >> 16).unwrap()).collect();
            let f32s: Vec<f32> = words.iter().map(|w| f32::from(*w)).collect();
            let expected: f32 = f32s.iter().zip(&x).map(|(w, x)| w * x).sum();
            for_each_isa(|_| {
                prop_assert_eq!(bf16_product(&bf16, &x), expected);
                prop_assert_eq!(f32_product(&f32s, &x), expected);
                let (mut a, mut b) = (x[..len].to_vec(), x[..len].to_vec());
                add_bf16_scaled(&bf16, 2.0, &mut a);
                add_f32_scaled(&f32s, 2.0, &mut b);
                for i in 0..len {
                    prop_assert_eq!((a[i], b[i]), (x[i] + 2.0 * f32s[i], x[i] + 2.0 * f32s[i]));
                }
                for width in [CodeBits::Two, CodeBits::Four, CodeBits::Eight] {
                    let padded = len.next_multiple_of(BLOCK);
                    let code = |i: usize| words.get(i).map_or(0, |w| (*w).clamp(-width.largest(), width.largest()));
                    let mut codes = Vec::new();
                    for block in 0..padded / BLOCK {
                        pack_block(width, &std::array::from_fn(|i| code(block * BLOCK + i)), &mut codes);
                    }
                    prop_assert_eq!(codes.len(), padded / BLOCK * width.block_bytes());
                    let mut padded_x = x[..len].to_vec();
                    padded_x.resize(padded, 3.0);
                    let group = blocks_per_scale * BLOCK;
                    // Scales 1, 2, 4 and so on.
                    let scales: Vec<u16> = (0..padded.div_ceil(group)).map(|g| 0x3f80 + 0x80 * u16::try_from(g).unwrap()).collect();
                    let plain: f32 = (0..len).map(|i| f32::from(code(i)) * x[i] * 2f32.powi(i32::try_from(i / group).unwrap())).sum();
                    let mut widened = vec![9.0; padded];
                    widen_codes(width, &codes, &scales, group, &mut widened);
                    prop_assert_eq!(f32_product(&widened, &padded_x), plain);
                }
                Ok(())
            })?;
        }
    }
}
