//! Products of rows of weights with activations in FP32, added in one order. They have the same
//! bits for any number of tokens or threads and on every instruction set.
//!
//! Which rows are patched, and where each is multiplied, is decided above.
//!
//! The order: element `i` of a row belongs to lane `i mod 16`. Each lane starts at 0 and adds its
//! products by increasing `i`, not fused. Then lane `j` adds lane `j + 8`, and so on with 4, 2 and
//! 1.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::borrow::Cow;
use std::slice;

use crate::isa::per_isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, isa};

/// Number of lanes of a sum.
pub const LANES: usize = 16;

/// Rows of weights, one after another; bytes are little-endian.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weights<'a> {
    /// BF16: the upper half of an FP32 number.
    Bf16(&'a [u8]),
    /// FP32.
    F32(&'a [u8]),
    /// FP32 as numbers in this machine's byte order.
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

/// Multiplies all rows of `cols` weights with all tokens: `x` is [tokens, cols], `y` is
/// [rows, tokens].
///
/// # Panics
/// If the lengths do not fit.
pub fn products(weights: Weights<'_>, cols: usize, x: &[f32], y: &mut [f32]) {
    assert!(cols > 0 && weights.elems().is_multiple_of(cols) && x.len().is_multiple_of(cols));
    let (rows, tokens) = (weights.elems() / cols, x.len() / cols);
    assert_eq!(y.len(), rows * tokens);
    match weights {
        Weights::Bf16(bytes) => products_of::<2>(bytes, cols, x, y),
        Weights::F32(bytes) => products_of::<4>(bytes, cols, x, y),
        Weights::Numbers(numbers) => products_of::<4>(&little_endian(numbers), cols, x, y),
    }
}

/// Converts weights to FP32, which holds every BF16 number exactly.
///
/// # Panics
/// If there are not as many numbers as weights.
pub fn widen(weights: Weights<'_>, out: &mut [f32]) {
    assert_eq!(weights.elems(), out.len());
    match weights {
        Weights::Bf16(bytes) => widen_bf16(bytes, out),
        Weights::F32(bytes) => widen_f32(bytes, out),
        Weights::Numbers(numbers) => out.copy_from_slice(numbers),
    }
}

/// The numbers as little-endian bytes: borrowed if memory already has that order, else a copy.
fn little_endian(numbers: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "big") {
        return Cow::Owned(numbers.iter().flat_map(|number| number.to_le_bytes()).collect());
    }
    #[expect(unsafe_code, reason = "looking at numbers as bytes")]
    // SAFETY: numbers may be read as bytes; the slice has their size and their lifetime.
    Cow::Borrowed(unsafe { slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) })
}

/// Multiplies weights of `B` bytes on the instruction set in use.
fn products_of<const B: usize>(weights: &[u8], cols: usize, x: &[f32], y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() >= Isa::Avx2 {
        #[expect(unsafe_code, reason = "calling functions with detected target features")]
        // SAFETY: `isa` returns only what was detected, and `products` has compared the lengths.
        return unsafe {
            match isa() {
                Isa::Avx512 | Isa::Amx => avx512::products::<B>(weights, cols, x, y),
                _ => avx2::products::<B>(weights, cols, x, y),
            }
        };
    }
    products_body::<B, ROWS, TOKENS>(weights, cols, x, y);
}

/// Rows and tokens of a tile. Their sums must stay in registers: 16 registers of 16 bytes, or 32
/// with NEON.
const ROWS: usize = 2;
const TOKENS: usize = if cfg!(target_arch = "aarch64") { 2 } else { 1 };

per_isa! {
    fn widen_bf16(weights: &[u8], out: &mut [f32]) = widen_bf16_body;
}
per_isa! {
    fn widen_f32(weights: &[u8], out: &mut [f32]) = widen_f32_body;
}

#[inline(always)]
fn widen_bf16_body(weights: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(weights.as_chunks().0).for_each(|(out, bytes)| *out = number::<2>(*bytes));
}

#[inline(always)]
fn widen_f32_body(weights: &[u8], out: &mut [f32]) {
    out.iter_mut().zip(weights.as_chunks().0).for_each(|(out, bytes)| *out = number::<4>(*bytes));
}

/// Converts numbers that BF16 holds to BF16.
///
/// # Panics
/// If there are not two bytes for each.
pub fn narrow(numbers: &[f32], out: &mut [u8]) {
    assert_eq!(numbers.len() * 2, out.len());
    narrow_all(numbers, out);
}

per_isa! {
    fn narrow_all(numbers: &[f32], out: &mut [u8]) = narrow_body;
}

#[inline(always)]
fn narrow_body(numbers: &[f32], out: &mut [u8]) {
    for (out, x) in out.as_chunks_mut().0.iter_mut().zip(numbers) {
        let [_, _, low, high] = x.to_le_bytes();
        *out = [low, high];
    }
}

/// The number with these upper bytes.
#[inline(always)]
fn number<const B: usize>(bytes: [u8; B]) -> f32 {
    // Shifted, because a value written in parts and read as a whole stalls and prevents
    // vectorisation.
    f32::from_bits(match bytes[..] {
        [a, b] => u32::from(u16::from_le_bytes([a, b])) << 16,
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    })
}

