//! Products of rows of weights in register tiles of two rows and two tokens, or of four rows and
//! one token. A sum is two vectors.
//!
//! The portable code handles elements after the last whole vector, and totals.
#![expect(unsafe_code, reason = "vector loads and stores")]

use std::arch::x86_64::*;

use super::{LANES, for_tiles, total};

/// Multiplies weights of `B` bytes; see [`super::products`].
///
/// # Safety
/// Needs the features below, whole rows and whole tokens, and a number in `y` for each pair.
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
pub(super) unsafe fn products<const B: usize>(weights: &[u8], cols: usize, x: &[f32], y: &mut [f32]) {
    let tokens = x.len() / cols;
    let rows_at_once = if tokens == 1 { 4 } else { 2 };
    for_tiles(cols * B, [cols, rows_at_once, 2], weights, x, y, |weights, x, y| {
        // SAFETY: `weights` has that many rows, and `x` has that many tokens.
        unsafe {
            match (weights.len() / (cols * B), x.len() / cols) {
                (4, 1) => tile::<B, 4, 1>(weights, cols, x, tokens, y),
                (2, 2) => tile::<B, 2, 2>(weights, cols, x, tokens, y),
                (2, 1) => tile::<B, 2, 1>(weights, cols, x, tokens, y),
                (_, 2) => tile::<B, 1, 2>(weights, cols, x, tokens, y),
                (_, _) => tile::<B, 1, 1>(weights, cols, x, tokens, y),
            }
        }
    });
}

/// Multiplies `R` rows with `T` tokens.
///
/// # Safety
/// Needs AVX2, `R` rows and `T` tokens.
#[target_feature(enable = "avx2")]
unsafe fn tile<const B: usize, const R: usize, const T: usize>(
    weights: &[u8],
    cols: usize,
    x: &[f32],
    tokens: usize,
    y: &mut [f32],
) {
    let mut sums = [[[_mm256_setzero_ps(); 2]; T]; R];
    let whole = cols - cols % LANES;
    for at in (0..whole).step_by(LANES) {
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row `r` has sixteen weights at `at`.
            let row = unsafe { load::<B>(weights.as_ptr().add((r * cols + at) * B)) };
            for (t, sum) in sums.iter_mut().enumerate() {
                let x = x.as_ptr().wrapping_add(t * cols + at);
                // SAFETY: token `t` has sixteen activations at `at`.
                let columns = unsafe { [_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(LANES / 2))] };
                sum[0] = _mm256_add_ps(sum[0], _mm256_mul_ps(row[0], columns[0]));
                sum[1] = _mm256_add_ps(sum[1], _mm256_mul_ps(row[1], columns[1]));
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let (rest, _) = weights[(r * cols + whole) * B..(r + 1) * cols * B].as_chunks::<B>();
        for (t, sum) in sums.iter().enumerate() {
            let mut lanes = [0.0; LANES];
            // SAFETY: sixteen numbers are two vectors.
            unsafe {
                _mm256_storeu_ps(lanes.as_mut_ptr(), sum[0]);
                _mm256_storeu_ps(lanes.as_mut_ptr().add(LANES / 2), sum[1]);
            }
            y[r * tokens + t] = total(lanes, rest, &x[t * cols + whole..(t + 1) * cols]);
        }
    }
}

/// Loads sixteen weights as FP32.
///
/// # Safety
/// Needs AVX2, and sixteen weights of `B` bytes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const B: usize>(weights: *const u8) -> [__m256; 2] {
    // SAFETY: sixteen weights are two vectors of FP32, or two half vectors of BF16.
    unsafe {
        if B == 4 {
            return [_mm256_loadu_ps(weights.cast()), _mm256_loadu_ps(weights.add(32).cast())];
        }
        [widened(_mm_loadu_si128(weights.cast())), widened(_mm_loadu_si128(weights.add(16).cast()))]
    }
}

/// Eight BF16 numbers as FP32.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(halves: __m128i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}
