//! Products of rows of weights in register tiles of up to four rows and four tokens. The sums stay
//! in registers, and a lane of a sum is a lane of a vector.
//!
//! It does not divide the work; tiles are cut as for every instruction set.
#![expect(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::cast_possible_truncation, reason = "masks of lanes")]

use std::arch::x86_64::*;

use super::{LANES, for_tiles};

/// Rows and tokens of the largest tile: 16 sums.
const ROWS: usize = 4;
const TOKENS: usize = 4;
/// How many bytes ahead few tokens ask for weights: line by line as they lie, which is the stream
/// that rows side by side are not.
const AHEAD: usize = 48 << 10;
/// Bytes of a line of a cache.
const LINE: usize = 64;

/// Multiplies weights of `B` bytes; see [`super::products`].
///
/// # Safety
/// Needs the features below, whole rows and whole tokens, and a number in `y` for each pair.
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,lzcnt,popcnt"
)]
pub(super) unsafe fn products<const B: usize>(weights: &[u8], cols: usize, x: &[f32], y: &mut [f32]) {
    let tokens = x.len() / cols;
    for_tiles(cols * B, [cols, ROWS, TOKENS], weights, x, y, |weights, x, y| {
        let (rows, width) = (weights.len() / (cols * B), x.len() / cols);
        assert!(y.len() > (rows - 1) * tokens + width - 1);
        // SAFETY: `weights` has `rows` rows, `x` has `width` tokens, and `y` has room for each
        // pair.
        unsafe {
            match (rows, width) {
                (4, 4) => tile::<B, 4, 4>(weights, cols, x, tokens, y),
                (4, 3) => tile::<B, 4, 3>(weights, cols, x, tokens, y),
                (4, 2) => tile::<B, 4, 2>(weights, cols, x, tokens, y),
                (4, 1) => tile::<B, 4, 1>(weights, cols, x, tokens, y),
                (2, 4) => tile::<B, 2, 4>(weights, cols, x, tokens, y),
                (2, 3) => tile::<B, 2, 3>(weights, cols, x, tokens, y),
                (2, 2) => tile::<B, 2, 2>(weights, cols, x, tokens, y),
                (2, 1) => tile::<B, 2, 1>(weights, cols, x, tokens, y),
                (_, 4) => tile::<B, 1, 4>(weights, cols, x, tokens, y),
                (_, 3) => tile::<B, 1, 3>(weights, cols, x, tokens, y),
                (_, 2) => tile::<B, 1, 2>(weights, cols, x, tokens, y),
                (_, _) => tile::<B, 1, 1>(weights, cols, x, tokens, y),
            }
        }
    });
}

/// Multiplies `R` rows with `T` tokens.
///
/// # Safety
/// Needs AVX-512, `R` rows, `T` tokens, and room for `T` numbers in `y` at every multiple of
/// `tokens` below `R * tokens`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,bmi1,bmi2")]
unsafe fn tile<const B: usize, const R: usize, const T: usize>(
    weights: &[u8],
    cols: usize,
    x: &[f32],
    tokens: usize,
    y: &mut [f32],
) {
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    let (weights, x) = (weights.as_ptr(), x.as_ptr());
    let whole = cols - cols % (2 * LANES);
    let spread = spread();
    let mut at = 0;
    while at < whole {
        let mut columns = [[_mm512_setzero_ps(); 2]; T];
        for (t, columns) in columns.iter_mut().enumerate() {
            let x = x.wrapping_add(t * cols + at);
            // SAFETY: token `t` has two whole vectors at `at`.
            *columns = unsafe { [_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(LANES))] };
        }
        if tokens <= TOKENS {
            for line in 0..R * 2 * LANES * B / LINE {
                let next = weights.wrapping_add(AHEAD + at * R * B + line * LINE);
                // To ask for what is not there does no harm.
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row `r` has two whole vectors at `at`.
            let row = unsafe { load_two::<B>(weights.add((r * cols + at) * B), spread) };
            for (sum, columns) in sums.iter_mut().zip(columns) {
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(row[0], columns[0]));
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(row[1], columns[1]));
            }
        }
        at += 2 * LANES;
    }
    while at < cols {
        // The other lanes are zero: a sum is never -0, so adding 0 changes nothing.
        let lanes = _bzhi_u32(u32::MAX, (cols - at).min(LANES) as u32) as __mmask16;
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: lanes past the end of the row are not read.
            let row = unsafe { load_some::<B>(lanes, weights.add((r * cols + at) * B)) };
            for (t, sum) in sums.iter_mut().enumerate() {
                // SAFETY: lanes past the end of the token are not read.
                let columns = unsafe { _mm512_maskz_loadu_ps(lanes, x.add(t * cols + at)) };
                *sum = _mm512_add_ps(*sum, _mm512_mul_ps(row, columns));
            }
        }
        at += LANES;
    }
    let sum = |i: usize| if i < R * T { sums[i / T][i % T] } else { _mm512_setzero_ps() };
    let mut totals = [0.0; ROWS * TOKENS];
    for first in (0..R * T).step_by(4) {
        let four = totals_of([sum(first), sum(first + 1), sum(first + 2), sum(first + 3)]);
        // SAFETY: `first` is at most 12, and `totals` has 16 numbers.
        unsafe { _mm_storeu_ps(totals.as_mut_ptr().add(first), four) };
    }
    for (r, totals) in totals.chunks_exact(T).take(R).enumerate() {
        y[r * tokens..][..T].copy_from_slice(totals);
    }
}

