//! Pair order, number by number: the definition. It also multiplies what the other bodies cannot:
//! weights so small that sums may be subnormal, and numbers so large that products may overflow.

use super::{Activations, BLOCK, ROWS, WEIGHT};

/// Sums of the products of up to [`ROWS`] rows with every column, [columns, ROWS].
pub(super) fn products(weights: &[u8], x: &Activations, numbers: &[f32], sums: &mut [f32]) {
    let rows = weights.chunks_exact(x.cols * WEIGHT);
    for (numbers, sums) in numbers.chunks_exact(x.padded()).zip(sums.chunks_exact_mut(ROWS)) {
        for (row, sum) in rows.clone().zip(sums) {
            *sum = product(row, numbers);
        }
    }
}

/// The sum of the products of a row with a column.
fn product(row: &[u8], column: &[f32]) -> f32 {
    let mut sum = 0.0;
    let blocks = row.chunks(BLOCK * WEIGHT).zip(column.chunks(BLOCK));
    for (row, column) in blocks {
        let (mut even, mut odd) = (0.0, 0.0);
        let weight = |i: usize| match row.get(i * WEIGHT..(i + 1) * WEIGHT) {
            Some(bytes) => f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16),
            None => 0.0,
        };
        for k in (0..BLOCK).step_by(2) {
            even = fused(weight(k), column[k], even);
            odd = fused(weight(k + 1), column[k + 1], odd);
        }
        sum = flushed(sum + flushed(even + odd));
    }
    sum
}

/// `w * x + sum`, rounded once; subnormal numbers count as 0, before and after.
fn fused(w: f32, x: f32, sum: f32) -> f32 {
    let w = flushed(w);
    let product = w * x;
    // The product of two BF16 numbers is an FP32 number, unless it is too large or too small.
    let is_exact = product.is_normal() || w == 0.0 || x == 0.0;
    if is_exact {
        return flushed(product + sum);
    }
    let fused = w.mul_add(x, sum);
    let exact = f64::from(w) * f64::from(x) + f64::from(sum);
    // What is rounded up to the smallest normal number from further than half a unit of its
    // precision was subnormal.
    let least = f64::from(f32::MIN_POSITIVE);
    let is_tiny =
        fused.abs() == f32::MIN_POSITIVE && exact.abs() < least - least * f64::from(f32::EPSILON) / 4.0;
    if is_tiny { 0.0 * fused } else { flushed(fused) }
}

fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0 * x } else { x }
}
