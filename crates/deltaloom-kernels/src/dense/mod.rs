//! Products of rows of weights with activations in FP32, added in one order: the same bits for any number of tokens or threads and on every instruction set.
//! Who patches the rows, and which of them are multiplied where, is decided above.
//!
//! The order: element `i` of a row belongs to lane `i mod 16`; each lane starts at 0 and adds its products by growing `i`, not fused; then lane `j` adds lane `j + 8`, and so on
//! with 4, 2 and 1.

use crate::isa::per_isa;

/// Lanes of a sum.
pub const LANES: usize = 16;

/// Rows of weights, one after another; bytes are little-endian.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weights<'a> {
    /// BF16: the upper half of an FP32 number.
    Bf16(&'a [u8]),
    /// FP32.
    F32(&'a [u8]),
    /// FP32 as numbers of this machine.
    Numbers(&'a [f32]),
}

impl Weights<'_> {
    /// Number of elements.
    #[must_use]
    pub fn elems(self) -> usize {
        match self {
            Self::Bf16(bytes) => bytes.len() / 2,
            Self::F32(bytes) => bytes.len() / 4,
            Self::Numbers(numbers) => numbers.len(),
        }
    }
}

/// Products of all rows of `cols` weights with all tokens: `x` is [tokens, cols], `y` [rows, tokens].
///
/// # Panics
/// When the lengths do not fit.
pub fn products(weights: Weights<'_>, cols: usize, x: &[f32], y: &mut [f32]) {
    assert!(cols > 0 && weights.elems().is_multiple_of(cols) && x.len().is_multiple_of(cols));
    let (rows, tokens) = (weights.elems() / cols, x.len() / cols);
    assert_eq!(y.len(), rows * tokens);
    match weights {
        Weights::Bf16(bytes) => products_bf16(bytes, cols, x, y),
        Weights::F32(bytes) => products_f32(bytes, cols, x, y),
        Weights::Numbers(numbers) => products_numbers(numbers, cols, x, y),
    }
}

/// Weights as FP32, which every BF16 number is exactly.
///
/// # Panics
/// When there are not as many numbers as weights.
pub fn widen(weights: Weights<'_>, out: &mut [f32]) {
    assert_eq!(weights.elems(), out.len());
    match weights {
        Weights::Bf16(bytes) => widen_bf16(bytes, out),
        Weights::F32(bytes) => widen_f32(bytes, out),
        Weights::Numbers(numbers) => out.copy_from_slice(numbers),
    }
}

per_isa! {
    fn products_bf16(weights: &[u8], cols: usize, x: &[f32], y: &mut [f32]) = products_bf16_body;
}
per_isa! {
    fn products_f32(weights: &[u8], cols: usize, x: &[f32], y: &mut [f32]) = products_f32_body;
}
per_isa! {
    fn products_numbers(weights: &[f32], cols: usize, x: &[f32], y: &mut [f32]) = products_numbers_body;
}
per_isa! {
    fn widen_bf16(weights: &[u8], out: &mut [f32]) = widen_bf16_body;
}
per_isa! {
    fn widen_f32(weights: &[u8], out: &mut [f32]) = widen_f32_body;
}

#[inline(always)]
fn products_bf16_body(weights: &[u8], cols: usize, x: &[f32], y: &mut [f32]) {
    products_body(weights.as_chunks::<2>().0, cols, x, y, bf16);
}

#[inline(always)]
fn products_f32_body(weights: &[u8], cols: usize, x: &[f32], y: &mut [f32]) {
    products_body(weights.as_chunks::<4>().0, cols, x, y, f32::from_le_bytes);
}

#[inline(always)]
fn products_numbers_body(weights: &[f32], cols: usize, x: &[f32], y: &mut [f32]) {
    products_body(weights, cols, x, y, |weight| weight);
}

#[inline(always)]
fn widen_bf16_body(weights: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(weights.as_chunks().0).for_each(|(out, bytes)| *out = bf16(*bytes));
}

#[inline(always)]
fn widen_f32_body(weights: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(weights.as_chunks().0).for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
}

#[inline(always)]
fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

#[inline(always)]
fn products_body<E: Copy>(
    weights: &[E],
    cols: usize,
    x: &[f32],
    y: &mut [f32],
    widen: impl Fn(E) -> f32 + Copy,
) {
    let tokens = x.len() / cols;
    if tokens == 0 {
        return;
    }
    for (row, y) in weights.chunks_exact(cols).zip(y.chunks_exact_mut(tokens)) {
        for (x, y) in x.chunks_exact(cols).zip(y) {
            *y = dot(row, x, widen);
        }
    }
}

#[inline(always)]
fn dot<E: Copy>(row: &[E], x: &[f32], widen: impl Fn(E) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    let (x_blocks, x_rest) = x.as_chunks::<LANES>();
    for (weights, x) in blocks.iter().zip(x_blocks) {
        for lane in 0..LANES {
            sums[lane] += widen(weights[lane]) * x[lane];
        }
    }
    for (sum, (weight, x)) in sums.iter_mut().zip(rest.iter().zip(x_rest)) {
        *sum += widen(*weight) * x;
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    /// The order of the module's first lines, word by word.
    fn in_order(row: &[f32], x: &[f32]) -> f32 {
        let mut lanes = [0.0f32; LANES];
        for (i, (w, x)) in row.iter().zip(x).enumerate() {
            lanes[i % LANES] += w * x;
        }
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|j| lanes[j] += lanes[j + half]);
        }
        lanes[0]
    }

    proptest! {
        #[test]
        fn every_isa_and_number_of_tokens_adds_in_the_same_order(
            rows in 0usize..11, cols in 1usize..90, tokens in 0usize..11, seed in any::<u32>(), is_bf16 in any::<bool>(),
        ) {
            let value = |i: usize| {
                let x = (u32::try_from(i).unwrap() + 1).wrapping_mul(seed | 1);
                f32::from_bits((x % 0x0180_0000 + 0x3f00_0000) | (x & 0x8000_0000))
            };
            let x: Vec<f32> = (0..tokens * cols).map(|i| value(i + 7777)).collect();
            let mut weights: Vec<f32> = (0..rows * cols).map(value).collect();
            let bytes: Vec<u8> = if is_bf16 {
                weights.iter_mut().for_each(|w| *w = f32::from_bits(w.to_bits() & 0xffff_0000));
                weights.iter().flat_map(|w| w.to_le_bytes()[2..].to_vec()).collect()
            } else {
                weights.iter().flat_map(|w| w.to_le_bytes()).collect()
            };
            let packed = if is_bf16 { Weights::Bf16(&bytes) } else { Weights::F32(&bytes) };
            let rows_of = || weights.chunks_exact(cols);
            let expected: Vec<u32> = rows_of()
                .flat_map(|row| x.chunks_exact(cols).map(|x| in_order(row, x).to_bits()).collect::<Vec<_>>())
                .collect();
            for_each_isa(|isa| {
                let mut y = vec![f32::NAN; rows * tokens];
                products(packed, cols, &x, &mut y);
                prop_assert_eq!(y.iter().map(|y| y.to_bits()).collect::<Vec<_>>(), expected.clone(), "{:?}", isa);
                let mut wide = vec![0.0; rows * cols];
                widen(packed, &mut wide);
                prop_assert_eq!(&wide, &weights);
                products(Weights::Numbers(&weights), cols, &x, &mut y);
                prop_assert_eq!(y.iter().map(|y| y.to_bits()).collect::<Vec<_>>(), expected.clone(), "{:?}", isa);
                Ok(())
            })?;
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let weights: Vec<u8> =
            [1.0f32, f32::NAN, f32::INFINITY].iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut y = [0.0; 3];
        products(Weights::F32(&weights), 1, &[2.0], &mut y);
        assert!(y[0] == 2.0 && y[1].is_nan() && y[2] == f32::INFINITY);
    }
}