/// Where each of the first and of the last sixteen weights of a vector goes: to the upper half of a
/// 32-bit word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn spread() -> [__m512i; 2] {
    let words = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let first = _mm512_slli_epi32::<16>(words);
    [first, _mm512_add_epi32(first, _mm512_set1_epi32(16 << 16))]
}

/// Loads two vectors of weights as FP32.
///
/// # Safety
/// Needs AVX-512, and 32 weights of `B` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_two<const B: usize>(weights: *const u8, spread: [__m512i; 2]) -> [__m512; 2] {
    const UPPER: __mmask32 = 0xaaaa_aaaa;
    // SAFETY: 32 weights have 64 bytes, and another 64 if they are FP32.
    let first = unsafe { _mm512_loadu_si512(weights.cast()) };
    if B == 4 {
        // SAFETY: as above.
        let second = unsafe { _mm512_loadu_si512(weights.add(64).cast()) };
        return [_mm512_castsi512_ps(first), _mm512_castsi512_ps(second)];
    }
    [
        _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(UPPER, spread[0], first)),
        _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(UPPER, spread[1], first)),
    ]
}

/// Loads some of sixteen weights, and zeros for the others.
///
/// # Safety
/// Needs AVX-512, and those of the weights whose lanes are set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load_some<const B: usize>(lanes: __mmask16, weights: *const u8) -> __m512 {
    if B == 4 {
        // SAFETY: only lanes that exist are read.
        return unsafe { _mm512_maskz_loadu_ps(lanes, weights.cast()) };
    }
    // SAFETY: as above.
    let halves = unsafe { _mm256_maskz_loadu_epi16(lanes, weights.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// The totals of four sums, each added as a tree: halves, then quarters and so on, for all four at
/// once.
#[inline]
#[target_feature(enable = "avx512f")]
fn totals_of([a, b, c, d]: [__m512; 4]) -> __m128 {
    const LOW: i32 = 0b01_00_01_00;
    const HIGH: i32 = 0b11_10_11_10;
    const EVEN: i32 = 0b10_00_10_00;
    const ODD: i32 = 0b11_01_11_01;
    let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<LOW>(a, b), _mm512_shuffle_f32x4::<HIGH>(a, b));
    let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<LOW>(c, d), _mm512_shuffle_f32x4::<HIGH>(c, d));
    let all = _mm512_add_ps(_mm512_shuffle_f32x4::<EVEN>(ab, cd), _mm512_shuffle_f32x4::<ODD>(ab, cd));
    let pairs = _mm512_add_ps(all, _mm512_permute_ps::<0b11_10_11_10>(all));
    let totals = _mm512_add_ps(pairs, _mm512_permute_ps::<0b01_01_01_01>(pairs));
    let first_of_four = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm512_castps512_ps128(_mm512_permutexvar_ps(first_of_four, totals))
}