/// Bytes of activations that are multiplied with all rows before the next ones: half of a
/// second-level cache.
const X_BYTES: usize = 1 << 19;

/// Cuts a product into register tiles of some rows and up to `group` tokens. `tile` gets their
/// bytes, their activations, and the products from the tile's first one on. Rows of weights come in
/// groups of 4, 2 and 1.
#[inline(always)]
fn for_tiles(
    row_bytes: usize,
    [cols, rows_at_once, group]: [usize; 3],
    weights: &[u8],
    x: &[f32],
    y: &mut [f32],
    mut tile: impl FnMut(&[u8], &[f32], &mut [f32]),
) {
    let tokens = x.len() / cols;
    let panel = (X_BYTES / size_of::<f32>() / cols).next_multiple_of(group).max(group);
    for first_token in (0..tokens).step_by(panel) {
        let in_panel = first_token..tokens.min(first_token + panel);
        let (mut left, mut row) = (weights, 0);
        while !left.is_empty() {
            let rows = rows_at_once.min(1 << (left.len() / row_bytes).ilog2());
            let (these, others) = left.split_at(rows * row_bytes);
            for token in in_panel.clone().step_by(group) {
                let end = in_panel.end.min(token + group);
                tile(these, &x[token * cols..end * cols], &mut y[row * tokens + token..]);
            }
            (left, row) = (others, row + rows);
        }
    }
}

#[inline(always)]
fn products_body<const B: usize, const R: usize, const T: usize>(
    weights: &[u8],
    cols: usize,
    x: &[f32],
    y: &mut [f32],
) {
    let tokens = x.len() / cols;
    for_tiles(cols * B, [cols, R, T], weights, x, y, |weights, x, y| {
        match (weights.len() == R * cols * B, x.len() == T * cols) {
            (true, true) => tile::<B, R, T>(weights, cols, x, tokens, y),
            (true, false) => tile::<B, R, 1>(weights, cols, x, tokens, y),
            (false, is_whole) => {
                for (row, weights) in weights.chunks_exact(cols * B).enumerate() {
                    let y = &mut y[row * tokens..];
                    if is_whole {
                        tile::<B, 1, T>(weights, cols, x, tokens, y);
                    } else {
                        tile::<B, 1, 1>(weights, cols, x, tokens, y);
                    }
                }
            }
        }
    });
}

/// Multiplies `R` rows with `T` tokens.
fn tile<const B: usize, const R: usize, const T: usize>(
    weights: &[u8],
    cols: usize,
    x: &[f32],
    tokens: usize,
    y: &mut [f32],
) {
    let rows: [_; R] = std::array::from_fn(|r| weights[r * cols * B..][..cols * B].as_chunks::<B>().0);
    let x: [_; T] = std::array::from_fn(|t| &x[t * cols..][..cols]);
    let mut sums = [[[0.0f32; LANES]; T]; R];
    add_blocks(rows, x, &mut sums);
    let whole = cols - cols % LANES;
    for r in 0..R {
        for t in 0..T {
            y[r * tokens + t] = total(sums[r][t], &rows[r][whole..], &x[t][whole..]);
        }
    }
}

/// Adds the products of all whole blocks. A separate function, because the compiler does not always
/// vectorise it as a part of another one.
#[inline(never)]
fn add_blocks<const B: usize, const R: usize, const T: usize>(
    rows: [&[[u8; B]]; R],
    x: [&[f32]; T],
    sums: &mut [[[f32; LANES]; T]; R],
) {
    let mut all = *sums;
    for block in 0..x[0].len() / LANES {
        for r in 0..R {
            let row = wide(block_of(rows[r], block));
            for t in 0..T {
                all[r][t] = add_products(all[r][t], &row, block_of(x[t], block));
            }
        }
    }
    *sums = all;
}

/// The total of a sum, after adding the products past the last whole block to its lanes.
#[inline(always)]
fn total<const B: usize>(mut sums: [f32; LANES], weights: &[[u8; B]], x: &[f32]) -> f32 {
    for (sum, (weight, x)) in sums.iter_mut().zip(weights.iter().zip(x)) {
        *sum += number(*weight) * x;
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

#[inline(always)]
fn wide<const B: usize>(weights: &[[u8; B]; LANES]) -> [f32; LANES] {
    let mut all = [0.0; LANES];
    all.iter_mut().zip(weights).for_each(|(number, bytes)| *number = self::number(*bytes));
    all
}

/// Takes the sums by value, so that they stay in registers; through a reference the compiler does
/// not vectorise.
#[inline(always)]
fn add_products(mut sums: [f32; LANES], weights: &[f32; LANES], x: &[f32; LANES]) -> [f32; LANES] {
    for lane in 0..LANES {
        sums[lane] += weights[lane] * x[lane];
    }
    sums
}

#[inline(always)]
fn block_of<T>(all: &[T], block: usize) -> &[T; LANES] {
    &all.as_chunks().0[block]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;
    use proptest::prelude::*;

    /// The order from the module documentation, word by word.
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
