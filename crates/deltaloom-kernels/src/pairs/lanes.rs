//! A lane for every row, for processors without a body of their own. Compilers turn it into vectors
//! of any width.

use super::{Activations, BLOCK, LEAST_WEIGHT, ROWS, Turned, block};
use crate::isa::per_isa;

/// Upper halves of FP32 numbers below 2^62, times parts below 2^64, do not overflow. Such a product
/// is exact, because BF16 numbers have few bits. So it does not matter whether additions are fused.
const WEIGHT_LIMIT: u16 = (127 + 62) << 7;
const PART_LIMIT: f32 = (1u64 << 63) as f32 * 2.0;

/// Columns that are multiplied at a time.
const COLUMNS: usize = if cfg!(target_arch = "aarch64") { 2 } else { 1 };

type Lanes = [f32; ROWS];

per_isa! {
    pub(super) fn are_ordinary(parts: &[f32]) -> bool = are_ordinary_body;
}

#[inline(always)]
fn are_ordinary_body(parts: &[f32]) -> bool {
    // No early end, so that it is vectorised. The comparison is false for NaN.
    parts.iter().fold(true, |all, x| all & (x.abs() < PART_LIMIT))
}

/// Whether no sum may be subnormal, and no product overflows.
fn are_ordinary_weights(weights: &[u8]) -> bool {
    let (mut least, mut most) = (u16::MAX, 0);
    for bytes in weights.as_chunks().0 {
        let size = u16::from_le_bytes(*bytes) & 0x7fff;
        // 0 becomes the largest one.
        least = least.min(size.wrapping_sub(1));
        most = most.max(size);
    }
    least >= LEAST_WEIGHT - 1 && most < WEIGHT_LIMIT
}

/// See [`super::Body`].
pub(super) fn add_products(weights: &[u8], x: &Activations, numbers: &[f32], sums: &mut [f32]) -> bool {
    if !x.is_ordinary || !are_ordinary_weights(weights) {
        return false;
    }
    for at in (0..x.cols).step_by(BLOCK) {
        let turned = turned(&block(weights, x.cols, at));
        let mut columns = numbers.chunks_exact(x.padded());
        let mut sums = sums.as_chunks_mut::<ROWS>().0.chunks_mut(COLUMNS);
        while let (Some(first), Some(sums)) = (columns.next(), sums.next()) {
            let column = |numbers: &[f32]| -> [f32; BLOCK] { std::array::from_fn(|k| numbers[at + k]) };
            match sums {
                [a, b] => {
                    let second = columns.next().map_or([0.0; BLOCK], column);
                    let added = multiplied(&turned, &[column(first), second]);
                    add(a, &added[0]);
                    add(b, &added[1]);
                }
                _ => sums.iter_mut().for_each(|sums| add(sums, &multiplied(&turned, &[column(first)])[0])),
            }
        }
    }
    true
}

/// The block as numbers, [columns, rows].
fn turned(block: &[[u8; super::BLOCK_BYTES]; ROWS]) -> Turned {
    let mut turned = Turned::new();
    for (row, weights) in block.iter().enumerate() {
        for (turned, bytes) in turned.0.iter_mut().zip(weights.as_chunks().0) {
            turned[row] = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    }
    turned
}

/// Sums of the products of a block.
#[inline(never)]
fn multiplied<const N: usize>(Turned(weights): &Turned, columns: &[[f32; BLOCK]; N]) -> [Lanes; N] {
    let (mut even, mut odd) = ([[0.0; ROWS]; N], [[0.0; ROWS]; N]);
    for k in (0..BLOCK).step_by(2) {
        for n in 0..N {
            even[n] = with_products(even[n], &weights[k], columns[n][k]);
            odd[n] = with_products(odd[n], &weights[k + 1], columns[n][k + 1]);
        }
    }
    std::array::from_fn(|n| std::array::from_fn(|row| even[n][row] + odd[n][row]))
}

/// Takes the sums by value, so that they stay in registers.
#[inline(always)]
fn with_products(mut sums: Lanes, weights: &Lanes, x: f32) -> Lanes {
    for row in 0..ROWS {
        sums[row] = if cfg!(target_arch = "aarch64") {
            weights[row].mul_add(x, sums[row])
        } else {
            weights[row] * x + sums[row]
        };
    }
    sums
}

fn add(sums: &mut Lanes, more: &Lanes) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}
